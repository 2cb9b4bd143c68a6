r"""What a student can copy from a teacher, each as one pure function of tensors.

    soft targets   T² · mean over tokens of KL(softmax(z_t/T) ‖ softmax(z_s/T))       Hinton et al. 2015, §2
    hidden cosine  mean over tokens of 1 − cos(h_s, h_t)                              Sanh et al. 2019 (DistilBERT), §2
    hidden MSE     mean (h_s W − h_t)²,  W learned                                    Jiao et al. 2020 (TinyBERT), Eq. 8
    attention MSE  mean (A_s − A_t)²,  A the scores before the softmax                Jiao et al. 2020 (TinyBERT), Eq. 7
    relations      mean KL(softmax(X_t X_tᵀ/√d) ‖ softmax(X_s X_sᵀ/√d))           Wang et al. 2020 (MiniLM), Eq. 8 to 10
    reverse KL     mean KL(softmax(z_s) ‖ softmax(z_t))                               Gu et al. 2024 (MiniLLM), §2.1
    Jensen-Shannon mean β KL(p_t ‖ m) + (1 − β) KL(p_s ‖ m),  m = β p_t + (1 − β) p_s Agarwal et al. 2024 (GKD), §2, Eq.
    1

Teachers are given without gradients: whoever calls these has computed them in inference mode. Details that matter:
    1. T² keeps the gradient's size: without it, it falls as 1/T² (test_the_gradient_of_soft_targets_keeps_its_size).
    2. Means run over real tokens only; padding has no influence, and neither has the shape of the batch
       (test_padding_has_no_influence).
    3. KL(teacher ‖ student) makes the student cover all that the teacher may say; the reverse makes it keep to what the
       teacher does say (test_the_two_directions_of_kl_want_different_students).
    4. Masked positions of attention scores are set to 0 on both sides before they are compared: −∞ or −10,000 would
       drown the rest (test_masked_scores_count_as_equal).
    DEVIATION: TinyBERT's released code divides by all positions, masked ones too, so that its weight falls with the
    padding; here they do not count.

Read next: student.py.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from minialign.logprobs import masked_mean
from minialign.runs.errors import UserError


def soft_target_loss(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float = 2.0) -> Tensor:
    """T² KL(teacher ‖ student) of softened distributions, mean over real tokens, nats.

    Args:
        student, teacher: (..., V) logits over the same vocabulary; mask: (...) bool, true where a token counts.
        temperature: T, above 0; the larger, the more the student learns of what the teacher finds unlikely.
    Raises:
        UserError: vocabularies of different sizes, or a temperature that is not above 0.
    """
    _same_vocabulary(student, teacher)
    if not temperature > 0:
        raise UserError(f"temperature is {temperature}; it must be above 0 (1 copies the teacher's own probabilities, "
                        f"2 is usual)")
    if not mask.all():
        student, teacher = student[mask], teacher[mask]
    return _SoftTargets.apply(student.flatten(0, -2), teacher.flatten(0, -2), temperature)


class _SoftTargets(torch.autograd.Function):
    """The loss above for (M, V) logits of tokens that all count, some rows at a time: what lies between stays in the
    processor's cache.

    dL/dz_s = T (softmax(z_s/T) − softmax(z_t/T)) / M is written on the way, once, and scaled where it stands when it is
    asked for, so it can be asked for once. The plain formula, whose eight tables of M × V go through memory, takes
    several times as long (tests/speed/distill.py); both are the same to rounding
    (test_soft_targets_by_rows_are_the_plain_formula).
    """

    @staticmethod
    def forward(ctx, student: Tensor, teacher: Tensor, T: float) -> Tensor:
        M, V = student.shape
        total, step = torch.zeros((), dtype=torch.float64), max(1, 2**17 // V)  # half a megabyte of each table
        ctx.gradient, ctx.scale = torch.empty_like(student) if ctx.needs_input_grad[0] else None, T / max(1, M)
        for start in range(0, M, step):
            a, b = (z[start : start + step].to(torch.promote_types(z.dtype, torch.float32)) / T
                    for z in (teacher, student))
            p, q = a.softmax(dim=-1), b.softmax(dim=-1)
            # log Σ eᶻ = z − log p, read at the largest
            log_sums = [z.amax(dim=-1) - prob.amax(dim=-1).log() for z, prob in ((a, p), (b, q))]
            if ctx.gradient is not None:
                torch.sub(q, p, out=ctx.gradient[start : start + step])
            # Σ p (a − b) − log Σ eᵃ + log Σ eᵇ
            total += float(a.sub_(b).mul_(p).sum() - (log_sums[0] - log_sums[1]).sum())
        return (T * T * total / max(1, M)).to(torch.promote_types(student.dtype, torch.float32))

    @staticmethod
    @once_differentiable
    def backward(ctx, by: Tensor) -> tuple[Tensor | None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None
        if ctx.gradient is None:
            raise RuntimeError("the gradient of soft targets is given away when it is asked for; compute the loss "
                               "again to ask a second time")
        gradient, ctx.gradient = ctx.gradient, None
        return gradient.mul_(by * ctx.scale), None, None


def reverse_kl(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """KL(student ‖ teacher), mean over real tokens, nats: for texts that the student wrote. Arguments as for
    `soft_target_loss`."""
    _same_vocabulary(student, teacher)
    return masked_mean(_kl(student, teacher), mask)


def jensen_shannon(student: Tensor, teacher: Tensor, mask: Tensor, beta: float = 0.5) -> Tensor:
    """β KL(teacher ‖ m) + (1 − β) KL(student ‖ m), m = β teacher + (1 − β) student, mean over real tokens, nats; at
    most log 2.

    Args:
        student, teacher, mask: as for `soft_target_loss`.
        beta: above 0 and below 1; divided by β or by 1 − β, it tends to the KL from teacher to student as β → 0, to the
            reverse one as β → 1.
    """
    _same_vocabulary(student, teacher)
    if not 0 < beta < 1:
        raise UserError(f"beta is {beta}; it must be above 0 and below 1 (at the ends nothing is left: use the KL or "
                        f"the reverse KL)")
    log_t, log_s = teacher.log_softmax(dim=-1), student.log_softmax(dim=-1)
    log_m = torch.logaddexp(log_t + math.log(beta), log_s + math.log(1 - beta))
    terms = beta * log_t.exp() * (log_t - log_m) + (1 - beta) * log_s.exp() * (log_s - log_m)
    return masked_mean(terms.sum(dim=-1), mask)


def top_k_soft_target_loss(student: Tensor, words: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """T² KL(teacher ‖ student) over k words and "any other one", mean over tokens, nats.

    Args:
        student: (M, V) logits; words: (M, k + 1) the teacher's log-probabilities at temperature T, the last one that of
            all other words.
        ids: (M, k) which words; temperature: T.
    """
    log_q = (student / temperature).log_softmax(dim=-1)
    log_p, ids = words.float().log_softmax(dim=-1), ids.long()  # rounding to 16 bits took the sum off 1
    rest = log_q.scatter(-1, ids, -torch.inf).logsumexp(dim=-1, keepdim=True)  # (M, 1)
    log_q = torch.cat([log_q.gather(-1, ids), rest], dim=-1)  # (M, k + 1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean()


def _kl(first: Tensor, second: Tensor) -> Tensor:
    """(...) KL(softmax(first) ‖ softmax(second)) of logits (..., V)."""
    log_p, log_q = first.log_softmax(dim=-1), second.log_softmax(dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def _same_vocabulary(student: Tensor, teacher: Tensor) -> None:
    if student.shape[-1] != teacher.shape[-1]:
        sizes = f"the student's vocabulary has {student.shape[-1]} tokens, the teacher's {teacher.shape[-1]}"
        raise UserError(f"{sizes}; their words must mean the same: make the student with the teacher's tokenizer")


def hidden_cosine_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """1 − cos of the angle between hidden vectors (B, T, D) of equal width, mean over real tokens (B, T); in [0, 2].

    Raises:
        UserError: different widths, which this loss cannot compare.
    """
    if student.shape[-1] != teacher.shape[-1]:
        raise UserError(f"the student's width is {student.shape[-1]}, the teacher's {teacher.shape[-1]}; use tinybert "
                        f"or minilm, which allow that")
    return masked_mean(1 - F.cosine_similarity(student, teacher, dim=-1), mask)


def hidden_mse_loss(student: Tensor, teacher: Tensor, mask: Tensor, projection: Tensor | None = None) -> Tensor:
    """Mean squared difference of hidden vectors over real tokens and dimensions.

    Args:
        student: (B, T, d); teacher: (B, T, D); mask: (B, T).
        projection: W, (d, D), learned with the student; None where the widths are equal.
    """
    mapped = student if projection is None else student @ projection  # (B, T, D)
    return masked_mean(((mapped - teacher) ** 2).mean(dim=-1), mask)


def attention_score_loss(student: Tensor, teacher: Tensor, allowed: Tensor) -> Tensor:
    """Mean squared difference of attention scores before the softmax, over all places that count.

    Args:
        student, teacher: (B, H, T, S) Q Kᵀ / √d, of equally many heads.
        allowed: bool, broadcastable to them, true where a real query may look.
    Raises:
        UserError: different numbers of heads.
    """
    _same_heads(student, teacher)
    allowed = allowed.expand_as(student)
    difference = (student - teacher).masked_fill(~allowed, 0.0)
    return (difference**2).sum() / allowed.sum().clamp(min=1)


def relation(vectors: Tensor, heads: int, mask: Tensor) -> Tensor:
    """Log of softmax(X Xᵀ / √d): how each token's vector relates to the others', in each of `heads` parts of the width.

    Args:
        vectors: (B, T, D) values (or queries, or keys) of all heads side by side; mask: (B, T) true at real tokens.
    Returns:
        (B, heads, T, T) log-probabilities; what stands at pads has no meaning.
    Raises:
        UserError: a width that does not divide by the heads.
    """
    B, T, D = vectors.shape
    if D % heads:
        raise UserError(f"a width of {D} does not divide into {heads} relation heads; choose a divisor of {D}")
    parts = vectors.view(B, T, heads, D // heads).transpose(1, 2)  # (B, heads, T, d)
    scores = parts @ parts.transpose(-2, -1) / math.sqrt(D // heads)
    return scores.masked_fill(~mask[:, None, None, :], -torch.inf).log_softmax(dim=-1)


def relation_loss(student: Tensor, teacher: Tensor, heads: int, mask: Tensor) -> Tensor:
    """KL(teacher's relation ‖ student's), mean over heads and real tokens; the widths may differ (Wang et al. 2020, Eq.
    9)."""
    return distribution_loss(relation(student, heads, mask), relation(teacher, heads, mask), mask)


def distribution_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """KL(teacher ‖ student) of attention distributions, mean over heads and real queries (Wang et al. 2020, Eq. 8).

    Args:
        student, teacher: (B, H, T, S) log-probabilities; −∞ where nothing may be looked at; mask: (B, T) true at real
            queries.
    Raises:
        UserError: different numbers of heads.
    """
    _same_heads(student, teacher)
    p = teacher.exp()
    terms = torch.where(p > 0, p * (teacher - student), 0.0)  # 0 log 0 = 0
    return masked_mean(terms.sum(dim=-1), mask[:, None, :].expand(terms.shape[:3]))


def _same_heads(student: Tensor, teacher: Tensor) -> None:
    if student.shape[1] != teacher.shape[1]:
        raise UserError(f"the student has {student.shape[1]} heads, the teacher {teacher.shape[1]}; give it as many, "
                        f"or use relations of MiniLM v2")
