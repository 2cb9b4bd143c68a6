r"""Generalised advantage estimation: by how much was each token better than expected?

    δₜ = rₜ + γ V(sₜ₊₁) − V(sₜ)                                             Schulman et al. 2016, Eq. 10
    Âₜ = Σ_k (γλ)ᵏ δₜ₊ₖ,   computed backwards as Âₜ = δₜ + γλ Âₜ₊₁          Schulman et al. 2016, Eq. 16

λ = 1 waits for the end (return minus value: unbiased, noisy); λ = 0 trusts the next value (TD error: calm, biased).
For language models γ = 1 (a good ending is worth as much as a good beginning) and λ = 0.95. Details that matter:
    1. After the last real token there is nothing: V = 0 there, whatever the network says about padding
       (test_gae_never_looks_past_the_end).
    2. Returns are the *raw* advantages plus the values; whitening comes later, and only for the policy
       (test_returns_are_raw).
"""

from __future__ import annotations

import torch
from torch import Tensor


def advantages_and_returns(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0,
                           lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """GAE over response tokens.

    Args:
        rewards: (B, R) of each token.
        values: (B, R) expected return before each token is said.
        mask: (B, R) true for real tokens, which stand first in each row.
        gamma: discount; lam: λ above.
    Returns:
        advantages, returns: (B, R), 0 outside the mask.
    """
    rewards, values = rewards.masked_fill(~mask, 0.0), values.masked_fill(~mask, 0.0)
    following = torch.zeros_like(values[:, 0])  # (B,) advantage of the next token
    advantages = torch.zeros_like(values)
    for t in reversed(range(rewards.shape[1])):
        next_value = values[:, t + 1] if t + 1 < rewards.shape[1] else 0.0
        delta = rewards[:, t] + gamma * next_value - values[:, t]  # Eq. 10
        following = delta + gamma * lam * following  # Eq. 16
        advantages[:, t] = following
    advantages = advantages.masked_fill(~mask, 0.0)
    return advantages, advantages + values
