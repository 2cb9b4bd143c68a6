r"""Students: smaller models of the teacher's kind, which may begin as some of its layers.

    student block i ← teacher block map[i]       Sanh et al. 2019 (DistilBERT), §3: one layer of two

A start from the teacher copies embeddings, norms and whole blocks, bit by bit
(test_a_student_starts_as_some_of_its_teachers_layers).

Read next: distilgpt2.py. See also: recipe.py.
"""

import dataclasses
from collections.abc import Sequence

from torch import nn

from minialign.heads import LanguageModel
from minialign.runs.errors import UserError
from minialign.transformer import TransformerConfig

COPIED = ("token_embedding", "position_embedding", "norm")  # beside the blocks


def student_config(teacher: TransformerConfig, layers: int = 0, width: int = 0, heads: int = 0) -> TransformerConfig:
    """The teacher's shape with fewer layers (0: half of them), and another width or number of heads (0: the teacher's).

    Raises:
        UserError: more layers than the teacher has.
    """
    layers = layers or max(1, teacher.layers // 2)
    if not 1 <= layers <= teacher.layers:
        raise UserError(f"a student of {layers} layers cannot learn from a teacher of {teacher.layers}; give it 1 to "
                        f"{teacher.layers}")
    return dataclasses.replace(teacher, layers=layers, width=width or teacher.width, heads=heads or teacher.heads,
                               dropout=0.0)


def evenly(teacher_layers: int, student_layers: int) -> list[int]:
    """Which teacher layer each student layer begins as: the first, the last, and between them at equal distances.

    Of twelve for six 0, 2, 4, 7, 9 and 11, as the released DistilBERT and DistilGPT-2 took. Of two or more the last is
    one: what it leaves is what the copied norm and words read. A single one is the first, by which more is kept here.
    """
    return [round(i * (teacher_layers - 1) / max(1, student_layers - 1)) for i in range(student_layers)]


def choose_layers(layers: Sequence[int] | None, student: TransformerConfig, teacher: TransformerConfig) -> list[int]:
    """The teacher's layer for each of the student's; `evenly` without a choice. Raises UserError for other layers."""
    layers = evenly(teacher.layers, student.layers) if layers is None else list(layers)
    if len(layers) != student.layers or not all(0 <= layer < teacher.layers for layer in layers):
        raise UserError(f"the layers {layers} are not {student.layers} of 0 to {teacher.layers - 1}")
    return layers


def start_from(student: LanguageModel, teacher: LanguageModel, layers: Sequence[int] | None = None) -> LanguageModel:
    """Copy the teacher's embeddings, last norm and chosen blocks into the student.

    Args:
        layers: the teacher's block for each of the student's; `evenly` without it.
    Raises:
        UserError: another shape but for the number of layers, or a layer that the teacher does not have.
    """
    for name in ("width", "vocabulary", "kind", "heads", "feed_forward", "positions", "activation", "short_convolution",
                 "shared", *["context"] * (teacher.config.positions == "learned")):
        ours, theirs = getattr(student.config, name), getattr(teacher.config, name)
        if ours != theirs:
            raise UserError(f"the student's {name} is {ours}, the teacher's {theirs}; a student that begins as layers "
                            f"of its teacher needs the same: start it at random instead")
    layers = choose_layers(layers, student.config, teacher.config)
    stacks = [(student.body, teacher.body)]
    if student.config.kind == "encoder-decoder":
        stacks = [(getattr(student.body, part), getattr(teacher.body, part)) for part in ("encoder", "decoder")]
    for small, large in stacks:
        copy_layers(small, large, layers)
    return student


def copy_layers(small: nn.Module, large: nn.Module, layers: list[int], parts: Sequence[str] = COPIED) -> None:
    """Copy a stack's chosen blocks, and its other parts where it has them."""
    for block, layer in zip(small.blocks, layers):
        block.load_state_dict(large.blocks[layer].state_dict())
    for name in parts:
        if getattr(small, name) is not None:
            getattr(small, name).load_state_dict(getattr(large, name).state_dict())
