r"""SmoothQuant: outliers of the inputs are moved into the weights, where there is room for them, before anything is
rounded.

    X W = (X diag(s)⁻¹) (diag(s) W),     s_j = max |X_j|^α / max |W_j|^(1 − α)         Xiao et al. 2023, §4, Eq. 3 and 4

Each input feature is divided by s_j and its column of the weights multiplied by it, so the product is what it was. α
says how much of the difficulty moves: at 0 the weights become as even as they can, at 1 the inputs, and in between both
share it. The division costs nothing, since it goes into the norm that stands before the layers. LLM.int8() leaves
outliers where they are and multiplies them in 16 bits; here everything is integers, and fast. Details that matter:
    1. In floating point nothing changes (test_smoothing_changes_nothing_but_the_ranges).
    2. One s serves all layers that read the same norm: its maximum is taken over their weights together
       (test_layers_of_one_norm_share_their_scales).
    3. A feature that is always 0 has s = 1: nothing is divided by 0 (test_a_feature_that_is_always_0).
    4. Layers that read no norm (attention output, second feed-forward layer) stay as they are, as in the paper.
    5. A short convolution between norm and layer changes nothing: it mixes positions, each feature by itself.

Read next: cache.py. See also: llm_int8.py. Try it:  python -m minialign quantize RUN --scheme smoothquant
--calibration FILE
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from minialign.quant.calibration import run_watched
from minialign.runs.errors import UserError

READERS = {"attention_norm": ("attention.query", "attention.key", "attention.value"),
           "feed_forward_norm": ("feed_forward.inner", "feed_forward.gate")}  # of a block's norms


def readers(model: nn.Module) -> dict[str, list[str]]:
    """Name of each norm of a block -> the linear layers that read it. Raises UserError where there is none, or where
    one of a block's is no plain one: it would go on reading what the norm gave before."""
    modules, found = dict(model.named_modules()), {}
    for name in modules:
        block, _, norm = name.rpartition(".")
        layers = [f"{block}.{layer}" for layer in READERS.get(norm, ()) if f"{block}.{layer}" in modules]
        for layer in layers:
            if type(modules[layer]) is not nn.Linear:
                raise UserError(f"{layer} is a {type(modules[layer]).__name__} and cannot be smoothed; smooth the "
                                f"plain model, with its updates merged")
        if layers:
            found[name] = layers
    if not found:
        raise UserError("the model has no blocks with a norm before their layers; there is nowhere to move outliers to")
    return found


def largest_inputs(model: nn.Module, layers: dict[str, nn.Linear], batches: Iterable[Any]) -> dict[str, Tensor]:
    """Layer -> (K,) max |X_j| of each feature that it reads, over the calibration set."""
    found: dict[str, Tensor] = {}

    def see(name: str, x: Tensor, _: Tensor) -> None:
        largest = x.detach().float().flatten(0, -2).abs().amax(dim=0)
        found[name] = torch.maximum(found[name], largest) if name in found else largest

    run_watched(model, layers, batches, see)
    for name in layers:
        if name not in found or not bool(torch.isfinite(found[name]).all()):
            what = "was reached by no batch" if name not in found else "reads NaN or infinite values"
            raise UserError(f"{name} {what} of the calibration set; give batches that use the whole model")
    return found


def check_norms_come_first(model: nn.Module, groups: dict[str, list[str]], batches: list[Any]) -> None:
    """Raise UserError for post-norm blocks, such as BERT's: there the norm of that name stands behind the layers, and
    what it gives goes on in the stream, too, so that it cannot be divided; and for a norm that is passed by."""
    called: list[str] = []
    watched = [*groups, *(names[0] for names in groups.values())]
    run_watched(model, {name: model.get_submodule(name) for name in watched}, batches[:1],
                lambda name, x, y: called.append(name))
    for norm, (layer, *_) in groups.items():
        if layer in called and norm not in called[: called.index(layer)]:
            raise UserError(f"{norm} does not come before {layer} (a post-norm block, such as BERT's): what it gives "
                            f"goes into the stream, too, and cannot be divided; choose a scheme without smoothing")


def smoothing_scales(largest: Tensor, weights: list[Tensor], alpha: float) -> Tensor:
    """(K,) s of Eq. 4, 1 where a feature or its weights are 0.

    Args:
        largest: (K,) max |X_j|; weights: (N, K) of each layer that reads them; alpha: α.
    """
    columns = torch.stack([weight.detach().float().abs().amax(dim=0) for weight in weights]).amax(dim=0)
    s = largest**alpha / columns ** (1 - alpha)
    return torch.where((largest > 0) & (columns > 0), s, torch.ones_like(s)).clamp(1e-5, 1e5)


@torch.no_grad()
def smooth(model: nn.Module, batches: Iterable[Any], alpha: float = 0.5) -> dict[str, Tensor]:
    """Move outliers of what norms give into the weights that read it; the model computes the same as before.

    Returns:
        name of each norm -> (K,) what it was divided by.
    """
    groups, batches = readers(model), list(batches)
    check_norms_come_first(model, groups, batches)
    largest = largest_inputs(model, {names[0]: model.get_submodule(names[0]) for names in groups.values()}, batches)
    found = {}
    for norm_name, names in groups.items():
        norm, layers = model.get_submodule(norm_name), [model.get_submodule(name) for name in names]
        found[norm_name] = s = smoothing_scales(largest[names[0]], [layer.weight for layer in layers], alpha)
        for tensor in (norm.weight, getattr(norm, "bias", None)):
            if tensor is not None:
                tensor.div_(s.to(tensor.dtype))
        for layer in layers:
            layer.weight.mul_(s.to(layer.weight.dtype))
    return found


@contextmanager
def smoothed(model: nn.Module, batches: Iterable[Any], alpha: float) -> Iterator[None]:
    """Inside, and afterwards, the model is smoothed; where something fails it is as it was. With α = 0 nothing is
    done."""
    kept = {name: p.detach().clone() for name, p in model.named_parameters()} if alpha else {}
    try:
        if alpha:
            smooth(model, batches, alpha)
        yield
    except BaseException:
        with torch.no_grad():
            for name, value in kept.items():
                model.get_parameter(name).copy_(value)
        raise
