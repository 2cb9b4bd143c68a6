r"""Quantized models as files: integers packed to their bits, scales beside them, and how to build the layers again.

    b-bit integers      q + 2ᵇ⁻¹ as b bits, one after the other         4 bits: two a byte; 3 bits: eight in three bytes
    everything else     as it is: scales, zero-points, kept columns, biases, embeddings, norms

A file is safetensors with a digest: one that was cut short or altered is an error, never a wrong model
(test_a_file_that_was_cut_or_altered_is_an_error). Sizes are those on the disk (test_sizes_are_those_of_the_file). In
memory a 4-bit integer takes a byte, as torch has nothing smaller to compute with.

Read next: distill/soft_targets.py. See also: ptq.py.
Try it:  python -m minialign quantize RUN --scheme 4-bit-weights --out SMALL, then  python -m minialign sample SMALL
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minialign.heads import LanguageModel, check_size
from minialign.quant.half import HalfEmbedding, HalfLinear
from minialign.quant.linear import DynamicLinear, QuantizedLinear, StaticLinear, WeightOnlyLinear
from minialign.quant.llm_int8 import LLMInt8Linear
from minialign.quant.mappings import MappingConfig, Quantized
from minialign.quant.nf4 import NF4Config, NF4Linear, NormalFloat
from minialign.quant.tables import QuantizedTable, TableHead
from minialign.runs.devices import default_device
from minialign.runs.errors import UserError
from minialign.runs.files import read_json, write_atomic
from minialign.runs.run_folder import CONFIG, TOKENIZER
from minialign.runs.settings import from_dict, to_dict
from minialign.runs.submodules import replace_modules
from minialign.runs.tensors import read_tensors, tensor_file, tensors_of
from minialign.tokenizer import Tokenizer, load_tokenizer
from minialign.transformer import TransformerConfig

KINDS = {kind.__name__: kind for kind in (WeightOnlyLinear, DynamicLinear, StaticLinear, LLMInt8Linear, QuantizedTable,
                                          TableHead, HalfLinear, HalfEmbedding, NF4Linear)}
QUANTIZED = "quantized.safetensors"  # in a run folder, in the place of the plain weights
WHAT = "quantized-model"  # what its config.json says that it holds


def pack_bits(values: Tensor, bits: int) -> Tensor:
    """(…) int8 of `bits` bits each -> (⌈n bits / 8⌉,) uint8."""
    shifted = (values.flatten().cpu().numpy().astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)  # 0 … 2ᵇ − 1
    return torch.from_numpy(np.packbits((shifted[:, None] >> np.arange(bits - 1, -1, -1)) & 1))


def unpack_bits(packed: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `pack_bits`. Raises ValueError for a length that does not fit the shape."""
    count = int(np.prod(shape))
    if len(packed) != -(-count * bits // 8):
        raise ValueError(f"{len(packed)} bytes for {count} integers of {bits} bits")
    digits = np.unpackbits(packed.numpy())[: count * bits].reshape(count, bits)
    values = digits.astype(np.int16) @ (1 << np.arange(bits - 1, -1, -1)).astype(np.int16)
    return torch.from_numpy((values - 2 ** (bits - 1)).astype(np.int8)).view(shape)


def describe_layers(model: nn.Module) -> dict[str, dict[str, Any]]:
    """What a file must say of each quantized layer, by name."""
    layers, tables = {}, {}
    for name, module in model.named_modules():
        kind = type(module).__name__
        if KINDS.get(kind) is not type(module) or name.removesuffix(".scores") in layers:
            continue  # not ours, or the layer inside a table
        layers[name], inner = {"kind": kind}, getattr(module, "scores", module)
        if isinstance(inner, QuantizedLinear):
            layers[name] |= {"weight": to_dict(inner.weight_config), **inner.settings()}
        if isinstance(module, NF4Linear):
            layers[name]["nf4"] = to_dict(module.config)
        if isinstance(module, QuantizedTable):
            tables[id(module)] = name
        elif isinstance(module, TableHead):
            layers[name]["table"] = tables[id(module.table)]
    return layers


def quantized_file(model: nn.Module, **about: Any) -> bytes:
    """A quantized model as the bytes of a safetensors file; `about` are facts that go with it."""
    # sums are made again
    tensors = {name: t for name, t in tensors_of(model).items() if not name.endswith("weight_sum")}
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear) and module.weight_config.bits < 8:
            tensors[f"{name}.weight"] = pack_bits(module.weight, module.weight_config.bits)
    return tensor_file(tensors, layers=describe_layers(model), **about)


def save_quantized(model: nn.Module, path: Path, **about: Any) -> int:
    """Write a quantized model and return its size on the disk, bytes."""
    write_atomic(path, quantized_file(model, **about))
    return Path(path).stat().st_size


