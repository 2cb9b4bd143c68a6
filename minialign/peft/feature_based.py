r"""Feature-based transfer: the body is frozen and read once, and a head learns from what it said.

    features hᵢ = body(xᵢ), computed once;      head: min_W Σᵢ CE(W hᵢ + b, yᵢ)          Devlin et al. 2019 (BERT), §5.3; Houlsby et al. 2019, §1

The cheapest of all: after one pass over the data, training never touches the body. It works as far as the body already knows what the task
asks for. Details that matter:
    1. The body stays in evaluation mode: with dropout the features would be others each time (test_features_are_the_same_every_time).
    2. The head that was trained on the features, put on the body, gives the same answers (test_the_head_on_features_is_the_head_on_the_body).

Read next: bitfit.py. Try it:  python -m minialign finetune --method feature-based --base RUN --data FILE.jsonl
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minialign.batching import pad
from minialign.errors import UserError
from minialign.heads import Classifier, evaluating, first_real, last_real
from minialign.peft.trainable import fingerprint, freeze, heads_of, note, refuse_wrapped, train_also
from minialign.settings import check_ranges


@dataclass(frozen=True)
class FeatureConfig:
    """How the head is trained on the features."""

    steps: int = 300  # full-batch steps of AdamW
    learning_rate: float = 1e-2  # of the head
    weight_decay: float = 1e-2  # on the head's matrix

    def __post_init__(self):
        check_ranges(self, {"steps": (1, 10**6), "learning_rate": (0, 1), "weight_decay": (0, 10)})


class FrozenBody(nn.Module):
    """A body that stays in evaluation mode whatever its owner is set to, and computes no gradient."""

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = base.eval()
        self.config = getattr(base, "config", None)

    def forward(self, *arguments, **keywords):
        with evaluating(self.base), torch.no_grad():
            return self.base(*arguments, **keywords)


def wrap(model: nn.Module, config: FeatureConfig | None = None) -> nn.Module:
    """Freeze the body, and let the head train.

    Raises:
        UserError: a model without a head of its own.
    """
    refuse_wrapped(model)
    if not heads_of(model) or not hasattr(model, "body"):
        raise UserError("feature-based transfer trains a head on a body; give a Classifier or a ScalarModel")
    base = fingerprint(model)
    freeze(model)
    model.body = FrozenBody(model.body)
    train_also(model, heads_of(model))
    return note(model, "feature-based", config or FeatureConfig(), base, ("body",))


@torch.no_grad()
def extract(body: nn.Module, rows: Sequence[Sequence[int]], batch: int = 64) -> Tensor:
    """(n, D) what the body says at the place that a Classifier reads, for n rows of ids: computed once, without gradient.

    Args:
        body: an encoder's or a decoder's stack, wrapped or not.
        rows: lists of ids; batch: rows at a time.
    """
    found = []
    with evaluating(body):
        for start in range(0, len(rows), batch):
            tokens, mask = pad(rows[start : start + batch])
            place = first_real(mask) if body.config.kind == "encoder" else last_real(mask)
            found.append(body(tokens, mask)[torch.arange(len(tokens)), place])
    return torch.cat(found)


def fit_head(model: Classifier, features: Tensor, labels: Tensor, config: FeatureConfig) -> list[float]:
    """Train a classifier's head on cached features (n, D) and labels (n); returns the loss of each step, nats."""
    optimizer = torch.optim.AdamW(model.head.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    losses = []
    for _ in range(config.steps):
        loss = F.cross_entropy(model.head(features), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
