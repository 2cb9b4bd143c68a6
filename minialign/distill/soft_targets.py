r"""Soft targets: the student learns the teacher's probabilities for all words, not only which word came.

    L = a T² KL(p_T teacher ‖ p_T student) + (1 − a) CE(labels)                     Hinton et al. 2015, §2

What the teacher finds second and third likely says how it thinks; a label says one word. Details that matter:
    1. The teacher is in evaluation mode and computes no gradient (test_the_teacher_is_quiet).
    2. T² multiplies the soft part only (losses.py, test_the_parts_of_the_loss_are_weighted_as_said).
    3. Both read the same batch; logits are compared where there is a label, and nowhere else.

Read next: distilgpt2.py, the same for a decoder with a start from the teacher's layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minialign.batching import IGNORE
from minialign.checkpoints import RunFolder
from minialign.distill.losses import hidden_cosine_loss, soft_target_loss
from minialign.distill.student import recorded
from minialign.errors import UserError
from minialign.heads import LanguageModel
from minialign.logprobs import label_loss
from minialign.pretrain.causal_lm import mean_loss, perplexity
from minialign.settings import check_ranges
from minialign.training import Data, TrainingConfig, train


@dataclass(frozen=True)
class SoftTargetConfig:
    """What the student copies, and how much of each."""

    temperature: float = 2.0  # T of both softmaxes
    soft: float = 1.0  # weight of the soft targets
    hard: float = 0.0  # weight of the labels of the text
    cosine: float = 0.0  # weight of the angle between the last hidden vectors, for students as wide as their teacher

    def __post_init__(self):
        check_ranges(self, {"temperature": (1e-3, 1e3), "soft": (0, 1e3), "hard": (0, 1e3), "cosine": (0, 1e3)})
        if not self.soft + self.hard + self.cosine > 0:
            raise UserError("all weights are 0, so there is nothing to learn; give soft, hard or cosine one above 0")


class Distillation:
    """The loss of a student beside its teacher, for the training loop.

    Args:
        teacher: a decoder; put in evaluation mode, never changed.
        config: what is copied.
    """

    def __init__(self, teacher: LanguageModel, config: SoftTargetConfig):
        self.teacher, self.config = teacher.eval().requires_grad_(False), config

    def parts(self, student: LanguageModel, batch: Any) -> dict[str, Tensor]:
        """Each part of the loss, unweighted, mean over the batch's labels, nats (the cosine: without unit)."""
        taught = batch.labels != IGNORE  # (B, T)
        labels = batch.labels[taught]  # (M,)
        every = torch.ones(len(labels), dtype=torch.bool)
        with torch.no_grad(), recorded(self.teacher.body) as theirs:
            teacher_logits = self.teacher.logits(self.teacher.body(batch.tokens)[taught])  # (M, V)
        with recorded(student.body) as ours:
            logits = student.logits(student.body(batch.tokens)[taught])
        found = {}
        if self.config.soft:
            found["soft"] = soft_target_loss(logits, teacher_logits, every, self.config.temperature)
        if self.config.hard:
            found["hard"] = label_loss(logits, labels) / len(labels)
        if self.config.cosine:
            found["cosine"] = hidden_cosine_loss(ours[-1][taught], theirs[-1][taught], every)
        return found

    def __call__(self, student: LanguageModel, batch: Any) -> Tensor:
        """The weighted sum of the parts, times the labels of the batch, as the training loop wants it."""
        parts = self.parts(student, batch)
        return sum(getattr(self.config, name) * value for name, value in parts.items()) * batch.count


def distil(
    student: LanguageModel, teacher: LanguageModel, data: Data, held_out: list, config: SoftTargetConfig, training: TrainingConfig, run: RunFolder
) -> dict[str, float]:
    """Teach a student by its teacher's probabilities.

    Args:
        student: trained in place and saved in the run folder; teacher: a decoder that reads the same tokens.
        data: training batches of `pretrain/causal_lm.py`; held_out: some batches for validation.
        config: what is copied; training: how; run: where.
    Returns:
        {"validation": the student's own next-token loss, nats a token, "perplexity", "steps"}.
    """

    def validate(model: LanguageModel) -> dict[str, float]:
        loss = mean_loss(model, held_out)
        return {"validation": loss, "perplexity": perplexity(loss)}

    return train(student, data, Distillation(teacher, config), training, run, validate, label="distillation")
