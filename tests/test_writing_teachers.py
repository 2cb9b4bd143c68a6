"""Distillation by texts: what the teacher writes, and what the student writes before the teacher's eyes."""

import dataclasses
import itertools
import json

import pytest
import torch
from conftest import build

from minialign.batching import IGNORE, Batch
from minialign.distill.on_policy import OnPolicy, OnPolicyConfig, jensen_shannon, prompts_of, reverse_kl, written
from minialign.distill.recipe import distil
from minialign.distill.sequence_level import WritingConfig, beam_search, write
from minialign.distill.soft_targets import SoftTargetConfig, SoftTargets, soft_target_loss
from minialign.distill.student import start_from, student_config
from minialign.generation import SamplingConfig, end_mask, generate
from minialign.heads import LanguageModel
from minialign.lab.teacher_cache import WRITTEN, written_once
from minialign.pretrain.causal_lm import LabelledRows
from minialign.runs.errors import UserError
from minialign.runs.run_folder import RunFolder
from minialign.tokenizer import BEGIN, END, PAD
from minialign.training import TrainingConfig

TRAINING = TrainingConfig(steps=4, batch=4, learning_rate=1e-3, validate_every=2, checkpoint_every=2)
PROMPTS = [[BEGIN], [BEGIN, 30, 31], [BEGIN, 40], [BEGIN, 50, 51, 52], [BEGIN, 60]]


@pytest.fixture
def teacher():
    return build(layers=4)


@pytest.fixture
def data():
    chance = torch.Generator().manual_seed(0)
    rows = [([BEGIN, *torch.randint(20, 320, (5 + i % 6,), generator=chance).tolist(), END], 1 + i % 3)
            for i in range(12)]
    return LabelledRows(rows, 4, 0)


def ending(model):
    """The same model, which ends its text after one token in eight or so: the last norm's first output is always 1, and
    the end token's vector 4 there."""
    with torch.no_grad():
        model.body.norm.weight[0], model.body.norm.bias[0] = 0.0, 1.0
        model.body.token_embedding.weight[END, 0] = 4.0
    return model


@torch.no_grad()
def logprob(model, prompt, answers):
    """(N,) log p(answer | prompt) of N answers (N, R) up to their end tokens, one pass."""
    rows = torch.cat([torch.tensor(prompt).expand(len(answers), -1), answers], dim=1)
    words = model(rows)[:, len(prompt) - 1 : -1].log_softmax(-1)
    return (words.gather(2, answers[..., None]).squeeze(2) * end_mask(answers)).sum(1)


# beam search


def test_beam_search_finds_the_likeliest_text():
    """Twelve words, three places, room for every hypothesis: all texts, those that end and those that do not, are
    looked at."""
    model = build(vocabulary=12, initial_std=0.6)
    texts = torch.tensor(list(itertools.product(range(12), repeat=3)))
    for prompt in ([BEGIN, 7], [BEGIN], [5, 6, 8]):
        scores = logprob(model, prompt, texts)
        best, found = texts[scores.argmax()], beam_search(model, [prompt], 3, 144)
        assert found.completion[0][found.mask[0]].tolist() == best[end_mask(best[None])[0]].tolist()
        assert float(found.logprobs.sum()) == pytest.approx(float(scores.max()), abs=1e-4)
        greedy = beam_search(model, [prompt], 3, 1)
        assert float(greedy.logprobs.sum()) <= float(scores.max()) + 1e-4


def test_one_beam_is_greedy_decoding(teacher):
    greedy = generate(teacher, PROMPTS, SamplingConfig(8, temperature=0), torch.Generator())
    found = beam_search(teacher, PROMPTS, 8, 1)
    assert torch.equal(found.completion, greedy.completion) and torch.equal(found.mask, greedy.mask)


def test_one_beam_of_a_model_in_16_bits_is_greedy_decoding(teacher, monkeypatch):
    logits = torch.zeros(320, dtype=torch.bfloat16)
    logits[300] = 2**-9  # rounded to 16 bits, all log-probabilities would be -5.78
    monkeypatch.setattr(teacher, "logits", lambda hidden: logits.expand(len(hidden), -1))
    assert (beam_search(teacher, PROMPTS, 3, 1).completion == 300).all()


