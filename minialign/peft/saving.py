r"""A small file with just what trains, and a description of it: tuned.safetensors and tuned.json.

    save(model, folder), load(model, folder)

Details that matter:
    1. The file belongs to one base, whose fingerprint it holds; it loads onto no other
       (test_a_file_for_another_base_is_refused_and_the_model_untouched). A task's head is no part of the base: its
       start does not matter, since the file has the trained one
       (test_a_head_s_start_does_not_matter_and_its_absence_does).
    2. Settings and tensors are sealed together: a rank that was edited in the file would otherwise be filled up in
       silence (test_an_edited_setting_is_refused_and_the_model_untouched).

Read next: transfer.py.
"""

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from minialign.peft.methods import METHODS, configuration
from minialign.peft.trainable import fingerprint, heads_of, trained
from minialign.runs.errors import UserError
from minialign.runs.files import read_json, write_atomic, write_json
from minialign.runs.settings import to_dict
from minialign.runs.tensors import digest, read_tensors, tensor_file, whole

TENSORS, ABOUT = "tuned.safetensors", "tuned.json"


def save(model: nn.Module, folder: Path) -> Path:
    """Write what trains, and which base it needs, as two small files in a folder.

    Raises:
        UserError: a model that no method has wrapped, or one whose update is merged into its weights.
    """
    tuning = getattr(model, "tuning", None)
    if tuning is None or tuning.method not in METHODS:
        raise UserError("this model is not wrapped by any method; wrap it before you train and save it")
    if any(getattr(module, "merged", False) for module in model.modules()):
        raise UserError("the update is merged into the weights; unmerge it before you save it, or save the whole model")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: whole(parameter) for name, parameter in trained(model).items()}
    write_atomic(folder / TENSORS, tensor_file(tensors))
    about = {"method": tuning.method, "config": to_dict(tuning.config), "base": tuning.base,
             "targets": list(tuning.targets)}
    write_json(folder / ABOUT, {**about, "seal": seal(about, tensors)})
    return folder


def seal(about: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """sha256 over what tuned.json says and the tensors that belong to it."""
    return hashlib.sha256((json.dumps(about, sort_keys=True) + digest(tensors)).encode()).hexdigest()


def read_saved(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `save` wrote. Raises UserError when a file is missing, cut short, altered, or of another save."""
    if not (Path(folder) / ABOUT).exists():
        raise UserError("there is no such file; give the folder of a method that `finetune` left, such as "
                        "runs/finetune/lora", Path(folder) / ABOUT)
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
    """Raise UserError unless a file has a head for a task exactly when the model has one of that shape."""
    own, saved = ({name: tuple(t.shape) for name, t in side if name in ("head.weight", "head.bias")}
                  for side in (model.named_parameters(), tensors.items()))
    if set(saved) - set(own):
        raise UserError("holds a head for a task, and this model has none; load it onto a Classifier or a ScalarModel "
                        "(on the command line `ask` takes what was tuned on labels)", folder)
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
    about, tensors = read_saved(folder)
    config = configuration(about["method"], about["config"], Path(folder) / ABOUT)
    check_base(model, about, folder)
    check_head(model, tensors, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whoever trained it was told of a rank that does not pay
        own = dict(METHODS[about["method"]].wrap(model, config).named_parameters())
    assert set(tensors) <= set(own), "the same base and configuration are wrapped in the same way"
    for name, parameter in own.items():
        parameter.requires_grad_(name in tensors)  # what a caller freed or froze besides is so again
        if name in tensors:
            parameter.data.copy_(tensors[name])
    return model
