r"""Exercises of notebook 10: sampling, where a completion ends, ROUGE, learning from comparisons directly, and how sure
one may be."""

import re
from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor, tensor

from minialign import evaluation, generation
from minialign.lab.exercises.exercise import exercise
from minialign.rlhf import dpo, rouge


def _top_p(logits: Tensor, p: float) -> Tensor:
    return generation.filter_logits(logits, 0, p)


def _kept(logits: Tensor, keep) -> Tensor:
    """Logits whose places in descending order (B, V), given their cumulative and own probabilities, are kept where
    `keep` says so."""
    ordered, order = logits.sort(dim=-1, descending=True)
    own = ordered.softmax(dim=-1)
    return logits.scatter(-1, order, ordered.masked_fill(~keep(own.cumsum(dim=-1), own), -torch.inf))


def _sets(completion: str, reference: str) -> float:
    a, b = set(rouge.words(completion)), set(rouge.words(reference))
    return rouge.share(len(a & b), len(a), len(b)).f


def _capitals(completion: str, reference: str) -> float:
    a, b = (Counter(re.findall("[A-Za-z0-9]+", text)) for text in (completion, reference))
    return rouge.share((a & b).total(), a.total(), b.total()).f


def _unclipped(completion: str, reference: str) -> float:
    a, b = rouge.words(completion), rouge.words(reference)
    return rouge.share(sum(word in b for word in a), len(a), len(b)).f


def _dpo(c: Tensor, r: Tensor, c0: Tensor, r0: Tensor, beta: float) -> Tensor:
    return dpo.dpo_loss(c - c0, r - r0, beta)


@exercise(
    "write", "Instruction tuning", generation.filter_logits,
    stub="logits: (B, V); p: in (0, 1). Returns (B, V): the logits, minus infinity at what is left out.",
    cases=lambda: [(tensor([[0.4, 0.1, 0.3, 0.2]]).log(), 0.6),
                   (tensor([[0.05, 0.9, 0.05], [0.3, 0.3001, 0.3999]]).log(), 0.5)],
    reference=_top_p,
    mistakes={
        "crossing_lost": (lambda g, p: _kept(g, lambda total, own: total <= p),
                          lambda g, p: _kept(g, lambda total, own: (total <= p) | (total == total[:, :1]))),
        "single_probabilities": lambda g, p: g.masked_fill(g.softmax(-1) < 1 - p, -torch.inf),
        "zeros": lambda g, p: _top_p(g, p).masked_fill(_top_p(g, p).isinf(), 0.0),
        "unlikely_kept": lambda g, p: g.masked_fill(~_top_p(g, p).isinf(), -torch.inf),
        "probabilities": lambda g, p: _top_p(g, p).softmax(-1),
        "not_put_back": lambda g, p: _top_p(g, p).sort(dim=-1, descending=True).values,
    },
)
def top_p(logits, p):
    """Keep a token while what is likelier than it has less than p."""
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(dim=-1)
    likelier = probabilities.cumsum(dim=-1) - probabilities
    return torch.empty_like(logits).scatter(-1, order, ordered.masked_fill(likelier >= p, float("-inf")))


@exercise(
    "write", "Model alignment", rouge.rouge_n,
    stub="Two texts. Returns a float, F of ROUGE-1.",
    cases=lambda: [("The the kite", "Mira lost the kite."), ("Nora ran home alone", "Nora ran home."),
                   ("", "Nora ran home."), ("The kite cost 2 coins", "Mira paid 2 coins for the kite.")],
    reference=lambda a, b: rouge.rouge_n(a, b, 1).f,
    mistakes={
        "unclipped": _unclipped,
        "sets": _sets,
        "recall": lambda a, b: rouge.rouge_n(a, b, 1).recall,
        "precision": lambda a, b: rouge.rouge_n(a, b, 1).precision,
        "capitals": _capitals,
    },
)
def rouge_1(completion, reference):
    """Words in common, each no more often than the reference has it."""
    own, theirs = (Counter(re.findall(r"[a-z0-9]+", text.lower())) for text in (completion, reference))
    matches = sum((own & theirs).values())
    if matches == 0:
        return 0.0
    precision, recall = matches / sum(own.values()), matches / sum(theirs.values())
    return 2 * precision * recall / (precision + recall)


@exercise(
    "mend", "Fine-tune model on feedback", generation.end_mask,
    stub="tokens: (B, R) ids; end: the end token's id, which also fills up short completions. Returns (B, R) bool, "
         "true up to and with the first end.",
    bug="return tokens != end",
    cases=lambda: [(tensor([[5, 6, 2, 2, 2], [5, 2, 7, 2, 2], [5, 6, 7, 8, 9]]), 2)],
    mistakes={
        "end_left_out": lambda t, end: t != end,
        "before_the_end": lambda t, end: (t == end).long().cumsum(dim=1) == 0,
        "first_row_of_ends": lambda t, end: (t == end).long().cumsum(dim=1) <= 1,
        "everything": lambda t, end: torch.ones_like(t, dtype=torch.bool),
    },
)
def end_mask(tokens, end):
    """True while no end token came before."""
    ends = (tokens == end).long()
    return ends.cumsum(dim=1) - ends == 0


@exercise(
    "write", "New trend", dpo.dpo_loss,
    stub="(P,) log-probabilities of completions. Returns (P,).",
    cases=lambda: [(tensor([-3.0, -9.0]), tensor([-4.0, -5.0]), tensor([-3.5, -8.0]), tensor([-3.0, -6.0]), 0.5)],
    reference=_dpo,
    mistakes={
        "no_reference": lambda c, r, c0, r0, beta: dpo.dpo_loss(c, r, beta),
        "no_beta": lambda c, r, c0, r0, beta: _dpo(c, r, c0, r0, 1.0),
        "exchanged": lambda c, r, c0, r0, beta: _dpo(r, c, r0, c0, beta),
        "sign": lambda c, r, c0, r0, beta: -_dpo(c, r, c0, r0, beta),
        "beta_outside": lambda c, r, c0, r0, beta: beta * _dpo(c, r, c0, r0, 1.0),
        "mean": lambda c, r, c0, r0, beta: _dpo(c, r, c0, r0, beta).mean(),
    },
)
def dpo_loss(chosen, rejected, chosen_reference, rejected_reference, beta):
    """The reward is beta times the log-ratio."""
    gap = (chosen - chosen_reference) - (rejected - rejected_reference)
    return -F.logsigmoid(beta * gap)


@exercise(
    "predict", "Results of alignment", evaluation.wilson_interval,
    stub="between 0 and 1", reference=lambda: evaluation.wilson_interval(9, 10).low, tolerance=0.05,
    why_tolerance="5 %: a guess by head is enough",
    mistakes={"normal": 0.714, "point": 0.9, "one_half": 0.5},
)
def nine_of_ten():
    """Wilson's interval for 9 of 10."""
    p, n, z = 0.9, 10, 1.96
    return (p + z * z / (2 * n) - z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5) / (1 + z * z / n)
