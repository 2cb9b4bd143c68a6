r"""Schemes: what is done to a linear layer, as one small configuration; the common ones have names.

    weights       int8 weights, floating-point products      4-bit-weights      the same with 4 bits in groups of 32
    absmax        int8 × int8, one absmax scale a matrix     zero-point         the same with zero-points
    row-wise      a scale for each row of X, one for W       vector-wise        a scale for each row of X and of W
    llm-int8      vector-wise, outlier columns in 16 bits    llm-int8-compact   only calibrated outliers are kept
    static        calibrated absmax scale of X               static-zero-point  calibrated zero-point scale of X
    nf4           4-bit NormalFloats (nf4.py)                gptq               4-bit-weights, rounded by gptq.py
    smoothquant   vector-wise, outliers moved into the weights before (smoothquant.py)

absmax, zero-point, row-wise, vector-wise and llm-int8 are rows of Dettmers et al. 2022, Table 1, as far as a CPU can
tell them apart. Read next: selection.py. See also: ptq.py.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from minialign.quant.calibration import OBSERVERS, MinMax, watch
from minialign.quant.linear import DynamicLinear, QuantizedLinear, StaticLinear, WeightOnlyLinear
from minialign.quant.llm_int8 import LLMInt8Linear
from minialign.quant.mappings import MappingConfig, Quantized, quantize_tensor
from minialign.quant.nf4 import NF4Config, NF4Linear, quantize_nf4
from minialign.quant.outliers import FeatureSizes
from minialign.runs.errors import UserError
from minialign.runs.settings import check_choices, check_ranges

CHOICES = {"method": ("weights", "dynamic", "static", "llm-int8", "nf4"), "observer": tuple(OBSERVERS),
           "outlier_weights": ("original", "calibrated", "dequantized"), "per": ("tensor", "row", "group"),
           "activation_per": ("tensor", "row"), "rounding": ("nearest", "gptq")}


@dataclass(frozen=True)
class SchemeConfig:
    """How linear layers are quantized."""

    method: str = "dynamic"  # weights (only) | dynamic | static | llm-int8 | nf4, which has settings of its own
    mapping: str = "absmax"  # of weights: absmax | zero-point
    bits: int = 8  # of a weight, 2 to 8
    per: str = "row"  # what shares a weight's scale: tensor | row (an output) | group (weights only)
    group: int = 32  # neighbours that share a scale, with per = group
    activation_mapping: str = "absmax"  # of activations: absmax | zero-point
    activation_bits: int = 8  # of an activation, 2 to 8
    activation_per: str = "row"  # what shares an activation's scale: tensor | row (a token); static ones are per tensor
    observer: str = "min-max"  # static: how the range is found: min-max | moving-average | percentile | mse
    threshold: float = 6.0  # llm-int8: columns with |x| at least this are outliers; 0 switches it off
    # llm-int8: whose 16-bit weights are kept: original (all) | calibrated | dequantized (none)
    outlier_weights: str = "original"
    rounding: str = "nearest"  # of weights: nearest | gptq, which needs a calibration set
    act_order: bool = False  # gptq: round the columns with the largest inputs first
    smoothing: float = 0.0  # α of SmoothQuant, which needs a calibration set; 0 leaves it out
    block: int = 64  # nf4: neighbours that share a scale
    double: bool = True  # nf4: quantize the scales, too
    single_token: bool = False  # weights: up to four tokens take a faster kernel that computes in bfloat16

    def __post_init__(self):
        check_choices(self, CHOICES)
        check_ranges(self, {"threshold": (0, math.inf), "smoothing": (0, 1)})
        weight, _, _ = self.weight_config, self.activation_config, NF4Config(self.block, self.double)  # their checks
        if self.method == "static" and self.activation_per != "tensor":
            raise UserError("a static scale is one for all tokens: activation_per must be tensor, or the method "
                            "dynamic")
        if self.method not in ("weights", "nf4") and not weight.scales_rows:
            raise UserError(f"groups of weights are for the method weights, not {self.method}: their scales would not "
                            f"leave the integer sum")
        if self.method == "nf4" and self.rounding == "gptq":
            raise UserError("gptq rounds to equally spaced codes, and nf4 has none; choose the method weights")
        if self.single_token and (self.method != "weights" or self.mapping != "absmax" or not weight.scales_rows):
            raise UserError("single_token is for the method weights, with absmax and one scale a row or tensor")

    @property
    def weight_config(self) -> MappingConfig:
        """Mapping of the weights."""
        return MappingConfig(self.mapping, self.bits, self.per, self.group)

    @property
    def activation_config(self) -> MappingConfig:
        """Mapping of the activations."""
        return MappingConfig(self.activation_mapping, self.activation_bits, self.activation_per)

    @property
    def calibrated(self) -> bool:
        """Whether it needs a calibration set."""
        return (self.method == "static" or self.rounding == "gptq" or self.smoothing > 0
                or self.method == "llm-int8" and self.outlier_weights == "calibrated")


SCHEMES = {
    "weights": SchemeConfig("weights"),
    "4-bit-weights": SchemeConfig("weights", bits=4, per="group"),
    "absmax": SchemeConfig(per="tensor", activation_per="tensor"),
    "zero-point": SchemeConfig(mapping="zero-point", per="tensor", activation_mapping="zero-point",
                               activation_per="tensor"),
    "row-wise": SchemeConfig(per="tensor"),
    "vector-wise": SchemeConfig(),
    "llm-int8": SchemeConfig("llm-int8"),
    "llm-int8-compact": SchemeConfig("llm-int8", outlier_weights="calibrated"),
    "nf4": SchemeConfig("nf4"),
    "smoothquant": SchemeConfig(smoothing=0.5),
    "gptq": SchemeConfig("weights", bits=4, per="group", rounding="gptq"),
    "static": SchemeConfig("static", activation_per="tensor"),
    "static-zero-point": SchemeConfig("static", activation_mapping="zero-point", activation_per="tensor"),
}


def scheme_named(name: str) -> SchemeConfig:
    """A scheme by its name. Raises UserError that lists the names."""
    if name not in SCHEMES:
        raise UserError(f"there is no scheme {name!r}; choose one of {', '.join(SCHEMES)}")
    return SCHEMES[name]


def observe(model: nn.Module, layers: dict[str, nn.Linear], batches: Iterable[Any],
            scheme: SchemeConfig) -> dict[str, MinMax]:
    """Show each layer's input to the observer that a scheme needs; the observers by name."""
    if scheme.method == "llm-int8":
        return watch(model, layers, batches, lambda: FeatureSizes(scheme.threshold))
    return watch(model, layers, batches, OBSERVERS[scheme.observer] if scheme.method == "static" else MinMax)


