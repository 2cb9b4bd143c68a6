r"""The key-value cache: what a decoder has read is not computed again; generation.py reads a token at a time into it.

The letters of the shapes are those of transformer.py; `config` is its TransformerConfig, or that of a pretrained model,
which may keep fewer heads of keys than of queries (`key_value_heads`) and choose their size (`head_size`).

Read next: heads.py.
"""

import torch
from torch import Tensor


class Cache:
    """Keys and values of what a decoder has read so far, in memory laid out once.

    Args:
        config: of the model that will fill it.
        batch: B.
        length: S, most tokens that will be read, padding included.
        rewinds: whether what was read may be forgotten again.
        device: where the model is.
    """

    def __init__(self, config, batch: int, length: int, rewinds: bool = False, device: torch.device | None = None):
        self.rewinds = rewinds
        heads = getattr(config, "key_value_heads", config.heads)
        size = getattr(config, "head_size", config.width // config.heads)
        self.shape = (config.layers, 2, batch, heads, length, size)
        self.store: Tensor | None = None  # (N, 2, B, H, S, d), laid out when the first keys tell their type and device
        self.grown: list[tuple[Tensor, Tensor] | None] = [None] * config.layers  # the same, for training
        self.mask = torch.ones(batch, length, dtype=torch.bool, device=device)  # (B, S) false at padding
        self.padded = False  # whether any pad was read
        self.length = 0  # tokens read so far, padding included
        self.recent: dict[int, Tensor] = {}  # (B, ≥ k − 1, D) last inputs of each short convolution
        self.memory: list[tuple[Tensor, Tensor] | None] = [None] * config.layers  # cross-attention's keys and values

    def make_room(self, count: int) -> None:
        """Let `count` more tokens be read; before anything was."""
        assert self.length == 0 and self.store is None, "there is something in the cache already"
        self.shape = (*self.shape[:4], self.shape[4] + count, self.shape[5])
        self.mask = self.mask.new_ones(len(self.mask), self.mask.shape[1] + count)

    def rewind(self, count: int) -> None:
        """Forget the last `count` tokens that were read."""
        assert self.rewinds and 0 <= count <= self.length and not self.padded
        assert all(kept is None for kept in self.grown), "what autograd has seen is not forgotten"
        self.length -= count
        self.recent = {place: line[:, : line.shape[1] - count] for place, line in self.recent.items()}

    def inputs_before(self, place: int, count: int) -> Tensor | None:
        """(B, count, D) the last inputs of a short convolution; None before anything was read."""
        line = self.recent.get(place)
        return None if line is None else line[:, line.shape[1] - count :]

    def keep_inputs(self, place: int, line: Tensor, T: int) -> None:
        """Keep a short convolution's inputs for what is read next: of line (B, k − 1 + T, D) the last k − 1, or all of
        it and what was kept before where it may be forgotten again."""
        if self.rewinds and (before := self.recent.get(place)) is not None:
            self.recent[place] = torch.cat([before, line[:, line.shape[1] - T :]], dim=1)
        else:
            self.recent[place] = line if self.rewinds else line[:, T:]

    def remember_pads(self, mask: Tensor | None, T: int) -> Tensor | None:
        """Note which of the next T tokens are real, mask (B, T) or None for all; (B, S) the same of all tokens so far.

        None comes back where no mask was given and nothing read is a pad. The tokens count as read when their keys are
        in: the caller adds T to `length`.
        """
        if mask is not None:
            self.mask[:, self.length : self.length + T] = mask
            self.padded = self.padded or not bool(mask.all())
        return self.mask[:, : self.length + T] if self.padded or mask is not None else None

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store this call's (B, H, T, d) keys and values of one layer and return all of them, (B, H, S, d)."""
        if key.requires_grad or value.requires_grad:  # what autograd has seen must not be overwritten: memory grows
            if (before := self.grown[layer]) is not None:
                key, value = torch.cat([before[0], key], dim=2), torch.cat([before[1], value], dim=2)
            self.grown[layer] = key, value
            return key, value
        if self.store is None:
            self.store = key.new_empty(self.shape)
        end = self.length + key.shape[2]
        self.store[layer, 0, :, :, self.length : end] = key
        self.store[layer, 1, :, :, self.length : end] = value
        return self.store[layer, 0, :, :, :end], self.store[layer, 1, :, :, :end]

    def repeat(self, rows: Tensor) -> None:
        """Let texts go on in several ways: row i of what is read next continues text rows[i]; rows (N,), 0 to B − 1.

        index_select sums its gradient in a fixed order, t[rows] need not: two trainings must be equal to the bit.
        """
        def repeated(kept):
            return None if kept is None else tuple(t.index_select(0, rows) for t in kept)

        self.shape = (*self.shape[:2], len(rows), *self.shape[3:])  # for a store that is not laid out yet
        self.store = None if self.store is None else self.store.index_select(2, rows)
        self.grown, self.memory = [repeated(kept) for kept in self.grown], [repeated(kept) for kept in self.memory]
        self.recent = {place: x.index_select(0, rows) for place, x in self.recent.items()}
        self.mask = self.mask[rows]
