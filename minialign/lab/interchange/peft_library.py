r"""In and out of the ecosystem: a LoRA, a BitFit or a tuned prompt in the format of the PEFT library, for GPT-2- and
Llama-type models.

The library keeps `adapter_config.json` and `adapter_model.safetensors`, with the names of the transformers library.
Details that matter:
    1. GPT-2 there makes queries, keys and values with one matrix, `c_attn`. Three updates of rank r become one of rank
       3r: A stacked, B block by block, α three times as large, so that α/r stays what it was; on the way in each of
       ours gets the shared A and its third of B (test_a_lora_goes_out_and_the_library_gives_the_same_logits).
    2. The library's rank-stabilised scale is α/√r, so there α grows by √3 (the same test, with that option on).
    3. A DoRA's lengths go the same way, those of c_attn one after the other; a part of it that has none keeps the
       lengths of its base (test_a_dora_goes_out_and_in).
    4. What the library can say and we cannot (ranks of their own for some layers, other modules that train) is an
       error, not ignored.
    5. Biases train there beside a LoRA only; how BitFit goes out and in stands in peft_library_biases.py.

Read next: peft_library_biases.py.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from minialign.lab.interchange.folder import Settings
from minialign.lab.interchange.peft_library_biases import biases_in, biases_out
from minialign.peft import dora, lora, prompt_tuning
from minialign.peft.lora import LoRAConfig
from minialign.peft.prompt_tuning import PromptConfig
from minialign.peft.trainable import heads_of, trained
from minialign.runs.errors import UserError
from minialign.runs.files import read_json, write_atomic, write_json
from minialign.runs.tensors import read_tensors

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
FUSED = ("query", "key", "value")  # what c_attn holds, in this order
LLAMA = {"attention.query": "self_attn.q_proj", "attention.key": "self_attn.k_proj",
         "attention.value": "self_attn.v_proj", "attention.output": "self_attn.o_proj",
         "feed_forward.gate": "mlp.gate_proj", "feed_forward.inner": "mlp.up_proj",
         "feed_forward.output": "mlp.down_proj"}
GPT2 = {**{f"attention.{part}": "attn.c_attn" for part in FUSED}, "attention.output": "attn.c_proj",
        "feed_forward.inner": "mlp.c_fc", "feed_forward.output": "mlp.c_proj"}
# where the blocks stand there, and what their layers are called
FAMILIES = {"llama": ("model.layers", LLAMA), "gpt2": ("transformer.h", GPT2)}
UNKNOWN_HERE = ("rank_pattern", "alpha_pattern", "modules_to_save", "layer_replication", "lora_bias",
                "trainable_token_indices", "use_qalora", "alora_invocation_tokens", "kasa_config", "use_bdlora",
                "arrow_config")
# starts of A and B that leave the base as it is: pissa and olora do not
BASE_KEPT = (None, True, False, "gaussian", "eva", "orthogonal")


def _family(family: str) -> tuple[str, dict[str, str]]:
    if family not in FAMILIES:
        raise UserError(f"the family {family!r} is not known; choose one of {', '.join(FAMILIES)}")
    return FAMILIES[family]


def save_for_library(model: nn.Module, folder: Path, family: str) -> Path:
    """Write a wrapped model's LoRA, biases or prompt as the PEFT library reads it.

    Args:
        model: wrapped by `lora`, `bitfit` or `prompt_tuning`; family: "gpt2" or "llama", the transformers class that it
            shall be loaded onto.
    Raises:
        UserError: another method, a tuned head, or a layer that the family does not have.
    """
    blocks, names = _family(family)
    about, tensors = getattr(model, "tuning", None), trained(model)
    method = about.method if about else "nothing"
    if method == "prompt-tuning" and not heads_of(model):
        (prompt,) = tensors.values()
        config = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": len(prompt),
                  "token_dim": prompt.shape[1], "num_layers": model.config.layers,
                  "num_attention_heads": model.config.heads, "num_transformer_submodules": 1,
                  "prompt_tuning_init": "RANDOM"}
        return _write(folder, config, {"prompt_embeddings": prompt})
    if method == "bitfit" and not heads_of(model):
        return _write(folder, *biases_out(model, family, blocks, names))
    if method not in ("lora", "dora") or any(not name.endswith((".A", ".B", ".magnitude")) for name in tensors):
        raise UserError(f"only a LoRA, a BitFit or a prompt, without a head, can be written for the library, and this "
                        f"is {method}")
    found: dict[str, dict[str, Tensor]] = {}
    for name in about.targets:
        place = re.fullmatch(r"body\.blocks\.(\d+)\.(.+)", name)
        if place is None or place[2] not in names:
            raise UserError(f"{name} has no counterpart in a {family} of the transformers library")
        theirs = f"base_model.model.{blocks}.{place[1]}.{names[place[2]]}"
        found.setdefault(theirs, {})[place[2].split(".")[-1]] = name
    update, fused = about.config, family == "gpt2" and any("c_attn" in name for name in found)
    out = {}
    for theirs, ours in found.items():
        if fused:  # one rank for all layers: those that are not fused are filled up with zeros
            A, B = _fuse(model, ours) if "c_attn" in theirs else _fill(model, *ours.values())
        else:
            layer = model.get_submodule(*ours.values())
            A, B = layer.A, layer.B
        out |= {f"{theirs}.lora_A.weight": A, f"{theirs}.lora_B.weight": B}
        if method == "dora":
            out[f"{theirs}.lora_magnitude_vector"] = _lengths(model, ours, FUSED if "c_attn" in theirs else list(ours))
    grown = (math.sqrt(3) if update.rank_stabilised else 3) if fused else 1
    parts = 2 if family == "gpt2" else 1  # of a name there
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": update.rank * (3 if fused else 1),
              "lora_alpha": update.alpha * grown, "lora_dropout": update.dropout,
              "target_modules": sorted({".".join(name.split(".")[-parts:]) for name in found}),
              "fan_in_fan_out": family == "gpt2", "bias": "none", "use_rslora": update.rank_stabilised,
              "use_dora": method == "dora"}
    return _write(folder, config, out)


def _fuse(model: nn.Module, ours: dict[str, str]) -> tuple[Tensor, Tensor]:
    """(3r, in) and (3 out, 3r) for c_attn, from the updates of the query, the key and the value that there are."""
    there = {part: model.get_submodule(name) for part, name in ours.items()}
    some = next(iter(there.values()))
    A, B = ([getattr(there[part], name) if part in there else torch.zeros_like(getattr(some, name)) for part in FUSED]
            for name in ("A", "B"))
    return torch.cat(A), torch.block_diag(*B)


def _lengths(model: nn.Module, ours: dict[str, str], parts: Sequence[str]) -> Tensor:
    """A DoRA's lengths of the rows of one of the library's layers; parts of it that have none keep their base's."""
    around, found = next(iter(ours.values())).rpartition(".")[0], []
    for part in parts:
        layer = model.get_submodule(ours.get(part, f"{around}.{part}"))
        found.append(layer.magnitude.detach() if part in ours else layer.weight.detach().norm(dim=1))
    return torch.cat(found)


