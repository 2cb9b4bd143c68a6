r"""The transformer, by hand: one attention and one block make the decoder, the encoder and the encoder-decoder.

    Attention(Q, K, V) = softmax(Q Kᵀ / √d) V                              Vaswani et al. 2017, §3.2.1, Eq. 1
    x ← x + Attention(LayerNorm(x));   x ← x + FeedForward(LayerNorm(x))   pre-norm block, Radford et al. 2019, §2.3

Shapes, in every file of the project:
    B batch    T tokens of this call    S tokens that can be attended to    D width    H heads    d = D / H
    V vocabulary    R completion tokens    N blocks

What differs between the three architectures is only who may look at whom:
    decoder            token t sees tokens 0..t            causal
    encoder            token t sees every real token       bidirectional
    encoder-decoder    a decoder whose blocks also look at the encoder's output (cross-attention)

Read next: cache.py. See also: heads.py (what the vectors are turned into), generation.py (how the cache is used).
Details that matter:
    1. A pad may look at itself, so no row of the softmax is empty; nothing real ever looks at a pad.
    2. Positions count real tokens, so padding on the left changes nothing (test_left_padding_changes_no_logit).
    3. The cache gives the same numbers as the full pass (test_cached_steps_equal_the_full_pass).
    4. Projections into the residual stream start smaller by √(2N): test_residual_projections_start_smaller.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from minialign.cache import Cache
from minialign.runs.errors import UserError
from minialign.runs.settings import check_at_least_1, check_choices

ACTIVATIONS = {"gelu": F.gelu, "gelu_tanh": partial(F.gelu, approximate="tanh"), "relu": F.relu}


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of a model; stored beside its weights."""

    vocabulary: int  # V, how many tokens there are
    context: int = 160  # most tokens that it can read, prompt and completion together
    width: int = 96  # D, length of a token's vector
    layers: int = 3  # N, number of blocks (in the encoder and in the decoder each)
    heads: int = 3  # H, attention heads; width / heads must be even with rotary positions
    kind: str = "decoder"  # decoder | encoder | encoder-decoder
    positions: str = "rotary"  # rotary (Su et al. 2021) | learned (GPT-2)
    feed_forward: int = 4  # inner width of the feed-forward layer, in units of D
    activation: str = "gelu"  # gelu | gelu_tanh (GPT-2's) | relu
    dropout: float = 0.0  # share of activations dropped while training
    initial_std: float = 0.02  # std of the initial weights; GPT-2's, for widths near 1000: smaller ones learn from 1/√D
    short_convolution: int = 0  # k: mix the last k tokens ahead of every layer, which lets a small model read early
    shared: bool = False  # encoder and decoder are one set of weights, but for the cross-attention (T5, §3.2.2)
    fused_attention: bool = True  # torch's fused kernel; without it the formula, which is slower and equal within 1e-5

    def __post_init__(self):
        check_choices(self, {"kind": ("decoder", "encoder", "encoder-decoder"), "positions": ("rotary", "learned"),
                             "activation": ACTIVATIONS})
        check_at_least_1(self, "vocabulary", "context", "width", "layers", "heads", "feed_forward")
        if self.width % self.heads or (self.positions == "rotary" and self.width // self.heads % 2):
            even = " into an even number, which rotary positions need" if self.positions == "rotary" else ""
            raise UserError(f"width {self.width} does not divide by {self.heads} heads{even}; change one of them")
        if self.shared and self.kind != "encoder-decoder":
            raise UserError(f"shared weights are for an encoder-decoder, not for the kind {self.kind}")
        if not 0 <= self.short_convolution <= 16:
            raise UserError(f"short convolution {self.short_convolution} must be between 0 (none) and 16 positions")
        if not 0 <= self.dropout < 1 or not 0 < self.initial_std < 1:
            raise UserError(f"dropout {self.dropout} (at least 0, below 1) or initial std {self.initial_std} "
                            f"(above 0, below 1) is out of range")


def attention(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None, causal: bool = False,
              fused: bool = True) -> Tensor:
    r"""softmax(Q Kᵀ / √d) V, Vaswani et al. 2017, Eq. 1: (B, H, T, d) for each query.

    Args:
        query: (B, H, T, d); key, value: (B, H, S, d).
        allowed: bool, broadcastable to (B, H, T, S), true where a query may look at a key; None allows everything.
        causal: query t looks at keys 0..t only (needs T = S; not together with `allowed`).
        fused: compute it with torch's one fused kernel, equal within 1e-5.
    """
    if fused and query.shape[2] > 1:  # for a single query the formula is the faster one on a CPU
        return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, is_causal=causal)
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])  # (B, H, T, S)
    if causal:
        allowed = causal_mask(query.shape[2], query.device)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -math.inf)
    return scores.softmax(dim=-1) @ value  # (B, H, T, d)


