r"""Weights as files: safetensors, never pickles, so reading a stranger's file runs nothing; a digest shows damage."""

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor, nn

from minialign.runs.errors import UserError
from minialign.runs.processes import SHARDED


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; a tensor that two names share appears once, one that processes share is whole."""
    return {name: whole(t) for name, t in (*module.named_parameters(), *module.named_buffers())}


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which every process holds a part (--shard), put together, all of them asking for it; any other as it
    is."""
    if hasattr(tensor, "full_tensor"):
        return tensor.full_tensor()
    return tensor.detach().clone() if SHARDED.get() else tensor  # put together for now: its memory will be given back


def as_kept(tensor: Tensor, kept: Tensor) -> Tensor:
    """A whole tensor as another one of its shape is kept: in parts, or whole."""
    if not hasattr(kept, "full_tensor") or tensor.shape != kept.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(kept.device), kept.device_mesh, kept.placements, src_data_rank=None)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of, and facts about, a safetensors file. Raises UserError when it is missing, cut short or altered."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            about = json.loads((file.metadata() or {}).get("about", "{}"))
    except FileNotFoundError:
        raise UserError("there is no such file", path) from None
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(f"not a whole safetensors file ({str(error)[:80]}); restore it from a copy or train again",
                        path) from None
    if "sha256" in about and about["sha256"] != digest(tensors):
        raise UserError("the numbers are not those that were written; restore it from a copy or train again", path)
    return tensors, about


def tensor_file(tensors: dict[str, Tensor], **about: Any) -> bytes:
    """A safetensors file with facts about its tensors, their digest among them, as one text: in one order."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    return save(tensors, {"about": json.dumps({"sha256": digest(tensors), **about})})


def digest(tensors: dict[str, Tensor]) -> str:
    """sha256 over names and bytes of tensors: the file format itself would not notice a flipped bit."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        sha.update(name.encode() + tensors[name].cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def check_fit(module: nn.Module, tensors: dict[str, Tensor], file: Path) -> None:
    """Raise UserError unless the tensors have exactly a module's names and shapes."""
    own = tensors_of(module)
    if set(own) != set(tensors):
        odd = sorted(set(own) ^ set(tensors))
        which = f"{odd[0]!r} ({len(odd)} such names)"
        raise UserError(f"holds another kind of model: {which} is only in one of the two", file)
    for name, tensor in own.items():
        if tensor.shape != tensors[name].shape:
            found = tuple(tensors[name].shape)
            raise UserError(f"{name} has shape {found}, the model's is {tuple(tensor.shape)}; use the config.json that "
                            f"belongs to it", file)


def load_into(module: nn.Module, tensors: dict[str, Tensor], file: Path) -> None:
    """Copy tensors into a module of exactly these names and shapes, or raise UserError and leave it as it is."""
    check_fit(module, tensors, file)
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            tensor.copy_(as_kept(tensors[name], tensor))


def check_finite(**numbers: Tensor) -> None:
    """Raise UserError when one of the named (N,) numbers of N completions is not finite; names the first such
    completion."""
    for name, each in numbers.items():
        strange = (~each.isfinite()).nonzero().flatten().tolist()
        if strange:
            raise UserError(f"the {name} of completion {strange[0]} is {float(each[strange[0]])} ({len(strange)} of "
                            f"{len(each)} completions)")
