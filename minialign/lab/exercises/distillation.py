r"""Exercises of notebook 09: soft targets, relations of values, attention scores with a mask, and what T² is for."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, tensor

from minialign.distill.minilm import relation
from minialign.distill.soft_targets import soft_target_loss
from minialign.distill.tinybert import attention_score_loss
from minialign.lab.exercises.exercise import exercise, normal
from minialign.logprobs import masked_mean

HEADING = "Model distillation"
CAUSAL = torch.ones(2, 2).tril().bool()


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return F.kl_div(q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="none").sum(-1)


def _relation(values: Tensor, heads: int) -> Tensor:
    return relation(values, heads, torch.ones(values.shape[:2], dtype=torch.bool)).exp()


def _related(values: Tensor, heads: int, divisor: float) -> Tensor:
    B, T, D = values.shape
    parts = values.view(B, T, heads, D // heads).transpose(1, 2)
    return parts @ parts.transpose(-2, -1) / divisor


def _gradient(temperature: float) -> float:
    """Size of the gradient of the loss without T²."""
    student, teacher = normal(0, (200, 50), (200, 50))
    student.requires_grad_(True)
    loss = soft_target_loss(student, teacher, torch.ones(200, dtype=torch.bool), temperature)
    return float(torch.autograd.grad(loss / temperature**2, student)[0].norm())


@exercise(
    "write", HEADING, soft_target_loss,
    stub="student, teacher: (..., V) logits; mask: (...) bool. Returns one number (a tensor).",
    cases=lambda: [(tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]), tensor([[2.0, 0.0, 0.0], [5.0, 0.0, 0.0]]),
                    tensor([True, False]), 2.0),
                   (*normal(0, (2, 3, 5), (2, 3, 5)), tensor([[1, 1, 1], [1, 0, 0]]).bool(), 3.0)],
    mistakes={
        "no_square": lambda s, t, m, T: soft_target_loss(s, t, m, T) / T**2,
        "other_direction": lambda s, t, m, T: soft_target_loss(t, s, m, T),
        "cold": lambda s, t, m, T: masked_mean(_kl(t, s), m) * T**2,
        "cold_teacher": lambda s, t, m, T: masked_mean(_kl(t, s / T), m) * T**2,
        "cross_entropy": lambda s, t, m, T: T**2 * masked_mean(
            -((t / T).softmax(-1) * (s / T).log_softmax(-1)).sum(-1), m),
        "padding_counts": lambda s, t, m, T: T**2 * _kl(t / T, s / T).mean(),
        "mean_over_words": (lambda s, t, m, T: soft_target_loss(s, t, m, T) / s.shape[-1],
                            lambda s, t, m, T: T**2 * _kl(t / T, s / T).mean() / s.shape[-1]),
        "batchmean": (lambda s, t, m, T: T**2 * _kl(t / T, s / T).sum() / len(s),
                      lambda s, t, m, T: T**2 * (_kl(t / T, s / T) * m).sum() / len(s)),
        "sum": lambda s, t, m, T: T**2 * _kl(t / T, s / T)[m].sum(),
    },
)
def soft_targets(student, teacher, mask, T):
    """T² KL(teacher ‖ student) of softened distributions, mean over real tokens."""
    p, q = (teacher / T).log_softmax(-1), (student / T).log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1)
    return T**2 * kl[mask].mean()


@exercise(
    "write", HEADING, relation,
    stub="values: (B, T, D), all heads side by side. Returns (B, heads, T, T).",
    cases=lambda: [(x, 2) for x in (tensor([[[1.0, 0.0, 2.0, 0.0], [0.0, 1.0, 0.0, 0.0]]]), *normal(0, (2, 3, 8)))],
    reference=_relation,
    mistakes={
        "no_root": lambda v, h: _related(v, h, 1.0).softmax(-1),
        "whole_width": lambda v, h: _related(v, h, math.sqrt(v.shape[-1])).softmax(-1),
        "no_softmax": lambda v, h: _related(v, h, math.sqrt(v.shape[-1] / h)),
        "logs": lambda v, h: _related(v, h, math.sqrt(v.shape[-1] / h)).log_softmax(-1),
        "one_head": lambda v, h: _relation(v, 1).expand(-1, h, -1, -1),
    },
)
def value_relation(values, heads):
    """softmax(V Vᵀ / √d) in each head."""
    B, T, D = values.shape
    d = D // heads
    v = values.view(B, T, heads, d).transpose(1, 2)
    return (v @ v.transpose(-2, -1) / d**0.5).softmax(-1)


@exercise(
    "mend", HEADING, attention_score_loss,
    stub="student, teacher: (T, T) scores before the softmax; allowed: (T, T) bool. Returns the mean squared "
         "difference where it is allowed to look.",
    bug="return F.mse_loss(student, teacher)",
    cases=lambda: [(tensor([[1.0, -math.inf], [0.0, 2.0]]), tensor([[3.0, -math.inf], [0.0, 1.0]]), CAUSAL),
                   (tensor([[1.0, 7.0], [0.0, 2.0]]), torch.zeros(2, 2), CAUSAL)],
    reference=lambda s, t, a: attention_score_loss(s[None, None], t[None, None], a),
    mistakes={
        "not_a_number": lambda s, t, a: F.mse_loss(s, t),
        "all_places": lambda s, t, a: ((s - t).masked_fill(~a, 0.0) ** 2).mean(),
        "sum": lambda s, t, a: ((s - t).masked_fill(~a, 0.0) ** 2).sum(),
        "after_the_softmax": lambda s, t, a: ((s.softmax(-1) - t.softmax(-1))[a] ** 2).mean(),
    },
)
def attention_loss(student, teacher, allowed):
    """Only the places that count."""
    difference = student[allowed] - teacher[allowed]
    return (difference**2).mean()


@exercise(
    "predict", HEADING, soft_target_loss,
    stub="a ratio", reference=lambda: _gradient(4.0) / _gradient(1.0), tolerance=0.4,
    why_tolerance="40 %: 1 / T² holds for high temperatures, and 4 is not that high",
    mistakes={"linear": 0.25, "unchanged": 1.0, "grows": 16.0},
)
def gradient_at_4():
    """Without T² the gradient falls as 1 / T²."""
    return 1 / 16
