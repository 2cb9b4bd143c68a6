r"""A device that is not there, for tests: tensors that say they are on it, keep their numbers on the CPU, and refuse to
be computed with together with others. PyTorch's own place for a backend written in Python (PrivateUse1) names it.

    with pretended() as device:                    inside, tensors may be asked for there
        model.to(device)(tokens.to(device))        computes as always; torch.zeros(3) + x would raise MixedDevices

PyTorch refuses the same on a real device, but for two things that it allows and this does too: a tensor without
dimensions, which counts as a number, and copying from one to the other. What a real device allows and costs a wait (an
index from elsewhere) is refused here.
"""

from __future__ import annotations

import contextlib

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

NAME = "pretended"
COPIES = ("aten::_to_copy", "aten::copy_", "aten::_copy_from")


class MixedDevices(RuntimeError):
    """An operation was given tensors of two devices."""


class OnDevice(torch.Tensor):
    """A tensor that says it is on the device; `numbers` are its own, on the CPU."""

    @staticmethod
    def __new__(cls, numbers: torch.Tensor, requires_grad: bool = False):
        made = torch.Tensor._make_wrapper_subclass(
            cls, numbers.shape, strides=numbers.stride(), storage_offset=numbers.storage_offset(), dtype=numbers.dtype,
            device=DEVICE, requires_grad=requires_grad)
        made.numbers = numbers
        return made

    def __repr__(self, *, tensor_contents=None):
        return f"OnDevice({self.numbers!r})"

    def tolist(self):
        return self.numbers.tolist()

    def __deepcopy__(self, memo):
        copied = OnDevice(self.numbers.detach().clone())
        made = torch.nn.Parameter(copied, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copied
        memo[id(self)] = made
        return made

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return computed(function, args, kwargs or {})


def computed(function, args, kwargs):
    """What an operation gives, on the device of what it was given; raises MixedDevices."""
    name, tensors = function._schema.name, [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    here = [x for x in tensors if isinstance(x, OnDevice)]
    strangers = [x for x in tensors if not isinstance(x, OnDevice) and x.dim()]
    if here and strangers and name not in COPIES:
        raise MixedDevices(f"{name} of {[tuple(x.shape) for x in here]} on the device and "
                           f"{[tuple(x.shape) for x in strangers]} elsewhere")
    asked = kwargs.get("device")
    on_device = bool(here) if asked is None else torch.device(asked).type == NAME
    if name == "aten::copy_":
        on_device = isinstance(args[0], OnDevice)
    if name == "aten::_fused_sdp_choice":
        return 0  # the plain formula: the kernel of the CPU is none of the device's
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    args, kwargs = tree_map_only(OnDevice, lambda x: x.numbers, (args, kwargs))
    found = function(*args, **kwargs)
    if function._schema.is_mutable and name.endswith("_") or "out" in kwargs:
        return None if found is None else (tensors[0] if isinstance(found, torch.Tensor) else found)
    return tree_map_only(torch.Tensor, lambda x: OnDevice(x) if on_device else x, found)


class Pretended(TorchDispatchMode):
    """Also operations that are given no tensor, such as torch.zeros(3, device="cuda")."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return computed(function, args, kwargs or {})


class Backend(backend_registration._DummyBackendModule):
    """What PyTorch asks a device's module for."""

    def get_amp_supported_dtype(self):
        return [torch.bfloat16]


# the backward pass counts the devices once, when it first runs: importing this file comes before
backend_registration._setup_privateuseone_for_python_backend(NAME, Backend())
DEVICE = torch.device(NAME, 0)


@contextlib.contextmanager
def pretended():
    """Inside, tensors can be made on the device."""
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(data, device=…): made on the CPU, then moved
    try:
        with Pretended():
            yield DEVICE
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
