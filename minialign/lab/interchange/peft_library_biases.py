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

Called by peft_library.py.
"""

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


def grouped(model: nn.Module, family: str, blocks: str, layers: dict[str, str]) -> dict[str, list[str]]:
    """Library's name of a bias, without `base_model.model.` -> ours that stand side by side in it: query, key and value
    in c_attn, one everywhere else.

    Raises:
        UserError: a family without biases, or a model whose biases are not the family's.
    """
    if family != "gpt2":
        raise UserError(f"a {family} has no biases, so there is no BitFit of it; use lora")
    found: dict[str, list[str]] = {}
    for name in bitfit.biases_of(model):
        place = re.fullmatch(r"body\.blocks\.(\d+)\.(.+)\.bias", name)
        if name == "body.norm.bias":
            theirs = blocks.removesuffix("h") + "ln_f.bias"
        elif place and place[2] in layers | NORMS:
            theirs = f"{blocks}.{place[1]}.{(layers | NORMS)[place[2]]}.bias"
        else:
            raise UserError(f"{name} has no counterpart in a gpt2 of the transformers library")
        found.setdefault(theirs, []).append(name)
    return found


def biases_out(model: nn.Module, family: str, blocks: str, layers: dict[str, str]) -> tuple[dict[str, Any], dict]:
    """Configuration and tensors for the library, of a model that `bitfit` wrapped.

    Args:
        model: in this project's form; family: "gpt2"; blocks: where the blocks stand in the library; layers: our names
            of layers -> the library's.
    Raises:
        UserError: as `grouped`.
    """
    moved, every = set(trained(model)), dict(model.named_parameters())
    carrier, width = f"{blocks}.0.{CARRIER}", model.config.width
    out = {theirs: torch.cat([every[name].detach() for name in ours])
           for theirs, ours in grouped(model, family, blocks, layers).items() if moved & set(ours)}
    if f"{carrier}.bias" in out:  # the library keeps the original layer inside its LoRA
        out[f"{carrier}.base_layer.bias"] = out.pop(f"{carrier}.bias")
    out |= {f"{carrier}.lora_A.weight": torch.zeros(1, width), f"{carrier}.lora_B.weight": torch.zeros(width, 1)}
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 1, "lora_alpha": 1, "target_modules": [carrier],
              "lora_dropout": 0.0, "fan_in_fan_out": True, "bias": "all"}
    return config, {f"base_model.model.{name}": tensor for name, tensor in out.items()}


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
    own, values, names = dict(model.named_parameters()), {}, grouped(model, family, blocks, layers)
    for name in (name for name in tensors if name.endswith(".lora_B.weight")):
        if tensors[name].any():
            raise UserError(f"{name} is not 0: it trains matrices and biases together, which is no method of this "
                            f"project; merge it in the library", file)
    for name in (name for name in tensors if name.endswith(".bias")):
        theirs = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        sizes = [len(own[our]) for our in names.get(theirs, ())]
        if not sizes or tensors[name].shape != (sum(sizes),):
            raise UserError(f"{name} {tuple(tensors[name].shape)} is no bias of this model; use the base that it was "
                            f"made for", file)
        values |= zip(names[theirs], tensors[name].split(sizes))
    odd = [name for name in tensors if not name.endswith((".bias", ".lora_A.weight", ".lora_B.weight"))]
    if odd or not values:
        raise UserError(f"holds {odd[0]}, which is no bias" if odd else "holds no biases", file)
    every = set(values) == set(bitfit.biases_of(model))
    wrapped = bitfit.wrap(model, BitFitConfig(names=() if every else tuple(values)))
    for name, value in values.items():
        wrapped.get_parameter(name).data.copy_(value)
    return wrapped
