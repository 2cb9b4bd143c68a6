r"""Win rates that length cannot buy: what is left when both sides write as many words, and how sure that is.

    P(win) = σ(a + b log(words / words of the rival)), reported is σ(a)     Dubois et al. 2024, §3, without model terms

The interval is a bootstrap over prompts (Efron & Tibshirani 1993, §13.3): prompts are drawn again with replacement,
each with all that its judges said; both coefficients are fitted on each draw, and the middle 95 % of the σ(a) are the
interval. The fits of all draws are one Newton iteration on tensors
(test_a_bootstrap_is_what_fitting_every_draw_by_itself_gives).

Read next: peft/full.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minialign.evaluation import Interval, win_rate
from minialign.runs.errors import UserError

RIDGE = 0.01  # keeps separable data finite


@dataclass(frozen=True)
class WinRate:
    """How often one side wins, as it is and at equal length, each with a 95 % interval over prompts."""

    won: Interval
    at_equal_length: Interval


def rates_at_equal_length(outcomes: Tensor, log_ratios: Tensor, counts: Tensor, steps: int = 50) -> Tensor:
    """(m,) σ(a) for m ways of weighting the prompts.

    Args:
        outcomes: (P,) share won of each prompt; log_ratios: (P,) log of words / words of the rival.
        counts: (m, P) how often each prompt counts; steps: of Newton's method.
    """
    a = b = torch.zeros(len(counts), dtype=torch.float64)
    for _ in range(steps):
        p = torch.sigmoid(a[:, None] + b[:, None] * log_ratios)  # (m, P)
        off, w = counts * (outcomes - p), counts * p * (1 - p)
        ga, gb = off.sum(1) - RIDGE * a, (off * log_ratios).sum(1) - RIDGE * b
        haa, hab, hbb = w.sum(1) + RIDGE, (w * log_ratios).sum(1), (w * log_ratios**2).sum(1) + RIDGE
        determinant = haa * hbb - hab * hab
        change_a, change_b = (hbb * ga - hab * gb) / determinant, (haa * gb - hab * ga) / determinant
        a, b = a + change_a, b + change_b
        if float(torch.maximum(change_a.abs().max(), change_b.abs().max())) < 1e-10:
            break
    return torch.sigmoid(a)


def win_rates(outcomes: Sequence[Sequence[float]], completions: Sequence[str], rivals: Sequence[str], draws: int = 1000,
              seed: int = 0) -> WinRate:
    """How often the completions win, and what is left of it at equal length.

    Raises UserError for fewer than two prompts, or lists of different lengths.

    Args:
        outcomes: for each prompt, what every judge said: 1 a win, ½ a tie, 0 a loss.
        completions, rivals: the two texts of each prompt, whose words are counted; an empty one counts as one word.
        draws: of the bootstrap; seed: of them.
    """
    if not len(outcomes) == len(completions) == len(rivals):
        raise UserError(f"{len(outcomes)} judgements of {len(completions)} completions and {len(rivals)} rivals: there "
                        f"must be equally many")
    won = win_rate(outcomes)
    shares = torch.tensor([sum(judges) / len(judges) for judges in outcomes], dtype=torch.float64)  # (P,)
    words = [[max(1, len(text.split())) for text in side] for side in (completions, rivals)]
    words = torch.tensor(words, dtype=torch.float64)  # (2, P)
    log_ratios = words[0].log() - words[1].log()
    mean = float(rates_at_equal_length(shares, log_ratios, torch.ones(1, len(shares)).double()))
    found = rates_at_equal_length(shares, log_ratios, resampled(len(shares), draws, seed)).sort().values
    low, high = (float(found[round(edge * (draws - 1))]) for edge in (0.025, 0.975))
    return WinRate(won, Interval(mean, min(low, mean), max(high, mean)))


def resampled(prompts: int, draws: int, seed: int) -> Tensor:
    """(draws, prompts): how often each prompt comes up when as many are drawn with replacement."""
    drawn = torch.randint(prompts, (draws, prompts), generator=torch.Generator().manual_seed(seed))
    return torch.stack([row.bincount(minlength=prompts) for row in drawn]).double()