class Sight(NamedTuple):
    """Where the T tokens of a call stand and whom they may look at: the same in all blocks."""

    positions: Tensor  # (T,) or (B, T)
    allowed: Tensor | None = None  # (B, 1, T, S) bool, who may look at whom; None: everything, or what `causal` says
    causal: bool = False  # token t looks at 0..t only
    rotation: tuple[Tensor, Tensor] | None = None  # of queries and keys, with rotary positions
    real: Tensor | None = None  # (B, T) bool, false at pads; None: all are real, or pads stand where nobody looks


def causal_mask(T: int, device: torch.device | None = None) -> Tensor:
    """(T, T) bool: row t is true at 0..t."""
    return torch.ones(T, T, dtype=torch.bool, device=device).tril()


def positions_from_mask(mask: Tensor) -> Tensor:
    """(B, T) position of each token among the real ones of its row, from a (B, T) bool mask; pads get a harmless 0."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def who_sees_whom(mask: Tensor, T: int, causal: bool) -> Tensor:
    """(B, 1, T, S) bool: whom the last T of S tokens may look at; mask (B, S) is true at real tokens."""
    S = mask.shape[1]
    allowed = mask[:, None, None, :]  # (B, 1, 1, S)
    if causal:
        allowed = allowed & causal_mask(S, mask.device)[S - T :]  # (B, 1, T, S)
    itself = torch.eye(S, dtype=torch.bool, device=mask.device)[S - T :]  # (T, S)
    return allowed | itself  # a pad sees itself: no empty row


def rotation_table(positions: Tensor, d: int, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines that rotate a head's d numbers by its position, Su et al. 2021 (RoFormer), §3.4.2.

    Args: positions (T,) or (B, T); d even; base of the angles: a larger one turns slower and reaches further.
    Returns: cos, sin, (T, d) or (B, 1, T, d), ready to multiply (B, H, T, d).
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


class Attention(nn.Module):
    """H heads of attention, from x to x itself and to what the cache holds."""

    def __init__(self, config: TransformerConfig, layer: int):
        super().__init__()
        self.config, self.layer = config, layer
        self.query, self.key, self.value, self.output = (nn.Linear(config.width, config.width) for _ in range(4))

    def split(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, H, T, d)."""
        return x.view(*x.shape[:2], self.config.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor, sight: Sight, cache: Cache | None = None) -> Tensor:
        query, key, value = (self.split(part(x)) for part in (self.query, self.key, self.value))  # (B, H, T, d) each
        if sight.rotation is not None:
            query, key = rotate(query, sight.rotation), rotate(key, sight.rotation)
        if cache is not None:
            key, value = cache.extend(self.layer, key, value)  # (B, H, S, d)
        mixed = attention(query, key, value, sight.allowed, sight.causal, self.config.fused_attention)
        return self.output(mixed.transpose(1, 2).reshape(x.shape))  # (B, T, D)


