r"""Solutions of notebook 05."""

import math

import torch


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


def k3(policy_logprobs, reference_logprobs):
    """ρ − 1 − log ρ with ρ = π_ref / π."""
    log_rho = reference_logprobs - policy_logprobs
    return log_rho.exp() - 1 - log_rho


def ppo_loss(logprobs, rollout_logprobs, advantages, clip):
    """The larger of the two losses."""
    ratio = (logprobs - rollout_logprobs).exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(plain, clipped)


def penalised_rewards(scores, policy_logprobs, reference_logprobs, mask, beta):
    """The penalty at every token, the score at the last real one."""
    rewards = -beta * (policy_logprobs - reference_logprobs)
    last = mask.sum(dim=1) - 1
    rewards[torch.arange(len(scores)), last] += scores
    return rewards * mask


def whiten(x, mask):
    """Mean and variance of the real tokens alone."""
    real = x[mask]
    return (x - real.mean()) / (real.var(unbiased=False) + 1e-8).sqrt() * mask


def best_of_16():
    """log n − (n − 1) / n."""
    return math.log(16) - 15 / 16
