r"""Templates: asking each task in several wordings makes the model robust to wording.

Sanh et al. 2022 (T0), Fig. 6: with more prompts for each training dataset, the median accuracy on held-out tasks rises
and its spread over wordings shrinks.

The test: the encoder-decoder that reads is tuned on the same tasks, for 2,000 steps, with 1, 3 or all wordings of each
task, drawn anew for each seed. Held-out tasks are examined in every wording. From one wording to all

    1. the median accuracy rises
    2. the spread over wordings (third minus first quartile, mean over tasks) shrinks

by a difference, seed by seed, whose 95 % interval over seeds excludes 0. Beside them stand the trained tasks, asked of
new passages in trained wordings and in some that nobody trains on. With the first seed only, and judged by nobody:
three wordings; in all manners of answering; T0 without the LM adaptation (Lester et al. 2021, §3.1); and ranking
options by the mean over their tokens instead of the sum.
"""

import dataclasses
from statistics import mean

from minialign.instruct.mixture import MixtureConfig
from minialign.lab.bases.make import BASES
from minialign.lab.claims import Bench, Claim, Rows, Table, Verdict, difference, distinct, instructed, over_seeds
from minialign.lab.claims.instructed import examined, on_trained_tasks, taken_for_granted, tuned
from minialign.lab.demo.instruct import STYLES, trained_on, unseen_words
from minialign.lab.plotting import Figure, bars_with_intervals, figure, finish, lines_beside_one_seed

CLAIM = Claim("t0-templates", "Several wordings of each training task make a model robust to the wording of new ones.",
              "Sanh et al. 2022, Fig. 6")
COUNTS = {1: 1, 3: 3, "all": 0}  # wordings of each training task, as the table and as the mixture call their number
ONCE = 3  # with the first seed only
STEPS = 2000  # after T0's 1,200 trained tasks stand at .893, and their control asks .9
MANNERS, UNADAPTED, BY_MEAN = "all, all manners", "all, no LM adaptation", "all, ranked by the mean"


def measure(bench: Bench) -> Rows:
    """Tune with few and with many wordings and compare median and spread on held-out tasks."""
    config = instructed.settings(bench, steps=STEPS)
    for seed in range(bench.seeds):
        models = {name: tuned(bench, config, "t0", MixtureConfig(templates=count, seed=seed), seed)
                  for name, count in COUNTS.items() if seed == 0 or name != ONCE}
        if seed == 0:
            every = MixtureConfig(seed=seed)
            models[MANNERS] = tuned(bench, config, "t0", dataclasses.replace(every, manners=True), seed)
            models[UNADAPTED] = tuned(bench, config, "t0", every, seed, base=BASES / STYLES["t0"])
            models[BY_MEAN] = models["all"]
        yield from taken_for_granted(bench, STYLES["t0"], *models["all"], MixtureConfig(seed=seed), seed,
                                     instructed.t5(bench, config))
        for name, model in models.items():
            found = examined(*model, config, mean_logprob=name == BY_MEAN)
            yield from instructed.rows_of(found, wordings=name, seed=seed)
        for name in (1, "all"):
            known = trained_on(MixtureConfig(templates=COUNTS[name], seed=seed))
            for words, asked in {"known": known, "unseen": unseen_words()}.items():
                found = on_trained_tasks(bench, *models[name], asked, seed)
                yield from instructed.rows_of(found, trained=f"{name}, {words} words", seed=seed)


def medians(table: Table, wordings: int | str) -> list[float]:
    """Accuracy of the median wording, a number a seed."""
    return instructed.overalls(table, wordings=wordings)


def spreads(table: Table, wordings: int | str) -> list[float]:
    """Quartile range over wordings, mean over tasks, a number a seed."""
    return [mean(result.quartile_range for result in results.values())
            for results in instructed.results_of(table, wordings=wordings)]


def judge(table: Table) -> Verdict:
    """The two statements, and the numbers that decide."""
    every = medians(table, "all")
    rise = difference(every, medians(table, 1))
    shrink = difference(spreads(table, 1), spreads(table, "all"))
    checks = {"the median rises": rise.low > 0, "the spread shrinks": shrink.low > 0}
    said = []
    for name in COUNTS:
        seeds = len(medians(table, name))
        median, spread = sum(medians(table, name)) / seeds, sum(spreads(table, name)) / seeds
        said.append(f"{name}: {median:.3f} ± {spread / 2:.3f}{' (one seed)' * (seeds == 1)}")
    first = every[:1]
    adapted, by_mean = difference(first, medians(table, UNADAPTED)), difference(medians(table, BY_MEAN), first)
    manners = difference(medians(table, MANNERS), first)
    trained = {what: f"{mean(instructed.overalls(table, trained=what)):.3f}" for what in distinct(table, "trained")}
    return checks, (
        f"median accuracy with 1, 3 and all wordings {', '.join(said)} (half the quartile range); from one to all it "
        f"rises by {rise}, the spread shrinks by {shrink}; trained tasks by wordings trained on: "
        + ", ".join(f"{what.replace(', ', ' in ')} {found}" for what, found in trained.items()) +
        f"; with one seed each: all manners add {manners}, LM adaptation {adapted}, ranking by the mean instead of the "
        f"sum {by_mean}"
    )


def draw(table: Table) -> dict[str, Figure]:
    """Median accuracy and spread over wordings against the number of wordings trained on; and the trained tasks, in
    wordings that were trained and in others."""
    fig, axes = figure("wordings of each training task", "accuracy, 0 to 1", 6.6, 3.6)
    curves = {name: [over_seeds(numbers(table, count)) for count in COUNTS]
              for name, numbers in (("median over wordings", medians), ("spread (quartiles)", spreads))}
    lines_beside_one_seed(axes, range(len(COUNTS)), curves)
    finish(axes, [str(count) for count in COUNTS])
    bars, axes = figure("accuracy on trained tasks", "", 6.4, 3.2)
    bars_with_intervals(axes, {f"wordings trained on: {what}".replace(", ", ",\n"): over_seeds(
        instructed.overalls(table, trained=what), 0.0, 1.0) for what in distinct(table, "trained")})
    return {"figure": fig, "trained": bars}
