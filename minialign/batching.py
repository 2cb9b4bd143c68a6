r"""Padding, masks and the label shift: the only file that aligns tokens with labels.

    tokens   <begin>  The  kite  was   red            what the model reads at place t
    labels     The   kite  was   red  <end>           what it should say there: label_t = token_{t+1}

A label of IGNORE carries no loss: padding, and the prompt when only the answer is taught
(test_no_loss_falls_on_the_prompt). The end token is always a label, or the model never learns to stop
(test_the_last_label_is_the_end_token).

An encoder-decoder reads its inputs as they are and its targets as above, between a begin and an end token:

    inputs     <begin>  What  was  red?  <end>      all of it at once
    tokens     <begin>  The  kite                   labels    The  kite  <end>

Read next: logprobs.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minialign.runs.errors import UserError
from minialign.tokenizer import PAD, SEPARATOR, SpecialIds, Tokenizer

OURS = SpecialIds()  # how this project's own tokenizers begin and end
IGNORE = -100


class ExampleBatch:
    """A batch with one loss an example. What `training.train` asks of any batch: `rows`, `count` and `size`."""

    rows: list[int]  # (B,) which examples they are, to name them in an error
    tokens: Tensor  # (B, T)

    @property
    def count(self) -> int:
        """What a sum of losses is divided by."""
        return len(self.rows)

    @property
    def size(self) -> int:
        """Tokens read, for the speed that is shown."""
        return self.tokens.numel()


@dataclass
class Batch(ExampleBatch):
    """Rows with a label for each token. B rows, T tokens; S input tokens where an encoder reads first."""

    tokens: Tensor  # (B, T) ids
    labels: Tensor  # (B, T) the id that should follow (in masked language modelling: that stood here), or IGNORE
    mask: Tensor  # (B, T) true at real tokens
    rows: list[int]  # (B,)
    inputs: Tensor | None = None  # (B, S) ids that the encoder of an encoder-decoder reads
    input_mask: Tensor | None = None  # (B, S) true at real input tokens

    @property
    def count(self) -> int:
        """How many labels carry loss."""
        return int((self.labels != IGNORE).sum())

    @property
    def size(self) -> int:
        """Tokens read, on both sides."""
        return self.tokens.numel() + (0 if self.inputs is None else self.inputs.numel())


def pad(rows: Sequence[Sequence[int]], side: str = "right", length: int | None = None, value: int = PAD,
        device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Ragged rows as one rectangle: tokens (B, T), and mask (B, T) true at what was not added.

    Args:
        rows: B lists of ids.
        side: where the padding goes: "right" to train, "left" to generate, where the last token must be a real one.
        length: T; the longest row's when None. device: where the two are needed.
    """
    longest = max(map(len, rows))
    length = longest if length is None else length
    assert length >= longest, "a row is longer than the length asked for"
    lengths, place = torch.tensor([len(row) for row in rows])[:, None], torch.arange(length)
    mask = place < lengths if side == "right" else place >= length - lengths  # (B, T)
    # one copy for all rows: four times faster than row by row
    flat = torch.from_numpy(np.fromiter(chain.from_iterable(rows), np.int64))
    tokens = torch.full(mask.shape, value).masked_scatter_(mask, flat)
    return tokens.to(device), mask.to(device)


def next_token_batch(rows: Sequence[Sequence[int]], loss_from: Sequence[int] | None = None,
                     names: Sequence[int] | None = None) -> Batch:
    """Rows of ids, begin and end token included, as a batch for next-token prediction.

    Args:
        rows: B lists of at least two ids.
        loss_from: for each row the place of the first token that is taught (the length of the prompt); None teaches all
            but the first.
        names: which examples these rows are.
    """
    tokens, mask = pad([row[:-1] for row in rows])
    labels, _ = pad([row[1:] for row in rows], value=IGNORE)
    if loss_from is not None:
        place = torch.arange(tokens.shape[1])  # (T,) label t is token t + 1
        labels[place[None, :] + 1 < torch.as_tensor(loss_from)[:, None]] = IGNORE
    return Batch(tokens, labels, mask, list(range(len(rows)) if names is None else names))


def text_to_text_batch(inputs: Sequence[Sequence[int]], targets: Sequence[Sequence[int]],
                       names: Sequence[int] | None = None, special: SpecialIds = OURS) -> Batch:
    """Pairs of ragged rows as a batch for an encoder-decoder.

    Args:
        inputs: B lists of at least one id, as the encoder shall read them (here the begin token comes first).
        targets: B lists of ids, to which begin and end token are added here; an empty one teaches to say nothing.
        names: which examples these rows are; special: what begins and ends a target.
    """
    inputs, input_mask = pad(inputs)
    tokens, mask = pad([[special.begin, *row] for row in targets])
    labels, _ = pad([[*row, special.end] for row in targets], value=IGNORE)
    return Batch(tokens, labels, mask, list(range(len(targets)) if names is None else names), inputs, input_mask)