def _fill(model: nn.Module, name: str) -> tuple[Tensor, Tensor]:
    """An update with zeros up to three times its rank."""
    layer = model.get_submodule(name)
    more = 2 * len(layer.A)
    return F.pad(layer.A, (0, 0, 0, more)), F.pad(layer.B, (0, more))


def _write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    folder = Path(folder)
    write_atomic(folder / TENSORS, safetensors_bytes({name: t.detach().contiguous() for name, t in tensors.items()},
                                                     {"format": "pt"}))
    write_json(folder / CONFIG, config)
    return folder


def load_from_library(model: nn.Module, folder: Path, family: str) -> nn.Module:
    """Wrap a base model with what the PEFT library saved.

    Args:
        model: the base, in this project's form (`pretrained/gpt2.py`, `pretrained/llama.py`); family: "gpt2" or
            "llama".
    Raises:
        UserError: a kind of file, or a setting, that this project does not have; tensors of other layers.
    """
    blocks, names = _family(family)
    settings, (tensors, _) = read_json(Path(folder) / CONFIG), read_tensors(Path(folder) / TENSORS)
    kind = settings.get("peft_type") if isinstance(settings, dict) else None
    if kind == "PROMPT_TUNING":
        if set(tensors) != {"prompt_embeddings"}:
            raise UserError(f"holds {', '.join(tensors)}; a tuned prompt is `prompt_embeddings` alone",
                            Path(folder) / TENSORS)
        prompt = tensors["prompt_embeddings"]
        if prompt.shape[1] != model.config.width:
            raise UserError(f"its vectors have {prompt.shape[1]} numbers, the model's {model.config.width}; use the "
                            f"base that it was made for", folder)
        wrapped = prompt_tuning.wrap(model, PromptConfig(len(prompt), "random"))
        (own,) = trained(wrapped).values()
        own.data.copy_(prompt)
        return wrapped
    if kind != "LORA":
        raise UserError(f"holds {kind!r}; only LORA and PROMPT_TUNING can be read", Path(folder) / CONFIG)
    beyond = [key for key in UNKNOWN_HERE if settings.get(key)]
    beyond += ["init_lora_weights"] * (settings.get("init_lora_weights") not in BASE_KEPT)
    if beyond:
        raise UserError(f"sets {beyond[0]} to {settings[beyond[0]]!r}, which this project does not have",
                        Path(folder) / CONFIG)
    if settings.get("bias", "none") != "none":
        return biases_in(model, tensors, Path(folder) / TENSORS, family, blocks, names)
    found, lengths = _low_rank(tensors, settings, Path(folder) / TENSORS, family), bool(settings.get("use_dora"))
    told = Settings(settings, Path(folder) / CONFIG)
    config = LoRAConfig(rank=told.number("r"), alpha=float(told.number("lora_alpha", whole=False, least=0)),
                        targets=tuple(found),
                        dropout=float(told.number("lora_dropout", 0.0, whole=False, least=0, most=1)),
                        rank_stabilised=bool(settings.get("use_rslora")))
    wrapped = (dora if lengths else lora).wrap(model, config)
    for name, parts in found.items():
        own = {part: getattr(wrapped.get_submodule(name), part) for part in parts}
        if any(own[part].shape != tensor.shape for part, tensor in parts.items()):
            shapes, needed = ([f"{part} {tuple(t.shape)}" for part, t in side.items()] for side in (parts, own))
            raise UserError(f"{name} has {', '.join(shapes)}; the model's layer needs {', '.join(needed)}", folder)
        for part, tensor in parts.items():
            own[part].data.copy_(tensor)
    return wrapped


