r"""The parts of T5: attention without a scale but with a number for each distance, a feed-forward layer that may be
gated, the stack.

The equations, their sources and the details that matter are in t5.py; the letters of the shapes are those of
transformer.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch import Tensor

from minialign.cache import Cache
from minialign.lab.pretrained.masks import who_sees_whom
from minialign.lab.pretrained.rms_norm import RMSNorm
from minialign.transformer import ACTIVATIONS


@dataclass(frozen=True)
class T5Config:
    """Shape of a T5."""

    vocabulary: int  # V, how many tokens there are
    # tokens on each side that it was trained on; it can read more, generation.py does not write more
    context: int = 512
    width: int = 512  # D, length of a token's vector
    head_size: int = 64  # d, of each head's queries, keys and values; heads · d need not be D
    heads: int = 8  # H, attention heads
    inner: int = 2048  # width of the feed-forward layer
    encoder_layers: int = 6  # blocks of the encoder
    layers: int = 6  # N, blocks of the decoder
    buckets: int = 32  # of distances
    furthest: int = 128  # distance from which on all share the last bucket
    activation: str = "relu"  # relu | gelu | gelu_tanh
    gated: bool = False  # two maps into the feed-forward layer, one of which opens and closes the other
    scaled: bool = True  # the last vectors are divided by √D before the head
    eps: float = 1e-6  # added to the mean square in the norms
    dropout: float = 0.1  # share of activations dropped while training
    kind: str = "encoder-decoder"  # what it is to generation.py


def distance_buckets(distance: Tensor, bidirectional: bool, buckets: int, furthest: int) -> Tensor:
    """The bucket of each distance k − q, Raffel et al. 2020, §2.1, and released code.

    Args:
        distance: integers, any shape: place of the key minus place of the query.
        bidirectional: half of the buckets are for keys that come later; otherwise these fall into bucket 0, and a mask
            hides them.
        buckets: how many there are; half of those of each direction hold one distance, the others a range that grows
            with the logarithm.
        furthest: from this distance on all are in the last bucket.
    Returns:
        integers in 0..buckets − 1.
    """
    offset = torch.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        offset = (distance > 0) * buckets
        distance = distance.abs()
    else:
        distance = (-distance).clamp(min=0)
    exact = buckets // 2
    # 0 at `exact`, 1 at `furthest`
    share = torch.log(distance.clamp(min=1).float() / exact) / math.log(furthest / exact)
    far = (exact + (share * (buckets - exact)).long()).clamp(max=buckets - 1)
    return offset + torch.where(distance < exact, distance, far)


class Attention(nn.Module):
    """H heads of attention over x itself, or (cross-attention) from x to the encoder's output."""

    def __init__(self, config: T5Config, layer: int):
        super().__init__()
        self.heads, self.layer, total = config.heads, layer, config.heads * config.head_size
        self.query, self.key, self.value = (nn.Linear(config.width, total, bias=False) for _ in range(3))
        self.output = nn.Linear(total, config.width, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, bias: Tensor | None, allowed: Tensor | None, cache: Cache | None = None,
                memory: Tensor | None = None) -> Tensor:
        def split(y):
            return y.view(*y.shape[:2], self.heads, -1).transpose(1, 2)  # (B, T, H d) -> (B, H, T, d)
        if memory is not None and cache is not None and cache.memory[self.layer] is not None:
            key, value = cache.memory[self.layer]  # the encoder's output does not change while we decode
        else:
            source = x if memory is None else memory
            key, value = split(self.key(source)), split(self.value(source))  # (B, H, S, d)
            if cache is not None and memory is not None:
                cache.memory[self.layer] = key, value
            elif cache is not None:
                key, value = cache.extend(self.layer, key, value)
        scores = split(self.query(x)) @ key.transpose(-2, -1)  # (B, H, T, S)   no 1/√d
        scores = scores if bias is None else scores + bias
        scores = scores if allowed is None else scores.masked_fill(~allowed, -math.inf)
        mixed = self.dropout(scores.softmax(dim=-1)) @ value  # (B, H, T, d)
        return self.output(mixed.transpose(1, 2).flatten(2))  # (B, T, D)


class FeedForward(nn.Module):
    """W₂ f(W₁ x), or with a gate W₂ (f(W_g x) ⊙ W₁ x)."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.gate = nn.Linear(config.width, config.inner, bias=False) if config.gated else None
        self.inner = nn.Linear(config.width, config.inner, bias=False)
        self.output = nn.Linear(config.inner, config.width, bias=False)
        self.activation, self.dropout = ACTIVATIONS[config.activation], nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        bent = self.activation(self.inner(x)) if self.gate is None else self.activation(self.gate(x)) * self.inner(x)
        return self.output(self.dropout(bent))


class Block(nn.Module):
    """Look around, (look at the encoder,) think: each adds its result to the stream."""

    def __init__(self, config: T5Config, layer: int, cross: bool):
        super().__init__()
        self.attention_norm, self.attention = RMSNorm(config.width, config.eps), Attention(config, layer)
        if cross:
            self.cross_norm, self.cross_attention = RMSNorm(config.width, config.eps), Attention(config, layer)
        self.feed_forward_norm, self.feed_forward = RMSNorm(config.width, config.eps), FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, bias, allowed, cache=None, memory=None, memory_allowed=None) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), bias, allowed, cache))
        if memory is not None:
            x = x + self.dropout(self.cross_attention(self.cross_norm(x), None, memory_allowed, cache, memory))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class T5Stack(nn.Module):
    """The encoder or (`causal`) the decoder."""

    def __init__(self, config: T5Config, causal: bool):
        super().__init__()
        self.config, self.causal = config, causal
        self.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.position_bias = nn.Embedding(config.buckets, config.heads)
        self.blocks = nn.ModuleList(Block(config, layer, causal) for layer in range(config.layers if causal
            else config.encoder_layers))
        self.norm, self.dropout = RMSNorm(config.width, config.eps), nn.Dropout(config.dropout)

    def forward(self, tokens, mask=None, cache: Cache | None = None, memory=None, memory_mask=None) -> Tensor:
        """(B, T, D) of tokens (B, T); the arguments are those of transformer.Transformer."""
        past = 0 if cache is None else cache.length
        T = tokens.shape[1]
        _, allowed = who_sees_whom(tokens, mask, cache, self.causal)
        place = torch.arange(past + T, device=tokens.device)
        distance = place[None, :] - place[past:, None]  # (T, S)
        bias = self.position_bias(distance_buckets(distance, not self.causal, self.config.buckets,
                                                   self.config.furthest))  # (T, S, H)
        memory_allowed = None if memory_mask is None else memory_mask[:, None, None, :]  # (B, 1, 1, S)
        x = self.dropout(self.token_embedding(tokens))  # (B, T, D)
        for block in self.blocks:
            x = block(x, bias.permute(2, 0, 1), allowed, cache, memory, memory_allowed)
        if cache is not None:
            cache.length += T
        return self.dropout(self.norm(x))
