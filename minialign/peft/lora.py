r"""LoRA: the update of a weight matrix is a product of two thin ones.

    h = W₀ x + (α / r) B A x          A: (r, in)   B: (out, r)   r ≪ in, out          Hu et al. 2021 (LoRA), §4.1, Eq. 3

W₀ is frozen, and may be quantized; A starts random, B at 0, so the model begins as it was. Details that matter:
    1. Only one of the two starts at 0: with both 0 nothing would ever move, with neither the model would begin broken
       (test_lora_starts_as_the_base_and_only_b_has_a_gradient).
    2. The scale α/r is applied once, in the forward pass and in the merge alike
       (test_the_merged_model_is_the_unmerged_one); rank-stabilised LoRA uses α/√r (Kalajdzievski 2023, Theorem 3.2).
    3. A is uniform in ±1/√in, which is what the released code's kaiming_uniform(a=√5) gives
       (test_a_is_drawn_with_the_fan_in_of_the_layer).
    4. Merging keeps W₀ aside, so unmerging gives it back to the last bit, and merging twice is an error
       (test_merging_and_unmerging_is_exact_and_cannot_be_done_twice). The sum is formed in fp32
       (test_a_half_precision_base_is_merged_in_fp32).
    5. Dropout acts on the input of A alone (test_dropout_touches_the_update_alone).
    6. It pays below the break-even rank, in · out / (in + out): above it A and B have more numbers than W₀
       (test_a_rank_above_the_break_even_warns_with_both_counts).

Read next: dora.py. Try it:  python -m minialign finetune --method lora --base RUN --data FILE.jsonl
"""

import math
import warnings
from collections import Counter
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minialign.peft.trainable import beside, fingerprint, freeze, linear_names, note
from minialign.runs.errors import UserError
from minialign.runs.settings import check_ranges
from minialign.runs.submodules import matching, replace_modules


