r"""Log-probabilities of what was said, and averages that look at real tokens only.

    log π(y|x) = Σₜ log π(yₜ | x, y₍<t₎)                   the chain rule; every method from SFT to PPO stands on it

All of these take logits that are already aligned with the tokens they predict (batching.py); nothing here shifts
anything.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from minialign.batching import IGNORE


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of each token, nats.

    Args:
        logits: (..., V) that predict `tokens`.
        tokens: (...) ids.
        temperature: divides the logits. What was sampled at a temperature must be scored at it
            (test_the_logprob_is_that_of_the_distribution_sampled_from).
    Returns:
        (...) log π(token).
    """
    logits = logits / temperature if temperature != 1.0 else logits
    return -F.cross_entropy(logits.flatten(0, -2), tokens.flatten(), reduction="none").view(tokens.shape)


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over all labels of −log π(label), nats; (..., V) logits, (...) labels, IGNORE counts nothing."""
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORE, reduction="sum")


def sequence_logprobs(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,) Σₜ log π(labelₜ) of each row: logits (B, T, V), labels (B, T) with IGNORE where nothing counts."""
    counted = labels != IGNORE
    return token_logprobs(logits, labels.clamp(min=0)).masked_fill(~counted, 0.0).sum(dim=1)


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """(...) −Σ p log p of each distribution in logits (..., V), nats; in [0, log V]."""
    return torch.special.entr((logits / temperature).softmax(dim=-1)).sum(dim=-1)  # −p log p, 0 at p = 0


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x where mask is true; what stands elsewhere, NaN included, has no influence. 0 for an empty mask."""
    return x.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)


def masked_variance(x: Tensor, mask: Tensor) -> Tensor:
    """Population variance (divided by n, as in OpenAI's released code; TRL divides by n − 1) of x where mask is
    true."""
    return masked_mean((x - masked_mean(x, mask)) ** 2, mask)


def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True, eps: float = 1e-8) -> Tensor:
    """Variance 1, and mean 0 unless `shift_mean` is off (rewards keep theirs), over the real tokens; 0 elsewhere.

    Args:
        x: any shape; mask: the same, true at real tokens.
        eps: added to the variance.
    Source: Ziegler et al. 2019, released code; "whitening" of rewards and advantages.
    """
    mean = masked_mean(x, mask)
    whitened = (x - mean) * torch.rsqrt(masked_variance(x, mask) + eps)
    return (whitened if shift_mean else whitened + mean).masked_fill(~mask, 0.0)
