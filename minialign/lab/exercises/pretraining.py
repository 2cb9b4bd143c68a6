r"""Exercises of notebook 02: the label shift, means over labels, span corruption, perplexity, and how much the decoder
of T5 writes."""

import math

import torch
from torch import Tensor, tensor

from minialign import batching, logprobs
from minialign.batching import IGNORE
from minialign.lab.exercises.exercise import exercise, normal
from minialign.pretrain import causal_lm
from minialign.pretrain.span_corruption import GAPS, SpanCorruptedText, corrupt, noise_budget

HEADING = "T0 model (masked language modelling)"


def _shifted(row: list, prompt: int) -> tuple[list, list]:
    batch = batching.next_token_batch([row], [prompt])
    return batch.tokens[0].tolist(), batch.labels[0].tolist()


def _hidden(tokens: list, labels: list, count: int) -> tuple[list, list]:
    return tokens, [IGNORE] * count + labels[count:]


def _mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return logprobs.label_loss(logits, labels) / (labels != IGNORE).sum()


def _corrupt(ids: list, spans: list, names: list) -> tuple[list, list]:
    """The project's corruption, with these sentinels."""
    inputs, targets = corrupt(ids, spans)
    other = dict(zip(GAPS, names))
    return [other.get(i, i) for i in inputs], [other.get(i, i) for i in targets]


def _closed(ids: list, spans: list, names: list) -> tuple[list, list]:
    """One sentinel more at the end of the targets, as in Fig. 2 of Raffel et al. 2020."""
    inputs, targets = _corrupt(ids, spans, names)
    return inputs, [*targets, names[len(spans)]]


def _without(spans: list, names: list, made: tuple[list, list], parts: int) -> tuple[list, list]:
    """The last span's sentinel taken out of the inputs (1), the targets (2) or both (3)."""
    last = names[len(spans) - 1] if spans else None
    return tuple([i for i in part if i != last or not parts & bit] for bit, part in zip((1, 2), made))


def _every_token(ids: list, spans: list, sentinels: list) -> tuple[list, list]:
    inputs, targets = [], []
    for place, token in enumerate(ids):
        inside = [i for i, (start, end) in enumerate(spans) if start <= place < end]
        inputs.append(sentinels[inside[0]] if inside else token)
        targets += [sentinels[inside[0]], token] if inside else []
    return inputs, targets


@exercise(
    "write", HEADING, batching.next_token_batch,
    stub="row: ids from begin to end token; prompt: how many are the prompt. Returns (tokens, labels), lists.",
    cases=lambda: [([1, 30, 31, 40, 41, 2], 3), ([1, 30, 2], 1)], reference=_shifted,
    mistakes={
        "not_shifted": (lambda r, p: _hidden(r[:-1], r[:-1], p), lambda r, p: _hidden(r[:-1], r[:-1], p - 1)),
        "prompt_taught": lambda r, p: (r[:-1], r[1:]),
        "first_answer_lost": lambda r, p: _hidden(r[:-1], r[1:], p),
        "end_lost": lambda r, p: _hidden(r[:-2], r[1:-1], p - 1),
        "backwards": lambda r, p: _hidden(r[1:], r[:-1], p - 1),
        "zero_for_ignore": lambda r, p: (r[:-1], [0] * (p - 1) + r[p:]),
    },
)
def label_shift(row, prompt):
    """Label t is token t + 1; those that lie in the prompt are not taught."""
    tokens, labels = row[:-1], row[1:]
    return tokens, [-100] * (prompt - 1) + labels[prompt - 1 :]


