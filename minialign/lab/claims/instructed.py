r"""What the four claims on instruction tuning share: the bases, T5, T0 and FLAN, made once and kept, what is taken for
granted of them, and their examination.

    the base reads           who, what, where and yes-no in its own words: .95
    and so does T5+LM        asked directly, with no gap for the answer: .95
    the tuned model learned  trained tasks, asked of new passages in the words it was trained in: .9
    and still reads          the base's own words, asked as it was before tuning: at most .03 lost

Whether it understands the trained tasks in other words as well is no control: it is what t0-templates asks. (Meant was
one that asks them in other words at .9. T0 stood at .88 there, FLAN at .80 to .88: it would have failed.)

Read next: t0_unseen_tasks.py.
"""

import dataclasses
import functools
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, median
from typing import Any

from minialign.heads import LanguageModel, load_model
from minialign.instruct.mixture import MixtureConfig, Templates
from minialign.instruct.t0 import T0
from minialign.instruct.zero_shot import TaskResult, examine
from minialign.instruct.zero_shot import examined as to_be_answered
from minialign.lab.bases.controls import measure
from minialign.lab.bases.make import BASES, digest_of, load_base
from minialign.lab.claims import Bench, Table, control
from minialign.lab.demo.instruct import FAST, STYLES, InstructConfig, adapt, held_out_examples, trained_on, tune
from minialign.runs.settings import to_dict
from minialign.tokenizer import Tokenizer
from minialign.world.datasets import DATASETS, PROMPTS, examples

READS, LEARNED, KEPT = 0.95, 0.9, -0.03  # thresholds of the controls
OWN_WORDS = ("who", "what", "where")  # and yes-no in its six best forms
ASKED = 40  # new examples of each trained task
NEW = 2_000_003  # added to a seed: that of the examples


def settings(bench: Bench, rate: float = T0.learning_rate, reread: int = InstructConfig.reread,
             steps: int = T0.steps) -> InstructConfig:
    """The chapter's, with another rate or length, or the quick ones."""
    tuning = dataclasses.replace(T0, learning_rate=rate, steps=steps)
    return FAST if bench.fast else InstructConfig(tuning, reread=reread)


def t5(bench: Bench, config: InstructConfig) -> Path:
    """The folder of T5+LM, one for all seeds as the base is."""
    key = [config.adapt_steps, to_dict(dataclasses.replace(config.tuning, steps=1)), digest_of(STYLES["t5"])]
    return bench.cached("t5-lm", key, lambda folder: adapt(config, 0, folder))


def tuned(bench: Bench, config: InstructConfig, style: str, how: MixtureConfig, seed: int,
          clusters: tuple[str, ...] | None = None, base: Path | None = None) -> tuple[LanguageModel, Tokenizer]:
    """A model tuned on the mixture of all training clusters, or of the named ones, from T5+LM or from a decoder."""
    base = base or (BASES / STYLES[style] if style == "flan" else t5(bench, config))
    templates = trained_on(how, clusters)
    key = [base.name, style, to_dict(how), to_dict(config), sorted(templates), seed]
    key += [digest_of(base.name)] if base.parent == BASES else []
    return load_model(bench.cached(f"toy-{style}", key, lambda to: tune(config, style, base, templates, seed, to)))


def examined(model: LanguageModel, tokenizer: Tokenizer, config: InstructConfig, **how: Any) -> dict[str, TaskResult]:
    """The held-out clusters in every wording."""
    return examine(model, tokenizer, held_out_examples(config.examined), PROMPTS, **how)


