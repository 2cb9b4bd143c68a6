r"""Exercises of notebook 11: advantages of a group, pass@k, NormalFloats, rounding that corrects, outliers that move,
guesses that are accepted, lengths and directions."""

import math

import torch
from torch import Tensor, tensor

from minialign.distill.speculative import Speculated, residual
from minialign.lab.exercises.exercise import exercise, normal
from minialign.peft.dora import DoRALinear
from minialign.quant.gptq import gptq
from minialign.quant.nf4 import NormalFloat, nearest, normal_levels
from minialign.quant.smoothquant import smoothing_scales
from minialign.rlhf.grpo import GRPOConfig, group_advantages, pass_at_k, token_losses
from minialign.rlhf.kl import k3

HEADING = "After the notes"


def _scaled(rewards: Tensor, by: Tensor) -> Tensor:
    return (rewards - rewards.mean(dim=1, keepdim=True)) / by


@exercise(
    "write", HEADING, group_advantages,
    stub="rewards: (B, G), of the G answers to each of B prompts. Returns (B, G).",
    cases=lambda: [(tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]]),),
                   (tensor([[0.0, 3.0, 1.5], [2.0, 2.5, -1.0]]),)],
    mistakes={
        "nan": lambda r: _scaled(r, r.std(dim=1, keepdim=True)),
        "whole_batch": lambda r: (r - r.mean()) / (r.std() + 1e-4),
        "no_std": lambda r: _scaled(r, torch.ones(())),
        "population": lambda r: _scaled(r, r.std(dim=1, keepdim=True, correction=0) + 1e-4),
        "across_prompts": lambda r: (r - r.mean(dim=0)) / (r.std(dim=0) + 1e-4),
    },
)
def advantages_of_a_group(rewards):
    """By how much each answer beats its group, in the group's standard deviations."""
    above = rewards - rewards.mean(dim=1, keepdim=True)
    return above / (rewards.std(dim=1, keepdim=True) + 1e-4)


@exercise(
    "mend", HEADING, k3,
    stub="policy, reference: log-probabilities of the tokens that the policy sampled, of one shape. Returns an "
         "estimate of KL(policy ‖ reference) for each, never negative.",
    bug='''
        ratio = (policy - reference).exp()
        return ratio - 1 - (policy - reference)
    ''',
    cases=lambda: [(tensor([-1.0, -2.0, -0.5]), tensor([-1.0, -1.0, -2.0])),
                   tuple(-x.abs() for x in normal(0, (2, 4), (2, 4)))],
    mistakes={
        "other_ratio": lambda p, r: (p - r).exp() - 1 - (p - r),
        "noisy": lambda p, r: p - r,
        "square": lambda p, r: (p - r) ** 2 / 2,
        "sign": lambda p, r: (r - p).exp() - 1 + (r - p),
    },
)
def kl_estimate(policy, reference):
    """k3: the ratio is the reference's over the policy's, since the policy sampled."""
    difference = reference - policy
    return difference.exp() - 1 - difference


@exercise(
    "write", HEADING, pass_at_k,
    stub="n answers, c of them right, and k ≤ n: whole numbers. Returns a number.",
    cases=lambda: [(4, 1, 2), (16, 3, 8), (10, 9, 3), (8, 0, 8), (8, 8, 1)],
    reference=lambda n, c, k: pass_at_k((torch.arange(n) < c).float()[None], k),
    mistakes={
        "with_replacement": lambda n, c, k: 1 - (1 - c / n) ** k,
        "one_answer": lambda n, c, k: c / n,
        "none_is_right": lambda n, c, k: math.comb(n - c, k) / math.comb(n, k),
        "all_right": lambda n, c, k: math.comb(c, k) / math.comb(n, k),
    },
)
def solved_by_one_of(n, c, k):
    """1 − C(n − c, k) / C(n, k)."""
    return 1 - math.comb(n - c, k) / math.comb(n, k)


