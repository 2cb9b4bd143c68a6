r"""Smeared keys, for run folders that were made with them; new models have a short convolution (transformer.py).

    k_t ← (1 − a) k_t + a k_{t−1},  a = σ(smear)                                       Olsson et al. 2022, "smeared key"
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def smearing(attention: type[nn.Module]) -> type[nn.Module]:
    """The attention whose keys are mixed with those of the tokens before; it has a weight for each head, `smear`."""

    class SmearedAttention(attention):
        """See the file."""

        def __init__(self, config, layer: int):
            super().__init__(config, layer)
            self.smear = nn.Parameter(torch.zeros(config.heads))  # (H,)

        def keys(self, x: Tensor, sight, cache) -> Tensor:
            """(B, H, T, d) smeared keys of x (B, T, D); the cache holds the last key of what was read before."""
            key = super().keys(x, sight, cache)
            before = None if cache is None else cache.recent.get(self.layer)
            if cache is not None:
                cache.recent[self.layer] = key[:, :, -1:]
            return smear(key, self.smear, sight.positions, before)

    return SmearedAttention


def smear(key: Tensor, weight: Tensor, positions: Tensor, before: Tensor | None = None) -> Tensor:
    """Mix each key (B, H, T, d) with the one before it; weight (H,), positions (T,) or (B, T).

    Nothing is mixed in at position 0, where a text begins. before: (B, H, 1, d) the last key of what was read earlier,
    before smearing; None at the beginning.
    """
    before = torch.cat([key[:, :, :1] if before is None else before, key[:, :, :-1]], dim=2)  # (B, H, T, d)
    first = (positions == 0)[..., None, :, None]  # (1, T, 1) or (B, 1, T, 1)
    a = torch.sigmoid(weight)[:, None, None] * ~first  # (…, H, T, 1)
    return key + a * (before - key)
