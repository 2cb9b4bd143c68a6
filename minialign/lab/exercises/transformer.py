r"""Exercises of notebook 01: who may look at whom, attention, positions, and what an attention layer weighs."""

import math

import torch
from torch import Tensor, tensor

from minialign import transformer
from minialign.lab.exercises.exercise import exercise, normal
from minialign.transformer import TransformerConfig, rotate, rotation_table

HEADING = "Instruction tuning (the next-token predictors that it starts from)"
SHAPE = TransformerConfig(vocabulary=320, width=96, heads=3)


def _attention(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
    return transformer.attention(query, key, value, allowed, fused=False)


def _scores(query: Tensor, key: Tensor, allowed: Tensor, divisor: float, masked: float = -math.inf) -> Tensor:
    return (query @ key.transpose(-2, -1) / divisor).masked_fill(~allowed, masked)


def _looks() -> list[tuple]:
    q = tensor([[[[1.0, 0.0, 1.0, 0.0], [0.0, 2.0, 0.0, 0.0]]]])
    k = tensor([[[[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 2.0, 0.0]]]])
    v = tensor([[[[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]]])
    large = normal(0, *[(2, 3, 5, 4)] * 3)
    padded = tensor([True, True, True, True, False]).repeat(5, 1)  # an encoder's: nobody looks at the padding
    return [(q, k, v, torch.ones(2, 2).tril().bool()), (*large, torch.ones(5, 5).tril().bool()), (*large, padded)]


def _rotary(x: Tensor, places: Tensor) -> Tensor:
    return rotate(x, rotation_table(places, x.shape[-1]))


def _rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Turn (xᵢ, xᵢ₊d/2) by (T, d/2) angles."""
    return rotate(x, (torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()))


def _neighbours(x: Tensor, places: Tensor) -> Tensor:
    order = torch.arange(x.shape[-1]).view(-1, 2).T.flatten()  # 0, 2, ... 1, 3, ...
    return _rotary(x[..., order], places)[..., order.argsort()]


@exercise(
    "write", HEADING, transformer.causal_mask,
    stub="T: an int. Returns (T, T) bool.", cases=lambda: [(3,), (1,), (6,)],
    mistakes={
        "not_itself": lambda T: torch.ones(T, T).tril(-1).bool(),
        "future": lambda T: torch.ones(T, T).triu().bool(),
        "forbidden": lambda T: torch.ones(T, T).triu(1).bool(),
        "one_ahead": lambda T: torch.ones(T, T).tril(1).bool(),
        "everything": lambda T: torch.ones(T, T).bool(),
        "not_bool": lambda T: torch.ones(T, T).tril(),
    },
)
def causal_mask(T):
    """Row t is true at 0..t."""
    return torch.ones(T, T).tril().bool()


@exercise(
    "write", HEADING, transformer.attention,
    stub="query, key, value: (B, H, T, d); allowed: (T, T) bool. Returns (B, H, T, d).", cases=_looks,
    reference=_attention,
    mistakes={
        "no_root": lambda q, k, v, a: _scores(q, k, a, 1.0).softmax(dim=-1) @ v,
        "no_square_root": lambda q, k, v, a: _scores(q, k, a, q.shape[-1]).softmax(dim=-1) @ v,
        "wrong_axis": lambda q, k, v, a: _scores(q, k, a, math.sqrt(q.shape[-1])).softmax(dim=-2) @ v,
        "masked_after": lambda q, k, v, a: (_scores(q, k, a | True, math.sqrt(q.shape[-1])).softmax(dim=-1) * a) @ v,
        "mask_inverted": tuple(lambda q, k, v, a, low=low: _scores(q, k, ~a, q.shape[-1] ** 0.5, low).softmax(-1) @ v
                               for low in (-math.inf, -1e9)),
        "mask_forgotten": lambda q, k, v, a: _attention(q, k, v, torch.ones_like(a)),
        "zero_for_minus_infinity": lambda q, k, v, a: _scores(q, k, a, q.shape[-1] ** 0.5, 0.0).softmax(dim=-1) @ v,
    },
)
def attention(query, key, value, allowed):
    """The softmax of the scaled scores mixes the values."""
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    scores = scores.masked_fill(~allowed, float("-inf"))
    return scores.softmax(dim=-1) @ value


@exercise(
    "write", HEADING, transformer.rotate,
    stub="x: (T, d) float, d even; positions: (T,) int. Returns (T, d).", reference=_rotary,
    cases=lambda: [(tensor([[1.0, 0.0, 0.0, 1.0]] * 3), tensor([0, 1, 2])),
                   (*normal(0, (4, 8)), tensor([0, 3, 5, 40]))],
    mistakes={
        "neighbours": _neighbours,
        "backwards": lambda x, p: _rotary(x, -p),
        "one_speed": lambda x, p: _rotated(x, p[:, None].float().expand(-1, x.shape[-1] // 2)),
        "half_exponent": lambda x, p: _rotated(
            x, p[:, None] * 10_000.0 ** (-torch.arange(x.shape[-1] // 2) / x.shape[-1])),
        "from_the_row": lambda x, p: _rotary(x, torch.arange(len(p))),
        "from_one": lambda x, p: _rotary(x, p + 1),
    },
)
def rotary(x, positions):
    """Turn each pair (x_i, x_{i + d/2}) by position times frequency."""
    d = x.shape[-1]
    frequencies = 10_000 ** (-torch.arange(0, d, 2) / d)
    angles = positions[:, None] * frequencies
    a, b = x[:, : d // 2], x[:, d // 2 :]
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], dim=-1)


@exercise(
    "mend", HEADING, transformer.positions_from_mask,
    stub="mask: (B, T) bool, true at real tokens. Returns (B, T) int: 0 for the first real token of a row, 1 for the "
         "next ...; 0 at pads.",
    bug='''
        B, T = mask.shape
        return torch.arange(T).expand(B, T) * mask
    ''',
    cases=lambda: [(tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]).bool(),), (tensor([[1, 1, 0], [0, 1, 1]]).bool(),)],
    reference=lambda m: transformer.positions_from_mask(m).masked_fill(~m, 0),
    mistakes={
        "columns": lambda m: torch.arange(m.shape[1]).expand(m.shape) * m,
        "from_one": lambda m: m.long().cumsum(dim=1) * m,
        "negative": lambda m: m.long().cumsum(dim=1) - 1,
        "from_the_end": lambda m: (torch.arange(-m.shape[1], 0) + m.sum(dim=1, keepdim=True)).clamp(min=0) * m,
    },
)
def positions_of(mask):
    """Count the real tokens that came before."""
    places = mask.long().cumsum(dim=1) - 1
    return places * mask


@exercise(
    "predict", HEADING, transformer.Attention,
    stub="how many", tolerance=0.0,
    reference=lambda: sum(p.numel() for p in transformer.Attention(SHAPE, 0).parameters()),
    mistakes={"no_bias": 4 * 96 * 96, "no_output": 3 * (96 * 96 + 96), "every_head": 3 * 4 * (96 * 96 + 96),
              "one_head": 4 * (96 * 32 + 32)},
)
def attention_numbers():
    """Query, key, value and output: each 96 x 96 weights and 96 biases, shared out among the heads."""
    return 4 * (96 * 96 + 96)