@exercise(
    "write", HEADING, nearest,
    stub="x: (n,) one block of weights; levels: (16,) from −1 to 1, rising. Returns (n,) uint8.",
    cases=lambda: [(x, normal_levels()) for x in (tensor([0.0, 0.5, -2.0, 1.9]), *normal(0, (16,)))],
    reference=lambda x, levels: nearest(x / x.abs().max(), levels).to(torch.uint8),
    mistakes={
        "not_scaled": lambda x, levels: nearest(x, levels).to(torch.uint8),
        "signed_max": lambda x, levels: nearest(x / x.max(), levels).to(torch.uint8),
        "evenly_spaced": lambda x, levels: nearest(x / x.abs().max(), torch.linspace(-1, 1, 16)).to(torch.uint8),
        "next_below": lambda x, levels: (torch.searchsorted(levels, x / x.abs().max(), right=True) - 1).to(torch.uint8),
    },
)
def normal_codes(x, levels):
    """The nearest level of each weight, in units of the block's largest."""
    distances = (x / x.abs().max())[:, None] - levels
    return distances.abs().argmin(dim=1).to(torch.uint8)


@exercise(
    "predict", HEADING, NormalFloat, stub="bits a weight", unit="bits", tolerance=2e-4,
    reference=lambda: 4 + 8 / 64 + 32 / (64 * 256), why_tolerance="0.02 %: only the right sum is that near",
    mistakes={"one_quantization": 4.5, "no_scales": 4.0, "bytes": 4 + 1 / 64 + 4 / (64 * 256),
              "only_first": 4 + 8 / 64},
)
def bits_of_nf4():
    """4 for the code, 8 / 64 for the scale's code, 32 / (64 · 256) for the scale of the scales."""
    return 4 + 8 / 64 + 32 / (64 * 256)


def _columns() -> list[tuple]:
    X, w = normal(0, (3, 12), (3,))
    return [(tensor([0.4, 1.0]), tensor([[2.0, 1.0], [1.0, 2.0]]).inverse()), (w, (X @ X.T).inverse())]


def _corrected(w: Tensor, inverse: Tensor, share: float = 1.0, sign: float = 1.0) -> Tensor:
    error = (w[0] - w[0].round()) / inverse[0, 0] * share
    return torch.cat([w[:1].round(), w[1:] - sign * error * inverse[0, 1:]])


@exercise(
    "write", HEADING, gptq,
    stub="w: (K,) one row of a weight; inverse: (K, K), (X Xᵀ)⁻¹ of its inputs. Returns (K,).", cases=_columns,
    reference=_corrected,
    mistakes={
        "only_rounded": lambda w, inverse: torch.cat([w[:1].round(), w[1:]]),
        "not_divided": lambda w, inverse: _corrected(w, inverse, float(inverse[0, 0])),
        "wrong_way": lambda w, inverse: _corrected(w, inverse, sign=-1.0),
        "all_rounded": lambda w, inverse: w.round(),
    },
)
def correct_the_others(w, inverse):
    """Round the first number to a whole one; the others make good what the output lost."""
    rounded = w[0].round()
    error = (w[0] - rounded) / inverse[0, 0]
    return torch.cat([rounded[None], w[1:] - error * inverse[0, 1:]])


@exercise(
    "write", HEADING, smoothing_scales,
    stub="x, w: (K,) largest |value| of each input and of the weights that read it, above 0; alpha. Returns (K,).",
    cases=lambda: [(tensor([8.0, 1.0]), tensor([2.0, 1.0]), 0.5),
                   (tensor([60.0, 0.5, 3.0]), tensor([0.1, 0.3, 0.2]), 0.75)],
    reference=lambda x, w, alpha: smoothing_scales(x, [w[None]], alpha),
    mistakes={
        "exchanged": lambda x, w, alpha: w ** (1 - alpha) / x**alpha,
        "product": lambda x, w, alpha: x**alpha * w ** (1 - alpha),
        "same_power": lambda x, w, alpha: (x / w) ** alpha,
        "activations_alone": lambda x, w, alpha: x**alpha,
    },
)
def divisors_of_outliers(x, w, alpha):
    """xᵅ / w¹⁻ᵅ."""
    return x.pow(alpha) / w.pow(1 - alpha)


