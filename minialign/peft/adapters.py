r"""Adapters: small bottlenecks after each sublayer, which start as the identity and are all that trains.

    adapter(h) = h + W_up gelu(W_down h + b_down) + b_up        D → m → D          Houlsby et al. 2019, §2 and Fig. 2

After the projection that ends a sublayer and before the residual is added: x ← x + adapter(sublayer(norm(x))). Details
that matter:
    1. Near the identity at first, so that the model begins as it was: W_up and W_down are normal with a tiny std, cut
       at two of it (test_a_fresh_adapter_changes_next_to_nothing); a large start ruins what was learned
       (claims/adapter_identity.py).
    2. After both sublayers (Houlsby), or after the feed-forward alone (Pfeiffer et al. 2021, §3.1) with `placement`.
    3. The norms and the head train too (Houlsby et al. 2019, §2.1).
DEVIATION: the paper's BERT drops out before the adapter; our block drops out after the whole sublayer, so behind it. At
dropout 0 it is the same.

Read next: lora.py. Try it:  python -m minialign finetune --method adapters --base RUN --data FILE.jsonl
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minialign.peft.trainable import fingerprint, float_type, freeze, linear_names, note, train_also
from minialign.runs.devices import device_of
from minialign.runs.settings import check_choices, check_ranges
from minialign.runs.submodules import matching, replace_modules

PLACEMENTS = {"houlsby": ("*attention.output", "*feed_forward.output"), "pfeiffer": ("*feed_forward.output",)}


@dataclass(frozen=True)
class AdapterConfig:
    """Where the adapters stand and how wide they are."""

    bottleneck: int = 16  # m
    placement: str = "houlsby"  # houlsby | pfeiffer
    targets: tuple[str, ...] = ()  # in place of it: names or patterns of the linear layers that end a sublayer
    initial_std: float = 1e-2  # std of both matrices at the start, before the cut at two of it; 0: W_up alone is 0
    norms: bool = True  # whether the norms train too
    seed: int = 0  # of the start

    def __post_init__(self):
        check_ranges(self, {"bottleneck": (1, 10**6), "initial_std": (0, 10)})
        check_choices(self, {"placement": PLACEMENTS})


class Adapted(nn.Module):
    """A linear layer with an adapter behind it."""

    def __init__(self, base: nn.Linear, config: AdapterConfig, generator: torch.Generator):
        super().__init__()
        self.base = base
        width = base.out_features
        self.down, self.up = nn.Linear(width, config.bottleneck), nn.Linear(config.bottleneck, width)
        for layer, std in ((self.down, config.initial_std or 1e-2), (self.up, config.initial_std)):
            layer.to(device_of(base), float_type(base))
            nn.init.zeros_(layer.bias)
            start = torch.zeros(layer.weight.shape)
            if std:
                nn.init.trunc_normal_(start, 0.0, std, -2 * std, 2 * std, generator)
            layer.weight.data.copy_(start)

    def forward(self, x: Tensor) -> Tensor:
        h = self.base(x)  # (..., D)
        return h + self.up(F.gelu(self.down(h)))


def norm_names(model: nn.Module) -> list[str]:
    """Names of the norms of whatever kind: modules with parameters whose name ends in "norm"."""
    return [name for name, module in model.named_modules() if name.rpartition(".")[2].endswith("norm")
            and list(module.parameters(recurse=False))]


def wrap(model: nn.Module, config: AdapterConfig | None = None) -> nn.Module:
    """Put an adapter behind each target; adapters, norms and head train.

    Raises:
        UserError: no layer has such a name.
    """
    config = config or AdapterConfig()
    base = fingerprint(model)
    targets = matching(linear_names(model), config.targets or PLACEMENTS[config.placement], "linear layer")
    freeze(model)
    train_also(model, norm_names(model) if config.norms else [])
    generator = torch.Generator().manual_seed(config.seed)
    replace_modules(model, {name: Adapted(model.get_submodule(name), config, generator) for name in targets})
    return note(model, "adapters", config, base, targets)
