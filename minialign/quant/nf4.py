r"""NormalFloat: sixteen levels where the weights of a network are, in blocks of 64, the scales quantized once more.

    qᵢ = ½ [ Φ⁻¹(i / 17) + Φ⁻¹((i + 1) / 17) ]     in the paper; in its code quantiles between δ and 1 − δ, divided by
                                                   the largest, one half with 8 of them, the other with 7, and 0
    c  = argminᵢ | x / s − qᵢ |,  s = max |x|  of 64 neighbours                       Dettmers et al. 2023 (QLoRA), §3
    s  ≈ m + a dₖ                               double quantization: the scales less their mean m, in 8 bits, one a for
                                                256 of them; d: a dynamic data type, Dettmers 2016, §3

Weights are about normal, so levels at the quantiles of a normal distribution are used more evenly (each by 2 to 9 %)
than equally spaced ones (1 to 14 %; zero-point, with both ends of every block, loses no more: the gain is over absmax,
test_normal_weights_lose_less_than_with_equally_spaced_levels). Bits a weight: 4 + 32/64 = 4.5, and with double
quantization 4 + 8/64 + 32/(64 · 256) = 4.127. A weight is read back to floating point whenever it is used, so what is
saved is memory, not time. Details that matter:
    1. 0 is a level, exactly: padding and pruned weights stay 0 (test_zero_is_a_level_and_comes_back).
    2. Both ends are levels: the largest weight of a block comes back as its scale says
       (test_the_largest_weight_of_a_block_comes_back).
    3. Two codes share a byte, the first in its upper half, as the bitsandbytes library has them; codes, scales and what
       comes back equal that library's, but for a few scales in a thousand between two levels, where it takes the one
       that is a little farther (tests/parity/test_nf4.py).
    4. Blocks run through the whole tensor, whatever its rows are; the last one may be shorter
       (test_any_shape_comes_back_and_the_last_block_may_be_shorter).
    5. For the backward pass a weight is read back once more instead of kept
       (test_training_beside_it_keeps_no_weight_in_full).

Read next: gptq.py. See also: peft/lora.py (QLoRA). Try it:  python -m minialign quantize RUN --scheme nf4
"""

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minialign.quant.mappings import TINY
from minialign.runs.errors import UserError
from minialign.runs.settings import check_ranges

TAIL = 0.5 * (1 / 32 + 1 / 30)  # δ: what is left out at either end, or the outermost quantile would be infinite


@dataclass(frozen=True)
class NF4Config:
    """How weights become NormalFloats."""

    block: int = 64  # neighbours that share a scale, an even number
    double: bool = True  # quantize the scales, too
    scale_block: int = 256  # scales that share a scale of their own

    def __post_init__(self):
        check_ranges(self, {"block": (2, 2**20), "scale_block": (1, 2**20)})
        if self.block % 2:
            raise UserError(f"block is {self.block}; two codes share a byte, so it must be even")


@functools.cache
def normal_levels() -> Tensor:
    """(16,) the levels, from −1 to 1: 7 quantiles of the normal distribution below 0, 0, and 8 above."""
    def quantiles(count: int) -> Tensor:
        return torch.special.ndtri(torch.linspace(1 - TAIL, 0.5, count + 1, dtype=torch.float64)[:-1])  # from the end

    levels = torch.cat([-quantiles(7), torch.zeros(1, dtype=torch.float64), quantiles(8).flip(0)])
    return (levels / levels.max()).float()


@functools.cache
def dynamic_levels() -> Tensor:
    """(256,) the 8-bit type of the scales: seven powers of ten, each with twice as many steps as the one below it."""
    levels = [torch.tensor([0.0, 1.0])]
    for power in range(7):
        edges = torch.linspace(0.1, 1.0, 2**power + 1)
        middles = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (power - 6)
        levels += [middles, -middles]
    return torch.cat(levels).sort().values


def nearest(x: Tensor, levels: Tensor) -> Tensor:
    """Index of the level nearest to each value, x's shape; between two the lower one."""
    return torch.bucketize(x, ((levels[:-1] + levels[1:]) / 2).to(x.device))


def in_blocks(x: Tensor, block: int) -> Tensor:
    """(blocks, block) of the flattened x, the last block filled up with zeros."""
    flat = x.detach().float().flatten()
    return F.pad(flat, (0, -len(flat) % block)).view(-1, block)


