"""What `distill` is asked for: the options of its recipes, of the student and of the texts, in one object."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from minialign.distill.recipes import RECIPES
from minialign.distill.tinybert import AugmentationConfig
from minialign.lab.commands.options import TYPES, Option
from minialign.lab.pretrained.sentence_vectors import SentenceConfig
from minialign.lab.teacher_cache import CacheConfig
from minialign.pretrain.masked_lm import MaskingConfig
from minialign.runs.errors import UserError
from minialign.runs.settings import check_ranges, describe
from minialign.training import TrainingConfig

TINY, SENTENCES = "tinybert", "sentence-vectors"
CONFIGS = {name: (recipe.config, *([recipe.writing] if recipe.writing else [])) for name, recipe in RECIPES.items()}
CONFIGS |= {TINY: (RECIPES[TINY].config, AugmentationConfig()), SENTENCES: (SentenceConfig(),)}


@dataclass(frozen=True)
class StudentConfig:
    """The student's shape and start."""

    layers: int = 0  # how many; 0: half the teacher's
    width: int = 0  # of its vectors; 0: the teacher's
    heads: int = 0  # of its attention; 0: the teacher's
    start: str = ""  # `teacher`: as the teacher's layers, `random`: not; by recipe without it
    layers_from: str = ""  # which layers, from 0, between commas; spread evenly without it
    run: str = ""  # go on with this run instead of a new model
    assistant: bool = False  # minilm: first teach a model of the teacher's layers and the student's width

    def __post_init__(self):
        check_ranges(self, dict.fromkeys(("layers", "width", "heads"), (0, 100_000)))
        if self.start not in ("", "random", "teacher"):
            raise UserError(f"--start is {self.start!r}; choose one of random, teacher")
        self.chosen_layers()

    def chosen_layers(self) -> list[int] | None:
        """The teacher's layers to begin as; None without a choice."""
        try:
            return [int(part) for part in self.layers_from.split(",")] if self.layers_from else None
        except ValueError:
            raise UserError(f"--layers-from is {self.layers_from!r}; it must be numbers of layers between commas, such "
                            f"as 0,2,4") from None


@dataclass(frozen=True)
class ReadingConfig:
    """How texts are read."""

    split: str = ""  # what is a document in a .txt file: file, paragraphs or lines; by recipe without it
    packed: bool = True  # pack documents one after the other, or one a row (many short ones)
    # sequence-level, on-policy: how many of a text's first tokens are the prompt, the begin token among them; 0: 8
    prompt_tokens: int = 0

    def __post_init__(self):
        check_ranges(self, {"prompt_tokens": (0, 100_000)})
        if self.split not in ("", "file", "paragraphs", "lines"):
            raise UserError(f"--split is {self.split!r}; choose one of file, paragraphs, lines")


@dataclass(frozen=True)
class Request:
    """All that was typed."""

    teacher: Path
    recipe: str | None
    paths: list[Path]  # of texts
    valid: Path | None
    task: Path | None
    tuned: Path | None
    out: Path
    fast: bool
    reading: ReadingConfig
    student: StudentConfig
    training: TrainingConfig
    masking: MaskingConfig
    cache: CacheConfig
    changes: dict[str, Any]  # fields of the recipe's configurations

    def changed(self, recipe: str) -> tuple:
        """The recipe's configurations with what was changed. Raises UserError for an option that it does not have."""
        own = [[field.name for field in dataclasses.fields(config)] for config in CONFIGS[recipe]]
        known = sum(own, [])
        for option in self.changes:
            if option not in known:
                raise UserError(f"{flag(option)} is not an option of {recipe}; it has {', '.join(map(flag, known))}")
        return tuple(dataclasses.replace(config, **{name: self.changes[name] for name in names if name in self.changes})
                     for config, names in zip(CONFIGS[recipe], own))


def flag(name: str) -> str:
    """The option of a field."""
    return "--" + name.replace("_", "-")


def weight_options(function: Callable) -> Callable:
    """One option for each field of any recipe's configuration; without it the recipe's own value stands."""
    fields: dict[str, tuple[str, dict[str, list[str]]]] = {}  # name -> type, {help: recipes}
    for recipe, configs in CONFIGS.items():
        for config in configs:
            for field in dataclasses.fields(config):
                _, texts = fields.setdefault(field.name, (field.type, {}))
                texts.setdefault(describe(type(config))[field.name], []).append(recipe)
    for name, (kind, texts) in reversed(fields.items()):
        text = "; ".join(f"{text} [{', '.join(recipes)}]" for text, recipes in texts.items())
        flags = f"{flag(name)}/--no-{flag(name)[2:]}" if kind == "bool" else flag(name)
        function = click.option(flags, name, default=None, type=None if kind == "bool" else TYPES[kind], cls=Option,
                                section="Instead of the recipe's own", help=text)(function)
    return function


def table_row(title: str, values: list, form: str, remark: str = "", width: int = 34) -> str:
    """A line of a table that compares models; form: of the numbers."""
    return f"{title:<{width}}" + "".join(f"{value:>14{form}}" for value in values) + (f"   {remark}" if remark else "")
