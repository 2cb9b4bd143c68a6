r"""How much memory a training takes, said before it starts, and refused where it cannot fit.

    weights        4 bytes a number, 2 where what is frozen is kept in bfloat16
    learned        + 12 bytes a number that trains: gradient and AdamW's two moments, all fp32
    activations    for each token and block what the backward pass will read; with checkpoints a block's input only,
                   and one block at a time in full
    logits         for each token V numbers, three times: themselves, their softmax, their gradient

An estimate: 8 % are added for what libraries keep. test_the_estimate_is_near_what_autograd_keeps measures the
activations.
"""

import os
from dataclasses import dataclass

import torch
from torch import nn

from minialign.peft.trainable import counts
from minialign.runs.devices import describe_device
from minialign.runs.errors import UserError

GIB, SPARE, SAID_FROM = 2**30, 1.08, 2**30  # bytes; share; what takes less is not worth a line


@dataclass(frozen=True)
class Need:
    """What a training takes, in bytes."""

    fixed: float  # weights, gradients, moments
    each: float  # more for each example that is computed together

    def of(self, examples: int) -> float:
        """All of it for a micro-batch of so many examples."""
        return SPARE * (self.fixed + examples * self.each)

    def largest(self, room: float) -> int:
        """How many examples fit together."""
        return max(0, int((room / SPARE - self.fixed) / self.each))


def training_need(model: nn.Module, tokens: int, half: bool = False, checkpoints: bool = False) -> Need:
    """What one model that learns takes.

    Args:
        tokens: of the longest example; half: what is frozen is in bfloat16, and so are activations.
        checkpoints: blocks are computed again in the backward pass.
    """
    some, all_ = counts(model)
    shape, width = model.config, 2 if half else 4
    inner = getattr(shape, "inner", None) or getattr(shape, "feed_forward", 4) * shape.width
    heads, size = shape.heads, getattr(shape, "head_size", shape.width // shape.heads)
    frozen = 2 * some < all_  # a frozen layer does not keep its input
    # inputs of two norms in fp32, two normed inputs, queries, keys and values of all heads, their mixture; then the
    # gate, its nonlinearity, the other half and their product
    block = 2 * 4 * shape.width + width * ((2 if frozen else 4) * shape.width + 5 * heads * size
                                           + (3 if frozen else 4) * inner)
    kept = width * shape.width * shape.layers + block if checkpoints else block * shape.layers
    return Need(width * (all_ - some) + 16 * some, tokens * (kept + 3 * 4 * shape.vocabulary))


def room_on(device: torch.device) -> float | None:
    """Bytes that a device has for a model; None where nobody can tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return None


def check_memory(need: Need, examples: int, device: torch.device) -> str | None:
    """What is said of a training before it starts; None where it needs little. Raises UserError where it cannot fit."""
    room = room_on(device)
    said = f"needs about {need.of(examples) / GIB:.1f} GiB"
    if room is None:
        return said if need.of(examples) > SAID_FROM else None
    has = f"{describe_device(device)} has {room / GIB:.1f}"
    if need.of(examples) > room:
        fits = need.largest(room)
        remedy = (f"{fits} examples fit together: use --batch {fits}, or more --accumulation" if fits
                  else "not one example fits: use --bf16, --checkpoints, --method lora or a smaller base")
        raise UserError(f"this {said}, and {has}; {remedy}")
    return f"{said}; {has}" if need.of(examples) > SAID_FROM else None
