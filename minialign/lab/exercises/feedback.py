r"""Exercises of notebook 04: the loss of a reward model, ties, the place of the score, and what a difference in score
means."""

import math
import random

import torch
import torch.nn.functional as F
from torch import tensor

from minialign.heads import last_real
from minialign.lab.exercises.exercise import exercise
from minialign.rlhf import reward_model
from minialign.world.annotators import Annotator
from minialign.world.gold import Gold


def _share_of_wins(difference: float) -> float:
    """How often an annotator without bias, lapses or ties takes the summary that is worth so much more to her."""
    questions = 40_000
    person, rng = Annotator("anybody", 1.0, 0.0, 0.0, noise=1.0, lapse=0.0, tie_width=0.0), random.Random(0)
    better, worse = ((Gold(helpful, 1.0, 1.0, 1.0, (), ()), 10) for helpful in (difference / 10, 0.0))
    return sum(person.choose(better, worse, rng).winner == "first" for _ in range(questions)) / questions


@exercise(
    "write", "Train a reward model", reward_model.bradley_terry_loss,
    stub="chosen, rejected: (B,) scores. Returns (B,) losses.",
    cases=lambda: [(tensor([2.0, 0.5]), tensor([1.0, 0.5])), (tensor([-100.0, 3.0]), tensor([100.0, -3.0]))],
    mistakes={
        "sign": lambda c, r: F.logsigmoid(c - r),
        "exchanged": lambda c, r: -F.logsigmoid(r - c),
        "gap": lambda c, r: r - c,
        "no_log": lambda c, r: -torch.sigmoid(c - r),
        "underflow": lambda c, r: -torch.sigmoid(c - r).log(),
        "hinge": lambda c, r: (1 - (c - r)).clamp(min=0),
    },
)
def bradley_terry(chosen, rejected):
    """−log σ of the difference, as one function."""
    return -F.logsigmoid(chosen - rejected)


@exercise(
    "write", "Train a reward model", reward_model.pair_accuracy,
    stub="chosen, rejected: (B,) scores. Returns a float.",
    cases=lambda: [(tensor([2.0, 1.0, 0.0, 3.0]), tensor([1.0, 1.0, 1.0, 2.0])), (torch.zeros(2), torch.zeros(2))],
    mistakes={
        "ties_lose": lambda c, r: float((c > r).float().mean()),
        "ties_win": lambda c, r: float((c >= r).float().mean()),
        "exchanged": lambda c, r: reward_model.pair_accuracy(r, c),
        "count": lambda c, r: reward_model.pair_accuracy(c, r) * len(c),
    },
)
def pair_accuracy(chosen, rejected):
    """A tie is half right."""
    right = (chosen > rejected).float() + 0.5 * (chosen == rejected).float()
    return float(right.mean())


@exercise(
    "mend", "Train a reward model", reward_model.head_at_the_end,
    stub="scores: (B, T), one for every token; mask: (B, T) bool, true at real tokens. Returns (B,) the score at each "
         "row's last real token.",
    bug="return scores[:, -1]",
    cases=lambda: [(tensor([[0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]]), tensor(mask).bool())
                   for mask in ([[1, 1, 0, 0], [1, 1, 1, 1]], [[0, 1, 1, 1], [0, 0, 1, 1]])],
    reference=lambda s, m: s[torch.arange(len(s)), last_real(m)],
    mistakes={
        "last_column": lambda s, m: s[:, -1],
        "padding_on_the_right_only": lambda s, m: s[torch.arange(len(s)), m.sum(dim=1) - 1],
        "mean": lambda s, m: (s * m).sum(dim=1) / m.sum(dim=1),
        "first": lambda s, m: s[torch.arange(len(s)), m.int().argmax(dim=1)],
    },
)
def score_at_the_end(scores, mask):
    """The last column that is real, wherever the padding stands."""
    last = (torch.arange(mask.shape[1]) * mask).argmax(dim=1)
    return scores[torch.arange(len(scores)), last]


@exercise(
    "predict", "Collecting human feedback", Annotator,
    stub="between 0 and 1", reference=lambda: _share_of_wins(1.5), tolerance=0.01,
    why_tolerance="1 %: 40,000 choices are a sample",
    mistakes={"always": 1.0, "proportion": 0.6, "never_mind": 0.5},
)
def share_of_wins():
    """σ(1.5): the difference is the log of the odds."""
    return 1 / (1 + math.exp(-1.5))
