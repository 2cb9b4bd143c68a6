"""The losses of distillation, each against its definition written out slowly, and what each of them wants."""

import math

import pytest
import torch
import torch.nn.functional as F

from minialign.distill.fast_soft_targets import fast_soft_target_loss
from minialign.distill.minilm import distribution_loss, relation, relation_loss
from minialign.distill.on_policy import jensen_shannon, reverse_kl
from minialign.distill.soft_targets import hidden_cosine_loss, soft_target_loss
from minialign.distill.tinybert import attention_score_loss, hidden_mse_loss
from minialign.runs.errors import UserError

MASK = torch.tensor([[True, True, True, False], [True, True, False, False]])


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist()))


@pytest.mark.parametrize("T", [1.0, 2.0, 5.0])
def test_soft_targets_are_t_squared_times_the_kl_of_softened_distributions(T):
    student, teacher = numbers(2, 4, 7), numbers(2, 4, 7, seed=1)
    terms = [slow_kl((teacher[b, t] / T).softmax(0), (student[b, t] / T).softmax(0))
             for b, t in MASK.nonzero().tolist()]
    assert float(soft_target_loss(student, teacher, MASK, T)) == pytest.approx(T * T * sum(terms) / 5, rel=1e-5)
    torch_says = F.kl_div((student[MASK] / T).log_softmax(-1), (teacher[MASK] / T).softmax(-1),
                          reduction="batchmean") * T * T
    assert float(soft_target_loss(student, teacher, MASK, T)) == pytest.approx(float(torch_says), rel=1e-5)


def test_fast_soft_targets_are_the_plain_formula():
    """More rows than are computed at a time: value and gradient are those of autograd's way through the formula, and a
    second loss adds to it."""
    student, teacher = numbers(700, 1000).requires_grad_(), numbers(700, 1000, seed=1)
    every = torch.ones(700, dtype=torch.bool)
    plain = 5 * soft_target_loss(student, teacher, every, 3.0) + student.square().mean()
    (expected,) = torch.autograd.grad(plain, student)
    loss = 5 * fast_soft_target_loss(student, teacher, 3.0) + student.square().mean()
    loss.backward()
    torch.testing.assert_close(loss.detach(), plain.detach())
    torch.testing.assert_close(student.grad, expected, atol=1e-7, rtol=1e-4)
    exact, goal = numbers(4, 6).double().requires_grad_(), numbers(4, 6, seed=1).double()
    some = torch.tensor([True, True, False, True])
    (expected,) = torch.autograd.grad(soft_target_loss(exact, goal, some, 2.0), exact)
    loss = fast_soft_target_loss(exact[some], goal[some], 2.0)
    torch.testing.assert_close(torch.autograd.grad(loss, exact, retain_graph=True)[0], expected, atol=1e-12, rtol=1e-10)
    with pytest.raises(RuntimeError, match="compute the loss again"):
        loss.backward()
    assert fast_soft_target_loss(numbers(0, 6), numbers(0, 6), 2.0) == 0
    with pytest.raises(UserError, match="vocabulary has 5 tokens, the teacher's 6"):
        fast_soft_target_loss(numbers(2, 5), numbers(2, 6), 2.0)


def test_reverse_kl_is_the_other_direction():
    student, teacher = numbers(2, 4, 7), numbers(2, 4, 7, seed=1)
    terms = [slow_kl(student[b, t].softmax(0), teacher[b, t].softmax(0)) for b, t in MASK.nonzero().tolist()]
    assert float(reverse_kl(student, teacher, MASK)) == pytest.approx(sum(terms) / 5, rel=1e-5)


def test_the_gradient_of_soft_targets_keeps_its_size():
    """Hinton et al. 2015, §2: without T² the gradient falls as 1/T²; with it, it tends to a constant."""
    sizes = []
    for T in (5.0, 10.0, 20.0):
        student = numbers(3, 4, 9).requires_grad_()
        soft_target_loss(student, numbers(3, 4, 9, seed=1), torch.ones(3, 4, dtype=torch.bool), T).backward()
        sizes.append(float(student.grad.norm()))
    assert sizes[1] == pytest.approx(sizes[2], rel=0.1) and sizes[0] == pytest.approx(sizes[1], rel=0.25)


def test_the_two_directions_of_kl_want_different_students():
    """A teacher with two peaks, a student that can only choose between one of them and both: each direction prefers
    another."""
    teacher = torch.tensor([[[0.495, 0.01, 0.495]]]).log()
    both, one = torch.tensor([[[0.34, 0.32, 0.34]]]).log(), torch.tensor([[[0.98, 0.01, 0.01]]]).log()
    mask = torch.ones(1, 1, dtype=torch.bool)
    forward = [float(soft_target_loss(student, teacher, mask, 1.0)) for student in (both, one)]
    backward = [float(reverse_kl(student, teacher, mask)) for student in (both, one)]
    assert forward[0] < forward[1] and backward[0] > backward[1]


