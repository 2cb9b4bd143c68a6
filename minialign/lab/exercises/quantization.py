r"""Exercises of notebook 07: absmax, zero-point, rounding that can be trained through, integers that are multiplied."""

import math

import torch
from torch import Tensor, tensor

from minialign.lab.exercises.exercise import Wrong, exercise
from minialign.quant import linear, mappings, qat
from minialign.quant.mappings import MappingConfig, Quantized, quantize_tensor, to_codes

HEADING = "Quantization"
ABSMAX, ZERO_POINT, FOUR_BITS = MappingConfig(), MappingConfig(mapping="zero-point"), MappingConfig(bits=4)
GRID = torch.linspace(-6.35, 6.35, 100_001)


def _absmax(x: Tensor) -> tuple[Tensor, Tensor]:
    mapped = quantize_tensor(x, ABSMAX)
    return mapped.values, mapped.scale.squeeze()


def _codes_and_scale(found: tuple) -> tuple:
    """The scale of zeros only has to be above 0."""
    q, s = found[0], float(found[1])
    return q, s if bool(q.any()) else "a scale above 0" if 0 < s < math.inf else "a scale of 0 (or no number)"


def _zero_point(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mapped = quantize_tensor(x, ZERO_POINT)
    return mapped.values, mapped.scale.squeeze(), mapped.zero_point.squeeze()


def _with_range(x: Tensor, low: Tensor, high: Tensor, steps: int = 255, inside: bool = True) -> tuple:
    scale = (high - low) / steps
    zero = -128 - (low / scale).round()
    zero = (zero.clamp(-128, 127) if inside else zero).int()
    return ((x / scale).round() + zero).clamp(-128, 127).to(torch.int8), scale, zero


def _minus_zero(x: Tensor) -> tuple:
    _, scale, zero = _zero_point(x)
    return ((x / scale).round() - zero).clamp(-128, 127).to(torch.int8), scale, zero


def _unsigned(x: Tensor) -> tuple:
    codes, scale, zero = _zero_point(x)
    return (codes.int() + 128).to(torch.uint8), scale, zero + 128


def _codes(x: Tensor, scale: Tensor, low: int = -127, high: int = 127) -> tuple[Tensor, Tensor]:
    return (x / scale).round().clamp(low, high).to(torch.int8), scale


def _products() -> list[tuple]:
    chance = torch.Generator().manual_seed(0)
    x, w = (torch.randint(-127, 128, (rows, 64), generator=chance).to(torch.int8) for rows in (2, 3))
    small = tensor([[100, 2], [-50, 127]]).to(torch.int8), tensor([[3, 1], [100, 100]]).to(torch.int8)
    scales = tensor([[0.5], [0.25]])
    return [(small[0], scales, small[1], tensor([[0.1], [2.0]])), (x, scales, w, tensor([[0.1], [2.0], [3.0]]))]


def _through(value: Tensor, x: Tensor) -> Tensor:
    """The value, with the gradient of x."""
    return x + (value - x).detach()


def _squared_error(x: Tensor, scale: Tensor) -> float:
    return float(((to_codes(x, scale, None, FOUR_BITS).float() * scale - x) ** 2).mean())


def _judge_scale(answer) -> str:
    x = torch.cat([torch.randn(4000, generator=torch.Generator().manual_seed(0)), tensor([12.0, -15.0])])
    found, absmax, positive = answer(x.clone()), x.abs().max() / 7, "The scale must be one number above 0; yours is"
    try:
        scale = torch.as_tensor(found).float()
    except (TypeError, ValueError, RuntimeError):
        raise Wrong("positive", f"{positive} {str(found)[:60]!r}. It divides the values.") from None
    if scale.numel() != 1 or not 0 < float(scale) < math.inf:
        raise Wrong("positive", f"{positive} {scale.tolist()}. It divides the values.")
    mine, theirs = _squared_error(x, scale), _squared_error(x, absmax)
    numbers = (f"mean squared error {mine:.4f} with your scale {float(scale):.4f}; absmax, scale {float(absmax):.4f}, "
               f"has {theirs:.4f}")
    if abs(float(scale / absmax) - 1) < 1e-3:
        raise Wrong("absmax", f"This is absmax again: {numbers}. The value -15 alone sets the step, and 4000 others "
                              f"pay for it. Let it be cut off.")
    if mine >= 0.25 * theirs:
        key, why = "coarse", "still gives most codes to values that nearly never come"
        if float(scale) < 0.3:
            key, why = "fine", "cuts off too much"
        raise Wrong(key, f"Below a quarter of absmax's error is wanted: {numbers}. Your grid ends at "
                         f"{7 * float(scale):.2f} and {why}: try several, keep the best.")
    return f"The {numbers}."


@exercise(
    "write", HEADING, mappings.absmax_scale,
    stub="x: any shape, float32. Returns (q, s).",
    cases=lambda: [(tensor([0.5, -2.54, 1.0, 0.035]),), (tensor([[-0.2, 0.9], [0.4, 1.27]]),), (torch.zeros(3),)],
    reference=_absmax, tolerance=1e-5,
    seen=_codes_and_scale,
    mistakes={
        "levels_128": tuple(lambda x, ends=ends: _codes(x, (x.abs().max() / 128).clamp(min=mappings.TINY), *ends)
                            for ends in ((-127, 127), (-128, 127), (-128, 128))),
        "half_level": lambda x: _codes(x, (x.abs().max() / 127.5).clamp(min=mappings.TINY)),
        "signed_max": lambda x: _codes(x, (x.max() / 127).clamp(min=mappings.TINY)),
        "truncated": lambda x: ((x / _absmax(x)[1]).clamp(-127, 127).to(torch.int8), _absmax(x)[1]),
        "inverted": lambda x: (_absmax(x)[0], 1 / _absmax(x)[1]),
        "zeros": lambda x: _codes(x, x.abs().max() / 127),
    },
)
def absmax(x):
    """Map to int8 with one symmetric scale."""
    s = (x.abs().max() / 127).clamp(min=1e-38)
    q = (x / s).round().clamp(-127, 127).to(torch.int8)
    return q, s


@exercise(
    "write", HEADING, mappings.zero_point_scale,
    stub="x: any shape, float32. Returns (q, s, z).",
    cases=lambda: [(tensor([-0.5, 0.0, 1.0, 2.05]),), (tensor([1.1, 1.6, 2.0]),), (tensor([-3.0, -1.0]),)],
    reference=_zero_point, tolerance=1e-6,
    mistakes={
        "without_zero": tuple(lambda x, i=i: _with_range(x, x.min(), x.max(), inside=i) for i in (True, False)),
        "steps_256": tuple(lambda x, i=i: _with_range(x, x.min().clamp(max=0), x.max().clamp(min=0), 256, i)
                           for i in (True, False)),
        "absmax": lambda x: (*_absmax(x), torch.zeros((), dtype=torch.int32)),
        "sign": _minus_zero,
        "unsigned": _unsigned,
    },
)
def zero_point(x):
    """Map to int8 with a scale and a zero-point."""
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    s = (high - low) / 255
    z = -128 - (low / s).round()
    q = ((x / s).round() + z).clamp(-128, 127).to(torch.int8)
    return q, s, z.int()


@exercise(
    "mend", "Quantization, Quantization-Aware Training", qat.fake_quantize,
    stub="x: any shape, float32; s: one number above 0. Returns x on the grid of 4 bits, as floats.",
    bug='''
        codes = (x / s).round().clamp(-7, 7)
        return s * codes
    ''',
    cases=lambda: [(tensor([0.26, -0.31, 1.2, -2.0]), tensor(0.1)), (tensor([0.0, 3.0, -0.9]), tensor(0.25))],
    reference=lambda x, s: qat.fake_quantize(x, s, None, FOUR_BITS), gradient=True,
    mistakes={
        "no_gradient": lambda x, s: (x / s).round().clamp(-7, 7) * s,
        "through_the_clamp": lambda x, s: _through((x / s).round().clamp(-7, 7) * s, x),
        "eighth_code": tuple(lambda x, s, most=most: s * qat.round_through(x / s).clamp(-8, most) for most in (7, 8)),
        "no_clamp": lambda x, s: _through((x / s).round() * s, x),
        "not_rounded": lambda x, s: (x / s).clamp(-7, 7) * s,
    },
)
def fake_quantize(x, s):
    """Round in the forward pass alone."""
    y = x / s
    y = y + (y.round() - y).detach()
    return s * y.clamp(-7, 7)


@exercise(
    "write", HEADING, linear.integer_linear,
    stub="x: (T, K) int8; x_scale: (T, 1); w: (N, K) int8; w_scale: (N, 1). Returns (T, N).", cases=_products,
    reference=lambda x, s, w, t: linear.integer_linear(Quantized(x, s, None, ABSMAX), Quantized(w, t, None, ABSMAX)),
    mistakes={
        "overflow": tuple(lambda x, s, w, t, kind=kind: (x.to(kind) @ w.to(kind).T).float() * s * t.T
                          for kind in (torch.int8, torch.int16)),
        "one_scale": (lambda x, s, w, t: (x.int() @ w.int().T).float() * s,
                      lambda x, s, w, t: (x.int() @ w.int().T).float() * t.T),
        "added_scales": lambda x, s, w, t: (x.int() @ w.int().T).float() * (s + t.T),
        "not_transposed": lambda x, s, w, t: (x.int() @ w.int()).float() * s * t.T,
    },
)
def integer_product(x, x_scale, w, w_scale):
    """Sum in int32, scale at the end."""
    total = x.int() @ w.int().T
    return total.float() * x_scale * w_scale.T


@exercise(
    "predict", HEADING, mappings.quantize_tensor,
    stub="in units of the values", tolerance=0.002,
    reference=lambda: float((quantize_tensor(GRID, ABSMAX).dequantize() - GRID).abs().max()),
    why_tolerance="0.2 % for the grid of values that was tried",
    mistakes={"levels_128": 6.35 / 128 / 2, "whole_step": 0.05, "both_sides": 12.7 / 255 / 2, "quarter_step": 0.0125},
)
def half_step():
    """Half of s = max|x| / 127."""
    return 6.35 / 127 / 2


@exercise(
    "beat", HEADING, mappings.to_codes,
    stub="x: (4002,) float32. Returns one number above 0.", judge=_judge_scale,
)
def clipped_scale(x):
    """Try many scales and keep the one with the least squared error."""
    scales = x.abs().max() / 7 * torch.linspace(0.05, 1, 100)
    errors = [(((x / s).round().clamp(-7, 7) * s - x) ** 2).mean() for s in scales]
    return scales[torch.stack(errors).argmin()]
