r"""Adapters: small bottlenecks after each sublayer, which start as the identity and are all that trains.

    adapter(h) = h + W_up gelu(W_down h + b_down) + b_up        D → m → D          Houlsby et al. 2019, §2 and Fig. 2

After the projection that ends a sublayer and before the residual is added: x ← x + adapter(sublayer(norm(x))). Details
that matter:
    1. Near the identity at first, so that the model begins as it was: W_up and W_down are drawn with a tiny deviation,
       from a normal distribution cut at two of them (test_a_fresh_adapter_changes_next_to_nothing); a large random
       start ruins what was learned (claims/adapter_identity.py).
    2. After both sublayers (Houlsby), or after the feed-forward alone (Pfeiffer et al. 2021, §3.1) with `placement`.
    3. The norms and the head train too (Houlsby et al. 2019, §2.1).
DEVIATION: the paper's BERT drops out before the adapter; our block drops out after the whole sublayer, so behind it. At
dropout 0 it is the same.

Read next: lora.py. Try it:  python -m minialign finetune --method adapters --base RUN --data FILE.jsonl
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minialign.peft.trainable import fingerprint, freeze, heads_of, linear_names, matching, note, refuse_wrapped, replace, train_also
from minialign.runs.errors import UserError
from minialign.runs.settings import check_ranges

PLACEMENTS = {"houlsby": ("*attention.output", "*feed_forward.output"), "pfeiffer": ("*feed_forward.output",)}


@dataclass(frozen=True)
class AdapterConfig:
    """Where the adapters stand and how wide they are."""

    bottleneck: int = 16  # m
    placement: str = "houlsby"  # houlsby | pfeiffer
    targets: tuple[str, ...] = ()  # in place of it: names or patterns of the linear layers that end a sublayer
    initial_std: float = 1e-2  # deviation of both matrices at the start, before the cut at two of it
    norms: bool = True  # whether the norms train too
    seed: int = 0  # of the start

    def __post_init__(self):
        check_ranges(self, {"bottleneck": (1, 10**6), "initial_std": (0, 10)})
        if self.placement not in PLACEMENTS:
            raise UserError(f"placement is {self.placement!r}; choose one of {', '.join(PLACEMENTS)}")


class Adapted(nn.Module):
    """A linear layer with an adapter behind it."""

    def __init__(self, base: nn.Linear, config: AdapterConfig, generator: torch.Generator):
        super().__init__()
        self.base = base
        width = base.out_features
        self.down, self.up = nn.Linear(width, config.bottleneck), nn.Linear(config.bottleneck, width)
        for layer in (self.down, self.up):
            layer.to(base.weight.dtype)
            nn.init.zeros_(layer.bias)
            start = torch.zeros(layer.weight.shape)
            if config.initial_std:
                nn.init.trunc_normal_(start, 0.0, config.initial_std, -2 * config.initial_std, 2 * config.initial_std,
                                      generator)
            layer.weight.data.copy_(start)

    def forward(self, x: Tensor) -> Tensor:
        h = self.base(x)  # (..., D)
        return h + self.up(F.gelu(self.down(h)))


def norm_names(model: nn.Module) -> list[str]:
    """Names of the norms, whatever kind they are: the modules whose name ends in "norm"."""
    return [name for name, module in model.named_modules() if name.rpartition(".")[2].endswith("norm")
            and list(module.parameters(recurse=False))]


def wrap(model: nn.Module, config: AdapterConfig | None = None) -> nn.Module:
    """Put an adapter behind each target; adapters, norms and head train.

    Raises:
        UserError: no layer has such a name.
    """
    config = config or AdapterConfig()
    refuse_wrapped(model)
    targets = matching(linear_names(model), config.targets or PLACEMENTS[config.placement], "linear layer")
    base = fingerprint(model)
    freeze(model)
    generator = torch.Generator().manual_seed(config.seed)
    for name in targets:
        replace(model, name, lambda linear: Adapted(linear, config, generator))
    train_also(model, heads_of(model) + (norm_names(model) if config.norms else []))
    return note(model, "adapters", config, base, targets)