@exercise(
    "write", HEADING, residual,
    stub="p, q: (V,) of target and draft, not equal. Returns (V,) probabilities.",
    cases=lambda: [(tensor([0.5, 0.3, 0.2]), tensor([0.2, 0.7, 0.1])), normal(0, (2, 6))[0].softmax(dim=1).unbind()],
    mistakes={
        "target_again": lambda p, q: p,
        "not_normalised": lambda p, q: (p - q).clamp(min=0),
        "other_way": lambda p, q: (q - p).clamp(min=0) / (q - p).clamp(min=0).sum(),
        "absolute": lambda p, q: (p - q).abs() / (p - q).abs().sum(),
    },
)
def after_a_refusal(p, q):
    """norm(max(0, p − q))."""
    left = (p - q).clamp(min=0)
    return left / left.sum()


@exercise(
    "predict", HEADING, Speculated, stub="tokens a pass", unit="tokens", tolerance=0.02,
    reference=lambda: sum(0.8**i for i in range(5)), why_tolerance="2 %",
    mistakes={"guesses_alone": sum(0.8**i for i in range(1, 5)), "independent": 1 + 4 * 0.8, "all": 5.0},
)
def tokens_of_a_pass():
    """(1 − 0.8⁵) / (1 − 0.8)."""
    return (1 - 0.8**5) / (1 - 0.8)


def _dora(weight: Tensor, update: Tensor, m: Tensor, dim: int = 1) -> Tensor:
    changed = weight + update
    norm = changed.norm(dim=dim, keepdim=True)
    return m[:, None] * changed / norm


@exercise(
    "write", HEADING, DoRALinear,
    stub="weight, update: (out, in); m: (out,) the length of each row. Returns (out, in).",
    cases=lambda: [(tensor([[3.0, 4.0], [0.0, 2.0]]), tensor([[0.0, 0.0], [2.0, 0.0]]), tensor([5.0, 2.0])),
                   (*normal(0, (3, 4), (3, 4)), tensor([0.5, 0.1, 0.9]))],
    reference=_dora,
    mistakes={
        "no_norm": lambda w, u, m: m[:, None] * (w + u),
        "old_norm": lambda w, u, m: m[:, None] * (w + u) / w.norm(dim=1, keepdim=True),
        "one_norm": lambda w, u, m: m[:, None] * (w + u) / (w + u).norm(),
        "columns": lambda w, u, m: _dora(w, u, m, 0),
        "update_alone": lambda w, u, m: w + m[:, None] * u / (w + u).norm(dim=1, keepdim=True),
    },
)
def length_and_direction(weight, update, m):
    """m ⊙ (W + ΔW) / ‖W + ΔW‖, row by row."""
    changed = weight + update
    return m[:, None] * changed / changed.norm(dim=1, keepdim=True)


@exercise(
    "write", HEADING, token_losses,
    stub="ratio, advantage: (n,); low, high: ε downwards and upwards. Returns (n,) losses.",
    cases=lambda: [(tensor([1.5, 1.5, 0.5, 0.5, 1.0]), tensor([1.0, -1.0, 1.0, -1.0, 2.0]), 0.2, 0.28)],
    reference=lambda ratio, advantage, low, high: token_losses(
        ratio.log()[:, None], torch.zeros(()), ratio.log()[:, None], advantage,
        GRPOConfig(beta=0.0, clip=low, clip_high=high))[0][:, 0],
    mistakes={
        "one_epsilon": lambda ratio, advantage, low, high: torch.maximum(
            -advantage * ratio, -advantage * ratio.clamp(1 - low, 1 + low)),
        "larger_gain": lambda ratio, advantage, low, high: torch.minimum(
            -advantage * ratio, -advantage * ratio.clamp(1 - low, 1 + high)),
        "always_clipped": lambda ratio, advantage, low, high: -advantage * ratio.clamp(1 - low, 1 + high),
        "gain": lambda ratio, advantage, low, high: torch.minimum(
            advantage * ratio, advantage * ratio.clamp(1 - low, 1 + high)),
    },
)
def clipped_higher(ratio, advantage, low, high):
    """The loss of the smaller of two gains."""
    gains = torch.minimum(advantage * ratio, advantage * ratio.clamp(1 - low, 1 + high))
    return -gains
