r"""Transfer: a pretrained model, a method, some data of one's own, and what came of it, in numbers that can be compared.

    demonstrations (prompt, completion)     the language model's own loss, on the completion alone
    texts with labels (text, label)         a head on the body; loss = −log p(label | text)          Devlin et al. 2019 (BERT), §4.1

Every method gets the same data, the same number of steps and its own learning rate: BitFit and prompt tuning have little to move and need a large
one. What is reported: held-out loss and accuracy, how much trained, bytes of the file, bytes of AdamW's state (two numbers for each that trains).

Read next: lora.py. Try it:  python -m minialign finetune --method all --base RUN --data FILE.jsonl
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minialign.batching import Order, pad
from minialign.checkpoints import CHECKPOINT, RunFolder
from minialign.files import read_json, write_json
from minialign.heads import Classifier
from minialign.peft.trainable import TENSORS, counts, save, trainable_parameters
from minialign.training import Data, TrainingConfig, train

RESULT = "result.json"
RATES = {"full": 1e-3, "feature-based": 1e-2, "bitfit": 1e-2, "adapters": 3e-3, "lora": 3e-3, "prompt-tuning": 3e-2}  # where a toy model does well


class TunedRun(RunFolder):
    """A run folder that keeps what was tuned in place of the whole model."""

    @property
    def finished(self) -> bool:
        """Whether the tuning ended and left its files."""
        return (self.path / RESULT).exists()

    def finish(self, model: nn.Module, **facts: Any) -> None:
        """Write what trains, then the facts, and let go of the checkpoint."""
        save(model, self.path)
        write_json(self.path / RESULT, facts)
        (self.path / CHECKPOINT).unlink(missing_ok=True)

    def facts(self) -> dict[str, Any]:
        """What `finish` was told."""
        return read_json(self.path / RESULT)


@dataclass
class LabelBatch:
    """Texts with a class each. B texts, T tokens."""

    tokens: Tensor  # (B, T)
    mask: Tensor  # (B, T) true at real tokens
    classes: Tensor  # (B,)
    rows: list[int]  # (B,) which examples they are

    @property
    def count(self) -> int:
        """What a sum of losses is divided by."""
        return len(self.classes)

    @property
    def size(self) -> int:
        """Tokens read."""
        return self.tokens.numel()


class LabelledTexts:
    """Texts with labels as training data.

    Args:
        rows: lists of ids; classes: the class of each; batch: texts a step; seed: of their order.
    """

    def __init__(self, rows: Sequence[Sequence[int]], classes: Sequence[int], batch: int, seed: int):
        self.rows, self.classes, self.order = rows, torch.tensor(classes), Order([len(row) for row in rows], batch, seed)

    def microbatches(self, step: int, parts: int) -> list[LabelBatch]:
        """The step's texts, in `parts` pieces."""
        chosen = self.order(step)
        return [self.batch(chosen[i::parts]) for i in range(min(parts, len(chosen)))]

    def batch(self, names: list[int]) -> LabelBatch:
        """The named texts as one batch."""
        tokens, mask = pad([self.rows[i] for i in names])
        return LabelBatch(tokens, mask, self.classes[names], names)


def label_loss_of(model: Classifier, batch: LabelBatch) -> Tensor:
    """Sum of −log p(label | text) over the batch, nats."""
    return F.cross_entropy(model(batch.tokens, batch.mask), batch.classes, reduction="sum")


@torch.no_grad()
def examine(model: Classifier, data: LabelledTexts) -> dict[str, float]:
    """Mean loss in nats, and accuracy, on all of some texts."""
    right = loss = 0.0
    for start in range(0, len(data.rows), 64):
        batch = data.batch(list(range(start, min(start + 64, len(data.rows)))))
        logits = model(batch.tokens, batch.mask)
        loss += float(F.cross_entropy(logits, batch.classes, reduction="sum"))
        right += float((logits.argmax(dim=1) == batch.classes).sum())
    return {"validation": loss / len(data.rows), "accuracy": right / len(data.rows)}


def tune(
    model: nn.Module,
    data: Data,
    loss: Callable[[nn.Module, Any], Tensor],
    validate: Callable[[nn.Module], dict[str, float]],
    config: TrainingConfig,
    run: TunedRun,
) -> dict[str, Any]:
    """Train a wrapped model in its run folder and say what it cost.

    Returns:
        the last validation, "trained" and "parameters" (numbers), "optimizer_bytes", "file_bytes", "method".
    """
    some, all_ = counts(model)
    state = sum(2 * p.numel() * p.element_size() for p in trainable_parameters(model))
    facts = {"method": model.tuning.method, "trained": some, "parameters": all_, "optimizer_bytes": state}
    train(model, data, loss, config, run, validate, label=model.tuning.method, complete=lambda model: facts)
    return run.facts() | {"file_bytes": bytes_of(run.path)}


def bytes_of(folder: Path) -> int:
    """Bytes of the tensors that were tuned, on the disk."""
    return (Path(folder) / TENSORS).stat().st_size
