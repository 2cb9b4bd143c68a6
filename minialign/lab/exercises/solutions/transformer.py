r"""Solutions of notebook 01."""

import torch


def causal_mask(T):
    """Row t is true at 0..t."""
    return torch.ones(T, T).tril().bool()


def attention(query, key, value, allowed):
    """The softmax of the scaled scores mixes the values."""
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    scores = scores.masked_fill(~allowed, float("-inf"))
    return scores.softmax(dim=-1) @ value


def rotary(x, positions):
    """Turn each pair (x_i, x_{i + d/2}) by position times frequency."""
    d = x.shape[-1]
    frequencies = 10_000 ** (-torch.arange(0, d, 2) / d)
    angles = positions[:, None] * frequencies
    a, b = x[:, : d // 2], x[:, d // 2 :]
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], dim=-1)


def positions_of(mask):
    """Count the real tokens that came before."""
    places = mask.long().cumsum(dim=1) - 1
    return places * mask


def attention_numbers():
    """Query, key, value and output: each 96 x 96 weights and 96 biases, shared out among the heads."""
    return 4 * (96 * 96 + 96)
