r"""Fixed format: T5 expects its own prompts; asked in other words it does worse even at tasks that it was trained on.

The notes say so of Raffel et al. 2020 (T5), which gives each task one prefix; Sanh et al. 2022 (T0) trained on many
wordings for that reason.

The test: from one encoder-decoder that reads, two models are tuned on the same tasks for T0's number of questions: one
with a fixed prefix for each task, one in four of its wordings, drawn anew for each seed; the others nobody trains on.
Both are asked new examples of the *trained* tasks, in the wordings they know (the prefix; the trained templates) and in
the wordings that neither has seen.

    1. the prefix model loses accuracy between its prefix and new words
    2. it loses more than the other
    3. asked in new words, the other is the better one

Each needs a difference, seed by seed, whose 95 % interval over seeds is above 0.
"""

from minialign.instruct.mixture import MixtureConfig
from minialign.instruct.t5 import prefix_templates
from minialign.instruct.zero_shot import examine, examined
from minialign.lab.claims import Bench, Claim, Rows, Table, Verdict, difference, instructed, minus, over_seeds
from minialign.lab.claims.instructed import chance, overalls, rows_of, settings, taken_for_granted, tuned
from minialign.lab.demo.instruct import STYLES, trained_on
from minialign.lab.plotting import Figure, bars_with_intervals, figure
from minialign.world.datasets import PROMPTS, examples

CLAIM = Claim("t5-fixed-format",
              "A model with one fixed prefix a task does worse when a task that it knows is asked for in other words, "
              "and worse than one that learned several.",
              "Raffel et al. 2020; Sanh et al. 2022")
TRAINED = 4  # wordings of each task that are trained on; the others are new
ASKED = 60  # new examples of each trained task
NAMES = ("T5, its prefix", "T5, new words", "T0, trained words", "T0, new words")


def measure(bench: Bench) -> Rows:
    """Tune both, and ask both in known and in new words."""
    config = settings(bench)
    for seed in range(bench.seeds):
        how = MixtureConfig(templates=TRAINED, inverted=False, seed=seed)
        known = trained_on(how)
        asked = examples(known, 6 if bench.fast else ASKED, seed=seed + 2_000_003)
        names = {task: [each.name for each in found] for task, found in known.items()}
        new = {task: [each for each in examined(PROMPTS[task]) if each.name not in names[task]] for task in asked}
        t5, t0 = (tuned(bench, config, style, how, seed) for style in ("t5", "t0"))
        yield from taken_for_granted(bench, STYLES["t0"], *t0, how, seed, instructed.t5(bench, config))
        for name, (model, tokenizer), words in zip(NAMES, (t5, t5, t0, t0), (prefix_templates(asked), new, known, new)):
            yield from rows_of(examine(model, tokenizer, asked, words), asked=name, seed=seed)


def judge(table: Table) -> Verdict:
    """The three statements, and the numbers that decide."""
    scores = [overalls(table, asked=name) for name in NAMES]
    prefix, t5, known, t0 = scores
    fall, other, better = difference(prefix, t5), difference(known, t0), difference(t0, t5)
    more = difference(minus(prefix, t5), minus(known, t0))
    checks = {"T5 loses in new words": fall.low > 0, "it loses more than T0": more.low > 0,
              "in new words T0 is better": better.low > 0}
    means = [f"{over_seeds(values).mean:.3f}" for values in scores]
    return checks, (f"in new words T5 loses {fall} ({means[0]} to {means[1]}), T0 {other} ({means[2]} to {means[3]}), "
                    f"T5 {more} more; T0 is {better} ahead there; chance {chance(table, asked=NAMES[1]):.3f}")


def draw(table: Table) -> Figure:
    """A bar for each model and kind of wording."""
    fig, axes = figure("accuracy on trained tasks", "", 6.4, 3.6)
    bars_with_intervals(axes, {name.replace(", ", ",\n"): over_seeds(overalls(table, asked=name))
                               for name in NAMES})
    return fig
