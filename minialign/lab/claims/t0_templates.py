r"""Templates: asking each task in several wordings makes the model robust to wording.

Sanh et al. 2022 (T0), Fig. 6: with more prompts for each training dataset, the median accuracy on held-out tasks rises
and its spread over wordings shrinks.

The test: the toy T5 is tuned on the same tasks, the same number of questions and steps (half of T0's), with 1, 3 or all
wordings of each task (the inverted ones are among them only when all are; the first three are nearly always questions,
so number and style change together). Held-out tasks are examined in every wording. The claim is two statements, each
checked on the difference, seed by seed, between all wordings and one: 1. the median accuracy rises, 2. the spread over
wordings (third minus first quartile, mean over tasks) shrinks. A difference counts when its 95 % interval over seeds
excludes 0.

Three wordings are there with the first seed only. So are two choices of the chapter, shown on the way and judged by
nobody: what T0 loses without the LM adaptation between span corruption and tuning (Lester et al. 2021, §3.1, found it
worth much; here the same span corruption leads into tuning with and without it), and what ranking options by the mean
over their tokens instead of the sum does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minialign.instruct.zero_shot import examine
from minialign.lab.claims.instructed import half, mixture, overall, results_of, rows_of, split_for, toy, toy_t5, tuned
from minialign.lab.claims.runner import Bench, Claim, difference, drawn, over_seeds
from minialign.lab.demo.instruct import CORRUPTED
from minialign.lab.plotting import figure, legend, lines_beside_one_seed, save_png
from minialign.world.datasets import PROMPTS

CLAIM = Claim("t0-templates", "Several wordings of each training task make a model robust to the wording of new ones.",
              "Sanh et al. 2022, Fig. 6")
COUNTS = {1: 1, 3: 3, "all": 0}  # wordings of each training task, as the table and as the mixture call their number
ONCE = 3  # with the first seed only
UNADAPTED, BY_MEAN = "all, no LM adaptation", "all, ranked by the mean"


def measure(bench: Bench) -> list[dict[str, Any]]:
    """Tune with few and with many wordings and compare median and spread on held-out tasks."""
    config, table = half(toy(bench)), []
    for seed in range(bench.seeds):
        base, split = toy_t5(bench, config, seed), split_for(config, seed)
        counts = {name: count for name, count in COUNTS.items() if seed == 0 or name != ONCE}
        models = {name: tuned(bench, config, base, split, "t0", mixture(config, seed, count), seed) for name,
                  count in counts.items()}
        if seed == 0:
            models[UNADAPTED] = tuned(bench, config, toy_t5(bench, config, seed, CORRUPTED), split, "t0",
                                      mixture(config, seed), seed)
            models[BY_MEAN] = models["all"]
        for name, model in models.items():
            results = examine(*model, split.held_out, PROMPTS, mean_logprob=name == BY_MEAN)
            table += rows_of(results, wordings=name, seed=seed)
    return table


def numbers(table: list[dict[str, Any]]) -> tuple[dict[int | str, list[float]], dict[int | str, list[float]]]:
    """Medians over wordings, and spreads over wordings: name -> a number a seed."""
    found = {name: results_of(table, wordings=name) for name in (*COUNTS, UNADAPTED, BY_MEAN)}
    def spread(results):
        return sum(r.quartile_range for r in results.values()) / len(results)
    return {name: list(map(overall, seeds)) for name, seeds in found.items()}, {name: list(map(spread, seeds)) for name,
        seeds in found.items()}


def judge(table: list[dict[str, Any]]) -> tuple[dict[str, bool], str]:
    """The two statements, and the numbers that decide."""
    medians, spreads = numbers(table)
    rise, shrink = difference(medians["all"], medians[1]), difference(spreads[1], spreads["all"])
    checks = {"the median rises": rise.low > 0, "the spread shrinks": shrink.low > 0}
    def mean(values):
        return sum(values) / len(values)
    one = {count: " (one seed)" if len(medians[count]) == 1 else "" for count in COUNTS}
    said = ", ".join(f"{count}: {mean(medians[count]):.3f} ± {mean(spreads[count]) / 2:.3f}{one[count]}"
                     for count in COUNTS)
    why = (f"median accuracy with 1, 3 and all wordings {said} (half the quartile range); from one to all it rises by "
           f"{rise}, the spread shrinks by {shrink}")
    adapted, by_mean = difference(medians["all"], medians[UNADAPTED]), difference(medians[BY_MEAN], medians["all"])
    return checks, f"{why}; LM adaptation adds {adapted}, ranking by the mean instead of the sum {by_mean}"


def draw(table: list[dict[str, Any]], path: Path) -> None:
    """Median accuracy and spread over wordings against the number of wordings trained on."""
    medians, spreads = numbers(table)
    fig, axes = figure("wordings of each training task", "accuracy, 0 to 1", 6.6, 3.6)
    def of(found):
        return [drawn(over_seeds(found[count])) for count in COUNTS]
    curves = {"median over wordings": of(medians), "spread (quartiles)": of(spreads)}
    lines_beside_one_seed(axes, list(range(len(COUNTS))), curves)
    axes.set_xticks(range(len(COUNTS)), [str(count) for count in COUNTS])
    legend(axes)
    save_png(fig, path)