class CrossAttention(Attention):
    """H heads of attention from x to an encoder's output, which does not change while a decoder writes."""

    def forward(self, x: Tensor, memory: Tensor, memory_mask: Tensor | None, cache: Cache | None = None) -> Tensor:
        query = self.split(self.query(x))  # (B, H, T, d)
        if cache is not None and cache.memory[self.layer] is not None:
            key, value = cache.memory[self.layer]
        else:
            key, value = self.split(self.key(memory)), self.split(self.value(memory))  # (B, H, S, d)
            if cache is not None:
                cache.memory[self.layer] = key, value
        allowed = None if memory_mask is None else memory_mask[:, None, None, :]  # (B, 1, 1, S)
        mixed = attention(query, key, value, allowed, fused=self.config.fused_attention)
        return self.output(mixed.transpose(1, 2).reshape(x.shape))  # (B, T, D)


class FeedForward(nn.Module):
    """Two linear maps with a nonlinearity in between, on every token by itself: W₂ f(W₁ x)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.inner = nn.Linear(config.width, config.feed_forward * config.width)
        self.output = nn.Linear(config.feed_forward * config.width, config.width)
        self.activation = config.activation

    def forward(self, x: Tensor) -> Tensor:
        return self.output(ACTIVATIONS[self.activation](self.inner(x)))


class Block(nn.Module):
    """Attention, cross-attention where there is an encoder, feed-forward: each adds its result to the stream."""

    def __init__(self, config: TransformerConfig, layer: int, cross: bool = False):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = Attention(config, layer)
        if cross:
            self.cross_norm, self.cross_attention = nn.LayerNorm(config.width), CrossAttention(config, layer)
        self.feed_forward_norm, self.feed_forward = nn.LayerNorm(config.width), FeedForward(config)
        if config.short_convolution:
            self.convolutions = nn.ModuleList(ShortConvolution(config, 2 * layer + place) for place in range(2))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, sight: Sight, cache: Cache | None = None, memory: Tensor | None = None,
                memory_mask: Tensor | None = None) -> Tensor:
        x = x + self.dropout(self.attention(self.mixed(0, self.attention_norm(x), sight, cache), sight, cache))
        if memory is not None:
            x = x + self.dropout(self.cross_attention(self.cross_norm(x), memory, memory_mask, cache))
        return x + self.dropout(self.feed_forward(self.mixed(1, self.feed_forward_norm(x), sight, cache)))

    def mixed(self, place: int, x: Tensor, sight: Sight, cache: Cache | None) -> Tensor:
        """(B, T, D) x, with its short convolution if it has one: 0 ahead of the attention, 1 of the feed-forward."""
        return self.convolutions[place](x, sight, cache) if hasattr(self, "convolutions") else x


class Transformer(nn.Module):
    """Tokens in, one vector for each token out: a decoder (`causal`, with `cross` one of two parts) or an encoder."""

    def __init__(self, config: TransformerConfig, causal: bool, cross: bool = False):
        super().__init__()
        self.config, self.causal = config, causal
        self.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.position_embedding = nn.Embedding(config.context, config.width) if config.positions == "learned" else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer, cross) for layer in range(config.layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, tokens: Tensor, mask: Tensor | None = None, cache: Cache | None = None,
                memory: Tensor | None = None, memory_mask: Tensor | None = None) -> Tensor:
        r"""(B, T, D) after the last norm; what stands at pads has no meaning.

        Args:
            tokens: (B, T) integers.
            mask: (B, T) bool, true at real tokens; None says that all are real, or that a causal reader's pads are all
                on the right, where nothing real ever looks at them.
            cache: what was read before; these T tokens are added to it.
            memory: (B, S, D) an encoder's output, for cross-attention; memory_mask: (B, S) bool, its real tokens.
        Raises:
            UserError: more tokens than the context holds.
        """
        sight = self.look(tokens.shape[1], mask, cache, tokens.device)
        x = self.token_embedding(tokens)  # (B, T, D)
        if self.position_embedding is not None:
            x = x + self.position_embedding(sight.positions)
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, sight, cache, memory, memory_mask)
        if cache is not None:
            cache.length += tokens.shape[1]
        return self.norm(x)

    def look(self, T: int, mask: Tensor | None, cache: Cache | None, device: torch.device) -> Sight:
        """Where the T tokens of a call stand and whom they see. Raises UserError when they do not fit the context."""
        past, mask = (0, mask) if cache is None else (cache.length, cache.remember_pads(mask, T))  # mask (B, S)
        if mask is None:
            assert past == 0 or T == 1, "without padding, more tokens are read into a filled cache one at a time"
            positions, allowed = torch.arange(past, past + T, device=device), None  # (T,)
        else:
            positions, allowed = positions_from_mask(mask)[:, past:], who_sees_whom(mask, T, self.causal)
        longest = int(positions.max()) + 1  # real tokens: padding needs no room
        if longest > self.config.context:
            raise UserError(f"{longest} tokens do not fit the model's context of {self.config.context}; shorten the "
                            f"text or train a longer context")
        rotary = self.config.positions == "rotary"
        rotation = rotation_table(positions, self.config.width // self.config.heads) if rotary else None
        real = None if mask is None else mask[:, past:]  # (B, T)
        return Sight(positions, allowed, self.causal and allowed is None and T > 1, rotation, real)


class EncoderDecoder(nn.Module):
    """An encoder that reads the input, a decoder that looks at it while it writes, one table of token vectors."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.encoder = Transformer(config, causal=False)
        self.decoder = Transformer(config, causal=True, cross=True)
        self.decoder.token_embedding = self.encoder.token_embedding
        if config.shared:  # Raffel et al. 2020, §3.2.2
            self.decoder.norm = self.encoder.norm
            for reads, writes in zip(self.encoder.blocks, self.decoder.blocks):
                writes._modules.update(reads._modules)  # all but the cross-attention

    def forward(self, tokens: Tensor, inputs: Tensor | None = None, input_mask: Tensor | None = None,
                mask: Tensor | None = None, cache: Cache | None = None, memory: Tensor | None = None) -> Tensor:
        """(B, T, D) of the decoder's tokens (B, T), from the encoder's inputs (B, S) or its output memory (B, S, D)."""
        if memory is None:
            memory = self.encoder(inputs, input_mask)
        return self.decoder(tokens, mask, cache, memory, input_mask)


