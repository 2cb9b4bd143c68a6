r"""T5, by hand: an encoder-decoder that knows places by their distance, a learned number for each head and distance.

    Attention(Q, K, V) = softmax(Q Kᵀ + b) V,   b_qk = B[bucket(k − q), head]      Raffel et al. 2020, §2.1
    x ← x + Attention(RMSNorm(x));   x ← x + FeedForward(RMSNorm(x));   no biases anywhere
    FeedForward(x) = W₂ relu(W₁ x)                       the first T5
                   = W₂ (gelu(W_g x) ⊙ W₁ x)             T5 1.1 and T0                Shazeer 2020 (GEGLU), Eq. 6

It reads folders of `model_type` t5: T5, T5 1.1, T5+LM, T0, FLAN-T5. Details that matter:
    1. Queries are not divided by √d; the first weights were drawn smaller instead (Raffel et al. 2020, released code).
    2. Near distances have a bucket each, far ones share one that grows with the logarithm
       (test_distances_fall_into_buckets_as_counted_by_hand). The encoder keeps half of its buckets for what comes
       later.
    3. The first block's table of buckets serves all blocks of its stack; cross-attention has none.
    4. With a shared head the last vectors are multiplied by 1/√D, in 1.1 they are not and the head has its own table. A
       folder that newer software saved again says so in `scale_decoder_outputs` and no longer in `tie_word_embeddings`
       (test_an_untied_head_is_not_scaled).
    5. The decoder begins with the pad token
       (test_greedy_generation_with_cache_and_padding_equals_that_of_transformers).

Read next: rms_norm.py.
Try it: python -c "from minialign.lab.pretrained.t5 import load_t5; print(load_t5('FOLDER'))"
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from minialign.cache import Cache
from minialign.lab.interchange.folder import WEIGHTS, build, own_head, read_folder, renamed
from minialign.lab.pretrained.masks import who_sees_whom
from minialign.lab.pretrained.rms_norm import RMSNorm
from minialign.tokenizer import SpecialIds
from minialign.transformer import ACTIVATIONS

NAMES = [  # theirs -> ours
    (r"^encoder\.block\.(\d+)\.layer\.0\.layer_norm", r"body.encoder.blocks.\1.attention_norm"),
    (r"^encoder\.block\.(\d+)\.layer\.1\.layer_norm", r"body.encoder.blocks.\1.feed_forward_norm"),
    (r"^decoder\.block\.(\d+)\.layer\.0\.layer_norm", r"body.decoder.blocks.\1.attention_norm"),
    (r"^decoder\.block\.(\d+)\.layer\.1\.layer_norm", r"body.decoder.blocks.\1.cross_norm"),
    (r"^decoder\.block\.(\d+)\.layer\.2\.layer_norm", r"body.decoder.blocks.\1.feed_forward_norm"),
    (r"^(encoder|decoder)\.block\.0\.layer\.0\.SelfAttention\.relative_attention_bias", r"body.\1.position_bias"),
    (r"^(encoder|decoder)\.block\.(\d+)\.layer\.\d+\.", r"body.\1.blocks.\2."),
    (r"^(encoder|decoder)\.final_layer_norm", r"body.\1.norm"),
    (r"\.SelfAttention\.", ".attention."),
    (r"\.EncDecAttention\.", ".cross_attention."),
    (r"\.DenseReluDense\.", ".feed_forward."),
    (r"\.q\.", ".query."),
    (r"\.k\.", ".key."),
    (r"\.v\.", ".value."),
    (r"\.w?o\.", ".output."),
    (r"\.wi_0\.", ".gate."),
    (r"\.wi(_1)?\.", ".inner."),
    (r"^shared", "body.encoder.token_embedding"),
    (r"^lm_head", "head"),
]
# further names of `shared`; a table that old files carry and nothing reads
UNUSED = r"embed_tokens|EncDecAttention\.relative_attention_bias"
FEED_FORWARD = {"relu": ("relu", False), "gelu": ("gelu", False), "gated-gelu": ("gelu_tanh", True),
                "gated-relu": ("relu", True)}


@dataclass(frozen=True)
class T5Config:
    """Shape of a T5."""

    vocabulary: int  # V, how many tokens there are
    context: int = 512  # tokens on each side that it was trained on; generation.py does not write more
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
        bidirectional: half of the buckets are for keys that come later; otherwise those fall into bucket 0, and a mask
            hides them.
        buckets: how many; half of each direction's hold one distance, the others a range that grows with the logarithm.
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
    share = torch.log(distance.clamp(min=1).float() / exact) / math.log(furthest / exact)  # 0 at `exact`, 1 at the end
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
        def split(y: Tensor) -> Tensor:
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
        inner = self.inner(x)
        inner = self.activation(inner) if self.gate is None else self.activation(self.gate(x)) * inner
        return self.output(self.dropout(inner))


class Block(nn.Module):
    """Attention, in the decoder cross-attention, feed-forward: each adds its result to the stream."""

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
        layers = config.layers if causal else config.encoder_layers
        self.blocks = nn.ModuleList(Block(config, layer, causal) for layer in range(layers))
        self.norm, self.dropout = RMSNorm(config.width, config.eps), nn.Dropout(config.dropout)

    def forward(self, tokens, mask=None, cache: Cache | None = None, memory=None, memory_mask=None) -> Tensor:
        """(B, T, D) of tokens (B, T); the arguments are those of transformer.Transformer."""
        past, T = 0 if cache is None else cache.length, tokens.shape[1]
        _, allowed = who_sees_whom(tokens, mask, cache, self.causal)
        place = torch.arange(past + T, device=tokens.device)
        distance = place[None, :] - place[past:, None]  # (T, S)
        buckets = distance_buckets(distance, not self.causal, self.config.buckets, self.config.furthest)
        bias = self.position_bias(buckets)  # (T, S, H)
        memory_allowed = None if memory_mask is None else memory_mask[:, None, None, :]  # (B, 1, 1, S)
        x = self.dropout(self.token_embedding(tokens))  # (B, T, D)
        for block in self.blocks:
            x = block(x, bias.permute(2, 0, 1), allowed, cache, memory, memory_allowed)
        if cache is not None:
            cache.length += T
        return self.dropout(self.norm(x))


class T5Body(nn.Module):
    """Encoder and decoder, with one table of token vectors for both."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.config = config
        self.encoder, self.decoder = T5Stack(config, causal=False), T5Stack(config, causal=True)
        self.decoder.token_embedding = self.encoder.token_embedding

    def forward(self, tokens, inputs=None, input_mask=None, mask=None, cache: Cache | None = None,
                memory=None) -> Tensor:
        """(B, T, D) of the decoder's tokens (B, T) and the encoder's `inputs` (B, S) or output `memory` (B, S, D)."""
        memory = self.encoder(inputs, input_mask) if memory is None else memory
        return self.decoder(tokens, mask, cache, memory, input_mask)


