r"""Who may look at whom, for the pretrained models: pads, causality and the cache as one explicit mask.

Read next: llama.py.
"""

import torch
from torch import Tensor

from minialign import transformer
from minialign.cache import Cache
from minialign.transformer import causal_mask, positions_from_mask


def who_sees_whom(tokens: Tensor, mask: Tensor | None, cache: Cache | None = None,
                  causal: bool = True) -> tuple[Tensor, Tensor | None]:
    """Positions and allowed looks of the tokens of this call; the cache notes which of them are pads.

    Args:
        tokens: (B, T).
        mask: (B, T) bool, true at real tokens; None says that all are.
        cache: what was read before, P tokens, S = P + T; the caller adds T to its length when it has read.
        causal: token t sees nothing after it.
    Returns:
        positions (T,) or (B, T) among the real tokens, and allowed (1 or B, 1, T, S) bool, None where everything may be
        seen. A pad sees itself, so that no row of a softmax is empty.
    """
    T = tokens.shape[1]
    past = 0 if cache is None else cache.length
    if cache is not None:
        cache.remember_pads(mask, T)
        mask = cache.mask[:, : past + T] if cache.padded else None  # (B, S)
    place = torch.arange(past, past + T, device=tokens.device)  # (T,)
    if mask is None:
        return place, causal_mask(past + T, tokens.device)[past:][None, None] if causal and T > 1 else None
    return positions_from_mask(mask)[:, past:], transformer.who_sees_whom(mask, T, causal)
