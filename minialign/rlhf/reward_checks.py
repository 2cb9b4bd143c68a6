r"""How far to trust a reward model: is it as sure as it may be, does it read at all, and do several of them agree?

    calibration    of the pairs that it orders with probability p = σ(r₁ − r₂), a share p should be ordered so by people
    blind baselines  the accuracy of judges that see only which answer is longer, or which stood first     (pitfall D29)
    ensemble         r = mean of m models' scores − c · their deviation; c > 0 distrusts what they disagree on   Coste et al. 2024, §3.2

Models of an ensemble differ in their head's start and the order of the data, as far as seeds do; each is normalised on
the same reference answers before they are averaged, or the loudest would decide. Read next: ensemble.py, then ppo.py,
which optimises against whatever is given to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minialign.evaluation import Interval, binary_accuracy, wilson_interval
from minialign.runs.errors import UserError


@dataclass(frozen=True)
class Bin:
    """Pairs whose predicted probabilities lie together."""

    predicted: float  # mean of σ(r₁ − r₂), at least one half
    observed: Interval  # share of them that people ordered so
    count: int


def calibration(margins: Sequence[float], bins: int = 5) -> list[Bin]:
    """Predicted against observed preference, in bins of equally many pairs, least sure first.

    Args:
        margins: (P,) r(chosen) − r(rejected) on held-out pairs, in the log-odds that the loss was about: a model whose
            scores were normalised afterwards gives them divided by its "reference_deviation".
        bins: how many; fewer when there are fewer pairs.
    Raises:
        UserError: no pairs.
    """
    if not len(margins):
        raise UserError("calibration needs pairs, and there are none")
    ordered = sorted(margins, key=abs)
    bins = min(bins, len(ordered))
    edges = [round(i * len(ordered) / bins) for i in range(bins + 1)]
    found = []
    for start, end in zip(edges, edges[1:]):
        part = ordered[start:end]
        right = sum(1.0 if m > 0 else 0.5 if m == 0 else 0.0 for m in part)
        predicted = math.fsum(1 / (1 + math.exp(-min(abs(m), 700.0))) for m in part) / len(part)
        found.append(Bin(predicted, wilson_interval(right, len(part)), len(part)))
    return found


def calibration_error(bins: Sequence[Bin]) -> float:
    """Mean distance of predicted and observed, weighted by pairs: the expected calibration error, in [0, 1]."""
    return sum(abs(b.predicted - b.observed.mean) * b.count for b in bins) / sum(b.count for b in bins)


def blind_baselines(comparisons: Sequence[dict]) -> dict[str, Interval]:
    """Accuracy of "the longer one" and, where the order is known, of "the one shown first"; what a model must beat to
    have read anything.

    Below one half the opposite habit wins: 1 minus it is the baseline then.
    """
    judges: dict[str, Callable[[dict], float]] = {"longer": lambda c: len(c["chosen"].split())
                                                  - len(c["rejected"].split())}
    known = [c for c in comparisons if c.get("shown_first") in ("chosen", "rejected")]
    found = {name: binary_accuracy([judge(c) for c in comparisons]) for name, judge in judges.items() if comparisons}
    return found | ({"first": binary_accuracy([1 if c["shown_first"] == "chosen" else -1 for c in known])} if known
                    else {})


def ensemble_scores(scores: Tensor, caution: float = 0.0) -> Tensor:
    """(N,) mean over models − caution · deviation over models.

    Args:
        scores: (m, N) of m models, each normalised on the same reference answers.
        caution: c, in deviations, at least 0.
    """
    if scores.dim() != 2 or caution < 0:
        raise UserError(f"scores of shape {tuple(scores.shape)} (models × answers) or caution {caution} (at least 0) "
                        f"cannot be used")
    return scores.mean(dim=0) - (caution * scores.std(dim=0, correction=0) if caution else torch.zeros(scores.shape[1]))


def show_calibration(bins: Sequence[Bin]) -> str:
    """The bins for people."""
    lines = [f"{'pairs':>6}{'predicted':>11}{'observed':>10}   95 % interval"]
    lines += [f"{b.count:6}{b.predicted:11.0%}{b.observed.mean:10.0%}   {b.observed.low:.0%} to {b.observed.high:.0%}"
              for b in bins]
    return "\n".join([*lines, f"mean distance {calibration_error(bins):.1%}"])
