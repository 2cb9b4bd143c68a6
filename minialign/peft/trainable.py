r"""What every way of fine-tuning shares: what trains, what is wrapped, and a small file with just that.

    wrap(model, config) -> model          each method's file has one; it freezes, replaces submodules by name, and notes what it did
    show(model)                           the table of what trains
    save(model, folder), load(model, folder)

A method changes a model only by replacing submodules, each wrapper holding the original, and by setting
`requires_grad`. Details that matter:
    1. Names are matched whole, or by shell patterns, never by a part of a word: "bias" in
       "relative_attention_bias.weight" is no bias (test_names_are_matched_whole).
    2. The file holds only what trains, and the fingerprint of the base that it belongs to; it loads onto no other
       (test_a_file_for_another_base_is_refused_and_the_model_untouched). A task's head is no part of the base: its
       start does not matter, since the file has the trained one
       (test_a_head_s_start_does_not_matter_and_its_absence_does).
    3. Settings and tensors are sealed together: a rank that was edited in the file would otherwise be filled up in
       silence (test_an_edited_setting_is_refused_and_the_model_untouched).
    4. What is frozen is bit-identical after training (test_what_is_frozen_does_not_move).

Read next: lora.py.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from minialign.heads import Classifier, ScalarModel
from minialign.runs.errors import UserError
from minialign.runs.files import read_json, write_atomic, write_json
from minialign.runs.settings import to_dict
from minialign.runs.tensors import digest, read_tensors, tensor_file, tensors_of

TENSORS, ABOUT = "tuned.safetensors", "tuned.json"


@dataclass(frozen=True)
class Wrapped:
    """What a method did to a model; kept on the model as `tuning`."""

    method: str  # lora, bitfit, …
    config: Any  # the method's configuration
    base: str  # fingerprint of the model as it was before
    targets: tuple[str, ...]  # names of the submodules that were replaced, or of the parameters that were chosen


def fingerprint(model: nn.Module) -> str:
    """Sixteen hex digits of all weights of a model, names included, without the head that was put on it for a task."""
    heads = tuple(f"{name}." for name in heads_of(model))
    return digest({name: tensor for name, tensor in tensors_of(model).items() if not name.startswith(heads)})[:16]


def freeze(model: nn.Module) -> None:
    """Let nothing train."""
    model.requires_grad_(False)


def matching(names: Sequence[str], patterns: Sequence[str], what: str) -> list[str]:
    """Names that one of the patterns means: the whole name, its last parts ("query", "attention.query"), or a shell
    pattern ("*.query").

    Raises:
        UserError: a pattern that means nothing; lists the last parts that there are.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        hits = [name for name in names if name == pattern or name.endswith("." + pattern)
                or fnmatch.fnmatchcase(name, pattern)]
        if not hits:
            known = ", ".join(dict.fromkeys(".".join(name.split(".")[-2:]) for name in names)) or "none"
            raise UserError(f"no {what} is called {pattern!r}; there are {known}")
        found |= dict.fromkeys(hits)
    return [name for name in names if name in found]


def linear_names(model: nn.Module) -> list[str]:
    """Names of all linear layers, without the head that was put on for a task: it trains whole."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)
            and name not in heads_of(model)]


def replace(model: nn.Module, name: str, make: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Put `make(original)` where the submodule of that name was; returns it."""
    parent_name, _, last = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    made = make(getattr(parent, last))
    setattr(parent, last, made)
    return made


def refuse_wrapped(model: nn.Module) -> None:
    """Raise UserError when the model is tuned by some method already."""
    if getattr(model, "tuning", None) is not None:
        raise UserError(f"this model is wrapped by {model.tuning.method} already; load the base anew, or make a LoRA "
                        f"plain with merged_plain")


