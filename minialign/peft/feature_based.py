r"""Feature-based transfer: the body is frozen and read once, and a head learns from what it said.

    features hᵢ = body(xᵢ), computed once;      head: min_W Σᵢ CE(W hᵢ + b, yᵢ)

Source: Devlin et al. 2019 (BERT), §5.3; Houlsby et al. 2019, §1.

The cheapest of all: after one pass over the data, training never touches the body. It works as far as the body already
knows what the task asks for. Details that matter:
    1. The body stays in evaluation mode: with dropout the features would be others each time
       (test_features_are_the_same_every_time).
    2. The body reads each text once, however many steps there are (test_the_body_reads_each_text_once).
    3. A head trained on the features is the one that training through the frozen body gives, and gives the same answers
       on it (test_training_on_features_is_training_through_the_frozen_body,
       test_the_head_on_features_is_the_head_on_the_body).

Read next: bitfit.py. Try it:  python -m minialign finetune --method feature-based --base RUN --data FILE.jsonl
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minialign.batching import ExampleBatch, pad
from minialign.classification import LabelledTexts
from minialign.heads import Classifier, evaluating, first_real, last_real
from minialign.peft.trainable import fingerprint, freeze, heads_of, note
from minialign.runs.devices import device_of
from minialign.runs.errors import UserError


@dataclass(frozen=True)
class FeatureConfig:
    """Nothing to choose."""


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
    base = fingerprint(model)
    if not heads_of(model):
        raise UserError("feature-based transfer trains a head on a body; give a Classifier or a ScalarModel")
    freeze(model)
    model.body = FrozenBody(model.body)
    return note(model, "feature-based", config or FeatureConfig(), base, ("body",))


@torch.no_grad()
def extract(body: nn.Module, rows: Sequence[Sequence[int]], batch: int = 64) -> Tensor:
    """(n, D) what the body says at the place that a Classifier reads, for n rows of ids, `batch` rows at a time.

    Args:
        body: an encoder's or a decoder's stack, wrapped or not.
    """
    found = []
    with evaluating(body):
        for start in range(0, len(rows), batch):
            tokens, mask = pad(rows[start : start + batch], device=device_of(body))
            place = first_real(mask) if body.config.kind == "encoder" else last_real(mask)
            found.append(body(tokens, mask)[torch.arange(len(tokens), device=tokens.device), place])
    return torch.cat(found)


@dataclass
class FeatureBatch(ExampleBatch):
    """What the body said of some texts, with a class each. B texts."""

    features: Tensor  # (B, D)
    classes: Tensor  # (B,)
    rows: list[int]  # (B,) which examples they are

    @property
    def size(self) -> int:
        """Vectors read."""
        return len(self.classes)


class CachedFeatures(LabelledTexts):
    """Texts with labels as training data for a head alone: the classifier's body reads them here, once, and the batches
    are those of the texts."""

    def __init__(self, model: Classifier, texts: LabelledTexts):
        self.features = extract(model.body, texts.rows)  # (n, D)
        self.classes, self.order = texts.classes.to(self.features.device), texts.order  # (n,)

    @property
    def bytes(self) -> int:
        """What is kept of all texts."""
        return self.features.numel() * self.features.element_size()

    def batch(self, names: list[int], step: int = 0) -> FeatureBatch:
        """The named texts, the same at every step."""
        return FeatureBatch(self.features[names], self.classes[names], names)


def feature_loss(model: Classifier, batch: FeatureBatch) -> Tensor:
    """Sum of −log p(label | features) over the batch, nats: `class_loss` without the body."""
    return F.cross_entropy(model.head(batch.features), batch.classes, reduction="sum")


@torch.no_grad()
def examine_features(model: Classifier, data: CachedFeatures) -> dict[str, float]:
    """Mean loss in nats, and accuracy, on all of some features: `examine_classes` without the body."""
    logits = model.head(data.features)
    right = (logits.argmax(dim=1) == data.classes).float().mean()
    return {"validation": float(F.cross_entropy(logits, data.classes)), "accuracy": float(right)}
