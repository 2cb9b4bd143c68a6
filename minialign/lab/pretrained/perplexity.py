r"""How well a real model predicts a text: its perplexity, window by window.

    perplexity = exp(mean of −log π(tokenₜ | tokens before it in its window))

Each window is read by itself, and its first token is not predicted: nothing stands before it. The same text cut by
another tokenizer has another number of tokens, so perplexities of models with different tokenizers cannot be compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from minialign.heads import evaluating
from minialign.logprobs import token_logprobs
from minialign.runs.errors import UserError


@torch.no_grad()
def windowed_perplexity(model: nn.Module, ids: Sequence[int], window: int = 512) -> float:
    """Perplexity a token of one text.

    Args:
        model: a decoder with a head.
        ids: of the text; what does not fill the last window is left out.
        window: tokens that are read together, at least 2.
    Raises:
        UserError: a window of fewer than two tokens, or a text shorter than one.
    """
    if window < 2 or len(ids) < window:
        raise UserError(f"the text has {len(ids)} tokens and a window {window}; a window needs at least 2, and the "
                        f"text at least one window")
    rows = torch.tensor(ids[: len(ids) // window * window]).view(-1, window)
    nats = 0.0
    with evaluating(model):
        for row in rows:
            nats -= float(token_logprobs(model(row[None, :-1]), row[None, 1:]).double().sum())
    return math.exp(nats / (len(rows) * (window - 1)))
