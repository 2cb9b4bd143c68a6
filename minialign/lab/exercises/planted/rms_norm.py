r"""A norm in half precision, with one bug."""

import torch


def rms_norm(x, weight):
    """x: (T, D) float16; weight: (D,) float16. Returns (T, D) float16: each row divided by the root of its mean square,
    times the weight."""
    return weight * (x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + 1e-6))
