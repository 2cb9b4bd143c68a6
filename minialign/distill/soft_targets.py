r"""Soft targets: the student learns the teacher's probabilities for all words, not only which word came.

    L = a T² KL(softmax(z_t/T) ‖ softmax(z_s/T)) + (1 − a) CE(labels)                Hinton et al. 2015, §2

A label names one word. The teacher's second and third choice say more: which other words would have done, and how
well. Details that matter:
    1. T² multiplies the soft part only (test_the_parts_of_the_loss_are_weighted_as_said). It keeps the gradient's
       size, which falls as 1/T² without it (test_the_gradient_of_soft_targets_keeps_its_size).
    2. Means run over real tokens only; padding has no influence (test_padding_has_no_influence).
    3. Both models read the same batch. A decoder's logits are compared where there is a label; an encoder's at every
       real token, as in DistilBERT's released script (test_an_encoder_is_compared_at_every_real_token).
    4. The teacher computes once a batch, in inference mode, and only what has a weight
       (test_a_teacher_whose_opinion_has_no_weight_is_not_asked).
    5. Training computes the same loss block by block: fast_soft_targets.py.

Read next: fast_soft_targets.py. See also: distilgpt2.py and distilbert.py, the same with a start from the teacher's
layers.
Try it:  python -m minialign distill --teacher RUN --recipe soft-targets --layers 2 --text FILES
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minialign.batching import IGNORE
from minialign.distill.fast_soft_targets import fast_soft_target_loss
from minialign.distill.recipe import Recipe, check_logits, check_weights, read, same_kind
from minialign.distill.recording import last_hidden
from minialign.heads import LanguageModel
from minialign.logprobs import label_loss, masked_mean
from minialign.runs.errors import UserError


@dataclass(frozen=True)
class SoftTargetConfig:
    """What the student copies, and how much of each."""

    temperature: float = 2.0  # T of both softmaxes
    soft: float = 1.0  # weight of the soft targets
    hard: float = 0.0  # weight of the labels of the text
    cosine: float = 0.0  # weight of the angle between the last hidden vectors, for students as wide as their teacher

    def __post_init__(self):
        check_weights(self, ("soft", "hard", "cosine"), temperature=(1e-3, 1e3))


def soft_target_loss(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float = 2.0) -> Tensor:
    """T² KL(teacher ‖ student) of softened distributions, mean over real tokens, nats.

    Args:
        student, teacher: (..., V) logits over the same vocabulary; mask: (...) bool, true where a token counts.
        temperature: T, above 0; the larger, the more the student learns of what the teacher finds unlikely.
    Raises UserError for vocabularies of different sizes, or a temperature that is not above 0.
    """
    check_logits(student, teacher)
    if not temperature > 0:
        raise UserError(f"temperature is {temperature}; it must be above 0 (1 copies the teacher's own probabilities, "
                        f"2 is usual)")
    log_p = (teacher / temperature).log_softmax(dim=-1)  # (..., V)
    log_q = (student / temperature).log_softmax(dim=-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(dim=-1)  # (...)
    return temperature**2 * masked_mean(kl, mask)


def hidden_cosine_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """1 − cos of the angle between hidden vectors (..., D), mean over real tokens, mask (...); in [0, 2] (Sanh et al.
    2019, §2). Raises UserError for different widths."""
    if student.shape[-1] != teacher.shape[-1]:
        raise UserError(f"the student's width is {student.shape[-1]}, the teacher's {teacher.shape[-1]}; use tinybert "
                        f"or minilm, which allow that")
    return masked_mean(1 - F.cosine_similarity(student, teacher, dim=-1), mask)


class SoftTargets(Recipe):
    """Soft targets, labels and the angle of the last hidden vectors; for decoders and encoders."""

    def begin(self, student: LanguageModel) -> None:
        """Raises UserError for an encoder-decoder, a student of another kind or, with cosine, of another width."""
        same_kind(student, self.teacher)
        if student.config.kind == "encoder-decoder":
            raise UserError("soft targets are for decoders and encoders; see sequence_level.py for others")
        ours, theirs = student.config.width, self.teacher.config.width
        if self.config.cosine and ours != theirs:
            raise UserError(f"the student's width is {ours}, the teacher's {theirs}; the cosine of hidden vectors "
                            f"needs the same: set its weight to 0, or use tinybert or minilm")

    def parts(self, student: LanguageModel, batch: Any) -> dict[str, Tensor]:
        """Each part, a mean over the places that count, nats (the cosine: without unit)."""
        labelled, compared = batch.labels != IGNORE, self.compared(batch)  # (B, T)
        theirs = self.teacher_outputs(batch) if self.config.soft or self.config.cosine else {}
        with last_hidden(student.body) as hidden:
            logits = student.logits(read(student, batch)[compared])  # (M, V)
        parts = {}
        if self.config.soft:
            parts["soft"] = self.soft_loss(logits, theirs)
        if self.config.hard:
            predicted = logits if student.config.kind == "decoder" else logits[labelled[compared]]
            parts["hard"] = label_loss(predicted, batch.labels[labelled]) / batch.count
        if self.config.cosine:
            every = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
            parts["cosine"] = hidden_cosine_loss(hidden[0][compared], theirs["hidden"].float(), every)
        return parts

    def compared(self, batch: Any) -> Tensor:
        """(B, T) where the two are compared: a decoder where there is a label, an encoder at every real token."""
        return batch.labels != IGNORE if self.teacher.config.kind == "decoder" else batch.mask

    def teacher_outputs(self, batch: Any) -> dict[str, Tensor]:
        """(M, V) "logits" and, with cosine, (M, D) "hidden" vectors of the last block at the M compared tokens."""
        compared = self.compared(batch)
        with torch.inference_mode(), last_hidden(self.teacher.body) as hidden:
            logits = self.teacher.logits(read(self.teacher, batch)[compared])
        return {"logits": logits} | ({"hidden": hidden[0][compared]} if self.config.cosine else {})

    def soft_loss(self, logits: Tensor, teacher: dict[str, Tensor]) -> Tensor:
        """`soft_target_loss` of the student's (M, V) logits and what `teacher_outputs` returned."""
        return fast_soft_target_loss(logits, teacher["logits"], self.config.temperature)
