r"""Fast ways to the products of linear.py, which has the formulas.

Q_x Q_wᵀ of int8, summed in int32, exactly. Which kernel runs changes no number, only the time:

    reference      int64: plain and slow, what the other two are tested against
    float          floats, at most 1024 terms a block: no sum of so many int8 products exceeds 1024 · 128² = 2²⁴, up to
                   which a float32 holds every integer. Blocks are added as int32. Fast without integer instructions.
    int_mm         torch._int_mm: the processor's own integer products. Fast where it has them (AVX-512 VNNI); elsewhere
                   40 to 90 times *slower* than a product of floats.

x Ŵᵀ of floats and int8 weights as (x Q_wᵀ) ⊙ s_wᵀ, with absmax and one scale a row, which leaves the sum:

    tiles          weights are read as floats a few outputs at a time, which stay in the cache
                   (test_the_fast_way_for_weights_is_the_plain_formula)
    single token   torch's kernel for at most four tokens, on the CPU. It reads a quarter of the bytes, which is what
                   one token costs, and computes in bfloat16: off by about 0.3 %
                   (test_the_fast_way_for_single_tokens_is_close)

Details that matter:
    1. A sum in float32 over 4096 terms would lose its last bits: 4096 · 127² > 2²⁴
       (test_a_long_sum_of_large_products_is_exact).
    2. Shapes that int_mm does not take are filled up with zeros, which add nothing
       (test_shapes_that_the_kernel_does_not_take_are_padded). The kernel for single tokens reads beyond its memory when
       K is no multiple of 16: such layers take tiles (test_single_tokens_of_any_width_are_computed).
    3. `int_mm` is tried only where the processor has such instructions; there each shape is timed once, and the faster
       kernel is kept (test_the_kernel_is_chosen_by_the_processor_and_then_by_the_clock).

Read next: llm_int8.py.
Try it:  python -m minialign quantize RUN --scheme vector-wise --bench
"""

import time
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from minialign.quant.mappings import Quantized
from minialign.runs.errors import UserError

BLOCK = 1024  # terms whose sum a float32 holds exactly: 1024 · 128 · 128 = 2²⁴
TILE = 512  # outputs whose weights are read as floats together: 2 MB with 1024 terms
LONGEST = 33_025  # terms whose sum an int32 holds, zero-points taken off: 33,025 · 255 · 255 < 2³¹
TAKES = {"cpu": (1, 1, 1), "cuda": (17, 8, 8)}  # torch._int_mm: fewest rows of X; what K and N must be multiples of
FEW = 4  # tokens; with more of them torch's kernel for single tokens is slower than the product of floats


def int8_matmul(a: Tensor, b: Tensor, kernel: str | None = None) -> Tensor:
    """A Bᵀ of (T, K) and (N, K) int8: (T, N) int32, exact, by a kernel of that name or the one that is faster here.

    Raises:
        UserError: types other than int8, or so many terms that an int32 could overflow.
    """
    if a.dtype != torch.int8 or b.dtype != torch.int8:
        raise UserError(f"an integer product needs int8 on both sides; these are {a.dtype} and {b.dtype}")
    assert a.dim() == b.dim() == 2 and a.shape[1] == b.shape[1], (a.shape, b.shape)
    if a.shape[1] > LONGEST:
        raise UserError(f"a sum of {a.shape[1]} products may overflow int32; the most is {LONGEST}")
    kernel = kernel or fastest_kernel(a.device.type, 1 << max(0, len(a) - 1).bit_length(), a.shape[1], len(b))
    with torch.autocast(a.device.type, enabled=False):  # sums of bfloat16 are not exact
        return KERNELS[kernel](a, b)


def by_reference(a: Tensor, b: Tensor) -> Tensor:
    """(T, N) int32 through int64: slow and plainly right."""
    return (a.long() @ b.long().T).int()


def by_float_blocks(a: Tensor, b: Tensor) -> Tensor:
    """(T, N) int32 as sums of float32 products of at most BLOCK terms, each exact, TILE outputs at a time."""
    total = torch.zeros(len(a), len(b), dtype=torch.int32, device=a.device)
    for k in range(0, a.shape[1], BLOCK):
        left = a[:, k : k + BLOCK].float()
        for n in range(0, len(b), TILE):
            total[:, n : n + TILE] += F.linear(left, b[n : n + TILE, k : k + BLOCK].float()).int()
    return total


def by_int_mm(a: Tensor, b: Tensor, takes: tuple[int, int, int] | None = None) -> Tensor:
    """(T, N) int32 by torch._int_mm, filled up with zeros to what it takes: fewest rows, multiples of K and N."""
    rows, inner, outer = takes or TAKES.get(a.device.type, TAKES["cuda"])
    T, N, K = len(a), len(b), a.shape[1]
    missing = max(0, rows - T), -N % outer, -K % inner
    if any(missing):
        a, b = F.pad(a, (0, missing[2], 0, missing[0])), F.pad(b, (0, missing[2], 0, missing[1]))
    return torch._int_mm(a, b.T)[:T, :N]


KERNELS = {"reference": by_reference, "float": by_float_blocks, "int_mm": by_int_mm}


def has_integer_products(device: str = "cpu") -> bool:
    """Whether the processor multiplies int8 by itself: AVX-512 VNNI on x86; CUDA does, and for mps torch has no such
    product."""
    return device == "cuda" or device == "cpu" and bool(torch.cpu._is_vnni_supported())


@lru_cache(maxsize=1024)
def fastest_kernel(device: str, T: int, K: int, N: int) -> str:
    """int_mm or float, whichever was faster for this shape in three tries; float where instructions are missing."""
    if not has_integer_products(device):
        return "float"
    if device != "cpu":
        return "int_mm"
    a, b = torch.ones(T, K, dtype=torch.int8), torch.ones(N, K, dtype=torch.int8)

    def seconds(kernel: str) -> float:
        began = time.perf_counter()
        KERNELS[kernel](a, b)
        return time.perf_counter() - began

    return min(("int_mm", "float"), key=lambda kernel: min([seconds(kernel) for _ in range(4)][1:]))


def fast_weight_product(x: Tensor, weight: Quantized, single_token: bool = False) -> Tensor | None:
    """x Ŵᵀ of (..., K) and (N, K): (..., N) float32; None where only the plain formula will do."""
    if weight.zero_point is not None or not weight.config.scales_rows:
        return None
    N, K = weight.values.shape
    on_cpu = x.device.type == "cpu"
    if single_token and on_cpu and 0 < x.numel() <= FEW * K and K % 16 == 0 and not x.requires_grad:
        ones = torch.ones(N, dtype=torch.bfloat16, device=x.device)  # the scales follow in float32, unrounded
        y = torch._weight_int8pack_mm(x.reshape(-1, K).bfloat16(), weight.values, ones).float()
        return y.mul_(weight.scale.T).view(*x.shape[:-1], N)
    if x.dtype != torch.float32:
        return None
    tiles = [F.linear(x, weight.values[n : n + TILE].float()) for n in range(0, N, TILE)]
    return (tiles[0] if len(tiles) == 1 else torch.cat(tiles, dim=-1)) * weight.scale.flatten()
