r"""Texts with a class each: as batches, their loss, and how well a classifier does on them.

    L = −log p(class | text)                                                         Devlin et al. 2019 (BERT), §4.1

Read next: world/wordings.py. See also: heads.py (the classifier).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minialign.batching import Batches, ExampleBatch, pad
from minialign.heads import Classifier
from minialign.runs.devices import moved


@dataclass
class LabelBatch(ExampleBatch):
    """Texts with a class each. B texts, T tokens."""

    tokens: Tensor  # (B, T)
    mask: Tensor  # (B, T) true at real tokens
    classes: Tensor  # (B,)
    rows: list[int]  # (B,)


class LabelledTexts(Batches):
    """Texts with labels as training data.

    Args:
        rows: lists of ids; classes: the class of each; batch: texts a step; seed: of their order.
    """

    def __init__(self, rows: Sequence[Sequence[int]], classes: Sequence[int], batch: int, seed: int):
        super().__init__([len(row) for row in rows], batch, seed)
        self.rows, self.classes = rows, torch.tensor(classes)

    def batch(self, names: list[int], step: int = 0) -> LabelBatch:
        """The named texts, the same at every step."""
        tokens, mask = pad([self.rows[i] for i in names])
        return LabelBatch(tokens, mask, self.classes[names], names)


def class_loss(model: Classifier, batch: LabelBatch) -> Tensor:
    """Sum of −log p(label | text) over the batch, nats."""
    return F.cross_entropy(model(batch.tokens, batch.mask), batch.classes, reduction="sum")


@torch.no_grad()
def examine_classes(model: Classifier, data: LabelledTexts) -> dict[str, float]:
    """Mean loss in nats, and accuracy, on all of some texts."""
    right = loss = 0.0
    for start in range(0, len(data.rows), 64):
        batch = moved(data.batch(list(range(start, min(start + 64, len(data.rows))))), model)
        logits = model(batch.tokens, batch.mask)
        loss += float(F.cross_entropy(logits, batch.classes, reduction="sum"))
        right += float((logits.argmax(dim=1) == batch.classes).sum())
    return {"validation": loss / len(data.rows), "accuracy": right / len(data.rows)}
