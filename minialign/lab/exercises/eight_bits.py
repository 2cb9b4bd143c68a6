r"""Exercises of notebook 08: outlier columns, LLM.int8(), norms in 16 bits, and what is stored."""

import torch
import torch.nn.functional as F
from torch import Tensor, tensor

from minialign.lab.exercises.exercise import exercise
from minialign.lab.pretrained.rms_norm import RMSNorm
from minialign.quant import llm_int8, mappings
from minialign.quant.mappings import MappingConfig, quantize_tensor

HEADING = "LMM.int8()"
ROWS = MappingConfig(per="row")


def _int8(x: Tensor, weight: Tensor, threshold: float) -> Tensor:
    every = torch.ones(weight.shape[1], dtype=torch.bool)
    return llm_int8.LLMInt8Linear(quantize_tensor(weight, ROWS), activation=ROWS, threshold=threshold, columns=every,
                                  original=weight).product(x)


def _by_hand(x: Tensor, weight: Tensor, threshold: float, measured: tuple[bool, bool] = (False, True),
             levels: int = 127, most: int = 127) -> Tensor:
    """LLM.int8() with scales max / `levels` that are measured on x and on the weight with their outlier columns or
    without, and codes up to `most`."""
    columns = llm_int8.outlier_columns(x, threshold)
    codes, scales = [], []
    for whole, outliers in zip((x, weight), measured):
        rest = whole * ~columns
        scales.append((whole if outliers else rest).abs().amax(dim=1, keepdim=True) / levels)
        codes.append((rest / scales[-1]).round().clamp(-most, most))
    return codes[0] @ codes[1].T * scales[0] * scales[1].T + x[:, columns] @ weight[:, columns].T


def _inputs() -> list[tuple]:
    chance = torch.Generator().manual_seed(242)  # no value lies next to the border of two codes
    x, weight = torch.randn(3, 8, generator=chance).clamp(-3, 3), torch.randn(4, 8, generator=chance).half().float()
    x[1, 2] = 60.0
    weight[:2, 2] *= 4  # an outlier column with weights that set their rows' scales
    return [(x, weight, 6.0), (torch.randn(2, 8, generator=chance).clamp(-3, 3), weight, 6.0)]


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    norm = RMSNorm(x.shape[-1], 1e-6)
    norm.weight.data = weight
    return norm(x).detach()


@exercise(
    "write", HEADING, llm_int8.outlier_columns,
    stub="x: (T, K) float32; threshold: above 0. Returns (K,) bool.",
    cases=lambda: [(tensor([[1.0, -6.0, 0.5, 2.0], [0.0, 1.0, 5.9, 2.0]]), 6.0), (tensor([[0.1, 20.0, -30.0]]), 6.0),
                   (tensor([[20.0, 1.0], [1.0, 3.0]]), 3.0), (tensor([[9.0, 0.0], [1.0, 8.0]]), 6.0)],
    mistakes={
        "single_values": lambda x, a: x.abs() >= a,
        "rows": lambda x, a: (x.abs() >= a).any(dim=1),
        "signed": lambda x, a: (x >= a).any(dim=0),
        "strictly": lambda x, a: (x.abs() > a).any(dim=0),
        "every_token": lambda x, a: (x.abs() >= a).all(dim=0),
        "mean": lambda x, a: x.abs().mean(dim=0) >= a,
    },
)
def outlier_columns(x, threshold):
    """One large value makes its whole column an outlier."""
    return (x.abs() >= threshold).any(dim=0)


@exercise(
    "write", HEADING, llm_int8.LLMInt8Linear,
    stub="x: (T, K); weight: (N, K), float32. Returns (T, N) float32.", cases=_inputs, reference=_int8, tolerance=2e-3,
    mistakes={
        "no_outliers": lambda x, w, a: _int8(x, w, 0.0),
        "spoiled_scales": lambda x, w, a: _by_hand(x, w, a, (True, True)),
        "narrow_scales": lambda x, w, a: _by_hand(x, w, a, (False, False)),
        "levels_128": tuple(lambda x, w, a, most=most: _by_hand(x, w, a, levels=128, most=most) for most in (127, 128)),
        "counted_twice": lambda x, w, a: _int8(x, w, 0.0) + (x * llm_int8.outlier_columns(x, a)) @ w.T,
        "left_out": lambda x, w, a: _int8(x * ~llm_int8.outlier_columns(x, a), w, 0.0),
        "not_quantized": lambda x, w, a: x @ w.T,
    },
)
def int8_with_outliers(x, weight, threshold):
    """Outlier columns in floating point, the others in integers with a scale for each row of x and of the weight."""
    columns = (x.abs() >= threshold).any(dim=0)
    large, rest = x * columns, x * ~columns
    x_scale = rest.abs().amax(dim=1, keepdim=True) / 127
    w_scale = weight.abs().amax(dim=1, keepdim=True) / 127
    total = (rest / x_scale).round().int() @ (weight / w_scale).round().int().T
    return total.float() * x_scale * w_scale.T + large @ weight.T


@exercise(
    "mend", HEADING, RMSNorm,
    stub="x: (T, D) float16; weight: (D,) float16. Returns (T, D) float16: each row divided by the root of its mean "
         "square, times the weight.",
    bug="return weight * (x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + 1e-6))",
    cases=lambda: [(tensor([[300.0, -400.0]]).half(), tensor([1.0, 2.0]).half()),
                   (tensor([[0.5, 2.0, 1.0]]).half(), torch.ones(3).half()),
                   (tensor([[301.0, -1203.0, 77.7, 4.05]]).half(), tensor([3.0, 5.0, 3.0, 9.0]).half())],
    reference=_norm, tolerance=2e-3,
    mistakes={
        "overflow": lambda x, g: g * (x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + 1e-6)),
        "wide": lambda x, g: _norm(x.float(), g.float()),
        "no_gain": lambda x, g: _norm(x, torch.ones_like(g)),
        "sum": lambda x, g: (g.float() * F.normalize(x.float(), dim=-1)).half(),
    },
)
def rms_norm(x, weight):
    """The mean of the squares in float32."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + 1e-6)
    return weight * normed.to(x.dtype)


@exercise(
    "predict", "Quantization", mappings.Quantized,
    stub="bytes", reference=lambda: quantize_tensor(torch.ones(512, 2048), ROWS).bytes, tolerance=0.0, unit="bytes",
    mistakes={"no_scales": 512 * 2048, "half": 2 * 512 * 2048, "columns": 512 * 2048 + 4 * 2048,
              "scales_in_16_bits": 512 * 2048 + 2 * 512},
)
def stored_bytes():
    """A byte a weight and a float32 scale a row."""
    return 512 * 2048 + 4 * 512
