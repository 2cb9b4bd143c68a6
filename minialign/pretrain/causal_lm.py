r"""Next-token prediction: a decoder reads raw text and learns what comes next.

    L = −Σₜ log π(xₜ | x₍<t₎) / T                              Radford et al. 2018 (GPT), §3.1, Eq. 1

It learns the language and, with it, whatever the text is full of: false statements, rude words, repetitions. Nothing in
this loss knows that some of it is unwanted; the later chapters do.

Read next: instruct/sft.py (the same loss, on chosen text). Details that matter:
    1. Documents are packed one after the other, an end token between them; every token is taught once
       (test_packing_loses_no_token). Many short documents learn faster one a row: cut in the middle, a story's summary
       would speak of people nobody has met.
    2. Loss on all tokens, validation on text that training never sees.

Try it:  python -m minialign pretrain --text FILE.txt
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minialign.batching import IGNORE, Batch, Order, next_token_batch, pack
from minialign.heads import LanguageModel
from minialign.logprobs import label_loss
from minialign.runs.errors import UserError
from minialign.runs.run_folder import RunFolder
from minialign.tokenizer import Tokenizer
from minialign.training import TrainingConfig, train

Loss = Callable[[LanguageModel, Any], Tensor]  # (model, batch) -> sum over the batch's labels


def next_token_loss(model: LanguageModel, batch: Batch) -> Tensor:
    """Sum of −log π(label) over the batch's labels, nats. Logits are computed where there is a label, and nowhere
    else."""
    taught = batch.labels != IGNORE  # (B, T)
    hidden = model.body(batch.tokens)  # (B, T, D)   pads stand on the right, where a causal model never looks
    return label_loss(model.logits(hidden[taught]), batch.labels[taught])


class PackedText:
    """Packed rows of text as training data.

    Args:
        rows: (rows, context + 1) from `pack`.
        batch: rows a step; seed: of their order.
    """

    def __init__(self, rows: Tensor, batch: int, seed: int):
        self.rows, self.order = rows, Order(len(rows), batch, seed)

    def microbatches(self, step: int, parts: int) -> list[Batch]:
        """The step's rows, in `parts` pieces."""
        chosen = self.order(step)
        return [self._batch(chosen[i::parts]) for i in range(min(parts, len(chosen)))]

    def _batch(self, names: list[int]) -> Batch:
        rows = self.rows[names]
        return Batch(rows[:, :-1], rows[:, 1:], torch.ones_like(rows[:, 1:], dtype=torch.bool), names)


class LabelledRows:
    """Rows of different lengths, each taught from some place on (a demonstration: from the answer on).

    Args:
        rows: (ids, place where the teaching starts) of each example.
        batch: rows a step; seed: of their order.
    """

    def __init__(self, rows: list[tuple[list[int], int]], batch: int, seed: int):
        self.rows, self.order = rows, Order([len(ids) for ids, _ in rows], batch, seed)

    def microbatches(self, step: int, parts: int) -> list[Batch]:
        """The step's rows, in `parts` pieces, padded on the right."""
        chosen = self.order(step)
        return [self.batch(chosen[i::parts]) for i in range(min(parts, len(chosen)))]

    def batch(self, names: list[int]) -> Batch:
        """The named rows as one batch."""
        return next_token_batch([self.rows[i][0] for i in names], [self.rows[i][1] for i in names], names)


@torch.no_grad()
def mean_loss(model: LanguageModel, batches: list, loss: Loss = next_token_loss) -> float:
    """Mean −log π over all labels of the batches, nats; its exponential is the perplexity. `loss`: their sum over one
    batch."""
    return float(sum(loss(model, batch) for batch in batches)) / max(1, sum(batch.count for batch in batches))


def perplexity(loss: float) -> float:
    """exp(loss): among how many equally likely tokens the model seems to choose; infinite where a float cannot hold
    it."""
    return math.exp(loss) if loss < 700 else math.inf


def encode_documents(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Each text between a begin and an end token."""
    return [[tokenizer.begin, *ids, tokenizer.end] for ids in tokenizer.encode_many(texts)]


def training_rows(documents: list[list[int]], context: int, config: TrainingConfig, packed: bool,
                  place: str | None = None) -> PackedText | LabelledRows:
    """Documents as training data, packed or one a row; what is longer than the context goes on in another row. `place`:
    for errors."""
    if packed:
        try:
            rows = pack(documents, context)
        except UserError as error:
            raise UserError(str(error), place) from None
        return PackedText(rows, min(config.batch, len(rows)), config.seed)
    if not documents:
        raise UserError("there are no documents; give some text to learn from and some to validate on")
    rows = [(ids[i : i + context + 1], 1) for ids in documents for i in range(0, len(ids) - 1, context)]
    return LabelledRows(rows, min(config.batch, len(rows)), config.seed)


def pretrain(
    model: LanguageModel,
    tokenizer: Tokenizer,
    texts: list[str],
    valid: list[str],
    config: TrainingConfig,
    run: RunFolder,
    packed: bool = True,
    places: tuple[str | None, str | None] = (None, None),
) -> dict[str, float]:
    """Teach a decoder to predict the next token of texts.

    Args:
        model: trained in place, saved in the run folder.
        texts: documents to learn from; valid: documents for the validation loss.
        config: how; run: where.
        packed: documents one after the other, cut at the context (long texts); otherwise one document a row (many short
            ones, whose end can only be told from their beginning).
        places: where texts and valid come from, for errors.
    Returns:
        {"validation": nats per token, "perplexity": its exponential, "steps": how many}.
    """
    learned, checked = (encode_documents(tokenizer, part) for part in (texts, valid))
    data = training_rows(learned, model.config.context, config, packed, places[0])
    # for every seed the same text
    valid_data = training_rows(checked, model.config.context, dataclasses.replace(config, seed=0), packed, places[1])
    return train_and_validate(model, data, valid_data, next_token_loss, config, run, "pretraining")


def train_and_validate(model: LanguageModel, data: Any, valid: Any, loss: Loss, config: TrainingConfig, run: RunFolder,
                       label: str) -> dict[str, float]:
    """Train a model of any kind on `data`; validation looks at up to eight batches of `valid`, always the same ones.

    Args:
        data, valid: PackedText, LabelledRows, or whatever else has `order` and `microbatches`.
        loss: the sum over a batch's labels; the rest is as in `train`.
    """
    held_out = [batch for step in range(min(8, valid.order.steps_in_epoch)) for batch in valid.microbatches(step, 1)]

    def validate(model: LanguageModel) -> dict[str, float]:
        mean = mean_loss(model, held_out, loss)
        return {"validation": mean, "perplexity": perplexity(mean)}

    return train(model, data, loss, config, run, validate, label=label)
