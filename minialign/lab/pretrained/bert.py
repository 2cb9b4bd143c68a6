r"""BERT, by hand: an encoder that normalises after each step, and adds a segment to what a token and its place mean.

    x ← LayerNorm(E[token] + P[place] + S[segment])                          Devlin et al. 2019, §3, Figure 2
    x ← LayerNorm(x + Attention(x));   x ← LayerNorm(x + FeedForward(x))     post-norm block, Vaswani et al. 2017, §3.1
    masked word: logits = LayerNorm(gelu(W x)) Eᵀ + b                        Devlin et al. 2019, §3.1, released code

It reads folders of `model_type` bert: BERT itself, MiniLM and other students of it. Details that matter:
    1. The norm comes after the sum, the other way round than in transformer.py; with it the stream is normalised in
       every layer.
    2. Positions count places in the row, so pads stand on the right, as the weights were trained
       (test_padding_on_the_right_changes_no_vector_of_bert).
    3. ε of the norms is 1e-12 in the published models, and read from the file.
    4. The pooler and the next-sentence head are not read: nothing in the notes uses them.
    5. A sentence's vector is the mean over its real tokens, scaled to length 1 (Reimers & Gurevych 2019, §3)
       (test_a_sentence_s_vector_does_not_depend_on_the_others).

Read next: minilm.py (a real one).
Try it: python -c "from minialign.lab.pretrained.bert import load_bert; print(load_bert('FOLDER'))"
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from minialign.batching import pad
from minialign.heads import evaluating
from minialign.lab.interchange.folder import WEIGHTS, PretrainedTokenizer, build, own_head, read_folder, renamed
from minialign.lab.pretrained.masks import who_sees_whom
from minialign.runs.devices import device_of
from minialign.runs.errors import UserError
from minialign.tokenizer import SpecialIds
from minialign.transformer import ACTIVATIONS, Attention, Sight

OLD_NAMES = [(r"^bert\.", ""), (r"gamma$", "weight"), (r"beta$", "bias")]
NAMES = [  # theirs, ours: replaced in this order when a folder is read, and back, from the last on, when it is written
    ("embeddings.word_embeddings", "body.token_embedding"),
    ("embeddings.position_embeddings", "body.position_embedding"),
    ("embeddings.token_type_embeddings", "body.segment_embedding"),
    ("embeddings.LayerNorm", "body.norm"),
    ("encoder.layer.", "body.blocks."),
    *((f"attention.self.{name}", f"attention.{name}") for name in ("query", "key", "value")),
    ("attention.output.LayerNorm", "attention_norm"),
    ("attention.output.dense", "attention.output"),
    ("intermediate.dense", "feed_forward.inner"),
    (".output.dense", ".feed_forward.output"),
    (".output.LayerNorm", ".feed_forward_norm"),
    ("cls.predictions.transform.dense", "head.inner"),
    ("cls.predictions.transform.LayerNorm", "head.norm"),
    ("cls.predictions.bias", "head.bias"),
]
UNUSED = r"position_ids$|pooler\.|cls\.seq_relationship|cls\.predictions\.decoder\.bias"


@dataclass(frozen=True)
class BertConfig:
    """Shape of a BERT."""

    vocabulary: int  # V, how many tokens there are
    context: int = 512  # most tokens that it can read
    width: int = 768  # D, length of a token's vector
    layers: int = 12  # N, number of blocks
    heads: int = 12  # H, attention heads
    inner: int = 3072  # width of the feed-forward layer
    segments: int = 2  # how many parts a text may have: a question and an answer, two sentences
    activation: str = "gelu"  # gelu | gelu_tanh | relu
    eps: float = 1e-12  # added to the variance in the norms
    dropout: float = 0.1  # share of activations dropped while training
    kind: str = "encoder"  # what it is to generation.py, which refuses it
    fused_attention: ClassVar[bool] = True  # what it is to transformer.Attention

    def __post_init__(self):
        if self.width % self.heads:
            raise UserError(f"width {self.width} does not divide by {self.heads} heads; change one of them")


class FeedForward(nn.Module):
    """W₂ f(W₁ x), on every token by itself."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.inner, self.output = nn.Linear(config.width, config.inner), nn.Linear(config.inner, config.width)
        self.activation = config.activation

    def forward(self, x: Tensor) -> Tensor:
        return self.output(ACTIVATIONS[self.activation](self.inner(x)))


