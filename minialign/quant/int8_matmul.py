r"""Matrix products of integers: int8 × int8, summed in int32, without rounding anywhere; real numbers come back at the
very end.

    X ≈ s_x (Q_x − z_x)  (T, K)      W ≈ s_w (Q_w − z_w)  (N, K)
    X Wᵀ ≈ s_x s_wᵀ ⊙ [ Q_x Q_wᵀ − z_x 1 (Q_w 1)ᵀ − (Q_x 1) z_wᵀ + K z_x z_wᵀ ]           Jacob et al. 2018, §2.3, Eq. 7

With a scale for each row of X and each row of W (each *column* of the paper's W, which is our Wᵀ) the scales are an
outer product: vector-wise quantization, Dettmers et al. 2022, §3.1, Eq. 3. With absmax all z are 0 and the last three
terms are gone.

Three ways to the same integers; which one runs changes no number, only the time:
    int_mm       torch._int_mm: the processor's own integer products. Fast where it has them (AVX-512 VNNI); elsewhere 40 to 90 times *slower*
                 than a product of floats.
    float        a product of floats of at most 1024 terms a block. No sum of so many int8 products exceeds 1024 · 128² = 2²⁴, up to which a float32
                 holds every integer, so it is exact; blocks are added as int32. The fast way without integer
                 instructions.
    reference    int64, slow: what the other two are tested against.

Details that matter:
    1. A sum in float32 over 4096 terms would lose its last bits: 4096 · 127² > 2²⁴
       (test_a_long_sum_of_large_products_is_exact).
    2. Scales multiply the finished integers, one for each row of X and of W (test_scales_are_an_outer_product).
    3. Shapes that a kernel does not take are filled up with zeros, which add nothing
       (test_shapes_that_the_kernel_does_not_take_are_padded).
    4. `int_mm` is tried only where the processor has such instructions; there each shape is timed once, and the faster
       way is kept.

Read next: linear.py (the layers). Try it:  python -m minialign quantize RUN --scheme vector-wise --bench
"""

from __future__ import annotations

import time
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from minialign.runs.errors import UserError

BLOCK = 1024  # terms whose sum a float32 holds exactly: 1024 · 128 · 128 = 2²⁴
TILE = 512  # outputs whose weights are read as floats together: 2 MB with 1024 terms
LONGEST = 33_025  # terms whose sum an int32 holds, zero-points taken off: 33,025 · 255 · 255 < 2³¹
TAKES = {"cpu": (1, 1, 1), "cuda": (17, 8, 8)}  # torch._int_mm: fewest rows of X; what K and N must be multiples of


def int8_matmul(a: Tensor, b: Tensor, kernel: str | None = None) -> Tensor:
    """A Bᵀ in integers.

    Args:
        a: (T, K) int8; b: (N, K) int8.
        kernel: int_mm | float | reference; None takes the one that is faster here. All give the same integers.
    Returns:
        (T, N) int32, exact.
    Raises:
        UserError: types other than int8, or so many terms that an int32 could overflow.
    """
    if a.dtype != torch.int8 or b.dtype != torch.int8:
        raise UserError(f"an integer product needs int8 on both sides; these are {a.dtype} and {b.dtype}")
    assert a.dim() == b.dim() == 2 and a.shape[1] == b.shape[1], (a.shape, b.shape)
    if a.shape[1] > LONGEST:
        raise UserError(f"a sum of {a.shape[1]} products may overflow int32; the most is {LONGEST}")
    kernel = kernel or fastest_kernel(a.device.type, 1 << max(0, len(a) - 1).bit_length(), a.shape[1], len(b))
    return {"int_mm": by_int_mm, "float": by_float_blocks, "reference": by_reference}[kernel](a, b)


def by_reference(a: Tensor, b: Tensor) -> Tensor:
    """(T, N) int32 through int64: slow and plainly right."""
    return (a.long() @ b.long().T).int()


def by_float_blocks(a: Tensor, b: Tensor) -> Tensor:
    """(T, N) int32 as sums of float32 products of at most BLOCK terms, each exact; TILE outputs at a time, whose floats
    stay in the cache."""
    total = torch.zeros(len(a), len(b), dtype=torch.int32)
    for k in range(0, a.shape[1], BLOCK):
        left = a[:, k : k + BLOCK].float()
        for n in range(0, len(b), TILE):
            total[:, n : n + TILE] += F.linear(left, b[n : n + TILE, k : k + BLOCK].float()).int()
    return total


def by_int_mm(a: Tensor, b: Tensor, takes: tuple[int, int, int] | None = None) -> Tensor:
    """(T, N) int32 by torch._int_mm, filled up with zeros to what it takes: at least rows, multiples of K and N."""
    rows, inner, outer = takes or TAKES.get(a.device.type, TAKES["cuda"])
    T, N, K = len(a), len(b), a.shape[1]
    missing = max(0, rows - T), -N % outer, -K % inner
    if any(missing):
        a, b = F.pad(a, (0, missing[2], 0, missing[0])), F.pad(b, (0, missing[2], 0, missing[1]))
    return torch._int_mm(a, b.T)[:T, :N]


def has_integer_products(device: str = "cpu") -> bool:
    """Whether the processor multiplies int8 by itself: AVX-512 VNNI on x86; graphics cards do."""
    return device != "cpu" or bool(torch.cpu._is_vnni_supported())


@lru_cache(maxsize=1024)
def fastest_kernel(device: str, T: int, K: int, N: int) -> str:
    """int_mm or float, whichever was faster for this shape in three tries each; never int_mm where the processor lacks
    the instructions."""
    if not has_integer_products(device):
        return "float"
    if device != "cpu":
        return "int_mm"
    a, b = torch.ones(T, K, dtype=torch.int8), torch.ones(N, K, dtype=torch.int8)
    times = {}
    for name, kernel in (("int_mm", by_int_mm), ("float", by_float_blocks)):
        kernel(a, b)
        tries = []
        for _ in range(3):
            began = time.perf_counter()
            kernel(a, b)
            tries.append(time.perf_counter() - began)
        times[name] = min(tries)
    return min(times, key=times.get)


def integer_linear(
    x: Tensor, x_scale: Tensor, x_zero: Tensor | None, w: Tensor, w_scale: Tensor, w_zero: Tensor | None,
    w_sum: Tensor | None = None
) -> Tensor:
    r"""X Wᵀ from the integers of both, the zero-points' terms written out.

    Args:
        x: (T, K) int8; x_scale: (T, 1) or (1, 1); x_zero: int32, the scale's shape, or None for absmax.
        w: (N, K) int8; w_scale: (N, 1) or (1, 1); w_zero: likewise.
        w_sum: (N,) int32, the sums of w's rows, when they are known already.
    Returns:
        (T, N) float32.
    """
    total = int8_matmul(x, w)  # (T, N) int32   Q_x Q_wᵀ
    if x_zero is not None:
        w_sum = w.sum(dim=1, dtype=torch.int32) if w_sum is None else w_sum  # (N,)
        total = total - x_zero * w_sum  # z_x (Q_w 1)ᵀ
    if w_zero is not None:
        total = total - x.sum(dim=1, keepdim=True, dtype=torch.int32) * w_zero.T  # (Q_x 1) z_wᵀ
        if x_zero is not None:
            total = total + x.shape[1] * x_zero * w_zero.T  # K z_x z_wᵀ
    return total.float().mul_(x_scale).mul_(w_scale.T)  # (T, N)   s_x s_wᵀ