def taken_for_granted(bench: Bench, base: str, model: LanguageModel, tokenizer: Tokenizer, how: MixtureConfig,
                      seed: int, adapted: Path | None = None) -> Table:
    """The controls of a model that was tuned on a mixture, as rows of a table; adapted: the T5+LM that it was, which is
    asked directly, as it is itself."""
    count = 6 if bench.fast else 100
    reads = own_words(base, count)
    before = asked_directly(adapted, count) if adapted else reads
    after = reading(model, tokenizer, count, directly=adapted is not None)
    learned = overall(on_trained_tasks(bench, model, tokenizer, trained_on(how), seed), mean)
    direct = [control("T5+LM reads, asked directly", before, READS, seed)] if adapted else []
    return [control(f"{base} reads", reads, READS, seed), *direct,
            control("trained tasks in their own words", learned, LEARNED, seed),
            control("reading in the base's own words, tuned minus base", after - before, KEPT, seed)]


def on_trained_tasks(bench: Bench, model: LanguageModel, tokenizer: Tokenizer, wordings: Templates,
                     seed: int) -> dict[str, TaskResult]:
    """New passages, in wordings of the trained tasks: at most eight a task, drawn by the seed."""
    rng, few = random.Random(f"wordings {seed}"), {}
    for task, found in wordings.items():
        asking = to_be_answered(found)
        few |= {task: rng.sample(asking, min(8, len(asking)))} if asking else {}
    return examine(model, tokenizer, examples(few, 4 if bench.fast else ASKED, seed + NEW), few)


@functools.lru_cache(maxsize=4)
def own_words(base: str, count: int) -> float:
    """What a shipped base reads."""
    return reading(*load_base(BASES / base)[:2], count)


@functools.lru_cache(maxsize=4)
def asked_directly(adapted: Path, count: int) -> float:
    """What T5+LM, one for all seeds, reads without a gap for the answer."""
    return reading(*load_model(adapted, "language-model"), count, directly=True)


def reading(model: LanguageModel, tokenizer: Tokenizer, count: int, directly: bool = False) -> float:
    """Mean accuracy on who, what, where and, in its six best forms, yes-no, in the words of the reading corpus."""
    found = {each.name: each.value for each in measure(model, tokenizer, False, count, directly=directly)}
    forms = sorted((value for name, value in found.items() if name.startswith("yes-no")), reverse=True)[:6]
    return mean([*(found[name] for name in OWN_WORDS), mean(forms)])


def rows_of(results: dict[str, TaskResult], **columns: Any) -> Table:
    """One row of a claim's table for each task and wording."""
    return [
        {**columns, "cluster": DATASETS[task].cluster, "task": task, "template": template, "accuracy": accuracy,
         "chance": result.chance}
        for task, result in results.items() for template, accuracy in result.accuracies.items()
    ]


def results_of(table: Table, **which: Any) -> list[dict[str, TaskResult]]:
    """What the rows that match say, task by task: one dict for each seed, in the order of the seeds."""
    found: dict[int, dict[str, TaskResult]] = {}
    for row in table:
        if all(row.get(key) == value for key, value in which.items()):
            of_seed, task = found.setdefault(row["seed"], {}), row["task"]
            of_seed.setdefault(task, TaskResult(task, {}, row["chance"])).accuracies[row["template"]] = row["accuracy"]
    return [found[seed] for seed in sorted(found)]


def overalls(table: Table, **which: Any) -> list[float]:
    """`overall` of the rows that match, a number a seed."""
    return [overall(results) for results in results_of(table, **which)]


def chance(table: Table, **which: Any) -> float:
    """What guessing gives on the rows that match, weighed as `overall` weighs."""
    return overalls([row | {"accuracy": row["chance"]} for row in table], **which)[0]


def overall(results: dict[str, TaskResult], over_wordings: Callable[[Iterable[float]], float] = median) -> float:
    """Mean over clusters of the mean over their tasks of the median, or the mean, over wordings."""
    found: dict[str, list[float]] = {}
    for task, result in results.items():
        found.setdefault(DATASETS[task].cluster, []).append(over_wordings(result.accuracies.values()))
    means = [sum(found[cluster]) / len(found[cluster]) for cluster in sorted(found)]
    return sum(means) / len(means)