@pytest.mark.parametrize("loss", [soft_target_loss, reverse_kl, jensen_shannon, hidden_cosine_loss, hidden_mse_loss])
def test_padding_has_no_influence(loss):
    student, teacher = numbers(2, 4, 6), numbers(2, 4, 6, seed=1)
    expected = loss(student, teacher, MASK)
    spoiled = student.masked_fill(~MASK[..., None], math.nan).requires_grad_()
    found = loss(spoiled, teacher, MASK)
    torch.testing.assert_close(found, expected)
    longer = F.pad(student, (0, 0, 0, 3)), F.pad(teacher, (0, 0, 0, 3), value=9.0), F.pad(MASK, (0, 3))
    torch.testing.assert_close(loss(*longer), expected)


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    x, scores = numbers(2, 4, 6), numbers(2, 3, 4, 4)
    allowed = torch.ones(4, 4, dtype=torch.bool).tril()
    for value in (soft_target_loss(x, x, MASK), reverse_kl(x, x, MASK), hidden_cosine_loss(x, x, MASK),
                  hidden_mse_loss(x, x, MASK),
                  attention_score_loss(scores, scores, allowed), relation_loss(x, x, 3, MASK)):  # fmt: skip
        assert abs(float(value)) < 1e-6


def test_hidden_losses_are_their_definitions():
    student, teacher, W = numbers(2, 4, 3), numbers(2, 4, 6, seed=1), numbers(3, 6, seed=2)
    squares = [float(((student[b, t] @ W - teacher[b, t]) ** 2).sum() / 6) for b, t in MASK.nonzero().tolist()]
    assert float(hidden_mse_loss(student, teacher, MASK, W)) == pytest.approx(sum(squares) / 5, rel=1e-5)
    other = numbers(2, 4, 6, seed=3)
    cosines = [1 - float(other[b, t] @ teacher[b, t] / other[b, t].norm() / teacher[b, t].norm())
               for b, t in MASK.nonzero().tolist()]
    assert float(hidden_cosine_loss(other, teacher, MASK)) == pytest.approx(sum(cosines) / 5, rel=1e-5)
    reference = F.cosine_embedding_loss(other[MASK], teacher[MASK], torch.ones(5))
    assert float(hidden_cosine_loss(other, teacher, MASK)) == pytest.approx(float(reference), rel=1e-5)


def test_masked_scores_count_as_equal():
    student, teacher = numbers(2, 3, 4, 4), numbers(2, 3, 4, 4, seed=1)
    allowed = torch.ones(4, 4, dtype=torch.bool).tril()
    expected = (student - teacher)[:, :, allowed].square().mean()
    for hidden in (-10_000.0, -math.inf):
        found = attention_score_loss(student.masked_fill(~allowed, hidden), teacher.masked_fill(~allowed, hidden),
                                     allowed)
        torch.testing.assert_close(found, expected)


def test_relations_are_softmax_of_the_products_of_vectors():
    x, heads = numbers(2, 4, 6), 2
    found = relation(x, heads, MASK)
    for b in range(2):
        n = int(MASK[b].sum())
        for h in range(heads):
            part = x[b, :n, 3 * h : 3 * h + 3]
            torch.testing.assert_close(found[b, h, :n, :n].exp(), (part @ part.T / math.sqrt(3)).softmax(-1))


def test_relation_loss_compares_models_of_different_width():
    student, teacher = numbers(2, 4, 4), numbers(2, 4, 12, seed=1)
    s, t = relation(student, 2, MASK), relation(teacher, 2, MASK)
    terms = [slow_kl(t[b, h, i][MASK[b]].exp(), s[b, h, i][MASK[b]].exp())
             for h in range(2) for b, i in MASK.nonzero().tolist()]
    assert float(relation_loss(student, teacher, 2, MASK)) == pytest.approx(sum(terms) / 10, rel=1e-4)
    student.requires_grad_()
    relation_loss(student, teacher, 2, MASK).backward()
    assert student.grad.isfinite().all() and student.grad[~MASK].abs().sum() == 0


def test_a_gradient_through_forbidden_places_is_finite():
    causal = torch.ones(4, 4, dtype=torch.bool).tril()
    student = numbers(2, 3, 4, 4).requires_grad_()

    def log(scores):
        return scores.masked_fill(~causal, -math.inf).log_softmax(-1)

    loss = distribution_loss(log(student), log(numbers(2, 3, 4, 4, seed=1)), torch.ones(2, 4, dtype=torch.bool))
    loss.backward()
    assert loss > 0 and student.grad.isfinite().all()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: soft_target_loss(numbers(1, 1, 5), numbers(1, 1, 6), torch.ones(1, 1, dtype=torch.bool)),
         "vocabulary has 5 tokens, the teacher's 6"),
        (lambda: soft_target_loss(numbers(1, 1, 5), numbers(1, 1, 5), torch.ones(1, 1, dtype=torch.bool), 0.0),
         "must be above 0"),
        (lambda: hidden_cosine_loss(numbers(1, 1, 5), numbers(1, 1, 6), torch.ones(1, 1, dtype=torch.bool)),
         "use tinybert or minilm"),
        (lambda: attention_score_loss(numbers(1, 2, 3, 3), numbers(1, 4, 3, 3), torch.ones(3, 3, dtype=torch.bool)),
         "student has 2 heads, the teacher 4"),
        (lambda: relation(numbers(1, 2, 5), 2, torch.ones(1, 2, dtype=torch.bool)), "does not divide into 2"),
    ],
)
def test_what_cannot_be_compared_is_an_error_that_says_what_would_work(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_divergences_of_half_precision_logits_are_those_of_their_numbers():
    student = numbers(2, 4, 50).bfloat16()
    teacher = (student.float() + 0.05 * numbers(2, 4, 50, seed=1)).bfloat16()
    for loss in (reverse_kl, jensen_shannon):
        assert float(loss(student, teacher, MASK)) == float(loss(student.float(), teacher.float(), MASK)) > 0
    with torch.autocast("cpu", torch.bfloat16):
        assert relation(numbers(2, 4, 8), 2, MASK).dtype == torch.float32
