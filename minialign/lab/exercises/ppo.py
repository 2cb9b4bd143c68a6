r"""Exercises of notebook 05: advantages, estimates of KL, the clipped loss, the penalised reward, whitening."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, tensor

from minialign import logprobs
from minialign.lab.exercises.exercise import exercise, normal
from minialign.rlhf import best_of_n, kl, ppo
from minialign.rlhf.ppo import advantages_and_returns

HEADING = "Fine-tune model on feedback"


def _past_the_end(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    following, found = torch.zeros(len(rewards)), torch.zeros_like(values)
    for t in reversed(range(rewards.shape[1])):
        after = values[:, t + 1] if t + 1 < rewards.shape[1] else 0.0
        following = (rewards[:, t] + gamma * after - values[:, t]) + gamma * lam * following
        found[:, t] = following
    return found * mask, (found + values) * mask


def _losses(now: Tensor, then: Tensor, advantages: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Plain and clipped."""
    ratio = (now - then).exp()
    return -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)


def _exact_best_of(n: int) -> float:
    """KL of the best of n from an even choice among many completions, summed over all of them."""
    completions = 20_000
    rank = torch.arange(1, completions + 1, dtype=torch.float64) / completions
    p = rank**n - (rank - 1 / completions) ** n
    return float((p * (p * completions).clamp(min=1e-300).log()).sum())


@exercise(
    "write", HEADING, advantages_and_returns,
    stub="rewards, values: (B, R); mask: (B, R) bool. Returns (advantages, returns), (B, R) each.",
    cases=lambda: [(tensor([[0.0, 0.0, 1.0, 0.0]]), tensor([[0.5, 0.2, 0.4, 9.0]]), tensor([[1, 1, 1, 0]]).bool(), 1.0,
                    0.5),
                   (*normal(0, (2, 5), (2, 5)), tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool(), 0.9, 0.95)],
    mistakes={
        "past_the_end": (_past_the_end, lambda r, v, *rest: (_past_the_end(r, v, *rest)[0],
                                                             _past_the_end(r, v, *rest)[0] + v)),
        "no_lambda": lambda r, v, m, g, lam: advantages_and_returns(r, v, m, g, 1.0),
        "td_error": lambda r, v, m, g, lam: advantages_and_returns(r, v, m, g, 0.0),
        "no_gamma": lambda r, v, m, g, lam: advantages_and_returns(r, v, m, 1.0, g * lam),
        "returns_are_advantages": lambda r, v, m, g, lam: (advantages_and_returns(r, v, m, g, lam)[0],) * 2,
    },
)
def gae(rewards, values, mask, gamma, lam):
    """Backwards from the last token; what stands at padding counts as 0."""
    rewards, values = rewards * mask, values * mask
    advantages, following = torch.zeros_like(values), 0.0
    for t in reversed(range(values.shape[1])):
        next_value = values[:, t + 1] if t + 1 < values.shape[1] else 0.0
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = delta + gamma * lam * following
        advantages[:, t] = following
    advantages = advantages * mask
    return advantages, advantages + values


@exercise(
    "write", HEADING, kl.k3,
    stub="(...) each, of tokens that the policy sampled. Returns (...) estimates.",
    cases=lambda: [(tensor([-1.0, -2.0, -0.5]), tensor([-1.5, -1.0, -0.5])), (tensor([[-3.0]]), tensor([[-0.1]]))],
    mistakes={
        "other_direction": lambda p, r: kl.k3(r, p),
        "k1": kl.k1,
        "negative_k1": lambda p, r: r - p,
        "k2": kl.k2,
        "sign_of_the_log": lambda p, r: (r - p).expm1() + (r - p),
    },
)
def k3(policy_logprobs, reference_logprobs):
    """ρ − 1 − log ρ with ρ = π_ref / π."""
    log_rho = reference_logprobs - policy_logprobs
    return log_rho.exp() - 1 - log_rho