class Block(nn.Module):
    """Attention (our own decoder's), then feed-forward; the norm after each sum."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.attention, self.attention_norm = Attention(config, 0), nn.LayerNorm(config.width, config.eps)
        self.feed_forward, self.feed_forward_norm = FeedForward(config), nn.LayerNorm(config.width, config.eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, sight: Sight) -> Tensor:
        x = self.attention_norm(x + self.dropout(self.attention(x, sight)))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


class BertBody(nn.Module):
    """Tokens in, one vector for each token out."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.position_embedding = nn.Embedding(config.context, config.width)
        self.segment_embedding = nn.Embedding(config.segments, config.width)
        self.norm, self.dropout = nn.LayerNorm(config.width, config.eps), nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))

    def forward(self, tokens: Tensor, mask: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """(B, T, D) of tokens (B, T); mask (B, T) true at real ones; segments (B, T) parts of the text, or 0.

        Raises UserError for more tokens than the context holds.
        """
        T = tokens.shape[1]
        if T > self.config.context:
            raise UserError(f"{T} tokens do not fit the model's context of {self.config.context}; shorten the text")
        sight = Sight(*who_sees_whom(tokens, mask, causal=False))
        segments = torch.zeros_like(tokens) if segments is None else segments
        x = self.token_embedding(tokens) + self.position_embedding.weight[:T] + self.segment_embedding(segments)
        x = self.dropout(self.norm(x))  # (B, T, D)
        for block in self.blocks:
            x = block(x, sight)
        return x


class MaskedWordHead(nn.Module):
    """A map before a vector is compared with every token's, and each token's own bias."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.inner, self.norm = nn.Linear(config.width, config.width), nn.LayerNorm(config.width, config.eps)
        self.bias, self.activation = nn.Parameter(torch.zeros(config.vocabulary)), config.activation

    def forward(self, hidden: Tensor, table: Tensor) -> Tensor:
        return F.linear(self.norm(ACTIVATIONS[self.activation](self.inner(hidden))), table, self.bias)


class Bert(nn.Module):
    """A body and, with `masked_words`, the head that says masked words."""

    special, hidden_word = SpecialIds(101, 102, 0), 103  # [CLS], [SEP], [PAD]; [MASK], of the first vocabularies

    def __init__(self, config: BertConfig, masked_words: bool = False):
        super().__init__()
        self.config, self.body = config, BertBody(config)
        self.head = MaskedWordHead(config) if masked_words else None

    def forward(self, tokens: Tensor, mask: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """(B, T, V) logits of the words that stand, or stood, at each place; the arguments are the body's."""
        return self.logits(self.body(tokens, mask, segments))

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V). Raises UserError without a head for masked words."""
        if self.head is None:
            raise UserError("this checkpoint has no head for masked words; use its vectors, or load one that was saved "
                            "with its head")
        return self.head(hidden, self.body.token_embedding.weight)


def load_bert(folder: Path) -> Bert:
    """A BERT from a checkpoint folder, in fp32, in evaluation mode.

    Raises:
        UserError: see `read_folder`; a setting that is not supported; tensors of another model.
    """
    settings, tensors = read_folder(folder, "bert")
    settings.must_be("position_embedding_type", ("absolute",))
    settings.must_be("is_decoder", (False,))
    activation = settings.must_be("hidden_act", ("gelu", "relu", "gelu_new", "gelu_pytorch_tanh"))
    config = BertConfig(
        vocabulary=settings.number("vocab_size"),
        context=settings.number("max_position_embeddings"),
        width=settings.number("hidden_size"),
        layers=settings.number("num_hidden_layers", most=len(tensors)),
        heads=settings.number("num_attention_heads"),
        inner=settings.number("intermediate_size"),
        segments=settings.number("type_vocab_size", 2),
        activation=activation if activation in ACTIVATIONS else "gelu_tanh",
        eps=settings.number("layer_norm_eps", 1e-12, whole=False, least=0),
        dropout=settings.number("hidden_dropout_prob", 0.1, whole=False, least=0, most=1),
    )
    tensors = renamed(tensors, OLD_NAMES + [(re.escape(theirs), ours) for theirs, ours in NAMES], UNUSED)
    if own_head(tensors, "cls.predictions.decoder.weight", "body.token_embedding.weight", settings,
                needed="head.bias" in tensors):
        raise UserError("its head for masked words has a table of its own; only one shared with the token vectors is "
                        "supported", folder)
    return build(Bert, config, tensors, Path(folder) / WEIGHTS, masked_words="head.bias" in tensors)


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """(B, D) mean of the vectors (B, T, D) over the real tokens, scaled to length 1; mask (B, T)."""
    total = (hidden * mask[..., None]).sum(dim=1)  # (B, D)
    return F.normalize(total, dim=-1)  # the mean's length is lost anyway, so its divisor is


def sentence_vectors(model: Bert, tokenizer: PretrainedTokenizer, texts: Sequence[str], batch: int = 32,
                     longest: int = 256) -> Tensor:
    """(n, D) a vector of length 1 for each text; their products are similarities. The arguments are those below."""
    return row_vectors(model, sentence_rows(tokenizer, texts, longest), batch)


def sentence_rows(tokenizer: PretrainedTokenizer, texts: Sequence[str], longest: int = 256) -> list[list[int]]:
    """Ids of each text as BERT reads it; `longest`: tokens that are read, the two special ones included."""
    return [[tokenizer.begin, *ids[: longest - 2], tokenizer.end] for ids in tokenizer.encode_many(list(texts))]


@torch.no_grad()
def row_vectors(model: Bert, rows: Sequence[Sequence[int]], batch: int = 32) -> Tensor:
    """(n, D) a vector of length 1 for each row of ids; rows of similar length are computed together."""
    order, device = sorted(range(len(rows)), key=lambda i: len(rows[i])), device_of(model)
    vectors = torch.zeros(len(rows), model.config.width, device=device)
    with evaluating(model):
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            tokens, mask = pad([rows[i] for i in chosen], value=model.special.pad, device=device)
            vectors[chosen] = mean_pool(model.body(tokens, mask), mask)
    return vectors