@exercise(
    "write", HEADING, logprobs.label_loss,
    stub="logits: (B, T, V); labels: (B, T), -100 where nothing is taught. Returns one number (a tensor).",
    cases=lambda: [(tensor([[[2.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [3.0, 0.0]]]), tensor([[0, 1], [1, IGNORE]])),
                   (*normal(0, (2, 4, 7)), tensor([[1, 2, 3, 4], [5, IGNORE, IGNORE, IGNORE]]))],
    reference=_mean_loss, gradient=True,
    mistakes={
        "all_places": lambda g, y: logprobs.label_loss(g, y) / y.numel(),
        "rows_first": lambda g, y: torch.stack([_mean_loss(*row) for row in zip(g, y)]).mean(),
        "sum": logprobs.label_loss,
        "bits": lambda g, y: _mean_loss(g, y) / math.log(2),
        "no_gradient": lambda g, y: _mean_loss(g, y).detach(),
    },
)
def mean_loss(logits, labels):
    """Over all labels of the batch, whatever row they stand in."""
    taught = labels != -100
    logprobs = logits[taught].log_softmax(dim=-1)
    return -logprobs.gather(1, labels[taught][:, None]).mean()


@exercise(
    "write", HEADING, corrupt,
    stub="ids: a list; spans: [(start, end)]; sentinels: ids. Returns (inputs, targets), lists.", reference=_corrupt,
    cases=lambda: [([50, 51, 52, 53, 54, 55], [(1, 3), (4, 5)], list(GAPS)[:3]),
                   (list(range(60, 70)), [(0, 2), (8, 10)], list(GAPS)[:3]), ([50, 51], [], list(GAPS)[:3])],
    mistakes={
        "one_sentinel": lambda ids, spans, names: _corrupt(ids, spans, [names[0]] * len(names)),
        "end_included": lambda ids, spans, names: _corrupt(ids, [(a, b + 1) for a, b in spans], names),
        "every_token": _every_token,
        "closing_sentinel": _closed,
        "last_sentinel_lost": (lambda ids, spans, names: _without(spans, names, _corrupt(ids, spans, names), 1),
                               lambda ids, spans, names: _without(spans, names, _corrupt(ids, spans, names), 2),
                               lambda ids, spans, names: _without(spans, names, _corrupt(ids, spans, names), 3)),
        "rest_lost": lambda ids, spans, names: (_corrupt(ids[: spans[-1][1] if spans else 0], spans, names)[0],
                                                _corrupt(ids, spans, names)[1]),
        "no_marks": lambda ids, spans, names: (corrupt(ids, spans)[0], [i for a, b in spans for i in ids[a:b]]),
        "not_cut": lambda ids, spans, names: (ids, _corrupt(ids, spans, names)[1]),
    },
)
def span_corruption(ids, spans, sentinels):
    """A sentinel in place of each span, and each span behind its sentinel."""
    inputs, targets, place = [], [], 0
    for sentinel, (start, end) in zip(sentinels, spans):
        inputs += [*ids[place:start], sentinel]
        targets += [sentinel, *ids[start:end]]
        place = end
    return inputs + ids[place:], targets


@exercise(
    "mend", HEADING, causal_lm.perplexity,
    stub="losses: for each batch the sum of -log p over its labels, nats; counts: how many labels it has. Returns the "
         "perplexity of all labels.",
    bug="return sum(math.exp(loss / count) for loss, count in zip(losses, counts)) / len(losses)",
    cases=lambda: [([20.0, 2.0], [10, 10]), ([30.0, 1.0], [10, 1])],
    reference=lambda losses, counts: causal_lm.perplexity(sum(losses) / sum(counts)),
    mistakes={
        "mean_of_perplexities": lambda s, n: sum(math.exp(a / b) for a, b in zip(s, n)) / len(s),
        "batches_alike": lambda s, n: math.exp(sum(a / b for a, b in zip(s, n)) / len(s)),
        "powers_of_2": lambda s, n: 2 ** (sum(s) / sum(n)),
        "loss": lambda s, n: sum(s) / sum(n),
    },
)
def perplexity(losses, counts):
    """The exponential of the mean over all labels."""
    return math.exp(sum(losses) / sum(counts))


@exercise(
    "predict", HEADING, noise_budget,
    stub="tokens", reference=lambda: SpanCorruptedText([list(range(20, 120))], 1, 0).batch([0]).count, tolerance=0.0,
    mistakes={"no_sentinels": 15, "no_end": 20, "closing_sentinel": 22, "last_sentinel_lost": 19, "whole_text": 100,
              "what_is_left": 90},
)
def decoder_writes():
    """15 tokens, 5 sentinels, the end."""
    return 15 + 5 + 1
