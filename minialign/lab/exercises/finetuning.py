r"""Exercises of notebook 06: LoRA's forward pass, merge and break-even, adapters, and which parameters are biases."""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn, tensor

from minialign.lab.exercises.exercise import exercise, normal
from minialign.peft import adapters, bitfit, lora
from minialign.peft.trainable import trained

LORA = "Low Ranking Adaptation (LoRA)"
SMALL = tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [0.0, 1.0]], [[1.0, 0.0], [2.0, 1.0]]])  # weight, A and B


def _layer(weight: Tensor, A: Tensor, B: Tensor, alpha: float) -> lora.LoRALinear:
    """The project's own layer with these numbers in it."""
    base = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    found = lora.LoRALinear(base, lora.LoRAConfig(rank=len(A), alpha=alpha), torch.Generator())
    for parameter, numbers in ((base.weight, weight), (found.A, A), (found.B, B)):
        parameter.data.copy_(numbers)
    return found.requires_grad_(False)


def _merged(weight: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    layer = _layer(weight, A, B, alpha)
    layer.merge()
    return layer.base.weight.data


def _biased() -> nn.Module:
    """A model with biases, a norm, and a table whose name only sounds like one."""
    return nn.ModuleDict({"query": nn.Linear(2, 2), "norm": nn.LayerNorm(2),
                          "relative_attention_bias": nn.Embedding(4, 1)})


def _sounding() -> nn.Module:
    """A layer with vectors of its own, one of whose names ends like a bias."""
    layer = nn.Linear(2, 2)
    layer.register_parameter("position_bias", nn.Parameter(torch.zeros(2)))
    layer.register_parameter("gain", nn.Parameter(torch.zeros(2)))
    return layer


def _names_where(model: nn.Module, chosen) -> list[str]:
    return sorted(name for name, parameter in model.named_parameters() if chosen(name, parameter))


def _adapter(h: Tensor, down: Tensor, up: Tensor) -> Tensor:
    base = nn.Linear(h.shape[-1], h.shape[-1], bias=False)
    nn.init.eye_(base.weight)
    layer = adapters.Adapted(base, adapters.AdapterConfig(bottleneck=len(down)), torch.Generator())
    layer.down.weight.data, layer.up.weight.data = down, up
    return layer(h).detach()


def _largest_saving_rank() -> int:
    """The last of the growing ranks with which a layer has fewer numbers than the matrix, 64 by 192."""
    base = nn.Linear(192, 64, bias=False)
    for rank in itertools.count(1):
        layer = lora.LoRALinear(base, lora.LoRAConfig(rank), torch.Generator())
        if layer.A.numel() + layer.B.numel() >= base.weight.numel():
            return rank - 1


@exercise(
    "write", LORA, lora.LoRALinear,
    stub="x: (T, in); weight: (out, in); A: (r, in); B: (out, r). Returns (T, out).",
    cases=lambda: [(tensor([[1.0, 2.0]]), *SMALL, 8.0), (*normal(0, (2, 4), (3, 4), (2, 4), (3, 2)), 16.0)],
    reference=lambda x, w, A, B, alpha: _layer(w, A, B, alpha)(x),
    mistakes={
        "no_scale": lambda x, w, A, B, alpha: x @ (w + B @ A).T,
        "alpha_alone": lambda x, w, A, B, alpha: x @ (w + alpha * B @ A).T,
        "scaled_twice": lambda x, w, A, B, alpha: x @ (w + (alpha / len(A)) ** 2 * B @ A).T,
        "square_root": lambda x, w, A, B, alpha: x @ (w + alpha / math.sqrt(len(A)) * B @ A).T,
        "base_forgotten": lambda x, w, A, B, alpha: x @ (alpha / len(A) * B @ A).T,
        "base_alone": lambda x, w, A, B, alpha: x @ w.T,
    },
)
def lora_forward(x, weight, A, B, alpha):
    """The frozen layer and, beside it, the scaled update."""
    scale = alpha / len(A)
    return x @ weight.T + scale * (x @ A.T) @ B.T


@exercise(
    "write", LORA, lora.merge,
    stub="weight: (out, in); A: (r, in); B: (out, r), all float32 or all float16. Returns (out, in).",
    cases=lambda: [(*SMALL, 8.0), (*(x.half() for x in normal(1, (16, 12), (4, 12), (16, 4))), 3.0)], reference=_merged,
    mistakes={
        "no_scale": lambda w, A, B, alpha: (w.float() + B.float() @ A.float()).to(w.dtype),
        "low_precision": lambda w, A, B, alpha: w + alpha / len(A) * (B @ A),
        "wide": lambda w, A, B, alpha: w.float() + alpha / len(A) * (B.float() @ A.float()),
        "taken_away": lambda w, A, B, alpha: (w.float() - alpha / len(A) * (B.float() @ A.float())).to(w.dtype),
    },
    tolerance=1e-6,
)
def lora_merge(weight, A, B, alpha):
    """The sum in float32, cast back at the end."""
    update = alpha / len(A) * (B.float() @ A.float())
    return (weight.float() + update).to(weight.dtype)


@exercise(
    "mend", "BitFit", bitfit.wrap,
    stub="model: a module. Returns the sorted names of all its biases, as named_parameters() gives them.",
    bug='return sorted(name for name, _ in model.named_parameters() if "bias" in name)',
    cases=lambda: [(_biased(),), (nn.Linear(2, 2),), (_sounding(),)],
    reference=lambda model: sorted(trained(bitfit.wrap(model))),
    mistakes={
        "part_of_a_name": lambda m: _names_where(m, lambda name, p: "bias" in name),
        "vectors": lambda m: _names_where(m, lambda name, p: p.dim() == 1),
        "norms_left_out": lambda m: _names_where(m, lambda name, p: name in ("query.bias", "bias")),
    },
)
def bitfit_names(model):
    """Chosen by the last part of the name."""
    return sorted(name for name, _ in model.named_parameters() if name.split(".")[-1] == "bias")


@exercise(
    "write", "Adapter layers", adapters.Adapted,
    stub="h: (T, D); down: (m, D); up: (D, m). Returns (T, D).", reference=_adapter,
    cases=lambda: [(tensor([[1.0, -1.0]]), tensor([[-1.0, 1.0]]), tensor([[1.0], [2.0]])),
                   tuple(normal(0, (3, 4), (2, 4), (4, 2)))],
    mistakes={
        "no_skip": lambda h, down, up: F.gelu(h @ down.T) @ up.T,
        "no_nonlinearity": lambda h, down, up: h + h @ down.T @ up.T,
        "nonlinearity_after": lambda h, down, up: h + F.gelu(h @ down.T @ up.T),
        "tanh": lambda h, down, up: h + F.gelu(h @ down.T, approximate="tanh") @ up.T,
        "relu": lambda h, down, up: h + F.relu(h @ down.T) @ up.T,
    },
)
def adapter(h, down, up):
    """A bottleneck beside a skip."""
    return h + F.gelu(h @ down.T) @ up.T


@exercise(
    "predict", LORA, lora.break_even,
    stub="a rank", reference=_largest_saving_rank, tolerance=0.0,
    mistakes={"ties": 48.0, "half": 32.0, "half_of_the_long_side": 96.0, "square": 64.0},
)
def largest_saving_rank():
    """r (64 + 192) < 64 · 192 for r below 48; at 48 both are equal."""
    return 64 * 192 // (64 + 192) - 1