def pack(codes: Tensor) -> Tensor:
    """Codes from 0 to 15, an even number of them, two to a byte."""
    pairs = codes.flatten().to(torch.uint8).view(-1, 2)
    return pairs[:, 0] << 4 | pairs[:, 1]


def unpack(packed: Tensor) -> Tensor:
    """The codes of `pack`, as indices."""
    return torch.stack([packed >> 4, packed & 15], dim=1).flatten().long()


@dataclass
class NormalFloat:
    """A tensor in 4 bits a value, with what is needed to read it."""

    packed: Tensor  # (bytes,) uint8, two codes each
    scale: Tensor  # (blocks,) float32; with double quantization uint8 codes of `dynamic_levels`
    scale_scale: Tensor | None  # (⌈blocks / scale_block⌉,) float32: a; None without double quantization
    scale_mean: Tensor | None  # () float32: m
    shape: torch.Size
    config: NF4Config

    def scales(self) -> Tensor:
        """(blocks,) float32: s of each block."""
        if self.scale_scale is None:
            return self.scale
        each = self.scale_scale.repeat_interleave(self.config.scale_block)[: len(self.scale)]
        return dynamic_levels().to(self.scale.device)[self.scale.long()] * each + self.scale_mean

    def dequantize(self) -> Tensor:
        """x̂ = s q, float32, the tensor's shape."""
        codes = F.pad(self.packed, (0, len(self.scale) * self.config.block // 2 - len(self.packed)))
        values = normal_levels().to(codes.device)[unpack(codes)].view(-1, self.config.block) * self.scales()[:, None]
        return values.flatten()[: self.shape.numel()].view(self.shape)

    @property
    def bytes(self) -> int:
        """What the tensors take in memory, scales included."""
        parts = (self.packed, self.scale, self.scale_scale, self.scale_mean)
        return sum(part.numel() * part.element_size() for part in parts if part is not None)


def quantize_nf4(x: Tensor, config: NF4Config = NF4Config()) -> NormalFloat:
    """Map a tensor of any shape and float type. Raises UserError where a value is not finite."""
    blocks = in_blocks(x, config.block)
    scale = blocks.abs().amax(dim=1)  # (blocks,)
    if not bool(torch.isfinite(scale).all()):
        raise UserError("there are values that are not finite (NaN or infinite); no scale can hold them: look for the "
                        "layer that made them")
    codes = nearest(blocks * (1 / scale.clamp(min=TINY))[:, None], normal_levels())
    packed = pack(codes)[: (x.numel() + 1) // 2]  # none for what the last block was filled up with
    if not config.double:
        return NormalFloat(packed, scale, None, None, x.shape, config)
    mean = scale.mean()
    groups = in_blocks(scale - mean, config.scale_block)
    scale_scale = groups.abs().amax(dim=1)
    coded = nearest(groups / scale_scale.clamp(min=TINY)[:, None], dynamic_levels()).flatten()[: len(scale)]
    return NormalFloat(packed, coded.to(torch.uint8), scale_scale, mean, x.shape, config)


class ReadBack(torch.autograd.Function):
    """x Ŵᵀ, with a gradient for x; Ŵ is read back anew for it, or all layers' weights would wait in full for the
    backward pass."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: NormalFloat) -> Tensor:
        """(..., K) -> (..., N), x's type."""
        ctx.weight = weight
        return F.linear(x, weight.dequantize().to(x.dtype))

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        """(..., N) -> (..., K), the gradient's type; none for the weight."""
        return gradient @ ctx.weight.dequantize().to(gradient.dtype), None


class NF4Linear(nn.Module):
    """A linear layer whose frozen weight is a NormalFloat; what stands beside it (a LoRA: QLoRA) trains through it.

    Args:
        weight: (N, K); bias: (N,) or None.
    """

    def __init__(self, weight: NormalFloat, bias: Tensor | None = None):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.config = weight.config
        for name in ("packed", "scale", "scale_scale", "scale_mean"):
            self.register_buffer(name, getattr(weight, name))
        self.register_buffer("bias", None if bias is None else bias.detach().float().clone())

    def quantized_weight(self) -> NormalFloat:
        """The weight's codes and scales."""
        return NormalFloat(self.packed, self.scale, self.scale_scale, self.scale_mean,
                           torch.Size((self.out_features, self.in_features)), self.config)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N), x's type."""
        y = ReadBack.apply(x, self.quantized_weight())
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        return f"{self.in_features}, {self.out_features}, block={self.config.block}, double={self.config.double}"
