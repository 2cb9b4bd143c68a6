r"""Which linear layers are quantized, and which stay as they are: an explicit list of patterns, and a reason for each
that stays.

A pattern is a shell's (`*`, `?`, `[…]`) for the whole dotted name of a module: `*.attention.*`, `blocks.0.*`.
Substrings would hit what they should not.
Details that matter:
    1. Embeddings, norms and the head stay in floating point: the first two are no nn.Linear, the head is in KEEP
       (test_embeddings_norms_and_the_head_stay_as_they_are).
    2. A layer whose weight also serves elsewhere (a tied embedding) stays, whatever it is called
       (test_a_layer_with_a_shared_weight_stays).
    3. A subclass of nn.Linear stays: its owner may use its weight directly, as torch's own multi-head attention does
       (test_subclasses_of_linear_stay).
    4. A pattern that fits nothing is an error, not a silent nothing (test_a_pattern_that_fits_nothing_is_an_error).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from minialign.runs.errors import UserError

ALL = ("*",)
KEEP = ("head", "*.head", "lm_head", "*.lm_head", "classifier", "*.classifier", "*.classifier.*", "score", "*.score",
        "pooler", "*.pooler", "*.pooler.*")


@dataclass
class Selection:
    """What a choice of patterns comes to in one model."""

    layers: dict[str, nn.Linear]  # name -> layer that is to be replaced; one that has two names stands under the first
    kept: dict[str, str]  # name -> why a linear layer stays


def select(model: nn.Module, include: Sequence[str] = ALL, keep: Sequence[str] = KEEP) -> Selection:
    """Apply patterns to a model's linear layers.

    Args:
        model: any module.
        include: patterns of layers to quantize; keep: patterns of layers that stay, stronger than `include`.
    Raises:
        UserError: nothing is left to quantize, or a pattern of the caller's own fits no linear layer.
    """
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and name}
    if not linears:
        raise UserError("the model has no nn.Linear inside; there is nothing to quantize")
    for pattern in [*(p for p in include if p not in ALL), *(p for p in keep if p not in KEEP)]:
        if not any(fnmatchcase(name, pattern) for name in linears):
            raise UserError(f"no linear layer is called {pattern!r}; there are {shortened(list(linears))}")
    users: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        users.setdefault(id(parameter), []).append(name)
    seats: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        seats.setdefault(id(module), []).append(name)
    found = Selection({}, {})
    for name, layer in linears.items():
        others = sorted(set(users[id(layer.weight)]) - {f"{seat}.weight" for seat in seats[id(layer)]})
        if not any(fnmatchcase(name, pattern) for pattern in include):
            found.kept[name] = "not included"
        elif any(fnmatchcase(name, pattern) for pattern in keep):
            found.kept[name] = "in the list of what stays"
        elif type(layer) is not nn.Linear:
            found.kept[name] = f"a {type(layer).__name__}, whose owner may use its weight directly"
        elif others:
            found.kept[name] = f"shares its weight with {others[0]}"
        else:
            found.layers[name] = layer
    if not found.layers:
        raise UserError(f"no linear layer is left to quantize; of {shortened(list(found.kept))} the first is "
                        f"{next(iter(found.kept.values()))}")
    return found


def replace_modules(model: nn.Module, new: dict[str, nn.Module]) -> None:
    """Put new modules in the place of those with these names, everywhere that the old ones are used; or in a place that
    is empty (None)."""
    for name, module in new.items():
        owner, _, place = name.rpartition(".")
        if getattr(model.get_submodule(owner), place, model) is None:
            setattr(model.get_submodule(owner), place, module)
            continue
        old = model.get_submodule(name)
        for parent in list(model.modules()):
            # named_children passes over a second seat
            for child, there in list(parent._modules.items()) if parent is not module else []:
                if there is old:
                    setattr(parent, child, module)


def shortened(names: list[str], most: int = 6) -> str:
    """The first few names."""
    return ", ".join(names[:most]) + (f" … ({len(names)})" if len(names) > most else "")
