r"""On-policy distillation: the student writes, the teacher says at each word what it would have said.

    y ~ p_student(· | x)      L = 1/|y| Σₜ D(p_teacher(· | x, y₍<t₎), p_student(· | x, y₍<t₎))
                                                                          Agarwal et al. 2024 (GKD), §3, Alg. 1
    D = reverse KL(p_student ‖ p_teacher)                                 Gu et al. 2024 (MiniLLM), §2.1
      | forward KL(p_teacher ‖ p_student)   |   Jensen-Shannon with share β

A student that learns from given texts never sees its own mistakes, and at work it goes on from them. Here it learns
where it will be. The forward KL makes the student cover all that the teacher may say; the reverse makes it keep to what
the teacher does say (test_the_two_directions_of_kl_want_different_students). Details that matter:
    1. Each D is exact, a sum over the vocabulary: no estimate from the sampled words alone
       (test_the_divergence_is_exact_over_the_vocabulary).
    2. No gradient flows through the choice of the words (test_no_gradient_flows_through_what_was_sampled).
    3. Only what the student wrote counts, its end token included: neither the prompt, nor what stands after the end,
       nor padding (test_neither_prompt_nor_padding_counts).
    4. With `share` below 1 some steps read the given texts, so that a weak student does not learn on nonsense alone.
    5. Chance is that of the training loop, whose state stands in the checkpoint: a run that goes on ends with the same
       bits (test_an_interrupted_on_policy_run_ends_with_the_same_bits).
    DEVIATION: MiniLLM also follows the gradient of what later words will cost (its Eq. 2); GKD does not, nor do we.
    DEVIATION: micro-batches are weighted by the labels of the given texts: the student's own are not known beforehand.

Read next: speculative.py.
Try it:  python -m minialign distill --teacher RUN --recipe on-policy --student RUN --text FILES
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from minialign.batching import IGNORE, Batch, next_token_batch
from minialign.distill.fast_soft_targets import fast_soft_target_loss
from minialign.distill.recipe import Recipe, check_logits, check_weights, same_kind
from minialign.generation import SamplingConfig, check_room, generate
from minialign.heads import LanguageModel
from minialign.logprobs import masked_mean
from minialign.pretrain.causal_lm import next_token_loss
from minialign.runs.devices import moved
from minialign.runs.errors import UserError


@dataclass(frozen=True)
class OnPolicyConfig:
    """What the student is told about what it writes, and how it writes."""

    reverse: float = 1.0  # weight of KL(student ‖ teacher)
    forward: float = 0.0  # weight of KL(teacher ‖ student)
    shannon: float = 0.0  # weight of the generalised Jensen-Shannon divergence
    hard: float = 0.0  # weight of the given texts' own labels, next to the student's texts
    beta: float = 0.5  # share of the teacher in the mixture of Jensen-Shannon
    share: float = 1.0  # chance that a step reads the student's own texts; the others read the given ones
    new_tokens: int = 32  # most tokens that the student writes after a prompt, the end token included
    temperature: float = 1.0  # at which it writes

    def __post_init__(self):
        check_weights(self, ("reverse", "forward", "shannon", "hard"), beta=(0.01, 0.99), share=(0, 1),
                      new_tokens=(1, 10**6), temperature=(0, 100))


def reverse_kl(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """KL(student ‖ teacher) of logits (..., V), mean over real tokens (...), nats."""
    check_logits(student, teacher)
    log_q, log_p = student.float().log_softmax(dim=-1), teacher.float().log_softmax(dim=-1)
    return masked_mean((log_q.exp() * (log_q - log_p)).sum(dim=-1), mask)


def jensen_shannon(student: Tensor, teacher: Tensor, mask: Tensor, beta: float = 0.5) -> Tensor:
    """β KL(teacher ‖ m) + (1 − β) KL(student ‖ m), m = β teacher + (1 − β) student, mean over real tokens, nats; at
    most log 2 (Agarwal et al. 2024, §2, Eq. 1).

    Divided by β or by 1 − β, it tends to the KL from teacher to student as β → 0, to the reverse one as β → 1
    (test_jensen_shannon_lies_between_the_two_directions).
    """
    check_logits(student, teacher)
    if not 0 < beta < 1:
        raise UserError(f"beta is {beta}; it must be above 0 and below 1 (at the ends nothing is left: use the KL or "
                        f"the reverse KL)")
    log_p, log_q = teacher.float().log_softmax(dim=-1), student.float().log_softmax(dim=-1)
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log(1 - beta))
    terms = beta * log_p.exp() * (log_p - log_m) + (1 - beta) * log_q.exp() * (log_q - log_m)
    return masked_mean(terms.sum(dim=-1), mask)


class OnPolicy(Recipe):
    """The teacher's opinion on the student's own texts.

    Args:
        teacher, config: as for `Recipe`.
        chance: where it comes from; the training loop's own without it.
    """

    def __init__(self, teacher: LanguageModel, config: OnPolicyConfig, chance: torch.Generator | None = None):
        super().__init__(teacher, config)
        self.chance = chance or torch.default_generator

    def begin(self, student: LanguageModel) -> None:
        """Raises UserError for models that do not write, or have no room for what is to be written."""
        same_kind(student, self.teacher)
        if student.config.kind != "decoder":
            raise UserError(f"an {student.config.kind} has no next word to be told about; on-policy distillation needs "
                            f"decoders")
        for model in (student, self.teacher):
            check_room(model.config, 1, self.config.new_tokens)

    def parts(self, student: LanguageModel, batch: Batch) -> dict[str, Tensor]:
        """Each part, a mean over the tokens that the student wrote (the labels: over those of the text), nats."""
        own = bool(torch.rand((), generator=self.chance) < self.config.share)
        seen = written(student, batch, self.config, self.chance) if own else batch
        counted = seen.labels != IGNORE  # (B, T) where the next token is one that was written
        with torch.inference_mode():
            theirs = self.teacher.logits(self.teacher.body(seen.tokens)[counted])  # (M, V)
        ours = student.logits(student.body(seen.tokens)[counted])
        every, parts = torch.ones(len(ours), dtype=torch.bool, device=ours.device), {}
        if self.config.reverse:
            parts["reverse"] = reverse_kl(ours, theirs, every)
        if self.config.forward:
            parts["forward"] = fast_soft_target_loss(ours, theirs, 1.0)
        if self.config.shannon:
            parts["shannon"] = jensen_shannon(ours, theirs, every, self.config.beta)
        if self.config.hard:
            parts["hard"] = next_token_loss(student, batch) / batch.count
        return parts


def prompts_of(batch: Batch) -> list[list[int]]:
    """What stands before the first label of each row: the prompt that a text goes on from, the begin token at least."""
    first = (batch.labels != IGNORE).int().argmax(dim=1)  # (B,) the place whose next token is the first one taught
    return [row[: place + 1].tolist() for row, place in zip(batch.tokens, first)]


def written(student: LanguageModel, batch: Batch, config: OnPolicyConfig, chance: torch.Generator) -> Batch:
    """The student's own continuations of a batch's prompts, as a batch whose labels are the tokens that it wrote."""
    prompts = prompts_of(batch)
    said = generate(student, prompts, SamplingConfig(config.new_tokens, config.temperature), chance)
    rows = [[*prompt, *completion] for prompt, completion in zip(prompts, said.ids())]
    return moved(next_token_batch(rows, [len(prompt) for prompt in prompts], batch.rows), student)
