r"""Soft targets: the student learns the teacher's probabilities for all words, not only which word came.

    L = a T² KL(p_T teacher ‖ p_T student) + (1 − a) CE(labels)                     Hinton et al. 2015, §2

What the teacher finds second and third likely says how it thinks; a label says one word. Details that matter:
    1. T² multiplies the soft part only (losses.py, test_the_parts_of_the_loss_are_weighted_as_said).
    2. Both read the same batch. A decoder's logits are compared where there is a label; an encoder's at every real
       token, of which only some were hidden and have a label, as in the released script of DistilBERT
       (test_an_encoder_is_compared_at_every_real_token).
    3. The teacher computes in inference mode, once a batch, and only what has a weight
       (test_a_teacher_whose_opinion_has_no_weight_is_not_asked); with a cache, once a text for all epochs
       (teacher_cache.py).

Read next: distilgpt2.py and distilbert.py, the same with a start from the teacher's layers.
Try it:  python -m minialign distill --teacher RUN --recipe soft-targets --layers 2 --text FILES
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minialign.batching import IGNORE
from minialign.distill.losses import hidden_cosine_loss, soft_target_loss, top_k_soft_target_loss
from minialign.distill.recipe import Recipe, some_weight
from minialign.distill.student import last_hidden, read
from minialign.distill.teacher_cache import CacheConfig, TeacherCache
from minialign.heads import LanguageModel
from minialign.logprobs import label_loss
from minialign.runs.errors import UserError
from minialign.runs.settings import check_ranges

WEIGHTS = ("soft", "hard", "cosine")


@dataclass(frozen=True)
class SoftTargetConfig:
    """What the student copies, and how much of each."""

    temperature: float = 2.0  # T of both softmaxes
    soft: float = 1.0  # weight of the soft targets
    hard: float = 0.0  # weight of the labels of the text
    cosine: float = 0.0  # weight of the angle between the last hidden vectors, for students as wide as their teacher

    def __post_init__(self):
        check_ranges(self, {"temperature": (1e-3, 1e3), "soft": (0, 1e3), "hard": (0, 1e3), "cosine": (0, 1e3)})
        some_weight(self, WEIGHTS)


class SoftTargets(Recipe):
    """Soft targets, labels and the angle of the last hidden vectors; for decoders and encoders.

    Args:
        teacher, config: as for `Recipe`.
        cache: where the teacher's opinions are kept between epochs; without it they are computed each time.
    """

    weights = WEIGHTS

    def __init__(self, teacher: LanguageModel, config: SoftTargetConfig, cache: CacheConfig | None = None):
        super().__init__(teacher, config)
        self.cache = TeacherCache(cache, teacher, config.temperature, bool(config.cosine)) if cache else None

    def begin(self, student: LanguageModel) -> None:
        """Raises UserError for a student of another kind or, with cosine, of another width."""
        same_kind(student, self.teacher)
        if self.config.cosine and student.config.width != self.teacher.config.width:
            widths = f"the student's width is {student.config.width}, the teacher's {self.teacher.config.width}"
            raise UserError(f"{widths}; the cosine of hidden vectors needs the same: set its weight to 0, or use "
                            f"tinybert or minilm")

    def parts(self, student: LanguageModel, batch: Any) -> dict[str, Tensor]:
        """Each part, a mean over the places that count, nats (the cosine: without unit)."""
        asked, compared = batch.labels != IGNORE, self.compared(batch)
        theirs = self.opinion(batch) if self.config.soft or self.config.cosine else {}
        with last_hidden(student.body) as ours:
            logits = student.logits(read(student, batch)[compared])
        every, found, T = torch.ones(len(logits), dtype=torch.bool), {}, self.config.temperature
        if self.config.soft and "words" in theirs:
            found["soft"] = top_k_soft_target_loss(logits, theirs["words"], theirs["ids"], T)
        elif self.config.soft:
            found["soft"] = soft_target_loss(logits, theirs["logits"], every, T)
        if self.config.hard:
            answers = logits if student.config.kind == "decoder" else logits[asked[compared]]
            found["hard"] = label_loss(answers, batch.labels[asked]) / batch.count
        if self.config.cosine:
            found["cosine"] = hidden_cosine_loss(ours[0][compared], theirs["hidden"].float(), every)
        return found

    def compared(self, batch: Any) -> Tensor:
        """(B, T) where the two are compared: a decoder where the text has an answer, an encoder at every real token."""
        return batch.labels != IGNORE if self.teacher.config.kind == "decoder" else batch.mask

    def opinion(self, batch: Any) -> dict[str, Tensor]:
        """What the teacher thinks of a batch, computed or remembered: `think`, or what teacher_cache.py keeps of it."""
        return self.cache(batch, self.compared(batch), self.think) if self.cache else self.think(batch)

    def think(self, batch: Any) -> dict[str, Tensor]:
        """(M, V) "logits" and, with cosine, (M, D) "hidden" vectors of the last block at the M compared tokens."""
        compared = self.compared(batch)
        with torch.inference_mode(), last_hidden(self.teacher.body) as hidden:
            logits = self.teacher.logits(read(self.teacher, batch)[compared])
        return {"logits": logits} | ({"hidden": hidden[0][compared]} if self.config.cosine else {})


def same_kind(student: LanguageModel, teacher: LanguageModel) -> None:
    """Raises UserError where the two cannot read the same batch."""
    for name in ("kind", "vocabulary"):
        if getattr(student.config, name) != getattr(teacher.config, name):
            what = (f"the student's {name} is {getattr(student.config, name)}, the teacher's "
                    f"{getattr(teacher.config, name)}")
            raise UserError(f"{what}; make the student from the teacher's configuration, so that both read the same "
                            f"tokens")
