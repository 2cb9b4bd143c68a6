r"""Next-token prediction: a decoder reads raw text and learns what comes next.

    L = −Σₜ log π(xₜ | x₍<t₎) / T                              Radford et al. 2018 (GPT), §3.1, Eq. 1

It learns the language and, with it, whatever the text is full of: false statements, rude words, repetitions. Nothing in
this loss knows that some of it is unwanted; the later chapters do.

Read next: pretrain.py (the training). Details that matter:
    1. Documents are packed one after the other, an end token between them; every token is taught once
       (test_packing_loses_no_token). Many short documents learn faster one a row: cut in the middle, a story's summary
       would speak of people nobody has met.
    2. Loss on all tokens, validation on text that training never sees.

Try it:  python -m minialign pretrain --text FILE.txt
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minialign.batching import IGNORE, Batch, Batches, next_token_batch, pack
from minialign.heads import LanguageModel
from minialign.logprobs import label_loss
from minialign.runs.devices import moved
from minialign.runs.errors import UserError
from minialign.tokenizer import Tokenizer
from minialign.training import TrainingConfig

Loss = Callable[[LanguageModel, Any], Tensor]  # (model, batch) -> sum over the batch's labels


def next_token_loss(model: LanguageModel, batch: Batch) -> Tensor:
    """Sum of −log π(label) over the batch's labels, nats; logits are computed only where there is a label."""
    taught = batch.labels != IGNORE  # (B, T)
    hidden = model.body(batch.tokens)  # (B, T, D)   pads stand on the right, where a causal model never looks
    return label_loss(model.logits(hidden[taught]), batch.labels[taught])


@torch.no_grad()
def mean_loss(model: LanguageModel, batches: list, loss: Loss = next_token_loss) -> float:
    """Mean −log π over all labels of the batches, nats; `loss` gives their sum over one batch."""
    total = float(sum(loss(model, moved(batch, model)) for batch in batches))
    return total / max(1, sum(batch.count for batch in batches))


def perplexity(loss: float) -> float:
    """exp(loss): among how many equally likely tokens a model seems to choose; infinite where no float can hold it."""
    return math.exp(loss) if loss < 700 else math.inf


class PackedText(Batches):
    """Packed rows of text as training data.

    Args:
        rows: (rows, context + 1) from `pack`.
        batch: rows a step; seed: of their order.
    """

    def __init__(self, rows: Tensor, batch: int, seed: int):
        super().__init__(len(rows), batch, seed)
        self.rows = rows

    def batch(self, names: list[int], step: int = 0) -> Batch:
        """The named rows, the same at every step."""
        rows = self.rows[names]
        return Batch(rows[:, :-1], rows[:, 1:], torch.ones_like(rows[:, 1:], dtype=torch.bool), names)


class LabelledRows(Batches):
    """Rows of different lengths, each taught from some place on (a demonstration: from the answer on).

    Args:
        rows: (ids, place where the teaching starts) of each example.
        batch: rows a step; seed: of their order.
    """

    def __init__(self, rows: list[tuple[list[int], int]], batch: int, seed: int):
        super().__init__([len(ids) for ids, _ in rows], batch, seed)
        self.rows = rows

    def batch(self, names: list[int], step: int = 0) -> Batch:
        """The named rows, the same at every step."""
        return next_token_batch([self.rows[i][0] for i in names], [self.rows[i][1] for i in names], names)


def encode_documents(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Each text between a begin and an end token."""
    return [[tokenizer.begin, *ids, tokenizer.end] for ids in tokenizer.encode_many(texts)]


def training_rows(documents: list[list[int]], context: int, config: TrainingConfig, packed: bool,
                  place: str | None = None) -> PackedText | LabelledRows:
    """Documents as training data, packed or one a row; what is longer than the context goes on in another row."""
    if packed:
        try:
            rows = pack(documents, context)
        except UserError as error:
            raise UserError(str(error), place) from None
        return PackedText(rows, min(config.batch, len(rows)), config.seed)
    if not documents:
        raise UserError("there are no documents; give some text to learn from and some to validate on", place)
    rows = [(ids[i : i + context + 1], 1) for ids in documents for i in range(0, len(ids) - 1, context)]
    return LabelledRows(rows, min(config.batch, len(rows)), config.seed)


@dataclass(frozen=True)
class NextToken:
    """GPT's objective; see pretrain.Objective."""

    packed: bool = True
    name, loss = "pretraining", staticmethod(next_token_loss)

    def batches(self, tokenizer, texts, shape, config, place=None) -> PackedText | LabelledRows:
        """Texts as training data."""
        return training_rows(encode_documents(tokenizer, texts), shape.context, config, self.packed, place)
