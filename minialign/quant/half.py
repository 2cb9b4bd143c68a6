r"""Half precision: sixteen bits a number, half the bytes of float32, and no scale to keep.

    float16     1 sign, 5 exponent, 10 fraction bits     largest 65,504    smallest 6 · 10⁻⁸     relative step 2⁻¹¹
    bfloat16    1 sign, 8 exponent,  7 fraction bits     largest 3 · 10³⁸  smallest 9 · 10⁻⁴¹    relative step 2⁻⁸

    store       weights in 16 bits, read back to the type of x when used: half the bytes, on any processor
    compute     everything in 16 bits, norms in float32: faster only where the processor multiplies 16-bit numbers

It is rounding to a smaller set of floats (65,536 of them), not a continuous range; nobody calls it quantization,
because nothing is stored beside the numbers. Details that matter:
    1. 70,000 becomes infinite in float16 and 70,144 in bfloat16; 10⁻⁸ becomes 0 in float16
       (test_what_overflows_and_what_vanishes).
    2. Norms and the softmax are computed in float32: a sum of squares of a few hundreds is beyond float16
       (test_norms_are_computed_in_float32).
    3. A weight that would overflow is an error that names it
       (test_a_weight_that_does_not_fit_is_an_error_that_names_it). Which layers' outputs would can be seen beforehand,
       in float32 (test_the_overflow_report_names_the_layer).

Source: Micikevicius et al. 2018, §3. Read next: tables.py. See also: saving.py.
Try it:  python -m minialign quantize RUN --scheme bf16 --text FILE
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minialign.quant.calibration import run_watched
from minialign.runs.errors import UserError
from minialign.runs.submodules import replace_modules

HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def rounded(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """A parameter in 16 bits. Raises UserError, with its name, for a number beyond the type's range."""
    half = tensor.detach().to(dtype)
    if not bool(torch.isfinite(half).all()):
        largest, wider = float(tensor.detach().abs().max()), bool(torch.isfinite(tensor.to(torch.bfloat16)).all())
        raise UserError(f"{name} holds {largest:.3g}; the largest number of {dtype} is {torch.finfo(dtype).max:.3g}: "
                        f"{'use bf16, or ' * wider}mend the checkpoint")
    return half


class HalfLinear(nn.Module):
    """A linear layer whose weight (N, K) is stored in 16 bits and used in the type of its input."""

    def __init__(self, stored: Tensor, bias: Tensor | None = None):
        super().__init__()
        self.out_features, self.in_features = stored.shape
        self.register_buffer("stored", stored)
        self.register_buffer("bias", None if bias is None else bias.detach().float().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N), x's type."""
        return F.linear(x, self.stored.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class HalfEmbedding(nn.Module):
    """A table (V, D) stored in 16 bits that gives float32 vectors."""

    def __init__(self, stored: Tensor):
        super().__init__()
        self.num_embeddings, self.embedding_dim = stored.shape
        self.register_buffer("stored", stored)

    @property
    def weight(self) -> Tensor:
        """(V, D) float32, for heads that multiply by it; made when asked for."""
        return self.stored.float()

    def forward(self, tokens: Tensor) -> Tensor:
        """(...) ids -> (..., D)."""
        return F.embedding(tokens, self.stored).float()


def store_half(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Store the weights of a model's linear layers and embeddings in 16 bits, one that several share only once.

    Returns:
        The same model, in evaluation mode.
    Raises:
        UserError: a weight beyond the type's range; the model is unchanged.
    """
    new, stored = {}, {}
    for name, module in model.named_modules():
        if type(module) in (nn.Linear, nn.Embedding):
            key = id(module.weight)
            if key not in stored:
                stored[key] = rounded(module.weight, dtype, f"{name}.weight")
            linear = type(module) is nn.Linear
            new[name] = HalfLinear(stored[key], module.bias) if linear else HalfEmbedding(stored[key])
    if not new:
        raise UserError("the model has neither linear layers nor embeddings; there is nothing to store in 16 bits")
    replace_modules(model, new)
    return model.eval()


class InFloat32(nn.Module):
    """A norm that is computed in float32 whatever comes in, and gives back the type that came."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norm = norm.float()

    def forward(self, x: Tensor) -> Tensor:
        """x's shape and type."""
        return self.norm(x.float()).to(x.dtype)


def compute_half(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Compute a model in 16 bits: all parameters are converted, but those of norms. The same model.

    Raises:
        UserError: a parameter beyond the type's range; the model is unchanged.
    """
    for name, parameter in model.named_parameters():
        rounded(parameter, dtype, name)
    norms = {name: module for name, module in model.named_modules() if is_norm(module) and name}
    kept = [(tensor, tensor.detach().float().clone()) for norm in norms.values()
            for tensor in (*norm.parameters(), *norm.buffers()) if tensor.is_floating_point()]
    model.to(dtype)
    for tensor, before in kept:
        tensor.data = before  # as it was, not rounded and widened again
    replace_modules(model, {name: InFloat32(norm) for name, norm in norms.items()})
    return model


def is_norm(module: nn.Module) -> bool:
    """Whether the name of its class ends in Norm."""
    return type(module).__name__.endswith("Norm")


@dataclass
class Extremes:
    """What a layer's output would meet in 16 bits."""

    name: str  # of the layer
    largest: float = 0.0  # |y| in float32
    overflows: float = 0.0  # share of outputs beyond the type's range
    vanishes: float = 0.0  # share of outputs that are not 0 and would be


def overflow_report(model: nn.Module, batches: Iterable[Any], dtype: torch.dtype) -> list[Extremes]:
    """Which linear layers' and norms' outputs would overflow or vanish in 16 bits, the largest first.

    The model is run in float32 on batches, as for `ptq.quantize`, and unchanged afterwards.
    """
    layers = {name: module for name, module in model.named_modules()
              if name and (isinstance(module, nn.Linear) or is_norm(module))}
    found, seen = {name: Extremes(name) for name in layers}, dict.fromkeys(layers, 0)  # seen: outputs so far

    def see(name: str, _: Tensor, y: Tensor) -> None:
        if bool(y.isnan().any()):
            raise UserError(f"{name}: its output holds NaN in float32 already; look for the layer before it that makes "
                            f"them")
        half, extremes, before, after = y.to(dtype), found[name], seen[name], seen[name] + y.numel()
        extremes.largest = max(extremes.largest, float(y.abs().max()))
        extremes.overflows = (extremes.overflows * before + int((half.isinf() & y.isfinite()).sum())) / after
        extremes.vanishes = (extremes.vanishes * before + int(((half == 0) & (y != 0)).sum())) / after
        seen[name] = after

    run_watched(model, layers, batches, see)
    return sorted(found.values(), key=lambda extremes: -extremes.largest)
