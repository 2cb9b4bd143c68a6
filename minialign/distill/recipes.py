r"""The recipes by name: what each copies by default, of which models, and whether its student begins as layers of its
teacher.

Read next: recipe.py (what they share), then soft_targets.py, distilgpt2.py, distilbert.py, tinybert.py, minilm.py,
sequence_level.py, on_policy.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minialign.distill.distilbert import DISTILBERT
from minialign.distill.distilgpt2 import DISTILGPT2
from minialign.distill.minilm import MINILM, MINILM_V2, MiniLM
from minialign.distill.on_policy import OnPolicy, OnPolicyConfig
from minialign.distill.recipe import Recipe
from minialign.distill.sequence_level import SEQUENCE_LEVEL, WritingConfig
from minialign.distill.soft_targets import SoftTargetConfig, SoftTargets
from minialign.distill.student import start_from, student_config
from minialign.distill.tinybert import TINYBERT, TinyBERT
from minialign.heads import LanguageModel
from minialign.runs.errors import UserError

BOTH = ("decoder", "encoder")


@dataclass(frozen=True)
class Named:
    """A recipe under its name."""

    loss: type[Recipe]  # what is minimised
    config: Any  # with which weights
    kinds: tuple[str, ...] = BOTH  # of which models
    from_teacher: bool = False  # whether the student begins as layers of its teacher
    speaks: bool = True  # whether the student learns to predict words
    reads: str = "texts"  # texts | prompts (texts from some place on) | written (what the teacher writes after prompts)
    writing: WritingConfig | None = None  # how the teacher writes


RECIPES = {
    "soft-targets": Named(SoftTargets, SoftTargetConfig()),
    "distilgpt2": Named(SoftTargets, DISTILGPT2, ("decoder",), from_teacher=True),
    "distilbert": Named(SoftTargets, DISTILBERT, ("encoder",), from_teacher=True),
    "tinybert": Named(TinyBERT, TINYBERT, speaks=False),
    "minilm": Named(MiniLM, MINILM, speaks=False),
    "minilm-v2": Named(MiniLM, MINILM_V2, speaks=False),
    "sequence-level": Named(SoftTargets, SEQUENCE_LEVEL, ("decoder",), from_teacher=True, reads="written",
                            writing=WritingConfig()),
    "on-policy": Named(OnPolicy, OnPolicyConfig(), ("decoder",), from_teacher=True, reads="prompts"),
}


def recipe_named(name: str, kind: str) -> Named:
    """A recipe for a teacher of some kind. Raises UserError when there is none, or it is for other models; the message
    lists those there are."""
    for_kind = [other for other, recipe in RECIPES.items() if kind in recipe.kinds]
    if not for_kind:
        raise UserError(f"the teacher is an {kind}, and the recipes are for decoders and encoders; choose another "
                        f"--teacher")
    if name not in for_kind:
        what = (f"there is no recipe {name!r}" if name not in RECIPES else f"{name} is not for "
                f"{'an' if kind[0] == 'e' else 'a'} {kind}")
        raise UserError(f"{what}; choose one of {', '.join(for_kind)}")
    return RECIPES[name]


def make_student(
    teacher: LanguageModel, layers: int, width: int = 0, heads: int = 0, from_teacher: bool = False,
    layers_from: Sequence[int] | None = None, seed: int = 0
) -> LanguageModel:
    """A student, untrained.

    Args:
        layers, width, heads: its shape, 0 for half the teacher's layers, its width and its heads.
        from_teacher: whether it begins as layers of the teacher; layers_from: which; seed: of its weights otherwise.
    Raises:
        UserError: a shape that cannot be, or that cannot begin as layers of the teacher.
    """
    student = LanguageModel(student_config(teacher.config, layers or max(1, teacher.config.layers // 2), width, heads),
                            seed)
    return start_from(student, teacher, layers_from) if from_teacher else student
