r"""What every method shares: which parameters train, and what is noted about it on the model.

    wrap(model, config) -> model     in each method's file: it freezes the model, replaces submodules, frees what trains
    show(model)                      the table of what trains

A method changes a model only by replacing submodules (runs/submodules.py), each wrapper holding the original, and by
setting `requires_grad`. What is frozen is bit-identical after training (test_what_is_frozen_does_not_move).

Read next: methods.py.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from minialign.heads import Classifier, ScalarModel
from minialign.runs.devices import device_of
from minialign.runs.errors import UserError
from minialign.runs.submodules import matching
from minialign.runs.tensors import digest, tensors_of


@dataclass(frozen=True)
class Tuning:
    """What a method did to a model; kept on the model as `tuning`."""

    method: str  # lora, bitfit, …
    config: Any  # the method's configuration
    base: str  # fingerprint of the model as it was before
    targets: tuple[str, ...]  # names of the submodules that were replaced, or of the parameters that were chosen


def note(model: nn.Module, method: str, config: Any, base: str, targets: Sequence[str]) -> nn.Module:
    """Write down on the model what was done to it."""
    model.tuning = Tuning(method, config, base, tuple(targets))
    return model


def heads_of(model: nn.Module) -> list[str]:
    """The head that was put on a body for a task, which every method trains; a language model's own head is none."""
    return ["head"] if isinstance(model, Classifier | ScalarModel) else []


def fingerprint(model: nn.Module) -> str:
    """Sixteen hex digits of all weights of a base, names included, without a task's head.

    Raises:
        UserError: the model is tuned by some method already, so it is no base.
    """
    if getattr(model, "tuning", None) is not None:
        raise UserError(f"this model is wrapped by {model.tuning.method} already; load the base anew, or make a LoRA "
                        f"plain with merged_plain")
    heads = tuple(f"{name}." for name in heads_of(model))
    return digest({name: tensor for name, tensor in tensors_of(model).items() if not name.startswith(heads)})[:16]


def freeze(model: nn.Module) -> None:
    """Let nothing train but a task's head."""
    model.requires_grad_(False)
    train_also(model, heads_of(model))


def train_also(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Let the parameters of further submodules train (a head, norms), those that the patterns mean; their names."""
    owners = {name: name.rpartition(".")[0] for name, _ in model.named_parameters()}
    chosen = matching(list(dict.fromkeys(owners.values())), patterns, "submodule")
    names = [name for name, owner in owners.items() if owner in chosen]
    for name in names:
        model.get_parameter(name).requires_grad_(True)
    return names


def linear_names(model: nn.Module) -> list[str]:
    """Names of all linear layers, quantized ones too, without the head that was put on for a task: it trains whole."""
    tables = tuple(f"{name}." for name, module in model.named_modules() if hasattr(module, "num_embeddings"))
    return [name for name, module in model.named_modules() if hasattr(module, "in_features")
            and hasattr(module, "out_features") and name not in heads_of(model) and not name.startswith(tables)]


def float_type(linear: nn.Module) -> torch.dtype:
    """The type of what stands beside a linear layer: its weight's, or float32 where that is stored in another way."""
    weight = getattr(linear, "weight", None)
    return weight.dtype if weight is not None and weight.is_floating_point() else torch.float32


def beside(linear: nn.Module, tensor: Tensor) -> Tensor:
    """A tensor in the place and in the type of what stands beside a linear layer."""
    return tensor.to(device_of(linear), float_type(linear))


def refuse_stored(model: nn.Module, method: str) -> None:
    """Raise UserError when a linear layer's numbers are stored (integers, 16 bits) and no parameters: nothing can train
    them."""
    for name in linear_names(model):
        layer = model.get_submodule(name)
        if not list(layer.parameters(recurse=False)):
            raise UserError(f"{name} is a {type(layer).__name__}, whose numbers are stored and cannot be trained, as "
                            f"{method} would; tune the model that it was made from, or use lora, adapters or "
                            f"prompt-tuning, which leave it as it is")


def trained(model: nn.Module) -> dict[str, Tensor]:
    """What trains, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def counts(model: nn.Module) -> tuple[int, int]:
    """(numbers that train, all numbers); a tensor with two names counts once."""
    return sum(p.numel() for p in trained(model).values()), sum(p.numel() for p in model.parameters())


def show(model: nn.Module) -> str:
    """The table of what trains, for people; then the targets, equal names of several blocks counted (query ×3), and how
    much trains."""
    lines = [f"{name:<56} {'×'.join(map(str, p.shape)):>12}" for name, p in trained(model).items()]
    some, all_ = counts(model)
    share, tuning = f"{some:,} of {all_:,} parameters train ({some / max(1, all_):.2%})", getattr(model, "tuning", None)
    if tuning is None:
        return "\n".join([*lines, share])
    kinds = Counter(".".join(part for part in name.split(".") if part not in ("body", "blocks") and not part.isdigit())
                    for name in tuning.targets)
    if kinds:
        lines.append(f"{tuning.method}: {', '.join(f'{name} ×{count}' for name, count in kinds.items())}")
    return "\n".join([*lines, f"{tuning.method}: {share}"])
