r"""Templates: asking each task in several wordings makes the model robust to wording.

Sanh et al. 2022 (T0), Fig. 6: with more prompts for each training dataset, the median accuracy on held-out tasks rises and its spread over
wordings shrinks.

The test: the toy T5 is tuned on the same tasks, the same number of questions and steps (half of T0's), with 1, 3 or all wordings of each task (the inverted
ones are among them only when all are). Held-out tasks are examined in every wording. The claim is two statements, each checked on the
difference, seed by seed, between all wordings and one: 1. the median accuracy rises, 2. the spread over wordings (third minus first quartile,
mean over tasks) shrinks. A difference counts when its 95 % interval over seeds excludes 0.

Two choices of the chapter are shown on the way and judged by nobody: what T0 loses without the LM adaptation between span corruption and tuning
(Lester et al. 2021, §3.1, found it worth much; here the same span corruption leads into tuning with and without it), and what ranking options by the mean
over their tokens instead of the sum does.
"""

from __future__ import annotations

from pathlib import Path

from minialign.claims.instructed import half, mixture, overall, rows_of, split_for, toy, toy_t5, tuned
from minialign.claims.runner import Bench, Claim, Result, difference, drawn, over_seeds
from minialign.instruct.zero_shot import examine
from minialign.instruct_demo import CORRUPTED
from minialign.plotting import figure, legend, lines_with_intervals, save_png
from minialign.world.datasets import PROMPTS

CLAIM = Claim("t0-templates", "Several wordings of each training task make a model robust to the wording of new ones.", "Sanh et al. 2022, Fig. 6")
COUNTS = (1, 3, 0)  # wordings of each training task; 0 is all
UNADAPTED, BY_MEAN = "all, no LM adaptation", "all, ranked by the mean"


def measure(bench: Bench) -> Result:
    """Tune with few and with many wordings and compare median and spread on held-out tasks."""
    config, table = half(toy(bench)), []
    names = (*COUNTS, UNADAPTED, BY_MEAN)
    medians: dict[int | str, list[float]] = {name: [] for name in names}
    spreads: dict[int | str, list[float]] = {name: [] for name in names}
    for seed in range(bench.seeds):
        base, split = toy_t5(bench, config, seed), split_for(config, seed)
        models = {count: tuned(bench, config, base, split, "t0", mixture(config, seed, count), seed) for count in COUNTS}
        models[UNADAPTED] = tuned(bench, config, toy_t5(bench, config, seed, CORRUPTED), split, "t0", mixture(config, seed), seed)
        models[BY_MEAN] = models[0]
        for name in names:
            results = examine(*models[name], split.held_out, PROMPTS, mean_logprob=name == BY_MEAN)
            medians[name].append(overall(results))
            spreads[name].append(sum(r.quartile_range for r in results.values()) / len(results))
            table += rows_of(results, wordings=name or "all", seed=seed)
    rise, shrink = difference(medians[0], medians[1]), difference(spreads[1], spreads[0])
    checks = {"the median rises": rise.low > 0, "the spread shrinks": shrink.low > 0}
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    said = ", ".join(f"{count or 'all'}: {mean(medians[count]):.3f} ± {mean(spreads[count]) / 2:.3f}" for count in COUNTS)
    why = f"median accuracy with 1, 3 and all wordings {said} (half the quartile range); from one to all it rises by {rise}, the spread shrinks by {shrink}"
    adapted, by_mean = difference(medians[0], medians[UNADAPTED]), difference(medians[BY_MEAN], medians[0])
    why += f"; LM adaptation adds {adapted}, ranking by the mean instead of the sum {by_mean}"
    return Result(checks, why, table, lambda path: draw(medians, spreads, path))


def draw(medians: dict[int | str, list[float]], spreads: dict[int | str, list[float]], path: Path) -> None:
    """Median accuracy and spread over wordings against the number of wordings trained on."""
    fig, axes = figure("wordings of each training task", "accuracy, 0 to 1", 5.6, 3.6)
    interval = lambda values: drawn(over_seeds(values))  # noqa: E731
    curves = {"median over wordings": [interval(medians[c]) for c in COUNTS], "spread (quartiles)": [interval(spreads[c]) for c in COUNTS]}
    lines_with_intervals(axes, list(range(len(COUNTS))), curves)
    axes.set_xticks(range(len(COUNTS)), [str(count or "all") for count in COUNTS])
    legend(axes)
    save_png(fig, path)
