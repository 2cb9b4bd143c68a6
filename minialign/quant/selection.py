r"""Which linear layers are quantized, and which stay as they are: an explicit list of patterns (see
runs/submodules.py), and a reason for each layer that stays.

Details that matter:
    1. Embeddings, norms and the head stay in floating point: the first two are no nn.Linear, the head is in KEEP
       (test_embeddings_norms_and_the_head_stay_as_they_are).
    2. A layer whose weight also serves elsewhere (a tied embedding) stays, whatever it is called
       (test_a_layer_with_a_shared_weight_stays).
    3. A subclass of nn.Linear stays: its owner may use its weight directly, as torch's own multi-head attention does
       (test_subclasses_of_linear_stay).
    4. A pattern that fits nothing is an error, not a silent nothing (test_a_pattern_that_fits_nothing_is_an_error).

Read next: ptq.py.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from minialign.runs.errors import UserError
from minialign.runs.submodules import fits, matching

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
    if any(hasattr(module, "converted") for module in model.modules()):
        raise UserError("the model is prepared for quantization-aware training already; call `convert`")
    own = [*(p for p in include if p not in ALL), *(p for p in keep if p not in KEEP)]
    matching(list(linears), own, "linear layer")
    users, seats = defaultdict(set), defaultdict(set)  # names under which a weight serves; those that the layer has
    for name, parameter in model.named_parameters(remove_duplicate=False):
        users[parameter].add(name)
    for name, module in model.named_modules(remove_duplicate=False):
        seats[module].add(f"{name}.weight")
    found = Selection({}, {})
    for name, layer in linears.items():
        others = sorted(users[layer.weight] - seats[layer])
        if not fits(name, include):
            found.kept[name] = "not included"
        elif fits(name, keep):
            found.kept[name] = "in the list of what stays"
        elif type(layer) is not nn.Linear:
            found.kept[name] = f"a {type(layer).__name__}, whose owner may use its weight directly"
        elif others:
            found.kept[name] = f"shares its weight with {others[0]}"
        else:
            found.layers[name] = layer
    if not found.layers:
        names = ", ".join(list(found.kept)[:6]) + (f" … ({len(found.kept)})" if len(found.kept) > 6 else "")
        raise UserError(f"no linear layer is left to quantize; of {names} the first is "
                        f"{next(iter(found.kept.values()))}")
    return found
