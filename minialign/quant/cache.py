r"""A key-value cache of few bits: in long texts it is what fills the memory.

    keys      a scale and a zero-point for each channel, over groups of 32 tokens
    values    a scale and a zero-point for each token, over the channels of a head          Liu et al. 2024 (KIVI), §3
    bytes     2 · layers · heads · size · tokens · bits / 8, and the scales

Keys have a few channels that are large in all tokens, so a channel is what should share a scale: one of a token would
be spoiled by them. Values have none, and are summed over tokens with attention's weights, so an error should stay
within its token. The last tokens, which are looked at most, wait in floating point until their group is full. Details
that matter:
    1. With 8 bits a model says nearly what it said, with 4 a little less, with 2 the axis decides
       (test_fewer_bits_cost_more_and_the_axis_matters).
    2. What is stored is codes; they are read back at every step, which saves memory and costs time
       (test_bytes_are_those_of_the_codes).
    3. Texts that go on in several ways share what was read (test_a_cache_repeats_its_rows).

Read next: outliers.py. See also: cache.py.
"""

import torch
from torch import Tensor

from minialign.cache import Cache
from minialign.heads import LanguageModel, evaluating
from minialign.quant.mappings import MappingConfig, Quantized, quantize_tensor
from minialign.runs.errors import UserError


class QuantizedCache(Cache):
    """A cache that keeps codes.

    Args:
        config, batch, length: as for `Cache`.
        bits: of a code, 2 to 8; group: tokens that share the scales of their keys, and wait for each other.
        keys_by: what shares a key's scale: channel, as the paper found best, or token.
        device: where the model is.
    """

    def __init__(self, config, batch: int, length: int, bits: int = 8, group: int = 32, keys_by: str = "channel",
                 device: torch.device | None = None):
        super().__init__(config, batch, length, device=device)
        if keys_by not in ("channel", "token") or group < 1:
            raise UserError(f"keys share their scales by {keys_by!r} in groups of {group}; choose channel or token, "
                            f"and a group of 1 or more")
        self.how, self.group, self.keys_by = MappingConfig("zero-point", bits, "row"), group, keys_by
        self.codes: list[list[tuple[Quantized, Quantized]]] = [[] for _ in range(config.layers)]
        self.tail: list[tuple[Tensor, Tensor] | None] = [None] * config.layers  # (B, H, < group, d) each

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store this call's (B, H, T, d) keys and values of one layer and return all of them, (B, H, S, d), as they
        come back from their codes."""
        if (tail := self.tail[layer]) is not None:
            key, value = torch.cat([tail[0], key], dim=2), torch.cat([tail[1], value], dim=2)
        while key.shape[2] >= self.group:
            k, v = key[:, :, : self.group], value[:, :, : self.group]
            by_channel = k.transpose(2, 3) if self.keys_by == "channel" else k
            self.codes[layer].append((quantize_tensor(by_channel, self.how), quantize_tensor(v, self.how)))
            key, value = key[:, :, self.group :], value[:, :, self.group :]
        self.tail[layer] = key, value
        found = [(k.dequantize().transpose(2, 3) if self.keys_by == "channel" else k.dequantize(), v.dequantize())
                 for k, v in self.codes[layer]]
        keys, values = zip(*((k.to(key.dtype), v.to(value.dtype)) for k, v in [*found, (key, value)]))
        return torch.cat(keys, dim=2), torch.cat(values, dim=2)

    def repeat(self, rows: Tensor) -> None:
        """Let texts go on in several ways, as in `Cache.repeat`."""
        super().repeat(rows)

        def again(q: Quantized) -> Quantized:
            return Quantized(q.values[rows], q.scale[rows], q.zero_point[rows], q.config)

        self.codes = [[(again(k), again(v)) for k, v in groups] for groups in self.codes]
        self.tail = [None if tail is None else (tail[0][rows], tail[1][rows]) for tail in self.tail]

    @property
    def bytes(self) -> float:
        """What codes (packed to their bits), scales and waiting tokens take."""
        codes = [q for groups in self.codes for pair in groups for q in pair]
        waiting = sum(t.numel() * t.element_size() for tail in self.tail if tail for t in tail)
        return waiting + sum(q.bytes - q.values.numel() * (1 - q.config.bits / 8) for q in codes)


@torch.no_grad()
def kl_of_cache(model: LanguageModel, tokens: Tensor, cache: Cache) -> Tensor:
    """(B, T) nats: KL(π ‖ π with that cache) of the next token, after each token of (B, T), read one at a time."""
    found = []
    with evaluating(model):
        exact = model(tokens).log_softmax(dim=-1)  # (B, T, V)
        for t in range(tokens.shape[1]):
            hidden = model.body(tokens[:, t : t + 1], None, cache)
            said = model.logits(hidden)[:, 0].log_softmax(dim=-1)
            found.append((exact[:, t].exp() * (exact[:, t] - said)).sum(dim=-1))
    return torch.stack(found, dim=1)