class T5(nn.Module):
    """A body and its head: the shared table, or with `own_head` a table of its own."""

    special = SpecialIds(0, 1, 0)  # the decoder begins with the pad token

    def __init__(self, config: T5Config, own_head: bool = False):
        super().__init__()
        self.config, self.body = config, T5Body(config)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False) if own_head else None

    def forward(self, tokens: Tensor, *arguments, **keywords) -> Tensor:
        """(B, T, V) logits of the decoder's tokens (B, T); the arguments are the body's."""
        return self.logits(self.body(tokens, *arguments, **keywords))

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""
        hidden = hidden / math.sqrt(self.config.width) if self.config.scaled else hidden
        return F.linear(hidden, self.body.encoder.token_embedding.weight) if self.head is None else self.head(hidden)


def load_t5(folder: Path) -> T5:
    """A T5 from a checkpoint folder, in fp32, in evaluation mode.

    Raises:
        UserError: see `read_folder`; a setting that is not supported; tensors of another model.
    """
    settings, tensors = read_folder(folder, "t5")
    activation, gated = FEED_FORWARD[settings.must_be("feed_forward_proj", tuple(FEED_FORWARD))]
    settings.must_be("dense_act_fn", ("gelu_new" if activation == "gelu_tanh" else activation,))  # the same, said twice
    settings.must_be("is_gated_act", (gated,))
    tied = settings.must_be("tie_word_embeddings", (True, False))
    buckets = settings.number("relative_attention_num_buckets", 32, least=4)
    layers = settings.number("num_layers", most=len(tensors))
    config = T5Config(
        vocabulary=settings.number("vocab_size"),
        context=settings.number("n_positions", 512),
        width=settings.number("d_model"),
        head_size=settings.number("d_kv"),
        heads=settings.number("num_heads"),
        inner=settings.number("d_ff"),
        encoder_layers=layers,
        layers=settings.number("num_decoder_layers", layers, most=len(tensors)),
        buckets=buckets,
        furthest=settings.number("relative_attention_max_distance", 128, least=buckets // 2 + 1),
        activation=activation,
        gated=gated,
        scaled=settings.must_be("scale_decoder_outputs", (tied, not tied)),
        eps=settings.number("layer_norm_epsilon", 1e-6, whole=False, least=0),
        dropout=settings.number("dropout_rate", 0.1, whole=False, least=0, most=1),
    )
    tensors = renamed(tensors, NAMES, UNUSED)
    # new versions of the library write `scale_decoder_outputs` for it, and that every head is tied
    says = "scale_decoder_outputs" if "scale_decoder_outputs" in settings.values else "tie_word_embeddings"
    own = own_head(tensors, "head.weight", "body.encoder.token_embedding.weight", settings, tied=says)
    model = build(T5, config, tensors, Path(folder) / WEIGHTS, own_head=own)
    model.special = settings.special("decoder_start_token_id", T5.special)
    return model