def load_quantized(model: nn.Module, path: Path) -> nn.Module:
    """Turn an unquantized model of the same shape, whose weights do not matter, into the quantized one in a file.

    Returns:
        The same model, in evaluation mode.
    Raises:
        UserError: no such file, cut short, altered, not of a quantized model, or of one with other layers.
    """
    tensors, about = read_tensors(path)
    if not isinstance(about.get("layers"), dict) or not about["layers"]:
        raise UserError("holds no quantized model; make one with `minialign quantize RUN --out FILE`", path)
    present, new, shared = dict(model.named_modules()), {}, {}
    for name, settings in about["layers"].items():
        part = {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}
        kind, place = settings.get("kind") if isinstance(settings, dict) else None, present.get(name)
        vacant = kind == "TableHead" and getattr(model, name, model) is None
        if not vacant and not isinstance(place, nn.Linear | nn.Embedding):
            raise UserError(f"holds another model: it has a layer {name!r}, which the model does not", path)
        try:
            if kind == "TableHead":
                new[name] = TableHead(new[settings["table"]], part.get("bias"))
            elif kind in ("HalfLinear", "HalfEmbedding"):
                stored = shared.setdefault(id(place.weight), part.get("stored"))
                new[name] = HalfLinear(stored, part.get("bias")) if kind == "HalfLinear" else HalfEmbedding(stored)
            elif kind == "NF4Linear":
                new[name] = build_nf4(settings, part, place.weight.shape)
            elif kind == "QuantizedTable":
                scores = {key.removeprefix("scores."): t for key, t in part.items()}
                new[name] = QuantizedTable(build_layer(WeightOnlyLinear, settings, scores, place.weight.shape, name))
            else:
                new[name] = build_layer(KINDS[kind], settings, part, place.weight.shape, name)
        except (KeyError, TypeError, ValueError, AttributeError, UserError) as error:
            raise UserError(f"{name} cannot be read ({str(error)[:80]}); restore the file from a copy, or quantize "
                            f"again", path) from None
    inside = tuple(f"{layer}." for layer in new)
    own, rest = ({name: t for name, t in source.items() if not name.startswith(inside)}
                 for source in (tensors_of(model), tensors))
    odd = sorted(set(own) ^ set(rest)) or [name for name, t in own.items() if t.shape != rest[name].shape]
    if odd:
        raise UserError(f"holds another model: {odd[0]!r} ({len(odd)} such names) is only in one of the two, or has "
                        f"another shape", path)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(rest[name])
    replace_modules(model, new)
    return model.eval()


def build_layer(kind: type, settings: dict[str, Any], part: dict[str, Tensor], shape: tuple[int, ...],
                name: str) -> QuantizedLinear:
    """One linear layer from what the file says and holds of it."""
    config = from_dict(MappingConfig, settings["weight"])
    values = part["weight"] if config.bits == 8 else unpack_bits(part["weight"], config.bits, shape)
    if values.shape != shape or values.dtype != torch.int8:
        raise ValueError(f"its integers have shape {tuple(values.shape)}, the model's layer {tuple(shape)}")
    weight, bias = Quantized(values, part["weight_scale"], part.get("weight_zero"), config), part.get("bias")
    if kind is WeightOnlyLinear:
        return WeightOnlyLinear(weight, bias, name, settings["single_token"])
    activation = from_dict(MappingConfig, settings["activation"])
    if kind is StaticLinear:
        return StaticLinear(weight, bias, name, activation, part["activation_scale"], part.get("activation_zero"))
    layer = kind(weight, bias, name, activation)
    if kind is LLMInt8Linear:
        layer.threshold, layer.place, layer.original = settings["threshold"], part["place"], part["original"]
    return layer


def build_nf4(settings: dict[str, Any], part: dict[str, Tensor], shape: torch.Size) -> NF4Linear:
    """One layer of NormalFloats from what the file says and holds of it."""
    config, count = from_dict(NF4Config, settings["nf4"]), shape.numel()
    blocks = -(-count // config.block)
    wanted = {"packed": (torch.uint8, (count + 1) // 2), "scale": (torch.uint8 if config.double else torch.float32,
                                                                   blocks)}
    for key, (kind, length) in wanted.items():
        if part[key].dtype != kind or part[key].shape != (length,):
            raise ValueError(f"{key} has shape {tuple(part[key].shape)}, the model's layer {tuple(shape)}")
    if config.double and part["scale_scale"].shape != (-(-blocks // config.scale_block),):
        raise ValueError("its scales have too few scales of their own")
    weight = NormalFloat(part["packed"], part["scale"], part.get("scale_scale"), part.get("scale_mean"), shape, config)
    return NF4Linear(weight, part.get("bias"))


def load_quantized_run(folder: Path) -> tuple[LanguageModel, Tokenizer]:
    """The model and tokenizer that `minialign quantize RUN --out` wrote. Raises UserError for files that are missing,
    altered or do not belong together."""
    config = read_json(Path(folder) / CONFIG)
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise UserError("does not say what was quantized; restore it from a copy, or quantize again",
                        Path(folder) / CONFIG)
    tokenizer = load_tokenizer(Path(folder) / TOKENIZER)
    if tokenizer.fingerprint() != config.get("tokenizer"):
        raise UserError("tokenizer.json is not the one that this model was trained with; restore it from a copy, or "
                        "quantize again", folder)
    shape = from_dict(TransformerConfig, config["model"], Path(folder) / CONFIG)
    check_size(shape, read_tensors(Path(folder) / QUANTIZED)[0], Path(folder) / CONFIG)
    model = LanguageModel(shape)
    return load_quantized(model, Path(folder) / QUANTIZED).to(default_device()), tokenizer
