r"""The page's weights: int8 with one absmax scale a row, deflated; and back, so that Python computes with the same.

    q = clamp(round(x / s), −127, 127)        s = max|x| / 127 of the row, as a 16-bit float          x̂ = s q

A policy differs little from the model that its training began with, so of its codes only the difference is stored from
those that the earlier weights would have: three language models and a reward model take the bytes of two and a half.
Vectors (biases, norms) are 16-bit floats. The same is done in weights.js.

Read next: material.py (what else is on the page).
"""

import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minialign.heads import LanguageModel, ScalarModel, build_body
from minialign.quant.mappings import MappingConfig, to_codes
from minialign.runs.settings import from_dict, to_dict
from minialign.transformer import TransformerConfig

ABSMAX = MappingConfig("absmax", 8, "row")
SMALLEST = 2.0**-14  # of the scales: what a 16-bit float holds with all its digits
BEFORE = {"sft": "pretrained", "rlhf": "sft", "reward": "sft"}  # model -> the one that its training began with


def row_scales(x: Tensor) -> Tensor:
    """(N, 1) absmax scales of the rows of x (N, K), rounded to 16-bit floats."""
    scale = x.detach().abs().amax(dim=1, keepdim=True) / ABSMAX.codes[1]
    return scale.clamp(min=SMALLEST).half().float()


def expected(codes: np.ndarray, scale: np.ndarray, new_scale: np.ndarray) -> np.ndarray:
    """(N, K) the codes that earlier weights, (N, K) codes with scales (N, 1), would have with new scales."""
    return np.floor(codes * scale.astype(np.float64) / new_scale.astype(np.float64) + 0.5)


def pack(models: dict[str, nn.Module]) -> tuple[bytes, dict[str, Any]]:
    """The deflated bytes of decoders, and what is in them: model -> how to build it and its tensors in their order.

    Args:
        models: name -> LanguageModel or ScalarModel, those of BEFORE behind what they are stored as a difference to.
    """
    stored, halves, layout, known = [], [], {}, {}
    for model_name, model in models.items():
        start = BEFORE.get(model_name) if BEFORE.get(model_name) in models else None
        tensors = []
        for name, x in model.state_dict().items():
            if x.dim() == 1:
                tensors.append([name, 0, len(x)])
                halves.append(x.half().numpy())
                continue
            scale = row_scales(x)
            codes, scale = to_codes(x.float(), scale, None, ABSMAX).numpy().astype(np.float64), scale.numpy()
            before = known.get((start, name))
            stored.append(codes if before is None else codes - expected(*before, scale))
            halves.append(scale.astype("<f2").ravel())
            known[model_name, name] = codes, scale
            tensors.append([name, *x.shape])
        read = {"read": model.read} if isinstance(model, ScalarModel) else {}
        layout[model_name] = {"config": to_dict(model.config), "from": start, "tensors": tensors} | read
    differences = np.concatenate([part.ravel() for part in stored]).astype(np.int64).astype(np.int8)  # modulo 256
    vectors = np.concatenate([part.ravel() for part in halves]).astype("<f2")
    deflate = zlib.compressobj(9, zlib.DEFLATED, 15, 9, zlib.Z_FILTERED)
    return deflate.compress(differences.tobytes() + vectors.tobytes()) + deflate.flush(), layout


def unpack(packed: bytes, layout: dict[str, Any]) -> dict[str, nn.Module]:
    """The inverse of `pack`: models whose weights are what the page computes with."""
    data, known, models = zlib.decompress(packed), {}, {}
    sizes = [rows * columns for part in layout.values() for _, rows, columns in part["tensors"]]
    stored, at = np.frombuffer(data[: sum(sizes)], dtype=np.int8), 0
    halves, number = np.frombuffer(data[sum(sizes) :], dtype="<f2"), 0
    for model_name, part in layout.items():
        tensors = {}
        for name, rows, columns in part["tensors"]:
            if not rows:
                tensors[name] = torch.tensor(halves[number : number + columns].astype(np.float32))
                number += columns
                continue
            codes = stored[at : at + rows * columns].reshape(rows, columns).astype(np.float64)
            scale = halves[number : number + rows].astype(np.float32)[:, None]
            at, number = at + rows * columns, number + rows
            if (before := known.get((part["from"], name))) is not None:
                codes = (codes + expected(*before, scale)).astype(np.int64).astype(np.int8).astype(np.float64)
            known[model_name, name] = codes, scale
            tensors[name] = torch.tensor((codes * scale).astype(np.float32))
        models[model_name] = build(part, tensors)
    return models


def build(part: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    """A model of a layout with its tensors."""
    config = from_dict(TransformerConfig, part["config"], "layout")
    model = ScalarModel(build_body(config), read=part["read"]) if "read" in part else LanguageModel(config)
    model.load_state_dict(tensors)
    return model.eval()