def integer_layer(weight: Quantized, bias: Tensor | None, name: str, scheme: SchemeConfig, scale: Tensor | None = None,
                  zero_point: Tensor | None = None) -> QuantizedLinear:
    """The layer of a scheme without outliers; `scale` and `zero_point` are those of its input, for static schemes."""
    if scheme.method == "weights":
        return WeightOnlyLinear(weight, bias, name, scheme.single_token)
    if scheme.method == "dynamic":
        return DynamicLinear(weight, bias, name, scheme.activation_config)
    return StaticLinear(weight, bias, name, scheme.activation_config, scale, zero_point)


def check_numbers(linear: nn.Linear, name: str) -> None:
    """Raise UserError, with the layer's name, for weights or a bias that are not finite."""
    for part, verb in (("weight", "weights hold"), ("bias", "bias holds")):
        tensor = getattr(linear, part)
        if tensor is not None and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{name}: its {verb} NaN or infinite values; take a checkpoint from before "
                            f"{'they' if part == 'weight' else 'it'} went wrong")


def quantized_layer(linear: nn.Linear, scheme: SchemeConfig, name: str = "this layer", observer: MinMax | None = None,
                    columns: Tensor | None = None, weight: Quantized | None = None) -> QuantizedLinear | NF4Linear:
    """One linear layer, which stays untouched, as a scheme has it.

    Args:
        observer: what saw its input, for static schemes; without it the layer refuses to work.
        columns: (K,) bool, outlier columns of the calibration set, for llm-int8 with calibrated outliers.
        weight: the weight's codes, where they are known already (gptq.py).
    Raises:
        UserError: weights that are not finite.
    """
    check_numbers(linear, name)
    if scheme.method == "nf4":
        return NF4Linear(quantize_nf4(linear.weight, NF4Config(scheme.block, scheme.double)), linear.bias)
    weight = weight or quantize_tensor(linear.weight, scheme.weight_config)
    if scheme.method == "llm-int8":
        every = torch.ones(linear.in_features, dtype=torch.bool, device=linear.weight.device)
        kept = {"original": every, "calibrated": columns, "dequantized": None}[scheme.outlier_weights]
        if kept is not None and not bool(torch.isfinite(linear.weight[:, kept].half()).all()):
            largest = float(linear.weight.detach()[:, kept].abs().max())
            raise UserError(f"{name}: its weights hold {largest:.3g}, beyond the 16 bits that outlier columns are kept "
                            f"in; use outlier weights dequantized, or mend the checkpoint")
        return LLMInt8Linear(weight, linear.bias, name, scheme.activation_config, scheme.threshold, kept, linear.weight)
    grid = () if scheme.method != "static" or observer is None else observer.scales(scheme.activation_config)
    return integer_layer(weight, linear.bias, name, scheme, *grid)
