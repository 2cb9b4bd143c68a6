r"""The transformer, by hand: one attention and one block make the decoder, the encoder and the encoder-decoder.

    Attention(Q, K, V) = softmax(Q Kᵀ / √d) V                              Vaswani et al. 2017, §3.2.1, Eq. 1
    x ← x + Attention(LayerNorm(x));   x ← x + FeedForward(LayerNorm(x))   pre-norm block, Radford et al. 2019 (GPT-2), §2.3

Shapes, in every file of the project:
    B batch    T tokens of this call    S tokens that can be attended to    D width    H heads    d = D / H
    V vocabulary    R response tokens    N blocks

What differs between the three architectures is only who may look at whom:
    decoder            token t sees tokens 0..t            causal
    encoder            token t sees every real token       bidirectional
    encoder-decoder    a decoder whose blocks also look at the encoder's output: queries from x, keys and values from memory

Read next: heads.py (what the vectors are turned into), generation.py (how the cache is used). Details that matter:
    1. A pad may look at itself, so no row of the softmax is empty; nothing real ever looks at a pad.
    2. Positions count real tokens, so padding on the left changes nothing (test_left_padding_changes_no_logit).
    3. The cache gives the same numbers as the full pass (test_cached_steps_equal_the_full_pass).
    4. Projections into the residual stream start smaller by √(2N), as in GPT-2
       (test_residual_projections_start_smaller).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from minialign.cache import Cache
from minialign.positions import causal_mask, positions_from_mask, rotate, rotation_table, smear
from minialign.runs.errors import UserError

ACTIVATIONS = {"gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "relu": F.relu}


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of a model; stored beside its weights."""

    vocabulary: int  # V, how many tokens there are
    context: int = 160  # most tokens that it can read, prompt and answer together
    width: int = 96  # D, length of a token's vector
    layers: int = 3  # N, number of blocks (in the encoder and in the decoder each)
    heads: int = 3  # H, attention heads; width / heads must be even with rotary positions
    kind: str = "decoder"  # decoder | encoder | encoder-decoder
    positions: str = "rotary"  # rotary (Su et al. 2021) | learned (GPT-2)
    feed_forward: int = 4  # inner width of the feed-forward layer, in units of D
    activation: str = "gelu"  # gelu | gelu_tanh (GPT-2's) | relu
    dropout: float = 0.0  # share of activations dropped while training
    # deviation of the initial weights; GPT-2's value, made for widths near 1000: narrow models learn faster from 1/√D
    initial_std: float = 0.02
    # mix each key with the one before it, so that small models learn to copy early (Olsson et al. 2022)
    smeared_keys: bool = False
    # torch's fused kernel; without it the formula itself, which is slower and equal within 1e-5
    fused_attention: bool = True

    def __post_init__(self):
        choices = {"kind": ("decoder", "encoder", "encoder-decoder"), "positions": ("rotary", "learned"),
                   "activation": tuple(ACTIVATIONS)}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}")
        for name in ("vocabulary", "context", "width", "layers", "heads", "feed_forward"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.width % self.heads or (self.positions == "rotary" and self.width // self.heads % 2):
            even = " into an even number, which rotary positions need" if self.positions == "rotary" else ""
            raise UserError(f"width {self.width} does not divide by {self.heads} heads{even}; change one of them")
        if not 0 <= self.dropout < 1 or not 0 < self.initial_std < 1:
            raise UserError(f"dropout {self.dropout} (at least 0, below 1) or initial std {self.initial_std} (above 0, "
                            f"below 1) is out of range")


def attention(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None, causal: bool = False,
              fused: bool = True) -> Tensor:
    r"""softmax(Q Kᵀ / √d) V, Vaswani et al. 2017, Eq. 1.

    Args:
        query: (B, H, T, d).
        key, value: (B, H, S, d).
        allowed: bool, broadcastable to (B, H, T, S), true where a query may look at a key; None allows everything.
        causal: query t looks at keys 0..t only (needs T = S; not together with `allowed`).
        fused: compute it with torch's one fused kernel, equal within 1e-5.
    Returns:
        (B, H, T, d).
    """
    if fused and query.shape[2] > 1:  # for a single query the formula is the faster one on a CPU
        return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, is_causal=causal)
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])  # (B, H, T, S)
    if causal:
        allowed = causal_mask(query.shape[2], query.device)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -math.inf)
    return scores.softmax(dim=-1) @ value  # (B, H, T, d)


class Attention(nn.Module):
    """H heads of attention over x itself, or (cross-attention) from x to an encoder's output."""

    def __init__(self, config: TransformerConfig, layer: int):
        super().__init__()
        self.config, self.layer = config, layer
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)
        self.output = nn.Linear(config.width, config.width)
        self.smear = nn.Parameter(torch.zeros(config.heads)) if config.smeared_keys else None

    def split(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, H, T, d)."""
        return x.view(*x.shape[:2], self.config.heads, -1).transpose(1, 2)

    def forward(self, x, allowed=None, causal=False, rotation=None, cache=None, memory=None, first=None) -> Tensor:
        query = self.split(self.query(x))  # (B, H, T, d)
        if memory is not None and cache is not None and cache.memory[self.layer] is not None:
            key, value = cache.memory[self.layer]  # the encoder's output does not change while we decode
        else:
            source = x if memory is None else memory
            key, value = self.split(self.key(source)), self.split(self.value(source))  # (B, H, S, d)
            if memory is not None and cache is not None:
                cache.memory[self.layer] = key, value
        if self.smear is not None and memory is None:
            before = None if cache is None else cache.last[self.layer]
            if cache is not None:
                cache.last[self.layer] = key[:, :, -1:]
            key = smear(key, self.smear, first, before)
        if rotation is not None and memory is None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        if cache is not None and memory is None:
            key, value = cache.extend(self.layer, key, value)
        mixed = attention(query, key, value, allowed, causal, self.config.fused_attention)
        return self.output(mixed.transpose(1, 2).reshape(x.shape))  # (B, T, D)


class FeedForward(nn.Module):
    """Two linear maps with a bend in between, on every token by itself: W₂ f(W₁ x)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.inner = nn.Linear(config.width, config.feed_forward * config.width)
        self.output = nn.Linear(config.feed_forward * config.width, config.width)
        self.activation = config.activation

    def forward(self, x: Tensor) -> Tensor:
        return self.output(ACTIVATIONS[self.activation](self.inner(x)))