@pytest.mark.parametrize("model", [build(layers=4), ending(build(layers=4))])
def test_the_score_of_a_beam_is_that_of_its_text(model):
    """Prompts of several lengths in one batch: each score is that of a pass over the text alone. The likeliest text is
    a short one where it may be."""
    found = beam_search(model, PROMPTS, 6, 4)
    for prompt, row, keep, score in zip(PROMPTS, found.completion, found.mask, found.logprobs.sum(1)):
        assert float(score) == pytest.approx(float(logprob(model, prompt, row[keep][None])), abs=1e-3)
        assert (row[~keep] == PAD).all()


# the teacher writes


def test_the_student_is_taught_what_the_teacher_wrote_and_no_more(teacher):
    rows = write(ending(teacher), PROMPTS * 4, WritingConfig(drawn_at=1.0, new_tokens=6, together=8), 0)
    assert rows == write(teacher, PROMPTS * 4, WritingConfig(drawn_at=1.0, new_tokens=6, together=8), 0)
    assert any(END in ids for ids, _ in rows) and any(END not in ids for ids, _ in rows)
    batch = LabelledRows(rows, 4, 0).batch(list(range(20)))
    for (ids, start), prompt, labels in zip(rows, PROMPTS * 4, batch.labels):
        assert ids[:start] == prompt and 1 <= len(ids) - start <= 6 and END not in ids[:-1]
        assert labels[labels != IGNORE].tolist() == ids[start:]


def test_written_texts_are_used_again_only_for_the_same_teacher_prompts_and_settings(teacher, tmp_path):
    config, path = WritingConfig(beams=2, new_tokens=4), tmp_path / WRITTEN
    rows = written_once(teacher, PROMPTS, config, 0, path)
    lines = path.read_text().splitlines()
    spoiled = json.loads(lines[1]) | {"answer": [99]}
    path.write_text("\n".join([lines[0], json.dumps(spoiled), *lines[2:]]) + "\n")
    expected = [*spoiled["prompt"], 99], len(spoiled["prompt"])
    assert written_once(teacher, PROMPTS, config, 0, path)[0] == expected, "read, not written again"
    assert written_once(build(seed=1, layers=4), PROMPTS, config, 0, path) != rows
    assert written_once(teacher, PROMPTS[:3], config, 0, path) == rows[:3]
    assert written_once(teacher, PROMPTS, config, 0, path) == rows


@pytest.mark.parametrize("writing", [WritingConfig(beams=2, new_tokens=5),
                                     WritingConfig(drawn_at=0.8, new_tokens=5, together=2)])
@pytest.mark.parametrize("loss", [SoftTargetConfig(1.0, 0.0, 1.0), SoftTargetConfig(2.0, 1.0, 1.0)])
def test_a_student_learns_what_its_teacher_writes(writing, loss, teacher, tmp_path):
    training = dataclasses.replace(TRAINING, steps=30, learning_rate=5e-3)
    held_out = [LabelledRows(write(teacher, PROMPTS, writing, training.seed), 4, 0).batch(list(range(5)))]
    rows, losses = write(teacher, PROMPTS, writing, training.seed), []
    for how in (dataclasses.replace(training, steps=1), training):
        student, run = LanguageModel(student_config(teacher.config, 2), how.seed), RunFolder(tmp_path / str(how.steps))
        if how.steps > 1:
            start_from(student, teacher)
        result = distil(student, SoftTargets(teacher, loss), LabelledRows(rows, 4, how.seed), held_out, how, run)
        losses.append(result["validation"])
    assert losses[1] < losses[0] - 0.5


# the student writes


def test_prompts_end_where_the_labels_begin(data):
    batch = data.batch([0, 1, 2, 3])
    assert prompts_of(batch) == [ids[:start] for ids, start in data.rows[:4]]


