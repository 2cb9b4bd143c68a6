r"""Half precision: sixteen bits a number, half the bytes of float32, and no scale to keep.

    float16     1 sign, 5 exponent, 10 fraction bits     largest 65,504    smallest 6 · 10⁻⁸     relative step 2⁻¹¹
    bfloat16    1 sign, 8 exponent,  7 fraction bits     largest 3 · 10³⁸  smallest 9 · 10⁻⁴¹    relative step 2⁻⁸

It is rounding to a smaller set of floats (65,536 of them), not a continuous range; nobody calls it quantization,
because nothing is stored beside the numbers. float16 is finer, and overflows; bfloat16 has float32's range, and is
coarse. Two ways:

    store    weights in 16 bits, read back to the type of x when used: half the bytes, same range as before, on any processor
    compute  everything in 16 bits, norms in float32: faster only where the processor multiplies 16-bit numbers by
    itself

Details that matter:
    1. 70,000 becomes infinite in float16 and 70,144 in bfloat16; 10⁻⁸ becomes 0 in float16
       (test_what_overflows_and_what_vanishes).
    2. Norms and the softmax are computed in float32: a sum of squares of a few hundreds is beyond float16
       (test_norms_are_computed_in_float32).
    3. A weight that would overflow is an error that names it
       (test_a_weight_that_does_not_fit_is_an_error_that_names_it).
    4. Which of a model's layers would overflow can be seen beforehand, on text, in float32
       (test_the_overflow_report_names_the_layer).
    5. bfloat16 products on a processor without instructions for them are many times slower, so mixed precision is on
       only where a quick measurement says that it pays (test_mixed_precision_is_on_only_where_it_pays).

Source: Micikevicius et al. 2018, §3. Read next: saving.py.
Try it:  python -m minialign quantize RUN --scheme bf16 --text FILE
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minialign.heads import evaluating
from minialign.quant.calibration import feed
from minialign.runs.errors import UserError
from minialign.runs.submodules import replace_modules

HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def rounded(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """A parameter in 16 bits. Raises UserError, with its name, when a finite number in it is beyond the type's range,
    or one was not finite before."""
    half = tensor.detach().to(dtype)
    if not bool(torch.isfinite(half).all()):
        largest = float(tensor.detach().abs().max())
        raise UserError(f"{name} holds {largest:.3g}; the largest number of {dtype} is {torch.finfo(dtype).max:.3g}: "
                        f"use bf16, or mend the checkpoint")
    return half


class HalfLinear(nn.Module):
    """A linear layer whose weight is stored in 16 bits and used in the type of its input.

    Args:
        stored: (N, K) 16-bit weight; bias: (N,) or None, which stays as it is.
    """

    def __init__(self, stored: Tensor, bias: Tensor | None = None):
        super().__init__()
        self.out_features, self.in_features = stored.shape
        self.register_buffer("stored", stored)
        self.register_buffer("bias", None if bias is None else bias.detach().float().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N), x's type."""
        return F.linear(x, self.stored.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class HalfEmbedding(nn.Module):
    """A table stored in 16 bits that gives float32 vectors; `weight` is the whole table in float32, for heads that
    multiply by it.

    Args:
        stored: (V, D) 16-bit table.
    """

    def __init__(self, stored: Tensor):
        super().__init__()
        self.num_embeddings, self.embedding_dim = stored.shape
        self.register_buffer("stored", stored)

    @property
    def weight(self) -> Tensor:
        """(V, D) float32, made when asked for."""
        return self.stored.float()

    def forward(self, tokens: Tensor) -> Tensor:
        """(...) ids -> (..., D)."""
        return F.embedding(tokens, self.stored).float()


def store_half(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Store the weights of all linear layers and embeddings in 16 bits; a weight that two of them share is stored once.

    Returns:
        The same model, changed, in evaluation mode.
    Raises:
        UserError: a weight beyond the type's range; the model is unchanged.
    """
    new, stored = {}, {}
    for name, module in model.named_modules():
        if type(module) in (nn.Linear, nn.Embedding):
            key = id(module.weight)
            if key not in stored:
                stored[key] = rounded(module.weight, dtype, f"{name}.weight")
            new[name] = HalfLinear(stored[key],
                                   module.bias) if type(module) is nn.Linear else HalfEmbedding(stored[key])
    if not new:
        raise UserError("the model has neither linear layers nor embeddings; there is nothing to store in 16 bits")
    replace_modules(model, new)
    return model.eval()


class InFloat32(nn.Module):
    """A norm that is computed in float32 whatever comes in, and gives back the type that came.

    Args:
        norm: kept in float32.
    """

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norm = norm.float()

    def forward(self, x: Tensor) -> Tensor:
        """x's shape and type."""
        return self.norm(x.float()).to(x.dtype)


def compute_half(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert all parameters to 16 bits, norms (classes whose name ends in Norm) excepted, so that everything else is
    computed in 16 bits too.

    Returns:
        The same model, changed.
    Raises:
        UserError: a parameter beyond the type's range; the model is unchanged.
    """
    for name, parameter in model.named_parameters():
        rounded(parameter, dtype, name)
    norms = {name: module for name, module in model.named_modules() if type(module).__name__.endswith("Norm") and name}
    kept = [(tensor, tensor.detach().float().clone()) for norm in norms.values() for tensor in tensors_in(norm)]
    model.to(dtype)
    for tensor, before in kept:
        tensor.data = before  # as it was, not rounded and widened again
    replace_modules(model, {name: InFloat32(norm) for name, norm in norms.items()})
    return model


def tensors_in(module: nn.Module) -> list[Tensor]:
    """A module's parameters and buffers of real numbers."""
    return [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point()]


@dataclass
class Extremes:
    """What a layer's output would meet in 16 bits."""

    name: str  # of the layer
    largest: float = 0.0  # |y| in float32
    overflows: float = 0.0  # share of outputs beyond the type's range
    vanishes: float = 0.0  # share of outputs that are not 0 and would be


class Watched(nn.Module):
    """A module that notes the extremes of its output and computes as before."""

    def __init__(self, inner: nn.Module, found: Extremes, dtype: torch.dtype):
        super().__init__()
        self.inner, self.found, self.dtype, self.seen = inner, found, dtype, 0

    def forward(self, *arguments, **keywords) -> Tensor:
        """The module's own output."""
        y = self.inner(*arguments, **keywords)
        half, found, n = y.to(self.dtype), self.found, y.numel()
        found.largest = max(found.largest, float(y.abs().max()))
        for field, count in (("overflows", half.isinf() & y.isfinite()), ("vanishes", (half == 0) & (y != 0))):
            setattr(found, field, (getattr(found, field) * self.seen + int(count.sum())) / (self.seen + n))
        self.seen += n
        return y


def overflow_report(model: nn.Module, batches: Iterable[Any], dtype: torch.dtype) -> list[Extremes]:
    """Run a model in float32 and see which linear layers' and norms' outputs would overflow or vanish in 16 bits.

    Args:
        model: unchanged afterwards; batches: as for `ptq.quantize`; dtype: torch.float16 or torch.bfloat16.
    Returns:
        One entry a layer, the largest output first.
    """
    def kinds(m):
        return isinstance(m, nn.Linear) or type(m).__name__.endswith("Norm")
    watched = {name: Watched(module, Extremes(name), dtype) for name, module in model.named_modules() if kinds(module)
               and name}
    replace_modules(model, watched)
    try:
        with evaluating(model):
            feed(model, batches)
    finally:
        replace_modules(model, {name: wrapper.inner for name, wrapper in watched.items()})
    return sorted((wrapper.found for wrapper in watched.values()), key=lambda found: -found.largest)


@lru_cache(maxsize=64)
def bf16_speed(rows: int = 256, width: int = 512) -> float:
    """How many times faster one bfloat16 product is than the same in float32, here and now; below 1 it is slower. Best
    of three each."""
    x, w = torch.ones(rows, width), torch.ones(width, width)
    times = []
    for a, b in ((x, w), (x.bfloat16(), w.bfloat16())):
        F.linear(a, b)
        tries = []
        for _ in range(3):
            began = time.perf_counter()
            F.linear(a, b)
            tries.append(time.perf_counter() - began)
        times.append(min(tries))
    return times[0] / times[1]


def mixed_precision(rows: int = 256, width: int = 512) -> AbstractContextManager:
    """Autocast to bfloat16 where a product of this size is faster so, else nothing: weights, norms and losses stay in
    float32 either way."""
    return torch.autocast("cpu", torch.bfloat16, enabled=bf16_speed(rows, width) > 1.1)
