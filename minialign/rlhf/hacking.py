r"""Reward hacking by examples: the answers that the reward model likes most beyond what they are worth.

The proxy (the reward model) and gold (what was wanted) have scales of their own, so both are put on one, deviations
from the mean of the same answers, and compared there (Gao et al. 2023, §2, compare them so over a whole run; here for
each answer):

    excess = (proxy − mean proxy) / deviation of proxy − (gold − mean gold) / deviation of gold

A large positive one was liked for something that is worth nothing; a large negative one was good, and the model missed
it. Read some before believing any curve. Gold exists in the toy world only; elsewhere a person's scores can stand in
its place.

Read next: best_of_n.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minialign.runs.errors import UserError


@dataclass(frozen=True)
class Sample:
    """One answer with its two scores, each in deviations from the mean of all answers."""

    prompt: str
    answer: str
    proxy: float
    gold: float

    @property
    def excess(self) -> float:
        """By how much the proxy likes it more than gold does."""
        return self.proxy - self.gold


def standardised(x: Tensor) -> Tensor:
    """(N,) with mean 0 and deviation 1; all 0 when every number is the same."""
    return (x - x.mean()) / x.std(correction=0).clamp(min=1e-8)


def widest(prompts: Sequence[str], answers: Sequence[str], proxy: Sequence[float], gold: Sequence[float],
           count: int = 10) -> list[Sample]:
    """The answers whose two scores differ most, in either direction, widest first; of equal answers to a prompt one.

    Args:
        prompts, answers: (N,) texts; proxy, gold: (N,) scores, each in units of its own; count: how many.
    Raises:
        UserError: lists of different lengths, or nothing in them.
    """
    if not len(prompts) == len(answers) == len(proxy) == len(gold) or not prompts:
        raise UserError(f"{len(prompts)} prompts, {len(answers)} answers, {len(proxy)} and {len(gold)} scores: there "
                        f"must be equally many, and some")
    scores = (standardised(torch.tensor(x, dtype=torch.float64)).tolist() for x in (list(proxy), list(gold)))
    samples = {(prompt, answer): Sample(prompt, answer, p, g) for prompt, answer, p,
               g in zip(prompts, answers, *scores)}
    return sorted(samples.values(), key=lambda sample: -abs(sample.excess))[:count]


def show_hacking(samples: Sequence[Sample], letters: int = 240) -> str:
    """Samples for people: what each score says, the end of the prompt, the answer."""
    parts = []
    for place, sample in enumerate(samples, 1):
        verdict = "liked beyond its worth" if sample.excess > 0 else "better than the model thinks"
        prompt = sample.prompt if len(sample.prompt) <= letters else "…" + sample.prompt[-letters:]
        parts.append(f"{place:2}  proxy {sample.proxy:+.2f}, gold {sample.gold:+.2f}: {verdict}\n    {prompt!r}\n    "
                     f"-> {sample.answer.strip()!r}")
    return "\n".join(parts)