def test_the_divergence_is_exact_over_the_vocabulary(teacher, data):
    student, batch = build(seed=5, layers=2), data.batch([0, 1, 2])
    config = OnPolicyConfig(reverse=1.0, forward=1.0, shannon=1.0, hard=1.0, beta=0.3, new_tokens=6)
    parts = OnPolicy(teacher, config, torch.Generator().manual_seed(3)).parts(student, batch)
    chance = torch.Generator().manual_seed(3)
    torch.rand((), generator=chance)
    seen = written(student, batch, config, chance)
    counted = seen.labels != IGNORE
    q, p = (model(seen.tokens)[counted].detach().softmax(-1).double() for model in (student, teacher))
    m = 0.3 * p + 0.7 * q

    def kl(a, b):
        return (a * (a / b).log()).sum(-1)

    for name, slow in (("reverse", kl(q, p)), ("forward", kl(p, q)), ("shannon", 0.3 * kl(p, m) + 0.7 * kl(q, m))):
        assert float(parts[name].detach()) == pytest.approx(float(slow.mean()), rel=1e-4), name
    labels = batch.labels[batch.labels != IGNORE]
    said = student(batch.tokens).detach()[batch.labels != IGNORE].log_softmax(-1).gather(1, labels[:, None])
    assert float(parts["hard"].detach()) == pytest.approx(float(-said.mean()), rel=1e-5)


def test_jensen_shannon_lies_between_the_two_directions():
    """Divided by β it tends to the KL from the teacher, by 1 − β to that from the student; it is never above log 2."""
    student, teacher = (torch.randn(5, 9, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    every, small = torch.ones(5, dtype=torch.bool), 1e-3
    student, teacher = student.double(), teacher.double()
    forward = float(soft_target_loss(student, teacher, every, 1.0))
    reverse = float(reverse_kl(student, teacher, every))
    assert float(jensen_shannon(student, teacher, every, small) / small) == pytest.approx(forward, rel=0.02)
    assert float(jensen_shannon(student, teacher, every, 1 - small) / small) == pytest.approx(reverse, rel=0.02)
    assert float(jensen_shannon(50 * student, -50 * student, every)) == pytest.approx(0.6931, abs=1e-3)
    assert abs(float(jensen_shannon(teacher, teacher, every))) < 1e-9


def test_no_gradient_flows_through_what_was_sampled(teacher, data):
    """The gradient is that of the same loss on the written texts, given as plain ids."""
    student, batch, config = build(seed=5, layers=2), data.batch([0, 1, 2]), OnPolicyConfig(new_tokens=6)
    OnPolicy(teacher, config, torch.Generator().manual_seed(3))(student, batch).backward()
    found = [p.grad.clone() for p in student.parameters()]
    chance = torch.Generator().manual_seed(3)
    torch.rand((), generator=chance)
    seen = written(student, batch, config, chance)
    assert not seen.tokens.requires_grad
    student.zero_grad()
    counted = seen.labels != IGNORE
    (reverse_kl(student(seen.tokens), teacher(seen.tokens).detach(), counted) * batch.count).backward()
    for a, p in zip(found, student.parameters()):
        torch.testing.assert_close(a, p.grad, atol=1e-5, rtol=1e-3)
    assert all(p.grad is None for p in teacher.parameters()) and not teacher.training


def test_neither_prompt_nor_padding_counts(data):
    student = ending(build(seed=5, layers=2))
    batch = data.batch(list(range(12)))
    seen = written(student, batch, OnPolicyConfig(new_tokens=8), torch.Generator().manual_seed(1))
    ended = 0
    for tokens, labels, prompt in zip(seen.tokens, seen.labels, prompts_of(batch)):
        said = labels[labels != IGNORE].tolist()
        assert tokens[: len(prompt)].tolist() == prompt and 1 <= len(said) <= 8
        assert labels[: len(prompt) - 1].eq(IGNORE).all()
        assert END not in said[:-1] and labels[len(prompt) - 1 + len(said) :].eq(IGNORE).all()
        ended += said[-1] == END
    assert 0 < ended < 12


def test_a_share_of_the_steps_reads_the_given_texts(teacher, data):
    student, batch = build(seed=5, layers=2), data.batch([0, 1, 2])
    recipe = OnPolicy(teacher, OnPolicyConfig(share=0.0), torch.Generator().manual_seed(3))
    given = recipe.parts(student, batch)["reverse"]
    with torch.no_grad():
        expected = reverse_kl(student(batch.tokens), teacher(batch.tokens), batch.labels != IGNORE)
    torch.testing.assert_close(given.detach(), expected)


class Interrupted(Exception):
    pass


def test_an_interrupted_on_policy_run_ends_with_the_same_bits(teacher, data, tmp_path):
    config = OnPolicyConfig(new_tokens=5, share=0.7, forward=0.5)

    def taught(data, name):
        student = start_from(LanguageModel(student_config(teacher.config, 2), TRAINING.seed), teacher)
        held_out, run = [data.batch([9, 10])], RunFolder(tmp_path / name)
        return student, distil(student, OnPolicy(teacher, config), data, held_out, TRAINING, run)

    whole, _ = taught(data, "whole")

    class Failing(LabelledRows):
        def microbatches(self, step, parts):
            if step == 3:
                raise Interrupted
            return super().microbatches(step, parts)

    with pytest.raises(Interrupted):
        taught(Failing(data.rows, 4, 0), "parts")
    torch.manual_seed(99)
    again, result = taught(data, "parts")
    assert result["steps"] == 4 and all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters()))