@exercise(
    "mend", HEADING, ppo.policy_loss,
    stub="(N,) log-probabilities now and when sampled, (N,) advantages; clip: ε. Returns the (N,) losses of the "
         "tokens, to be minimised.",
    bug='''
        ratio = (logprobs - rollout_logprobs).exp()
        plain = -advantages * ratio
        clipped = -advantages * ratio.clamp(1 - clip, 1 + clip)
        return torch.minimum(plain, clipped)
    ''',
    cases=lambda: [(tensor([-1.0, -0.6, -1.4, -1.0, -1.5]), tensor([-1.0, -1.0, -1.0, -1.3, -1.0]),
                    tensor([1.0, 2.0, -2.0, -1.0, 1.0]), 0.2)],
    reference=lambda now, then, a, clip: ppo.policy_loss(now, then, a, clip)[0], gradient=True,
    mistakes={
        "smaller_loss": lambda now, then, a, clip: torch.minimum(*_losses(now, then, a, clip)),
        "wrong_sign": lambda now, then, a, clip: -ppo.policy_loss(now, then, a, clip)[0],
        "always_clipped": lambda now, then, a, clip: _losses(now, then, a, clip)[1],
        "never_clipped": lambda now, then, a, clip: _losses(now, then, a, clip)[0],
        "ratio_upside_down": lambda now, then, a, clip: torch.maximum(*_losses(then, now, a, clip)),
    },
)
def ppo_loss(logprobs, rollout_logprobs, advantages, clip):
    """The larger of the two losses."""
    ratio = (logprobs - rollout_logprobs).exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(plain, clipped)


@exercise(
    "write", HEADING, ppo.penalised_rewards,
    stub="scores: (B,); the others: (B, R). Returns (B, R).",
    cases=lambda: [(tensor([2.0, -1.0]), tensor([[-1.0, -2.0, -1.0, -9.0], [-1.0, -1.0, -1.0, -2.0]]),
                    tensor([[-1.5, -1.0, -1.0, -1.0], [-2.0, -1.0, -3.0, -1.0]]),
                    tensor([[1, 1, 1, 0], [1, 1, 1, 1]]).bool(), 0.1)],
    mistakes={
        "pays_for_leaving": lambda s, p, r, m, b: ppo.penalised_rewards(s, r, p, m, b),
        "score_at_padding": (lambda s, p, r, m, b: -b * (p - r) * m + F.pad(s[:, None], (p.shape[1] - 1, 0)),
                             lambda s, p, r, m, b: (-b * (p - r) + F.pad(s[:, None], (p.shape[1] - 1, 0))) * m),
        "score_everywhere": lambda s, p, r, m, b: (s[:, None] - b * (p - r)) * m,
        "padding_counts": lambda s, p, r, m, b: -b * (p - r) + ppo.penalised_rewards(s, p, p, m, b),
    },
)
def penalised_rewards(scores, policy_logprobs, reference_logprobs, mask, beta):
    """The penalty at every token, the score at the last real one."""
    rewards = -beta * (policy_logprobs - reference_logprobs)
    last = mask.sum(dim=1) - 1
    rewards[torch.arange(len(scores)), last] += scores
    return rewards * mask


@exercise(
    "write", HEADING, logprobs.whiten,
    stub="x: (B, R) float; mask: (B, R) bool. Returns (B, R).",
    cases=lambda: [(tensor([[1.0, 3.0, 100.0], [5.0, 3.0, 7.0]]), tensor([[1, 1, 0], [1, 1, 1]]).bool())],
    mistakes={
        "padding_counts": lambda x, m: logprobs.whiten(x, torch.ones_like(m)) * m,
        "padding_kept": lambda x, m: (x - logprobs.masked_mean(x, m)) / logprobs.masked_variance(x, m).sqrt(),
        "not_centred": (lambda x, m: x / logprobs.masked_variance(x, m).sqrt() * m,
                        lambda x, m: logprobs.whiten(x, m, shift_mean=False)),
        "variance": lambda x, m: (x - logprobs.masked_mean(x, m)) / logprobs.masked_variance(x, m) * m,
        "n_minus_1": lambda x, m: (x - x[m].mean()) / x[m].std() * m,
    },
)
def whiten(x, mask):
    """Mean and variance of the real tokens alone."""
    real = x[mask]
    return (x - real.mean()) / (real.var(unbiased=False) + 1e-8).sqrt() * mask


@exercise(
    "predict", HEADING, best_of_n.best_of_n_kl,
    stub="nats", reference=lambda: _exact_best_of(16), tolerance=0.02,
    why_tolerance="2 %: the run sums over 20,000 completions, the formula is for endlessly many", unit="nats",
    mistakes={"log_n": math.log(16), "bits": 4.0, "n": 16.0},
)
def best_of_16():
    """log n − (n − 1) / n."""
    return math.log(16) - 15 / 16
