r"""What a model computes on the way: hidden states, queries, keys, values and attention scores of each layer.

Details that matter:
    1. Hidden state 0 is what the first block reads, the embeddings; state i is what block i − 1 left. The list of
       attentions is shorter by one (test_hidden_states_begin_with_the_embeddings).
    2. Hooks take the states; the model's code is unchanged (test_recording_changes_nothing).
    3. Attention scores are computed again from the recorded queries and keys, positions included, and are those that
       the model used (test_recorded_scores_are_those_that_the_model_used).

Read next: tinybert.py, which compares them layer by layer.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from minialign.transformer import Attention, Sight, causal_mask, rotate


@dataclass
class Recording:
    """The states of a stack's last pass. B texts, T tokens, N blocks, H heads of d numbers."""

    hidden: list[Tensor] = field(default_factory=list)  # N + 1 of (B, T, D): the embeddings, then what each block left
    queries: list[Tensor] = field(default_factory=list)  # N of (B, T, D), all heads side by side, not yet rotated
    keys: list[Tensor] = field(default_factory=list)  # N of (B, T, D)
    values: list[Tensor] = field(default_factory=list)  # N of (B, T, D)
    calls: list[tuple[Attention, Sight]] = field(default_factory=list)  # N attentions, and what they were given

    def scores(self, layer: int) -> Tensor:
        """(B, H, T, T) the attention scores q kᵀ / √d of a layer, before mask and softmax; −1 is the last layer."""
        attention, sight = self.calls[layer]
        query, key = attention.split(self.queries[layer]), attention.split(self.keys[layer])
        if sight.rotation is not None:
            query, key = (rotate(x, sight.rotation) for x in (query, key))
        return query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])


@contextmanager
def recorded(stack: nn.Module) -> Iterator[Recording]:
    """Inside, every pass of an encoder's or a decoder's stack fills the recording anew."""
    recording = Recording()

    def begin(block: nn.Module, inputs: tuple) -> None:
        for states in vars(recording).values():
            states.clear()
        recording.hidden.append(inputs[0])

    def keep_call(attention: Attention, inputs: tuple) -> None:
        recording.calls.append((attention, inputs[1]))  # forward(x, sight, cache)

    def keep_in(states: list[Tensor]):
        return lambda module, inputs, output: states.append(output)

    hooks = [stack.blocks[0].register_forward_pre_hook(begin)]
    for block in stack.blocks:
        attention = block.attention
        hooks.append(block.register_forward_hook(keep_in(recording.hidden)))
        hooks.append(attention.register_forward_pre_hook(keep_call))
        hooks.append(attention.query.register_forward_hook(keep_in(recording.queries)))
        hooks.append(attention.key.register_forward_hook(keep_in(recording.keys)))
        hooks.append(attention.value.register_forward_hook(keep_in(recording.values)))
    try:
        yield recording
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def last_hidden(stack: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, the only entry of the list is what the last block left, (B, T, D); nothing else is kept."""
    kept: list[Tensor] = []

    def keep(block: nn.Module, inputs: tuple, output: Tensor) -> None:
        kept[:] = [output]

    hook = stack.blocks[-1].register_forward_hook(keep)
    try:
        yield kept
    finally:
        hook.remove()


def may_look(model: nn.Module, batch: Any) -> Tensor:
    """(B, 1, T, T) bool, true where a query may look: at real tokens, and in a decoder not ahead."""
    allowed = batch.mask[:, None, None, :].expand(-1, 1, batch.mask.shape[1], -1)
    return allowed & causal_mask(batch.mask.shape[1], allowed.device) if model.config.kind == "decoder" else allowed