class Block(nn.Module):
    """Look around, (look at the encoder,) think: each adds its result to the stream."""

    def __init__(self, config: TransformerConfig, layer: int, cross: bool = False):
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(config.width), Attention(config, layer)
        if cross:
            self.cross_norm, self.cross_attention = nn.LayerNorm(config.width), Attention(config, layer)
        self.feed_forward_norm, self.feed_forward = nn.LayerNorm(config.width), FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, allowed, causal, rotation, cache=None, memory=None, memory_allowed=None, first=None) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), allowed, causal, rotation, cache, first=first))
        if memory is not None:
            x = x + self.dropout(self.cross_attention(self.cross_norm(x), memory_allowed, cache=cache, memory=memory))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class Transformer(nn.Module):
    """Tokens in, one vector of meaning for each token out: a decoder's or an encoder's stack.

    Args:
        config: the shape.
        causal: decoder (True) or encoder.
        cross: its blocks also look at an encoder's output.
    """

    def __init__(self, config: TransformerConfig, causal: bool, cross: bool = False):
        super().__init__()
        self.config, self.causal = config, causal
        self.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.position_embedding = nn.Embedding(config.context, config.width) if config.positions == "learned" else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer, cross) for layer in range(config.layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, tokens, mask=None, cache: Cache | None = None, memory=None, memory_mask=None) -> Tensor:
        r"""Run the stack.

        Args:
            tokens: (B, T) integers.
            mask: (B, T) bool, true at real tokens; None says that all are real, or that a causal reader's pads are all
                on the right, where nothing real ever looks at them.
            cache: what was read before; these T tokens are added to it.
            memory: (B, S, D) the encoder's output, for blocks with cross-attention; memory_mask: (B, S) bool, its real
                tokens.
        Returns:
            (B, T, D) after the last norm. What stands at pads has no meaning.
        Raises:
            UserError: more tokens than the context holds.
        """
        T = tokens.shape[1]
        positions, allowed = self._who_sees_whom(tokens, mask, cache)
        longest = int(positions.max()) + 1  # real tokens: padding needs no room
        if longest > self.config.context:
            raise UserError(f"{longest} tokens do not fit the model's context of {self.config.context}; shorten the "
                            f"text or train a longer context")
        x = self.token_embedding(tokens)  # (B, T, D)
        rotation = None
        if self.position_embedding is not None:
            x = x + self.position_embedding(positions)
        else:
            rotation = rotation_table(positions, self.config.width // self.config.heads)
        x = self.dropout(x)
        causal = self.causal and allowed is None and T > 1
        memory_allowed = None if memory_mask is None else memory_mask[:, None, None, :]  # (B, 1, 1, S)
        first = (positions == 0)[..., None] if positions.dim() == 1 else (positions == 0)[:, None, :,
            None]  # where a text begins
        for block in self.blocks:
            x = block(x, allowed, causal, rotation, cache, memory, memory_allowed, first)
        if cache is not None:
            cache.length += T
        return self.norm(x)

    def _who_sees_whom(self, tokens: Tensor, mask: Tensor | None, cache: Cache | None) -> tuple[Tensor, Tensor | None]:
        """Positions, (T,) or (B, T), and the mask (B, 1, T, S) for the attention; None where plain causal or full
        attention is right."""
        B, T = tokens.shape
        past = 0 if cache is None else cache.length
        if cache is not None and mask is not None:
            cache.mask[:, past : past + T] = mask
            cache.padded = cache.padded or not bool(mask.all())
        if cache is not None and (cache.padded or mask is not None):
            mask = cache.mask[:, : past + T]  # (B, S)
        if mask is None:
            assert past == 0 or T == 1, "without padding, more tokens are read into a filled cache one at a time"
            return torch.arange(past, past + T, device=tokens.device), None
        keys = mask[:, None, None, :]  # (B, 1, 1, S)
        if self.causal:
            keys = keys & causal_mask(past + T, tokens.device)[past:]  # (B, 1, T, S)
        # (T, S)   a pad sees itself: no empty row
        itself = torch.eye(past + T, dtype=torch.bool, device=tokens.device)[past:]
        return positions_from_mask(mask)[:, past:], keys | itself


class EncoderDecoder(nn.Module):
    """An encoder that reads the input and a decoder that looks at it while it writes; one table of token vectors for
    both."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.encoder = Transformer(config, causal=False)
        self.decoder = Transformer(config, causal=True, cross=True)
        self.decoder.token_embedding = self.encoder.token_embedding

    def forward(self, tokens, inputs=None, input_mask=None, mask=None, cache: Cache | None = None,
                memory=None) -> Tensor:
        """(B, T, D) of the decoder's tokens (B, T), given the encoder's `inputs` (B, S) or its finished output `memory`
        (B, S, D)."""
        if memory is None:
            memory = self.encoder(inputs, input_mask)
        return self.decoder(tokens, mask, cache, memory, input_mask)
