r"""Schemes: what is done to a model's linear layers, as one small configuration; the common ones have names.

    weights              int8 weights, floating-point products              4-bit-weights        the same with 4 bits in groups of 32
    absmax             int8 × int8, one absmax scale a matrix             zero-point           the same with zero-points
    row-wise             a scale for each row of X, one for W    vector-wise          a scale for each row of X and of W
    llm-int8             vector-wise, outlier columns in 16 bits            llm-int8-compact     only calibrated outlier columns keep their weights
    static               calibrated absmax scale of X              static-zero-point    calibrated zero-point scale of X

absmax, zero-point, row-wise, vector-wise and llm-int8 are rows of Dettmers et al. 2022, Table 1, as far as a CPU can
tell them apart. Read next: ptq.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from minialign.quant.calibration import OBSERVERS
from minialign.quant.mappings import MappingConfig
from minialign.runs.errors import UserError
from minialign.runs.settings import check_ranges

METHODS = ("weights", "dynamic", "static", "llm-int8")
ORIGINALS = ("original", "calibrated", "dequantized")


@dataclass(frozen=True)
class SchemeConfig:
    """How linear layers are quantized."""

    method: str = "dynamic"  # weights (only) | dynamic | static | llm-int8
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
    single_token: bool = False  # weights: up to four tokens take a faster kernel that computes in bfloat16

    def __post_init__(self):
        choices = {"method": METHODS, "observer": tuple(OBSERVERS), "outlier_weights": ORIGINALS,
                   "per": ("tensor", "row", "group")}
        for name, allowed in {**choices, "activation_per": ("tensor", "row")}.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}")
        check_ranges(self, {"threshold": (0, math.inf)})
        if self.method == "static" and self.activation_per != "tensor":
            raise UserError("a static scale is one for all tokens: activation_per must be tensor, or the method dynamic")
        if self.per == "group" and self.method != "weights":
            raise UserError(f"groups of weights are for the method weights, not {self.method}: their scales would not "
                            f"leave the integer sum")
        if self.single_token and (self.method != "weights" or self.mapping != "absmax" or self.per == "group"):
            raise UserError("single_token is for the method weights, with absmax and one scale a row or tensor")
        _ = self.weight_config, self.activation_config  # their own checks

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
        return self.method == "static" or (self.method == "llm-int8" and self.outlier_weights == "calibrated")


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
    "static": SchemeConfig("static", activation_per="tensor"),
    "static-zero-point": SchemeConfig("static", activation_mapping="zero-point", activation_per="tensor"),
}


def scheme_named(name: str) -> SchemeConfig:
    """A scheme by its name. Raises UserError that lists the names."""
    if name not in SCHEMES:
        raise UserError(f"there is no scheme {name!r}; choose one of {', '.join(SCHEMES)}")
    return SCHEMES[name]
