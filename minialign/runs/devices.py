r"""Where a model computes: the processor, or a graphics card that PyTorch knows.

    x = torch.zeros(len(y), device=y.device)      what a file of the book says where it makes a tensor; it says no more

Numbers are drawn on the CPU and moved, so the same seed gives the same weights, batches and uniform numbers on every
device (test_every_stage_gives_the_same_on_another_device); what rounding makes of them differs. Dropout alone draws on
the device, from the seed of the step.

Read next: processes.py, for several of them.
"""

import contextlib
import copy
import os
from typing import TypeVar

import torch
from torch import Tensor, nn

from minialign.runs.errors import UserError

NAMES = ("auto", "cpu", "cuda", "mps")
Batch = TypeVar("Batch")
_here = torch.device("cpu")  # where models are put


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" is a graphics card where there is one. Under torchrun each process has its own.

    Raises:
        UserError: no such device here.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, found in there.items() if found)
    if name not in there:
        raise UserError(f"the device {name!r} is not known; choose one of {', '.join(NAMES)}")
    if not there[name]:
        raise UserError(f"there is no device {name!r} here, only {', '.join(kind for kind in there if there[kind])}")
    if name != "cuda":
        return torch.device(name)
    number, cards = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if number >= cards:
        raise UserError(f"process {number} has no device of its own: there are {cards}; start fewer processes")
    return torch.device("cuda", number)


def default_device() -> torch.device:
    """Where models are put that are loaded or made: on the CPU, if nobody asked for another place."""
    return _here


def use_device(device: torch.device) -> torch.device:
    """Put them there from now on; returns where they were put before."""
    global _here
    before, _here = _here, device
    return before


def device_of(module: nn.Module) -> torch.device:
    """Where a module's numbers are."""
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")


def moved(batch: Batch, module: nn.Module) -> Batch:
    """A batch with its tensors where a module's are; the very batch where they are there already."""
    device = device_of(module)
    elsewhere = {name: x.to(device) for name, x in vars(batch).items() if isinstance(x, Tensor) and x.device != device}
    if not elsewhere:
        return batch
    batch = copy.copy(batch)
    vars(batch).update(elsewhere)
    return batch


def in_half(device: torch.device, enabled: bool = True) -> contextlib.AbstractContextManager:
    """Inside, what is safe in bfloat16 is computed in it; where `enabled` is false, nothing is."""
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def describe_device(device: torch.device) -> str:
    """Its name, for people."""
    return f"{device.type} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type
