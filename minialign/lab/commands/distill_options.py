"""What `distill` is asked for: its recipes by name, their options, and those of the student and of the texts."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from minialign.distill.distilbert import DISTILBERT
from minialign.distill.distilgpt2 import DISTILGPT2
from minialign.distill.minilm import MINILM, MINILM_V2, MiniLM
from minialign.distill.on_policy import OnPolicy, OnPolicyConfig
from minialign.distill.recipe import Recipe
from minialign.distill.sequence_level import SEQUENCE_LEVEL, WritingConfig
from minialign.distill.soft_targets import SoftTargetConfig, SoftTargets
from minialign.distill.tinybert import TINYBERT, AugmentationConfig, TinyBERT
from minialign.lab.commands import options as cli
from minialign.lab.pretrained.sentence_vectors import SentenceConfig, SentenceVectors
from minialign.runs.errors import UserError
from minialign.runs.settings import check_ranges

TINY, SENTENCES = "tinybert", "sentence-vectors"


@dataclass(frozen=True)
class RecipeDefaults:
    """What a recipe's name stands for."""

    loss: type[Recipe]  # what is minimised
    configs: tuple[Any, ...]  # with which weights; how texts are written or made
    kinds: tuple[str, ...] = ("decoder", "encoder")  # of which language models
    from_teacher: bool = False  # whether the student begins as layers of its teacher
    predicts_words: bool = True  # whether the student learns to predict words
    reads: str = "texts"  # texts | prompts (texts from some place on) | written (what the teacher writes after prompts)


RECIPES = {
    "soft-targets": RecipeDefaults(SoftTargets, (SoftTargetConfig(),)),
    "distilgpt2": RecipeDefaults(SoftTargets, (DISTILGPT2,), ("decoder",), from_teacher=True),
    "distilbert": RecipeDefaults(SoftTargets, (DISTILBERT,), ("encoder",), from_teacher=True),
    TINY: RecipeDefaults(TinyBERT, (TINYBERT, AugmentationConfig()), predicts_words=False),
    "minilm": RecipeDefaults(MiniLM, (MINILM,), predicts_words=False),
    "minilm-v2": RecipeDefaults(MiniLM, (MINILM_V2,), predicts_words=False),
    "sequence-level": RecipeDefaults(SoftTargets, (SEQUENCE_LEVEL, WritingConfig()), ("decoder",), from_teacher=True,
                                     reads="written"),
    "on-policy": RecipeDefaults(OnPolicy, (OnPolicyConfig(),), ("decoder",), from_teacher=True, reads="prompts"),
    SENTENCES: RecipeDefaults(SentenceVectors, (SentenceConfig(),), kinds=()),
}


@dataclass(frozen=True)
class StudentConfig:
    """The student, and how it reads texts."""

    layers: int = 0  # how many; 0: half the teacher's
    width: int = 0  # of its vectors; 0: the teacher's
    heads: int = 0  # of its attention; 0: the teacher's
    start: str = ""  # `teacher`: as the teacher's layers, `random`: not; by recipe without it
    layers_from: str = ""  # which layers, from 0, between commas; spread evenly without it
    run: str = ""  # go on with this run instead of a new model
    assistant: bool = False  # minilm: first teach a model of the teacher's layers and the student's width
    split: str = ""  # what is a document in a .txt file: file, paragraphs or lines; by recipe without it
    packed: bool = True  # pack documents one after the other, or one a row (many short ones)
    # sequence-level, on-policy: how many of a text's first tokens are the prompt, the begin token among them; 0: 8
    prompt_tokens: int = 0

    def __post_init__(self):
        check_ranges(self, dict.fromkeys(("layers", "width", "heads", "prompt_tokens"), (0, 100_000)))
        for name, known in (("start", ("random", "teacher")), ("split", ("file", "paragraphs", "lines"))):
            if getattr(self, name) not in ("", *known):
                raise UserError(f"--{name} is {getattr(self, name)!r}; choose one of {', '.join(known)}")
        self.chosen_layers()

    def chosen_layers(self) -> list[int] | None:
        """The teacher's layers to begin as; None without a choice."""
        try:
            return [int(part) for part in self.layers_from.split(",")] if self.layers_from else None
        except ValueError:
            raise UserError(f"--layers-from is {self.layers_from!r}; it must be numbers of layers between commas, such "
                            f"as 0,2,4") from None

    def makes_one(self) -> bool:
        """Whether an option describes a new student."""
        return any((self.layers, self.width, self.heads, self.start, self.layers_from, self.assistant))


def changed(recipe: str, changes: dict[str, Any]) -> tuple:
    """The recipe's configurations with what was changed. Raises UserError for an option that it does not have."""
    configs = RECIPES[recipe].configs
    known = [field.name for config in configs for field in dataclasses.fields(config)]
    for option in changes:
        if option not in known:
            raise UserError(f"{cli.as_flag(option)} is not an option of {recipe}; it has "
                            f"{', '.join(map(cli.as_flag, known))}")
    return tuple(dataclasses.replace(config, **{name: value for name, value in changes.items()
                                                if hasattr(config, name)}) for config in configs)


def recipe_fields() -> dict[str, tuple[type, str]]:
    """The fields of all recipes' configurations: type, and what each means in which recipes."""
    kinds, meanings = {}, {}
    for recipe, config in [(name, config) for name, defaults in RECIPES.items() for config in defaults.configs]:
        for field, (kind, text) in cli.fields_of(type(config)).items():
            kinds.setdefault(field, kind)
            meanings.setdefault(field, {}).setdefault(text, []).append(recipe)
    return {field: (kind, "; ".join(f"{text} [{', '.join(recipes)}]" for text, recipes in meanings[field].items()))
            for field, kind in kinds.items()}


def comparison_table(names: list[str], rows: list[tuple], width: int = 34) -> str:
    """Models side by side; rows: title, a number for each model, its format, and a remark."""
    return "\n".join(f"{title:<{width}}" + "".join(f"{value:>14{form}}" for value in values) + remark
                     for title, values, form, remark in [("", names, "", ""), *rows])
