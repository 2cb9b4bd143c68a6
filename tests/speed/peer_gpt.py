r"""The peer of the training step: the GPT that people train on small machines, and how they step it.

This restates nanoGPT's architecture in our own words and names; it is not a copy of its code. What makes it fast is
kept, what costs it time is kept too:
    1. One fused projection makes query, key and value; attention is torch's fused causal kernel.
    2. Norms before attention and feed-forward, exact GELU, inner width 4 D, a bias everywhere but in the head, which is
       the token table.
    3. The loss is the mean cross-entropy over all positions, computed from the (B T, V) logits.
    4. AdamW with decay on matrices only; on a CPU it is torch's default one (nanoGPT asks for the fused kernel on GPUs
       only).
Shapes are those of minialign/transformer.py.
"""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from minialign.heads import LanguageModel


class FusedAttention(nn.Module):
    """Causal attention whose three projections are one matrix product."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        query, key, value = (part.view(B, T, self.heads, D // self.heads).transpose(1, 2)
                             for part in self.query_key_value(x).split(D, dim=2))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)  # (B, H, T, d)
        return self.dropout(self.output(mixed.transpose(1, 2).contiguous().view(B, T, D)))


class FeedForward(nn.Module):
    """Two linear maps with a GELU in between."""

    def __init__(self, width: int):
        super().__init__()
        self.inner, self.bend, self.output = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.output(self.bend(self.inner(x))))


class Block(nn.Module):
    """Pre-norm block."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(width), FusedAttention(width, heads)
        self.feed_forward_norm, self.feed_forward = nn.LayerNorm(width), FeedForward(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.feed_forward_norm(x))


class PeerGPT(nn.Module):
    """The whole model, with the weights of one of ours, so that both compute the same function.

    Args:
        ours: a decoder with learned positions and exact GELU.
    """

    def __init__(self, ours: LanguageModel):
        super().__init__()
        config = ours.config
        self.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.position_embedding = nn.Embedding(config.context, config.width)
        self.dropout = nn.Dropout(0.0)
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        self.head.weight = self.token_embedding.weight
        self.load_state_dict(fused_weights(ours), strict=True)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of (B, T) tokens and labels."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.dropout(self.token_embedding(tokens) + self.position_embedding(places))  # (B, T, D)
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))  # (B, T, V)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), labels.view(-1), ignore_index=-1)


def fused_weights(ours: LanguageModel) -> dict[str, Tensor]:
    """Our weights under the peer's names: query, key and value stacked into one matrix, the head's table a second
    time."""
    weights = {name.removeprefix("body."): tensor.clone() for name, tensor in ours.state_dict().items()}
    for i in range(ours.config.layers):
        for kind in ("weight", "bias"):
            parts = [weights.pop(f"blocks.{i}.attention.{part}.{kind}") for part in ("query", "key", "value")]
            weights[f"blocks.{i}.attention.query_key_value.{kind}"] = torch.cat(parts)
    return weights | {"head.weight": weights["token_embedding.weight"]}


def peer_adamw(model: nn.Module, learning_rate: float) -> torch.optim.AdamW:
    """The peer's optimizer on a CPU."""
    matrices, others = ([p for p in model.parameters() if (p.dim() >= 2) == matrix] for matrix in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95))


def peer_step(model: PeerGPT, optimizer: torch.optim.Optimizer, tokens: Tensor, labels: Tensor) -> None:
    """The peer's training step, the gradient clipped to length 1."""
    model(tokens, labels).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
