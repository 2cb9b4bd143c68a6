r"""Exercises of notebook 04: the loss of a reward model, ties, the place of the score, and what a difference in score
means."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor, tensor

from minialign.heads import last_real
from minialign.lab.exercises.exercise import Exercise
from minialign.rlhf import reward_model
from minialign.world.annotators import Annotator
from minialign.world.gold import Gold


def _pairs() -> list[tuple]:
    return [(tensor([2.0, 0.5]), tensor([1.0, 0.5])), (tensor([-100.0, 3.0]), tensor([100.0, -3.0]))]


def _accuracies() -> list[tuple]:
    return [(tensor([2.0, 1.0, 0.0, 3.0]), tensor([1.0, 1.0, 1.0, 2.0])), (tensor([0.0, 0.0]), tensor([0.0, 0.0]))]


def _last(scores: Tensor, mask: Tensor) -> Tensor:
    return scores[torch.arange(len(scores)), last_real(mask)]


def _padded() -> list[tuple]:
    scores = tensor([[0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]])
    return [(scores, tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool()), (scores,
        tensor([[0, 1, 1, 1], [0, 0, 1, 1]]).bool())]


def _share_of_wins(difference: float, questions: int = 40_000) -> float:
    """How often an annotator without bias, lapses or ties takes the summary that is worth so much more to her."""
    person, rng = Annotator("anybody", 1.0, 0.0, 0.0, noise=1.0, lapse=0.0, tie_width=0.0), random.Random(0)
    better, worse = ((Gold(helpful, 1.0, 1.0, 1.0, (), ()), 10) for helpful in (difference / 10, 0.0))
    return sum(person.choose(better, worse, rng).winner == "first" for _ in range(questions)) / questions


EXERCISES = (
    Exercise(
        name="bradley_terry",
        notebook=4,
        kind="write",
        heading="Train a reward model",
        look=reward_model.bradley_terry_loss,
        stub='def bradley_terry(chosen, rejected):\n    """chosen, rejected: (B,) scores. Returns (B,) losses."""\n',
        cases=_pairs,
        reference=reward_model.bradley_terry_loss,
        mistakes={
            "sign": lambda c, r: F.logsigmoid(c - r),
            "exchanged": lambda c, r: -F.logsigmoid(r - c),
            "gap": lambda c, r: r - c,
            "no_log": lambda c, r: -torch.sigmoid(c - r),
            "underflow": lambda c, r: -torch.sigmoid(c - r).log(),
            "hinge": lambda c, r: (1 - (c - r)).clamp(min=0),
        },
    ),
    Exercise(
        name="pair_accuracy",
        notebook=4,
        kind="write",
        heading="Train a reward model",
        look=reward_model.pair_accuracy,
        stub='def pair_accuracy(chosen, rejected):\n    """chosen, rejected: (B,) scores. Returns a float."""\n',
        cases=_accuracies,
        reference=reward_model.pair_accuracy,
        mistakes={
            "ties_lose": lambda c, r: float((c > r).float().mean()),
            "ties_win": lambda c, r: float((c >= r).float().mean()),
            "exchanged": lambda c, r: reward_model.pair_accuracy(r, c),
            "count": lambda c, r: reward_model.pair_accuracy(c, r) * len(c),
        },
    ),
    Exercise(
        name="score_at_the_end",
        notebook=4,
        kind="mend",
        heading="Train a reward model",
        look=reward_model.head_at_the_end,
        cases=_padded,
        reference=_last,
        mistakes={
            "last_column": lambda s, m: s[:, -1],
            "padding_on_the_right_only": lambda s, m: s[torch.arange(len(s)), m.sum(dim=1) - 1],
            "mean": lambda s, m: (s * m).sum(dim=1) / m.sum(dim=1),
            "first": lambda s, m: s[torch.arange(len(s)), m.int().argmax(dim=1)],
        },
    ),
    Exercise(
        name="share_of_wins",
        notebook=4,
        kind="predict",
        heading="Collecting human feedback",
        look=Annotator,
        stub="prediction = ...  # between 0 and 1",
        reference=lambda: _share_of_wins(1.5),
        tolerance=0.01,
        why_tolerance="1 %: 40,000 choices are a sample",
        mistakes={"always": lambda: 1.0, "proportion": lambda: 0.6, "never_mind": lambda: 0.5},
    ),
)