def test_a_student_comes_closer_to_its_teacher_on_its_own_texts(teacher, data, tmp_path):
    training = dataclasses.replace(TRAINING, steps=30, learning_rate=5e-3, validate_every=30, checkpoint_every=30)
    config = OnPolicyConfig(new_tokens=8)

    def distance(model):
        recipe = OnPolicy(teacher, config, torch.Generator().manual_seed(0))
        return float(recipe.parts(model, data.batch([0, 1, 2, 3]))["reverse"].detach())

    before = distance(build(seed=5, layers=2))
    student = build(seed=5, layers=2)
    distil(student, OnPolicy(teacher, config), data, [data.batch([9, 10])], training, RunFolder(tmp_path))
    assert distance(student) < 0.7 * before


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda t: beam_search(t, [[BEGIN]], 4, 0), "beams is 0; it must be at least 1"),
        (lambda t: beam_search(build(kind="encoder"), [[BEGIN]], 4, 2),
         "writes with a decoder, and this is an encoder"),
        (lambda t: beam_search(t, [[BEGIN] * 40], 20, 2), "do not fit the model's context of 48"),
        (lambda t: OnPolicy(t, OnPolicyConfig()).begin(build(vocabulary=400)), "vocabulary is 400, the teacher's 320"),
        (lambda t: OnPolicy(build(kind="encoder"), OnPolicyConfig()).begin(build(kind="encoder")), "needs decoders"),
        (lambda t: OnPolicy(t, OnPolicyConfig(new_tokens=48)).begin(build()),
         "shorten the prompt or ask for fewer new tokens"),
        (lambda t: OnPolicyConfig(reverse=0.0), "all weights are 0"),
        (lambda t: OnPolicyConfig(share=1.5), "share"),
        (lambda t: WritingConfig(beams=0), "beams"),
        (lambda t: jensen_shannon(torch.zeros(1, 3), torch.zeros(1, 3), torch.ones(1, dtype=torch.bool), 1.0),
         "above 0 and below 1"),
    ],
)
def test_what_cannot_be_written_is_said(call, message, teacher):
    with pytest.raises(UserError, match=message):
        call(teacher)


def test_a_batch_is_all_that_is_needed_of_the_data(teacher):
    """Packed text has no prompts: there the student goes on from the first token of each row."""
    rows = torch.randint(20, 320, (3, 9), generator=torch.Generator().manual_seed(0))
    batch = Batch(rows[:, :-1], rows[:, 1:], torch.ones(3, 8, dtype=torch.bool), [0, 1, 2])
    assert prompts_of(batch) == [[int(row[0])] for row in rows]
