r"""How far to trust a reward model: is it as sure as it may be, does it read at all, what does it like too much?

    calibration      of pairs that it orders with probability p = σ(r₁ − r₂), people should order a share p so
    blind baselines  accuracy of judges that see only which completion is longer, or which stood first     (pitfall D29)
    reward hacking   excess = (proxy − mean proxy) / std of proxy − (gold − mean gold) / std of gold

The proxy (the reward model) and gold (what was wanted) are put on one scale, standard deviations from the mean of the
same completions (Gao et al. 2023, §2, do so over a whole run; here for each completion). A large positive excess was
liked for something that is worth nothing; a large negative one was good, and the model missed it. Read some before
believing any curve. Gold exists in the toy world only; elsewhere a person's scores can stand in its place.

Read next: kl.py. See also: ppo.py, which optimises against whatever is given to it.
Try it:  python -m minialign hacking RUN
"""

import math
from collections.abc import Sequence
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
        bins: how many; fewer when there are fewer pairs, and a UserError when there are none.
    """
    if not len(margins):
        raise UserError("calibration needs pairs, and there are none")
    ordered, bins = sorted(margins, key=abs), min(bins, len(margins))
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


def show_calibration(bins: Sequence[Bin]) -> str:
    """The bins for people."""
    lines = [f"{'pairs':>6}{'predicted':>11}{'observed':>10}   95 % interval"]
    lines += [f"{b.count:6}{b.predicted:11.0%}{b.observed.mean:10.0%}   {b.observed.low:.0%} to {b.observed.high:.0%}"
              for b in bins]
    return "\n".join([*lines, f"mean distance {calibration_error(bins):.1%}"])


def blind_baselines(comparisons: Sequence[dict]) -> dict[str, Interval]:
    """Accuracy of "the longer one" and, where the order is known, of "the one shown first": what a model must beat to
    have read anything. Below one half the opposite habit wins, and 1 minus it is the baseline."""
    shown = [c["shown_first"] for c in comparisons if c.get("shown_first") in ("chosen", "rejected")]
    signs = {"longer": [len(c["chosen"].split()) - len(c["rejected"].split()) for c in comparisons],
             "first": [1 if side == "chosen" else -1 for side in shown]}
    return {name: binary_accuracy(values) for name, values in signs.items() if values}


@dataclass(frozen=True)
class Sample:
    """One completion with its two scores, each in standard deviations from the mean of all completions."""

    prompt: str
    completion: str
    proxy: float
    gold: float

    @property
    def excess(self) -> float:
        """By how much the proxy likes it more than gold does."""
        return self.proxy - self.gold


def standardised(scores: Sequence[float]) -> Tensor:
    """(N,) with mean 0 and standard deviation 1; all 0 when every number is the same."""
    x = torch.tensor(list(scores), dtype=torch.float64)
    x = x - x[:1]  # large numbers that are all the same have a mean that rounds to another one
    return (x - x.mean()) / x.std(correction=0).clamp(min=1e-8)


def widest(prompts: Sequence[str], completions: Sequence[str], proxy: Sequence[float], gold: Sequence[float],
           count: int = 10) -> list[Sample]:
    """The completions whose two scores differ most, widest first; of equal completions to a prompt one. Half of them,
    at least, are liked too much where there are so many: where most completions are worth little, the widest gaps are
    all on the other side, and show nothing that could be climbed.

    Raises UserError for lists of different lengths, or empty ones.

    Args:
        prompts, completions: (N,) texts; proxy, gold: (N,) scores, each in units of its own; count: how many.
    """
    if not len(prompts) == len(completions) == len(proxy) == len(gold) or not prompts:
        raise UserError(f"{len(prompts)} prompts, {len(completions)} completions, {len(proxy)} and {len(gold)} scores: "
                        f"there must be equally many, and some")
    rows = zip(prompts, completions, standardised(proxy).tolist(), standardised(gold).tolist())
    samples = {row[:2]: Sample(*row) for row in rows}
    ordered = sorted(samples.values(), key=lambda sample: -abs(sample.excess))
    liked, others = ([s for s in ordered if (s.excess > 0) is side] for side in (True, False))
    few = min(len(others), max(count // 2, count - len(liked)))
    chosen = {id(sample) for sample in [*liked[: count - few], *others[:few]]}
    return [sample for sample in ordered if id(sample) in chosen]


def show_hacking(samples: Sequence[Sample], letters: int = 240) -> str:
    """Samples for people: what each score says, the end of the prompt, the completion."""
    parts = []
    for place, sample in enumerate(samples, 1):
        verdict = "liked beyond its worth" if sample.excess > 0 else "better than the model thinks"
        prompt = sample.prompt if len(sample.prompt) <= letters else "…" + sample.prompt[-letters:]
        parts += [f"{place:2}  proxy {sample.proxy:+.2f}, gold {sample.gold:+.2f}: {verdict}", f"    {prompt!r}",
                  f"    -> {sample.completion.strip()!r}"]
    return "\n".join(parts)
