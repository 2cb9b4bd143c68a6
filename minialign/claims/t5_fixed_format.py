r"""Fixed format: T5 expects its own prompts; asked in other words it fails even at tasks that it was trained on.

The notes say so of Raffel et al. 2020 (T5), which gives each task one prefix; Sanh et al. 2022 (T0) trained on many wordings for that reason.

The test: from one toy T5, two models are tuned on the same tasks and as many questions, for half of T0's steps: one with a fixed prefix for each
task, one in all wordings but one of each style, which nobody trains on. Both are asked examples of the *trained* tasks, in the wordings they know
(the prefix; the trained templates) and in the wordings that neither has seen. The claim is three statements, each checked seed by seed: 1. the prefix
model loses accuracy between its prefix and new words, 2. it loses more than the other, 3. asked in new words, the other is the better one. Each needs
a difference whose 95 % interval over seeds is above 0.
"""

from __future__ import annotations

from pathlib import Path

from minialign.claims.instructed import half, overall, rows_of, split_for, toy, toy_t5, tuned
from minialign.claims.runner import Bench, Claim, Result, difference, drawn, over_seeds
from minialign.instruct.mixture import MixtureConfig
from minialign.instruct.t5 import prefix_templates
from minialign.instruct.zero_shot import examine, examined
from minialign.plotting import bars_with_intervals, figure, save_png
from minialign.world.datasets import PROMPTS, examples
from minialign.world.templates import Template

CLAIM = Claim(
    "t5-fixed-format",
    "A model with one fixed prefix a task fails when a task that it knows is asked for in other words.",
    "Raffel et al. 2020; Sanh et al. 2022",
)
TRAINED = 4  # wordings of each task that are trained on; those after them are new
ASKED = 60  # new examples of each trained task


def measure(bench: Bench) -> Result:
    """Tune both, and ask both in known and in new words."""
    config, table = half(toy(bench)), []
    names = ("T5, its prefix", "T5, new words", "T0, trained words", "T0, new words")
    scores: dict[str, list[float]] = {name: [] for name in names}
    for seed in range(bench.seeds):
        base, split = toy_t5(bench, config, seed), split_for(config, seed)
        asked = examples(split.train, 6 if bench.fast else ASKED, seed=seed + 2_000_003)
        new: dict[str, list[Template]] = {task: examined(PROMPTS[task][TRAINED:]) for task in asked}
        known = {task: examined(PROMPTS[task][:TRAINED]) for task in asked}
        how = MixtureConfig(config.questions, templates=TRAINED, inverted=False, seed=seed)
        t5, t0 = (tuned(bench, config, base, split, style, how, seed) for style in ("t5", "t0"))
        for name, (model, tokenizer), words in zip(names, (t5, t5, t0, t0), (prefix_templates(asked), new, known, new)):
            results = examine(model, tokenizer, asked, words)
            scores[name].append(overall(results))
            table += rows_of(results, asked=name, seed=seed)
    fall, other = (difference(scores[a], scores[b]) for a, b in ((names[0], names[1]), (names[2], names[3])))
    more = difference([a - b for a, b in zip(scores[names[0]], scores[names[1]])], [a - b for a, b in zip(scores[names[2]], scores[names[3]])])
    better = difference(scores[names[3]], scores[names[1]])
    checks = {"T5 loses in new words": fall.low > 0, "it loses more than T0": more.low > 0, "in new words T0 is better": better.low > 0}
    why = f"in new words T5 loses {fall}, T0 {other}; T0 is {better} ahead there"
    return Result(checks, why, table, lambda path: draw(scores, path))


def draw(scores: dict[str, list[float]], path: Path) -> None:
    """A bar for each model and kind of wording."""
    fig, axes = figure("accuracy on trained tasks", "", 6.4, 3.6)
    bars_with_intervals(axes, {name.replace(", ", ",\n"): drawn(over_seeds(values)) for name, values in scores.items()})
    save_png(fig, path)
