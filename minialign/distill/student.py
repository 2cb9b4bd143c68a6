r"""Students: smaller models of the teacher's kind, which may begin as some of its layers; and what a model thinks on
the way.

    student block i ← teacher block map[i]         Sanh et al. 2019 (DistilBERT), §3: one layer of two; the released script took 0, 2, 4, 7, 9, 11

Details that matter:
    1. A start from the teacher copies embeddings, norms and whole blocks, bit by bit
       (test_a_student_starts_as_some_of_its_teachers_layers).
    2. The list of hidden states begins with the embeddings: state 0 is what the first block reads, state i what block i
       − 1 left; a list of attentions does not begin so, and is shorter by one
       (test_hidden_states_begin_with_the_embeddings).
    3. States are taken by hooks, and the model's code is unchanged (test_recording_changes_nothing).
    4. Attention scores are made again from the queries and keys that came by, positions included, and are those that
       the model used (test_recorded_scores_are_those_that_the_model_used).

Read next: recipe.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from minialign.heads import LanguageModel
from minialign.runs.errors import UserError
from minialign.transformer import Attention, Sight, SmearedAttention, TransformerConfig, causal_mask, rotate, smear


def student_config(teacher: TransformerConfig, layers: int, width: int = 0, heads: int = 0) -> TransformerConfig:
    """The teacher's shape with fewer layers, and another width or number of heads where they are given (0 keeps the
    teacher's).

    Raises:
        UserError: more layers than the teacher has.
    """
    if not 1 <= layers <= teacher.layers:
        raise UserError(f"a student of {layers} layers cannot learn from a teacher of {teacher.layers}; give it 1 to "
                        f"{teacher.layers}")
    return dataclasses.replace(teacher, layers=layers, width=width or teacher.width, heads=heads or teacher.heads,
                               dropout=0.0)


def evenly(teacher_layers: int, student_layers: int) -> list[int]:
    """Which teacher layer each student layer begins as: spread evenly from the first on, every second one for half as
    many."""
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
            raise UserError(f"{what}; a student that begins as layers of its teacher needs the same: start it at "
                            f"random instead")
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


@dataclass
class Thoughts:
    """What a stack computes on its way, filled anew by each pass. B texts, T tokens, N blocks, H heads of d numbers."""

    hidden: list[Tensor] = field(default_factory=list)  # N + 1 of (B, T, D): the embeddings, then what each block left
    # N of (B, T, D), as projected: all heads side by side, not turned by positions
    queries: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)  # N of (B, T, D)
    values: list[Tensor] = field(default_factory=list)  # N of (B, T, D)
    looks: list[tuple[Attention, Sight]] = field(default_factory=list)  # N attentions, and what they were given

    def scores(self, layer: int) -> Tensor:
        """(B, H, T, T) the attention scores q kᵀ / √d of a layer, before mask and softmax (a layer counts from 0, or
        from the end with a minus)."""
        attention, sight = self.looks[layer]
        query, key = attention.split(self.queries[layer]), attention.split(self.keys[layer])
        if isinstance(attention, SmearedAttention):
            key = smear(key, attention.smear, sight.positions)
        if sight.rotation is not None:
            query, key = (rotate(x, sight.rotation) for x in (query, key))
        return query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])


@contextmanager
def recorded(stack: nn.Module) -> Iterator[Thoughts]:
    """Inside, every pass of an encoder's or a decoder's stack leaves its thoughts."""
    thoughts = Thoughts()

    def begin(block: nn.Module, inputs: tuple) -> None:
        for kept in (thoughts.hidden, thoughts.queries, thoughts.keys, thoughts.values, thoughts.looks):
            kept.clear()
        thoughts.hidden.append(inputs[0])

    def look(attention: Attention, inputs: tuple) -> None:
        thoughts.looks.append((attention, inputs[1]))  # forward(x, sight, cache)

    def keep(kept):
        return lambda module, inputs, output: kept.append(output)
    hooks = [stack.blocks[0].register_forward_pre_hook(begin)]
    for block in stack.blocks:
        hooks.append(block.register_forward_hook(keep(thoughts.hidden)))
        hooks.append(block.attention.register_forward_pre_hook(look))
        for name, kept in (("query", thoughts.queries), ("key", thoughts.keys), ("value", thoughts.values)):
            hooks.append(getattr(block.attention, name).register_forward_hook(keep(kept)))
    try:
        yield thoughts
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def last_hidden(stack: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, the first entry of the list is what the last block left, (B, T, D): the last of `recorded`'s hidden
    states, and nothing else is kept."""
    kept: list[Tensor] = []
    hook = stack.blocks[-1].register_forward_hook(lambda module, inputs, output: kept.__setitem__(slice(None),
        [output]))
    try:
        yield kept
    finally:
        hook.remove()


def read(model: nn.Module, batch: Any) -> Tensor:
    """(B, T, D) what a model's body makes of a batch, after the last norm; a decoder's pads stand on the right, where
    nobody looks."""
    return model.body(batch.tokens) if model.config.kind == "decoder" else model.body(batch.tokens, batch.mask)


def may_look(model: nn.Module, batch: Any) -> Tensor:
    """(B, 1, T, T) bool, true where a query may look: at real tokens, and in a decoder not ahead."""
    allowed = batch.mask[:, None, None, :].expand(-1, 1, batch.mask.shape[1], -1)
    return allowed & causal_mask(batch.mask.shape[1]) if model.config.kind == "decoder" else allowed