def train_also(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Let further parameters train (a head, norms): those of the submodules, or the parameters, that the patterns
    mean."""
    names = [name for name, _ in model.named_parameters()]
    owners = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
    chosen = [name for name in names if name.rpartition(".")[0] in matching(owners, patterns,
        "submodule")] if patterns else []
    for name in chosen:
        model.get_parameter(name).requires_grad_(True)
    return chosen


def heads_of(model: nn.Module) -> list[str]:
    """The head that was put on a body for a task, which every method trains; a language model's own head is none."""
    return ["head"] if isinstance(model, Classifier | ScalarModel) else []


def trained(model: nn.Module) -> dict[str, Tensor]:
    """What trains, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def trainable_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """What an optimizer gets."""
    return (parameter for parameter in model.parameters() if parameter.requires_grad)


def counts(model: nn.Module) -> tuple[int, int]:
    """(numbers that train, all numbers); a tensor with two names counts once."""
    return sum(p.numel() for p in trainable_parameters(model)), sum(p.numel() for p in model.parameters())


def show(model: nn.Module) -> str:
    """The table of what trains, and what was wrapped for it, for people."""
    lines = [f"{name:<56} {'×'.join(map(str, p.shape)):>12}" for name, p in trained(model).items()]
    return "\n".join([*lines, summary(model)])


def summary(model: nn.Module) -> str:
    """The last lines of that table: the targets, equal names of several blocks counted (query ×3), and how much
    trains."""
    some, all_ = counts(model)
    line = f"{some:,} of {all_:,} parameters train ({some / max(1, all_):.2%})"
    about = getattr(model, "tuning", None)
    if about is None:
        return line
    kinds = Counter(".".join(part for part in name.split(".") if part not in ("body", "blocks") and not part.isdigit())
                    for name in about.targets)
    targets = [f"{about.method}: {', '.join(f'{name} ×{count}' for name, count in kinds.items())}"] if kinds else []
    return "\n".join([*targets, f"{about.method}: {line}"])


def save(model: nn.Module, folder: Path) -> Path:
    """Write what trains, and whose base it needs, as two small files in a folder.

    Raises:
        UserError: a model that no method has wrapped, or one whose update is merged into its weights.
    """
    about = getattr(model, "tuning", None)
    if about is None:
        raise UserError("this model is not wrapped by any method; wrap it before you train and save it")
    if any(getattr(module, "merged", False) for module in model.modules()):
        raise UserError("the update is merged into the weights; unmerge it before you save it, or save the whole model")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = trained(model)
    write_atomic(folder / TENSORS, tensor_file(tensors))
    record = {"method": about.method, "config": to_dict(about.config), "base": about.base,
              "targets": list(about.targets)}
    write_json(folder / ABOUT, {**record, "seal": seal(record, tensors)})
    return folder


def seal(record: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """sha256 over what tuned.json says and the tensors that belong to it."""
    return hashlib.sha256((json.dumps(record, sort_keys=True) + digest(tensors)).encode()).hexdigest()


def read_saved(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `save` wrote. Raises UserError when a file is missing, cut short, altered, or of another save."""
    about = read_json(Path(folder) / ABOUT)
    if not isinstance(about, dict) or not {"method", "config", "base", "seal"} <= set(about):
        raise UserError("does not describe a tuned model; it needs method, config, base and seal", Path(folder) / ABOUT)
    tensors, _ = read_tensors(Path(folder) / TENSORS)
    if seal({key: value for key, value in about.items() if key != "seal"}, tensors) != about["seal"]:
        raise UserError(f"{TENSORS} and {ABOUT} are not of one save, or one of them was altered; restore both from a "
                        f"copy", folder)
    return about, tensors


def check_base(model: nn.Module, about: dict[str, Any], folder: Path) -> None:
    """Raise UserError unless a file was made for just this model."""
    if (own := fingerprint(model)) != about["base"]:
        raise UserError(f"was made for another base: {about['base']}, and this model is {own}; load the model that it "
                        f"was trained on", folder)


def check_head(model: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    """Raise UserError unless a file has a head for a task exactly when the model has one of that shape; a language
    model's own head is none."""
    own, saved = ({name: tuple(t.shape) for name, t in side if name in ("head.weight", "head.bias")}
                  for side in (model.named_parameters(), tensors.items()))
    if set(saved) - set(own):
        raise UserError("holds a head for a task, and this model has none; load it onto a Classifier or a ScalarModel",
                        folder)
    if heads_of(model) and set(own) - set(saved):
        raise UserError("holds no head for a task, and this model has one, which would stay as it was drawn; load it "
                        "onto a plain model", folder)
    if odd := [name for name in own if name in saved and own[name] != saved[name]]:
        raise UserError(f"{odd[0]} has shape {saved[odd[0]]}, the model's is {own[odd[0]]}; give the model as many "
                        f"classes as the file has", folder)


def load(model: nn.Module, folder: Path) -> nn.Module:
    """Wrap a fresh base model as the folder says and put the saved tensors in.

    Raises:
        UserError: another base, a damaged file, an unknown method, a head too few or too many; the model is untouched
            then.
    """
    from minialign.peft.methods import METHODS, configuration

    refuse_wrapped(model)
    about, tensors = read_saved(folder)
    config = configuration(about["method"], about["config"], Path(folder) / ABOUT)
    check_base(model, about, folder)
    check_head(model, tensors, folder)
    wrapped = METHODS[about["method"]].wrap(model, config)
    own = dict(wrapped.named_parameters())
    assert set(tensors) <= set(own), "the same base and configuration are wrapped in the same way"
    for name, parameter in own.items():
        parameter.requires_grad_(name in tensors)  # what a caller freed or froze besides is so again
        if name in tensors:
            parameter.data.copy_(tensors[name])
    return wrapped


def note(model: nn.Module, method: str, config: Any, base: str, targets: Sequence[str]) -> nn.Module:
    """Write down on the model what was done to it."""
    model.tuning = Wrapped(method, config, base, tuple(targets))
    return model


def readable(config: Any) -> str:
    """A configuration on one line."""
    return json.dumps(to_dict(config))
