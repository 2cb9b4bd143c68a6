r"""BitFit in the format of the PEFT library, which has no such method: there biases train beside a LoRA, with its
option bias="all".

    theirs  LoRA of rank 1 on one layer, A = 0 and B = 0, and every bias          ours  every bias

So that is what is written: the update of zeros changes nothing, and never will, since with both matrices 0 neither has
a gradient. Details that matter:
    1. GPT-2 there has one bias for queries, keys and values, `c_attn.bias`: ours side by side. Where the subset of the
       paper trains the query's alone, the other two thirds are the base's
       (test_biases_go_out_and_the_library_gives_the_same_logits).
    2. What comes in must have B = 0: a file that trains matrices and biases together is no BitFit, and is refused, not
       taken by halves (test_what_is_more_than_biases_is_refused_and_the_model_untouched).
    3. A Llama has no biases; the error says so.

Read next: peft_library.py.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minialign.peft import bitfit
from minialign.peft.bitfit import BitFitConfig
from minialign.peft.trainable import trained
from minialign.runs.errors import UserError

NORMS = {"attention_norm": "ln_1", "feed_forward_norm": "ln_2"}
CARRIER = "attn.c_proj"  # of the first block: the layer with the update of zeros


def library_name(name: str, blocks: str, layers: dict[str, str]) -> str | None:
    """The library's name, without `base_model.model.`, of the parameter that one of our biases is, or is a part of;
    None when it has none."""
    if name == "body.norm.bias":
        return blocks.removesuffix("h") + "ln_f.bias"
    place = re.fullmatch(r"body\.blocks\.(\d+)\.(.+)\.bias", name)
    theirs = place and (layers | NORMS).get(place[2])
    return f"{blocks}.{place[1]}.{theirs}.bias" if theirs else None


def grouped(names: list[str], blocks: str, layers: dict[str, str]) -> dict[str, list[str]]:
    """Library's name -> ours that stand side by side in it, in the model's order: query, key and value in c_attn, one
    everywhere else."""
    found: dict[str, list[str]] = {}
    for name in names:
        theirs = library_name(name, blocks, layers)
        if theirs is None:
            raise UserError(f"{name} has no counterpart in a gpt2 of the transformers library")
        found.setdefault(theirs, []).append(name)
    return found


def biases(model: nn.Module) -> list[str]:
    """Names of all biases of a model."""
    return [name for name, _ in model.named_parameters() if name.rpartition(".")[2] == "bias"]


def refuse_llama(family: str) -> None:
    """Raise UserError for a family without biases."""
    if family != "gpt2":
        raise UserError(f"a {family} has no biases, so there is no BitFit of it; use lora")


def biases_out(model: nn.Module, family: str, blocks: str, layers: dict[str, str]) -> tuple[dict[str, Any],
        dict[str, Tensor]]:
    """Configuration and tensors for the library, of a model that `bitfit` wrapped.

    Args:
        model: in this project's form; family: "gpt2"; blocks: where the blocks stand in the library; layers: our names
            of layers -> the library's.
    Raises:
        UserError: a family without biases, or a model whose biases are not the family's.
    """
    refuse_llama(family)
    moved, every = set(trained(model)), dict(model.named_parameters())
    carrier, out = f"{blocks}.0.{CARRIER}", {}
    for theirs, ours in grouped(biases(model), blocks, layers).items():
        if moved & set(ours):
            out[base_layer(theirs, carrier)] = torch.cat([every[name].detach() for name in ours])
    width = model.config.width
    out |= {f"{carrier}.lora_A.weight": torch.zeros(1, width), f"{carrier}.lora_B.weight": torch.zeros(width, 1)}
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 1, "lora_alpha": 1, "target_modules": [carrier],
              "lora_dropout": 0.0}
    return config | {"fan_in_fan_out": True, "bias": "all"}, {f"base_model.model.{name}": tensor for name,
        tensor in out.items()}


def base_layer(name: str, wrapped: str) -> str:
    """A bias's name where the library keeps the original layer inside its LoRA."""
    return f"{wrapped}.base_layer.bias" if name == f"{wrapped}.bias" else name


def biases_in(model: nn.Module, tensors: dict[str, Tensor], file: Path, family: str, blocks: str,
              layers: dict[str, str]) -> nn.Module:
    """Wrap a base model by BitFit with the biases that the library saved beside a LoRA of zeros.

    Args:
        model: the base, in this project's form; tensors: of the library's file; file: where they come from, for errors.
            The others as for `biases_out`.
    Raises:
        UserError: a family without biases, a LoRA that changes something, or biases of another model; the model is
            untouched.
    """
    refuse_llama(family)
    for name in (name for name in tensors if name.endswith(".lora_B.weight")):
        if tensors[name].any():
            raise UserError(f"{name} is not 0: it trains matrices and biases together, which is no method of this "
                            f"project; merge it in the library", file)
    own, values = dict(model.named_parameters()), {}
    names = grouped(biases(model), blocks, layers)
    for name in (name for name in tensors if name.endswith(".bias")):
        theirs = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        if theirs not in names or tensors[name].dim() != 1 or len(tensors[name]) != sum(len(own[our])
                for our in names[theirs]):
            raise UserError(f"{name} {tuple(tensors[name].shape)} is no bias of this model; use the base that it was "
                            f"made for", file)
        values |= zip(names[theirs], tensors[name].split([len(own[our]) for our in names[theirs]]))
    odd = [name for name in tensors if not name.endswith((".bias", ".lora_A.weight", ".lora_B.weight"))]
    if odd or not values:
        raise UserError(f"holds {odd[0]}, which is no bias" if odd else "holds no biases", file)
    every = set(values) == set(biases(model))
    wrapped = bitfit.wrap(model, BitFitConfig() if every else BitFitConfig(names=tuple(values)))
    for name, value in values.items():
        wrapped.get_parameter(name).data.copy_(value)
    return wrapped
