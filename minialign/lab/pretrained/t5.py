r"""T5, by hand: an encoder-decoder that knows places only by their distance, one learned number for each head and
distance.

    Attention(Q, K, V) = softmax(Q Kᵀ + b) V,   b_qk = B[bucket(k − q), head]      Raffel et al. 2020, §2.1; no division by √d
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

Read next: t5_layers.py (the parts), transformer.py (ours).
Try it: python -c "from minialign.lab.pretrained.t5 import load_t5; print(load_t5('FOLDER'))"
"""

from __future__ import annotations

import math
from pathlib import Path

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from minialign.cache import Cache
from minialign.lab.interchange.folder import WEIGHTS, build, read_folder, renamed, same_table
from minialign.lab.pretrained.t5_layers import T5Config, T5Stack
from minialign.tokenizer import SpecialIds

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


class T5Body(nn.Module):
    """Encoder and decoder, with one table of token vectors for both."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.config = config
        self.encoder, self.decoder = T5Stack(config, causal=False), T5Stack(config, causal=True)
        self.decoder.token_embedding = self.encoder.token_embedding

    def forward(self, tokens, inputs=None, input_mask=None, mask=None, cache: Cache | None = None,
                memory=None) -> Tensor:
        """(B, T, D) of the decoder's tokens (B, T), given the encoder's `inputs` (B, S) or its finished output `memory`
        (B, S, D)."""
        memory = self.encoder(inputs, input_mask) if memory is None else memory
        return self.decoder(tokens, mask, cache, memory, input_mask)


class T5(nn.Module):
    """A body and its head: the shared table, or one of its own.

    Args:
        config: the shape.
        own_head: whether the head has a table of its own.
    """

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
    same_table(tensors, "head.weight", "body.encoder.token_embedding.weight")
    model = build(T5, config, tensors, Path(folder) / WEIGHTS, own_head="head.weight" in tensors)
    model.special = settings.special("decoder_start_token_id", T5.special)
    return model
