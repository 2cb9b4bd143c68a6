r"""Root-mean-square normalisation, as in T5 and Llama: no mean is taken away, nothing is added.

    RMSNorm(x) = x / √(mean(x²) + ε) · g                                   Zhang & Sennrich 2019, §4, Eq. 4

Read next: masks.py.
"""

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Vectors of mean square 1, times a gain for each of `width` dimensions; `eps` is added to the mean square."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D). The mean is taken in fp32, whatever x is in: squares overflow fp16 from 256 on."""
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + self.eps)).to(x.dtype)
