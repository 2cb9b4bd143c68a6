r"""What all recipes share: a loss with named parts, each with its weight, for a student and a teacher that read the
same batch.

    L = Σ weight · part       the configuration holds the weights; `parts` returns the parts under the same names

Details that matter:
    1. The teacher is in evaluation mode and computes no gradient (test_the_teacher_is_quiet).
    2. A part whose weight is 0 is not computed: an ablation costs nothing (test_a_part_with_weight_0_is_left_out).
    3. What a recipe learns beside the student (projections) trains with it and is removed before the student is
       written (test_projections_train_and_are_not_in_the_file), or when it is stopped
       (test_a_student_whose_lesson_fails_keeps_no_projections).
DEVIATION: each part is a mean over what it is about, and a batch counts by its number of labels. So --accumulation
weighs ragged micro-batches a little differently than one large batch.

Read next: student.py. See also: soft_targets.py.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from minialign.batching import Batches
from minialign.heads import LanguageModel
from minialign.pretrain.causal_lm import mean_loss, next_token_loss, perplexity
from minialign.pretrain.masked_lm import masked_lm_loss
from minialign.runs.errors import UserError
from minialign.runs.run_folder import RunFolder
from minialign.runs.settings import check_ranges
from minialign.training import TrainingConfig, train


class Recipe:
    """A student's loss beside its teacher, as the training loop takes it.

    Args:
        teacher: put in evaluation mode, frozen for good, never trained.
        config: weights of the parts, under their names, and whatever else the recipe needs.
    """

    def __init__(self, teacher: nn.Module, config: Any):
        self.teacher, self.config = teacher.eval().requires_grad_(False), config

    def begin(self, student: nn.Module) -> None:
        """Check that the recipe can teach this student, and give it what is learned beside it."""

    def end(self, student: nn.Module) -> None:
        """Remove what `begin` gave."""

    def parts(self, student: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Each part of the loss whose weight is not 0, unweighted, a mean."""
        raise NotImplementedError

    def __call__(self, student: nn.Module, batch: Any) -> Tensor:
        """The weighted sum of the parts, times what the loop divides by."""
        parts = self.parts(student, batch)
        return sum(getattr(self.config, name) * value for name, value in parts.items()) * batch.count

    @torch.no_grad()
    def weighed(self, student: nn.Module, batch: Any) -> dict[str, float]:
        """How much each part contributes to the loss of a batch, to look at."""
        return {name: getattr(self.config, name) * float(value) for name, value in self.parts(student, batch).items()}


def check_weights(config: Any, names: tuple[str, ...], **limits: tuple[float, float]) -> None:
    """Raise UserError for a weight below 0 or above 1000, for weights that are all 0, and outside other `limits`."""
    check_ranges(config, dict.fromkeys(names, (0, 1e3)) | limits)
    if not sum(getattr(config, name) for name in names) > 0:
        raise UserError(f"all weights are 0, so there is nothing to learn; give one of {', '.join(names)} more than 0")


def check_logits(student: Tensor, teacher: Tensor) -> None:
    """Raise UserError where logits (..., V) are of vocabularies of different sizes."""
    if student.shape[-1] != teacher.shape[-1]:
        sizes = f"the student's vocabulary has {student.shape[-1]} tokens, the teacher's {teacher.shape[-1]}"
        raise UserError(f"{sizes}; their words must mean the same: make the student with the teacher's tokenizer")


def same_kind(student: nn.Module, teacher: nn.Module, one_stack: bool = False) -> None:
    """Raise UserError where the two cannot read the same batch, or where layers of `one_stack` are compared and an
    encoder-decoder has two."""
    if one_stack and student.config.kind == "encoder-decoder":
        raise UserError("this recipe looks into the layers of one stack, and an encoder-decoder has two; use a decoder "
                        "or an encoder")
    for name in ("kind", "vocabulary"):
        ours, theirs = getattr(student.config, name), getattr(teacher.config, name)
        if ours != theirs:
            raise UserError(f"the student's {name} is {ours}, the teacher's {theirs}; make the student from the "
                            f"teacher's configuration, so that both read the same tokens")


def read(model: nn.Module, batch: Any) -> Tensor:
    """(B, T, D) the body's vectors, after the last norm; a decoder's pads stand on the right, where it never looks."""
    return model.body(batch.tokens) if model.config.kind == "decoder" else model.body(batch.tokens, batch.mask)


def own_loss(model: LanguageModel, held_out: list) -> float:
    """The model's own loss on batches, nats: of the next token for a decoder, of hidden tokens for an encoder."""
    return mean_loss(model, held_out, next_token_loss if model.config.kind == "decoder" else masked_lm_loss)


def distil(
    student: LanguageModel, recipe: Recipe, data: Batches, held_out: list, training: TrainingConfig, run: RunFolder,
    validate: Callable[[nn.Module], dict[str, float]] | None = None
) -> dict[str, float]:
    """Teach a student by a recipe.

    Args:
        student: trained in place and saved in the run folder.
        recipe: holds the teacher, which reads the same tokens.
        data: `pretrain/causal_lm.py`'s for a decoder, `pretrain/masked_lm.py`'s for an encoder; held_out: batches.
        training: how; run: where.
        validate: what to measure instead of the student's own loss on `held_out`.
    Returns:
        {"validation": the student's own loss, nats a token, "perplexity", "steps"}.
    """

    def own(model: LanguageModel) -> dict[str, float]:
        loss = own_loss(model, held_out)
        return {"validation": loss, "perplexity": perplexity(loss)}

    def complete(model: nn.Module) -> dict[str, float]:
        ending.close()
        return {}

    recipe.begin(student)
    with ExitStack() as ending:  # once: before the student is written, or when something stops it
        ending.callback(recipe.end, student)
        return train(student, data, recipe, training, run, validate or own, "distillation", complete)
