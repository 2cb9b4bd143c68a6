r"""The recipes by name: the loss and its weights, for which models, and whether the student begins as layers of its
teacher.

Read next: the file of any of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minialign.distill.distilbert import DISTILBERT
from minialign.distill.distilgpt2 import DISTILGPT2
from minialign.distill.minilm import MINILM, MINILM_V2, MiniLM
from minialign.distill.on_policy import OnPolicy, OnPolicyConfig
from minialign.distill.recipe import Recipe
from minialign.distill.sequence_level import SEQUENCE_LEVEL, WritingConfig
from minialign.distill.soft_targets import SoftTargetConfig, SoftTargets
from minialign.distill.tinybert import TINYBERT, TinyBERT


@dataclass(frozen=True)
class RecipeDefaults:
    """What a name stands for."""

    loss: type[Recipe]  # what is minimised
    config: Any  # with which weights
    kinds: tuple[str, ...] = ("decoder", "encoder")  # of which models
    from_teacher: bool = False  # whether the student begins as layers of its teacher
    predicts_words: bool = True  # whether the student learns to predict words
    reads: str = "texts"  # texts | prompts (texts from some place on) | written (what the teacher writes after prompts)
    writing: WritingConfig | None = None  # how the teacher writes


RECIPES = {
    "soft-targets": RecipeDefaults(SoftTargets, SoftTargetConfig()),
    "distilgpt2": RecipeDefaults(SoftTargets, DISTILGPT2, ("decoder",), from_teacher=True),
    "distilbert": RecipeDefaults(SoftTargets, DISTILBERT, ("encoder",), from_teacher=True),
    "tinybert": RecipeDefaults(TinyBERT, TINYBERT, predicts_words=False),
    "minilm": RecipeDefaults(MiniLM, MINILM, predicts_words=False),
    "minilm-v2": RecipeDefaults(MiniLM, MINILM_V2, predicts_words=False),
    "sequence-level": RecipeDefaults(SoftTargets, SEQUENCE_LEVEL, ("decoder",), from_teacher=True, reads="written",
                                     writing=WritingConfig()),
    "on-policy": RecipeDefaults(OnPolicy, OnPolicyConfig(), ("decoder",), from_teacher=True, reads="prompts"),
}
