r"""Where a token stands and whom it may look at: masks, positions, rotary angles, smeared keys. Used by transformer.py,
whose letters hold here."""

from __future__ import annotations

import torch
from torch import Tensor


def causal_mask(T: int, device: torch.device | None = None) -> Tensor:
    """(T, T) bool: row t is true at 0..t."""
    return torch.ones(T, T, dtype=torch.bool, device=device).tril()


def positions_from_mask(mask: Tensor) -> Tensor:
    """(B, T) position of each token among the real ones of its row, from a (B, T) bool mask; pads get a harmless 0."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def rotation_table(positions: Tensor, d: int, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines that rotate a head's d numbers by its position, Su et al. 2021 (RoFormer), §3.4.2.

    Args:
        positions: (T,) or (B, T).
        d: head size, even.
        base: of the angles; a larger one turns slower and reaches further.
    Returns:
        cos, sin: (T, d) or (B, 1, T, d), ready to multiply (B, H, T, d).
    """
    frequencies = base ** (-torch.arange(0, d, 2, device=positions.device) / d)  # (d/2,)   θᵢ
    angles = positions[..., None] * frequencies  # (..., T, d/2)
    angles = torch.cat([angles, angles], dim=-1)  # (..., T, d)
    if positions.dim() == 2:
        angles = angles[:, None]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair (xᵢ, xᵢ₊d/2) of x (B, H, T, d) by its position's angle."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


def smear(key: Tensor, weight: Tensor, first: Tensor, before: Tensor | None = None) -> Tensor:
    r"""Mix each key with the key of the token before it: k_t ← (1 − a) k_t + a k_{t−1}, a = σ(weight), one for each
    head.

    To copy "Ida found the …" a head must find the token that came *after* an earlier "found". With smeared keys one
    layer can; otherwise an
    earlier layer has to bring the previous token along first.            Olsson et al. 2022, "smeared key" architecture

    Args:
        key: (B, H, T, d); weight: (H,).
        first: bool, broadcastable to (B, H, T, 1), true where a text begins: there is nothing before it to mix in.
        before: (B, H, 1, d) the last key of what was read earlier, before smearing; None at the beginning.
    """
    before = torch.cat([key[:, :, :1] if before is None else before, key[:, :, :-1]], dim=2)  # (B, H, T, d)
    a = torch.sigmoid(weight)[:, None, None] * ~first  # (…, T, 1)
    return key + a * (before - key)