def pack(documents: Sequence[Sequence[int]], context: int) -> Tensor:
    """Documents one after the other as (rows, context + 1): no padding, every token is taught once.

    Args:
        documents: lists of ids with begin and end token; what is left over at the end is dropped.
        context: tokens that the model reads at a time.
    Raises:
        UserError: not enough text for one row.
    """
    stream = torch.tensor([token for document in documents for token in document])
    count = (len(stream) - 1) // context
    if count < 1:
        raise UserError(f"the text has {len(stream)} tokens, and one row of context {context} takes {context + 1}; "
                        f"give more text or a shorter --context")
    return torch.stack([stream[i * context : (i + 1) * context + 1] for i in range(count)])


def text_rows(documents: Sequence[list[int]], length: int, packed: bool, place: str | None = None) -> list[list[int]]:
    """Documents as rows of at most `length` tokens.

    Args:
        documents: ids, without begin and end token.
        packed: one after the other, a separator between them, cut every `length` tokens (long texts; what is left over
            at the end is dropped); otherwise one document a row, and what is longer goes on in another row.
        place: where they come from, for errors.
    """
    if length < 1:
        raise UserError("the context is too short for a begin token and a text; use a longer --context")
    if packed:
        stream = [token for ids in documents for token in (*ids, SEPARATOR)][:-1]
        if len(stream) < length:
            raise UserError(f"the text has {len(stream)} tokens, fewer than one row of {length}; give more text or a "
                            f"shorter --context", place)
        documents = [stream[: len(stream) // length * length]]
    rows = [ids[i : i + length] for ids in documents for i in range(0, len(ids), length)]
    if not rows:
        raise UserError("there are no documents; give some text to learn from and some to validate on", place)
    return rows


def demonstration_row(tokenizer: Tokenizer, prompt: list[int], completion: list[int]) -> tuple[list[int], int]:
    """<begin> prompt completion <end>, and the place where the completion starts."""
    return [tokenizer.begin, *prompt, *completion, tokenizer.end], 1 + len(prompt)


class Order:
    """Which examples make which batch: a pure function of seed and step, so a resumed run reads on where it stopped.

    Each epoch is a fresh shuffle. Examples of similar length stand together (shuffled, sorted within pools of `pool`
    batches, batches shuffled again), which saves most of the padding.

    Args:
        lengths: of the examples, in tokens; or just their number when all are equally long.
        batch: examples a step; seed: of the shuffles; pool: batches that are sorted together.
    """

    def __init__(self, lengths: Sequence[int] | int, batch: int, seed: int, pool: int = 16):
        self.lengths = torch.zeros(lengths, dtype=torch.long) if isinstance(lengths, int) else torch.as_tensor(lengths)
        if not 1 <= batch <= len(self.lengths):
            raise UserError(f"there are {len(self.lengths)} examples, fewer than one batch of {batch}; give more, or a "
                            f"smaller --batch")
        self.batch, self.seed, self.pool = batch, seed, pool
        self.steps_in_epoch = len(self.lengths) // batch
        self._epoch, self._batches = -1, None

    def __call__(self, step: int) -> list[int]:
        """The `batch` examples of a step, step >= 0."""
        epoch, place = divmod(step, self.steps_in_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffle(epoch)
        return self._batches[place].tolist()

    def _shuffle(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.lengths), generator=generator)[: self.steps_in_epoch * self.batch]
        pools = order.split(self.pool * self.batch)
        order = torch.cat([pool[self.lengths[pool].argsort(stable=True)] for pool in pools])
        batches = order.view(-1, self.batch)
        return batches[torch.randperm(len(batches), generator=generator)]


class Batches:
    """Examples as training data; a subclass says what a batch of some of them is. Arguments: those of `Order`."""

    def __init__(self, lengths: Sequence[int] | int, batch: int, seed: int):
        self.order = Order(lengths, batch, seed)

    def batch(self, names: list[int], step: int = 0) -> Any:
        """The named examples as one batch, as a step shows them."""
        raise NotImplementedError

    def microbatches(self, step: int, parts: int) -> list[Any]:
        """The batch of a step in `parts` pieces."""
        chosen = self.order(step)
        return [self.batch(chosen[i::parts], step) for i in range(min(parts, len(chosen)))]

    def first(self, most: int = 8) -> list[Any]:
        """The batches of the first steps, to validate on: up to `most`, fewer where an epoch has fewer."""
        return [batch for step in range(min(most, self.order.steps_in_epoch)) for batch in self.microbatches(step, 1)]


class Interleaved(Batches):
    """Training data of two kinds: every so many steps one of the second.

    Args:
        data: most of it; seldom: the other; every: how many steps from one of these to the next.
    """

    def __init__(self, data: Batches, seldom: Batches, every: int):
        self.data, self.seldom, self.every = data, seldom, every

    def microbatches(self, step: int, parts: int) -> list[Any]:
        """The batch of a step in `parts` pieces."""
        before = (step + 1) // self.every  # steps of the second kind up to this one
        if (step + 1) % self.every:
            return self.data.microbatches(step - before, parts)
        return self.seldom.microbatches(before - 1, parts)
