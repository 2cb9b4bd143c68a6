r"""Positions of the tokens of padded rows, with one bug."""

import torch


def positions_of(mask):
    """mask: (B, T) bool, true at real tokens. Returns (B, T) int: 0 for the first real token of a row, 1 for the next
    ...; 0 at pads."""
    B, T = mask.shape
    return torch.arange(T).expand(B, T) * mask