@dataclass(frozen=True)
class LoRAConfig:
    """How large the update may be and where."""

    rank: int = 8  # r
    alpha: float = 16.0  # α: the update is scaled by α/r
    targets: tuple[str, ...] = ("query", "value")  # names or patterns of linear layers
    dropout: float = 0.0  # share of A's input dropped while training
    rank_stabilised: bool = False  # α/√r in place of α/r
    seed: int = 0  # of A

    def __post_init__(self):
        check_ranges(self, {"rank": (1, 10**6), "alpha": (1e-6, 10**6), "dropout": (0, 0.99)})
        if not self.targets:
            raise UserError("targets is empty; name the layers to wrap, such as query and value")

    @property
    def scale(self) -> float:
        """What multiplies B A x."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)


def break_even(linear: nn.Linear) -> float:
    """The rank above which A and B have more numbers than the matrix itself."""
    return linear.in_features * linear.out_features / (linear.in_features + linear.out_features)


class LoRALinear(nn.Module):
    """A frozen linear layer with a low-rank update beside it."""

    def __init__(self, base: nn.Linear, config: LoRAConfig, generator: torch.Generator):
        super().__init__()
        self.base, self.scale, self.dropout = base, config.scale, config.dropout
        bound = 1 / math.sqrt(base.in_features)
        start = torch.rand(config.rank, base.in_features, generator=generator) * 2 * bound - bound
        self.A = nn.Parameter(beside(base, start))  # (r, in)
        self.B = nn.Parameter(self.A.new_zeros(base.out_features, config.rank))  # (out, r)
        self.original: Tensor | None = None  # W₀, kept while the update is merged

    @property
    def merged(self) -> bool:
        """Whether the update stands in the weights."""
        return self.original is not None

    @property
    def update(self) -> Tensor:
        """(out, in) scale · B A, in fp32: what is added to W₀."""
        return self.scale * (self.B.float() @ self.A.float())

    def forward(self, x: Tensor) -> Tensor:
        if self.merged:
            return self.base(x)
        low = F.dropout(x, self.dropout, self.training) @ self.A.T  # (..., r)
        return self.base(x) + (low * self.scale) @ self.B.T

    def check(self, merged: bool) -> None:
        """Raise UserError unless the update stands in the weights (or does not), and where these stand for others."""
        if self.merged != merged:
            raise UserError("there is nothing to unmerge; the update stands beside the weights" if merged else
                            "the update is merged already; merging it twice would add it twice")
        if not isinstance(self.base, nn.Linear) or not self.base.weight.is_floating_point():
            raise UserError(f"the layer below is a {type(self.base).__name__}, whose numbers stand for others; merge "
                            f"first and quantize then, and do not unmerge what is quantized")

    @torch.no_grad()
    def merge(self) -> None:
        """W₀ ← W₀ + scale · B A. Raises UserError as `check` does."""
        self.check(merged=False)
        update, self.original = self.update, self.base.weight.detach().clone()
        self.base.weight.copy_((self.original.float() + update).to(self.original.dtype))

    @torch.no_grad()
    def unmerge(self) -> None:
        """Give W₀ back, to the last bit. Raises UserError as `check` does."""
        self.check(merged=True)
        self.base.weight.copy_(self.original)
        self.original = None


def wrap(model: nn.Module, config: LoRAConfig | None = None, kind: type = LoRALinear) -> nn.Module:
    """Put an update beside each target, of another kind where dora.py asks for it; it and the head train. Raises
    UserError where no layer has such a name; a rank above the break-even warns with both counts."""
    config = config or LoRAConfig()
    base = fingerprint(model)
    targets = matching(linear_names(model), config.targets, "linear layer")
    freeze(model)
    generator = torch.Generator().manual_seed(config.seed)
    new = {name: kind(model.get_submodule(name), config, generator) for name in targets}
    replace_modules(model, new)
    for name, layer in new.items():
        size, full = layer.A.numel() + layer.B.numel(), layer.base.in_features * layer.base.out_features
        if size > full:
            warnings.warn(f"{name}: rank {config.rank} is above the break-even {break_even(layer.base):.1f}: the "
                          f"update has {size:,} numbers, the matrix {full:,}", stacklevel=2)
    return note(model, kind.__name__.removesuffix("Linear").lower(), config, base, targets)


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The wrapped layers by name. Raises UserError when there are none."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}
    if not found:
        raise UserError("this model has no LoRA; wrap it first")
    return found


def merge(model: nn.Module) -> nn.Module:
    """Merge every update into its weights, all or none: from here on the model is as fast as the plain one. Raises
    UserError as `check` does, and for a weight that serves elsewhere, too: it would change there."""
    merge_layers(model, list(lora_layers(model).values()))
    return model


def merge_layers(model: nn.Module, layers: list[LoRALinear]) -> None:
    """Merge some of a model's updates, all or none. Raises UserError as `merge` does."""
    users = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    for layer in layers:
        layer.check(merged=False)
        if users[id(layer.base.weight)] > 1:
            raise UserError("a wrapped layer shares its weight with another part of the model (a tied head with the "
                            "embedding), which would change, too; leave the update beside it, or wrap other layers")
    for layer in layers:
        layer.merge()


def unmerge(model: nn.Module) -> nn.Module:
    """Undo `merge`, to the last bit."""
    layers = lora_layers(model).values()
    for layer in layers:
        layer.check(merged=True)
    for layer in layers:
        layer.unmerge()
    return model


def merged_plain(model: nn.Module) -> nn.Module:
    """The model with its updates merged and the wrappers gone, as plain as it was before, all of it free to train; it
    is changed in place. Raises UserError as `merge` does; nothing is merged then."""
    layers = lora_layers(model)
    merge_layers(model, [layer for layer in layers.values() if not layer.merged])
    replace_modules(model, {name: layer.base for name, layer in layers.items()})
    model.tuning = None
    return model.requires_grad_(True)