def _low_rank(tensors: dict[str, Tensor], settings: dict[str, Any], file: Path,
              family: str) -> dict[str, dict[str, Tensor]]:
    """Our layer -> its A and B, and a DoRA's magnitude, of what the library saved."""
    blocks, names = _family(family)
    lengths = bool(settings.get("use_dora"))
    found: dict[str, dict[str, Tensor]] = {}
    for name in (name for name in tensors if name.endswith(".lora_A.weight")):
        theirs = name.removesuffix(".lora_A.weight")
        place = re.fullmatch(rf"base_model\.model\.{re.escape(blocks)}\.(\d+)\.(.+)", theirs)
        ours = [our for our, their in names.items() if place and their == place[2]]
        wanted = {"B": "lora_B.weight"} | ({"magnitude": "lora_magnitude_vector"} if lengths else {})
        if not ours or not {f"{theirs}.{each}" for each in wanted.values()} <= set(tensors):
            raise UserError(f"{theirs} has no counterpart in this project's {family}", file)
        parts = {part: tensors[f"{theirs}.{each}"].chunk(len(ours)) for part, each in wanted.items()}
        found |= {f"body.blocks.{place[1]}.{our}": {"A": tensors[name]} | {part: parts[part][i] for part in parts}
                  for i, our in enumerate(ours)}
    if not found or (2 + lengths) * len({id(part["A"]) for part in found.values()}) != len(tensors):
        raise UserError("holds tensors that are no LoRA's", file)
    return found