class ShortConvolution(nn.Module):
    r"""y_t = x_t + Σᵢ wᵢ ⊙ x_{t−i} over i = 0..k−1: a causal convolution over k positions, each channel by itself.

    To copy "Ida found the …" a head must find what came *after* an earlier "found". With the last few tokens mixed into
    each one a single layer can; otherwise an earlier layer has to bring them along.     Allen-Zhu 2025, "canon layers"
    """

    def __init__(self, config: TransformerConfig, place: int):
        super().__init__()
        self.place = place  # of its state in the cache
        self.weight = nn.Parameter(torch.zeros(config.short_convolution, config.width))  # (k, D), the farthest first

    def forward(self, x: Tensor, sight: Sight, cache: Cache | None = None) -> Tensor:
        """(B, T, D) of x (B, T, D); the cache holds the k − 1 vectors that were read before."""
        (B, T, D), k = x.shape, len(self.weight)
        real = x if sight.real is None else x * sight.real[..., None]  # a pad on the left is as nothing
        before = None if cache is None else cache.inputs_before(self.place, k - 1)
        line = torch.cat([x.new_zeros(B, k - 1, D) if before is None else before, real], dim=1)  # (B, k − 1 + T, D)
        if cache is not None:
            cache.keep_inputs(self.place, line, T)
        if T == 1:  # faster than the kernel for many
            return x + (line * self.weight).sum(dim=1, keepdim=True)
        mixed = F.conv2d(line.transpose(1, 2)[:, :, None], self.weight.T[:, None, None], groups=D)  # (B, D, 1, T)
        return x + mixed[:, :, 0].transpose(1, 2)
