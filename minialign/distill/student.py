r"""Students: smaller models of the teacher's kind, which may begin as some of its layers; and what a model thinks on the way.

    student block i ← teacher block map[i]         Sanh et al. 2019 (DistilBERT), §3: one layer of two; the released script took 0, 2, 4, 7, 9, 11

Details that matter:
    1. A start from the teacher copies embeddings, norms and whole blocks, bit by bit (test_a_student_starts_as_some_of_its_teachers_layers).
    2. The list of hidden states begins with the embeddings: state 0 is what the first block reads, state i what block i − 1 left; a list of
       attentions does not begin so, and is shorter by one (test_hidden_states_begin_with_the_embeddings).
    3. States are taken by hooks, and the model's code is unchanged (test_recording_changes_nothing).

Read next: soft_targets.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from minialign.errors import UserError
from minialign.heads import LanguageModel
from minialign.transformer import TransformerConfig


def student_config(teacher: TransformerConfig, layers: int, width: int = 0, heads: int = 0) -> TransformerConfig:
    """The teacher's shape with fewer layers, and another width or number of heads where they are given (0 keeps the teacher's).

    Raises:
        UserError: more layers than the teacher has.
    """
    if not 1 <= layers <= teacher.layers:
        raise UserError(f"a student of {layers} layers cannot learn from a teacher of {teacher.layers}; give it 1 to {teacher.layers}")
    return dataclasses.replace(teacher, layers=layers, width=width or teacher.width, heads=heads or teacher.heads, dropout=0.0)


def evenly(teacher_layers: int, student_layers: int) -> list[int]:
    """Which teacher layer each student layer begins as: spread evenly from the first on, every second one for half as many."""
    return [i * teacher_layers // student_layers for i in range(student_layers)]


def start_from(student: LanguageModel, teacher: LanguageModel, layers: Sequence[int] | None = None) -> LanguageModel:
    """Copy the teacher's embeddings, last norm and the named blocks into the student.

    Args:
        layers: the teacher's block for each of the student's; `evenly` without it.
    Raises:
        UserError: another width, vocabulary or kind, or a layer that the teacher does not have.
    """
    ours, theirs = student.config, teacher.config
    for name in ("width", "vocabulary", "kind", "heads", "feed_forward", "positions"):
        if getattr(ours, name) != getattr(theirs, name):
            what = f"the student's {name} is {getattr(ours, name)}, the teacher's {getattr(theirs, name)}"
            raise UserError(f"{what}; a student that begins as layers of its teacher needs the same: start it at random instead")
    layers = list(evenly(theirs.layers, ours.layers) if layers is None else layers)
    if len(layers) != ours.layers or not all(0 <= layer < theirs.layers for layer in layers):
        raise UserError(f"the layers {layers} are not {ours.layers} of 0 to {theirs.layers - 1}")
    stacks = [(student.body, teacher.body)]
    if ours.kind == "encoder-decoder":
        stacks = [(getattr(student.body, part), getattr(teacher.body, part)) for part in ("encoder", "decoder")]
    with torch.no_grad():
        for small, large in stacks:
            for i, layer in enumerate(layers):
                small.blocks[i].load_state_dict(large.blocks[layer].state_dict())
            for name in ("token_embedding", "position_embedding", "norm"):
                if getattr(small, name) is not None:
                    getattr(small, name).load_state_dict(getattr(large, name).state_dict())
    return student


@contextmanager
def recorded(stack: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, every pass of a stack fills the list anew with its hidden states (B, T, D): the embeddings, then what each block left."""
    states: list[Tensor] = []

    def first(block: nn.Module, inputs: tuple) -> None:
        states[:] = [inputs[0]]

    hooks = [stack.blocks[0].register_forward_pre_hook(first)]
    hooks += [block.register_forward_hook(lambda block, inputs, output: states.append(output)) for block in stack.blocks]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()
