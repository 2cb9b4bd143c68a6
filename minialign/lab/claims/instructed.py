r"""What the four claims on instruction tuning share: the toy T5, T0 and GPT-3, made once and kept, and their
examination.

Read next: t0_unseen_tasks.py.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from minialign.heads import LanguageModel, describe_model, load_model
from minialign.instruct.mixture import MixtureConfig, Split, draw_training_and_validation
from minialign.instruct.t0 import tune_on_questions
from minialign.instruct.t5 import prefix_templates
from minialign.instruct.zero_shot import TaskResult
from minialign.lab.claims import Bench, Table
from minialign.lab.demo.from_nothing import ADAPTED, FAST, ToyConfig, pretrain_gpt, pretrain_t5, split_of, training
from minialign.runs.run_folder import RunFolder
from minialign.runs.settings import to_dict
from minialign.tokenizer import Tokenizer
from minialign.world.datasets import DATASETS, PROMPTS

OF_TUNING = ("tune_steps", "examples", "examined", "questions")  # settings that pretraining does not read


def toy(bench: Bench) -> ToyConfig:
    """The chapter's sizes, or the quick ones."""
    return ToyConfig(**FAST) if bench.fast else ToyConfig()


def half(config: ToyConfig) -> ToyConfig:
    """The same with half the tuning, for claims that tune many models."""
    return dataclasses.replace(config, tune_steps=max(1, config.tune_steps // 2))


def small(config: ToyConfig) -> ToyConfig:
    """Half the tuning, and a decoder of the toy T5's size in the place of the large one."""
    return dataclasses.replace(half(config), gpt_width=config.width, gpt_layers=2 * config.layers)


def pretraining(config: ToyConfig) -> ToyConfig:
    """The same with the settings of tuning at their defaults: claims that tune for different times share what was
    pretrained."""
    return dataclasses.replace(config, **{name: getattr(ToyConfig, name) for name in OF_TUNING})


def mixture(config: ToyConfig, seed: int, templates: int = 0) -> MixtureConfig:
    """The chapter's mixture; every wording, or the first few."""
    return MixtureConfig(config.questions, templates=templates, seed=seed)


def toy_t5(bench: Bench, config: ToyConfig, seed: int, stage: str = ADAPTED) -> Path:
    """The folder of the toy T5 after its LM adaptation, or after an earlier stage."""
    config = pretraining(config)
    return bench.cached("toy-t5", [to_dict(config), seed], lambda folder: pretrain_t5(config, seed, folder)) / stage


def toy_gpt(bench: Bench, config: ToyConfig, seed: int) -> Path:
    """The folder of a toy decoder that was taught nothing but next tokens."""
    config = pretraining(config)
    return bench.cached("toy-gpt", [to_dict(config), seed], lambda folder: pretrain_gpt(config, seed, folder))


def tuned(bench: Bench, config: ToyConfig, base: Path, split: Split, style: str, how: MixtureConfig,
          seed: int) -> tuple[LanguageModel, Tokenizer]:
    """A model tuned on the mixture of a split, from the folder of a pretrained one."""
    wordings = prefix_templates(split.train) if style == "t5" else PROMPTS
    settings = training(config.tune_steps, config, seed, 2e-3)

    def make(folder: Path) -> None:
        model, tokenizer = load_model(base, "language-model")
        questions, valid = draw_training_and_validation(split, wordings, how)
        run, facts = RunFolder(folder), {"stage": style, "training": to_dict(settings), "mixture": to_dict(how)}
        run.begin({**describe_model(model), **facts}, tokenizer)
        if not run.finished:
            tune_on_questions(model, tokenizer, questions, valid, settings, run, True)

    key = [base.parent.name, base.name, to_dict(how), to_dict(settings), sorted(split.train)]
    return load_model(bench.cached(f"toy-{style}", key, make))


def split_for(config: ToyConfig, seed: int, clusters: tuple[str, ...] | None = None) -> Split:
    """The world's datasets, the same clusters held out as always; trained on all other clusters, or on the named ones
    only."""
    split = split_of(config, seed)
    if clusters is None:
        return split
    train, validation = ({task: found for task, found in part.items() if DATASETS[task].cluster in clusters}
                         for part in (split.train, split.validation))
    return dataclasses.replace(split, train=train, validation=validation)


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


def overall(results: dict[str, TaskResult]) -> float:
    """Mean over clusters of the mean over their tasks of the median over wordings."""
    medians: dict[str, list[float]] = {}
    for task, result in results.items():
        medians.setdefault(DATASETS[task].cluster, []).append(result.median)
    means = [sum(medians[cluster]) / len(medians[cluster]) for cluster in sorted(medians)]
    return sum(means) / len(means)
