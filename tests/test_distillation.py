"""Students of decoders: how they begin, what they copy, and that they learn it."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, build

from minialign.distill.distilgpt2 import DISTILGPT2
from minialign.distill.recipe import distil
from minialign.distill.recording import recorded
from minialign.distill.soft_targets import SoftTargetConfig, SoftTargets
from minialign.distill.student import evenly, start_from, student_config
from minialign.heads import LanguageModel
from minialign.pretrain.causal_lm import LabelledRows
from minialign.runs.errors import UserError
from minialign.runs.run_folder import RunFolder
from minialign.training import TrainingConfig

SHAPE = dataclasses.replace(TINY, layers=4)


@pytest.fixture
def teacher():
    return build(layers=4)


@pytest.fixture
def data():
    chance = torch.Generator().manual_seed(0)
    rows = [([1, *torch.randint(20, 320, (5 + i % 6,), generator=chance).tolist(), 2], 1 + i % 2) for i in range(12)]
    return LabelledRows(rows, 4, 0)


def test_layers_are_spread_evenly():
    assert evenly(12, 6) == [0, 2, 4, 7, 9, 11] and evenly(6, 3) == [0, 2, 5]  # the released DistilBERT's six
    assert evenly(3, 2) == [0, 2] and evenly(4, 1) == [0] and evenly(3, 3) == [0, 1, 2]


@pytest.mark.parametrize("kind", ["decoder", "encoder", "encoder-decoder"])
def test_a_student_starts_as_some_of_its_teachers_layers(kind):
    large = build(layers=4, kind=kind)
    small = start_from(LanguageModel(student_config(large.config, 2), seed=9), large, [0, 3])

    def stack(model):
        return model.body.decoder if kind == "encoder-decoder" else model.body

    for ours, layer in zip(stack(small).blocks, (0, 3)):
        for name, tensor in ours.state_dict().items():
            assert torch.equal(tensor, stack(large).blocks[layer].state_dict()[name])
    assert torch.equal(stack(small).token_embedding.weight, stack(large).token_embedding.weight)
    assert torch.equal(stack(small).norm.weight, stack(large).norm.weight)


def test_a_student_with_all_layers_is_its_teacher(teacher, tokens):
    assert torch.equal(start_from(LanguageModel(student_config(SHAPE, 4), seed=3), teacher)(tokens), teacher(tokens))


def test_hidden_states_begin_with_the_embeddings(teacher, tokens):
    with recorded(teacher.body) as recording:
        last = teacher.body(tokens)
        teacher.body(tokens)  # a second pass begins a new list
    states = recording.hidden
    assert len(states) == 5
    assert torch.equal(states[0], teacher.body.token_embedding(tokens))
    assert torch.equal(teacher.body.norm(states[-1]), last)


def test_recording_changes_nothing(teacher, tokens):
    before = teacher(tokens)
    with recorded(teacher.body):
        assert torch.equal(teacher(tokens), before)
    assert not teacher.body.blocks[0]._forward_hooks and not teacher.body.blocks[0]._forward_pre_hooks


def test_the_parts_of_the_loss_are_weighted_as_said(teacher, data):
    student, batch = build(seed=5, layers=2), data.batch([0, 1, 2])
    config = SoftTargetConfig(temperature=3.0, soft=5.0, hard=2.0, cosine=0.5)
    loss = SoftTargets(teacher, config)
    parts = {name: value.detach() for name, value in loss.parts(student, batch).items()}
    weighted = float(5 * parts["soft"] + 2 * parts["hard"] + 0.5 * parts["cosine"])
    assert float(loss(student, batch).detach()) == pytest.approx(weighted * batch.count, rel=1e-5)
    taught = batch.labels >= 0
    z_s, z_t, labels = student(batch.tokens)[taught].detach(), teacher(batch.tokens)[taught], batch.labels[taught]
    soft = F.kl_div((z_s / 3).log_softmax(-1), (z_t / 3).softmax(-1), reduction="batchmean") * 9
    torch.testing.assert_close(parts["soft"], soft)
    torch.testing.assert_close(parts["hard"], F.cross_entropy(z_s, labels))


def test_the_teacher_is_quiet(data):
    teacher = build(layers=4, dropout=0.5).train()
    student, batch = build(seed=5, layers=2), data.batch([0, 1])
    loss = SoftTargets(teacher, DISTILGPT2)
    first, second = loss(student, batch), loss(student, batch)
    assert torch.equal(first, second), "dropout of the teacher would give another loss each time"
    first.backward()
    assert all(p.grad is None for p in teacher.parameters()) and any(p.grad is not None for p in student.parameters())


def test_a_student_comes_closer_to_its_teacher_than_one_taught_by_labels(teacher, data, tmp_path):
    """The text is random, so its labels teach nothing; the teacher's probabilities are all there is to learn."""
    training = TrainingConfig(steps=40, batch=4, learning_rate=1e-2, validate_every=40, checkpoint_every=40)
    held_out = [data.batch([9, 10, 11])]
    distances = {}
    for name, config in (("soft", SoftTargetConfig()), ("hard", SoftTargetConfig(soft=0.0, hard=1.0))):
        student = LanguageModel(student_config(SHAPE, 2, 16, 2), seed=1)
        result = distil(student, SoftTargets(teacher, config), data, held_out, training, RunFolder(tmp_path / name))
        assert result["steps"] == 40
        distance = SoftTargets(teacher, SoftTargetConfig(temperature=1.0)).parts(student, held_out[0])["soft"]
        distances[name] = float(distance.detach())
    assert distances["soft"] < distances["hard"]


def test_distilgpt2_starts_ahead_and_a_resumed_run_ends_with_the_same_bits(teacher, data, tmp_path):
    training = TrainingConfig(steps=6, batch=4, learning_rate=1e-3, validate_every=3, checkpoint_every=2)
    held_out = [data.batch([9, 10, 11])]

    def taught(training, name, layers=0, from_teacher=True):
        student = LanguageModel(student_config(SHAPE, layers), training.seed)
        if from_teacher:
            start_from(student, teacher)
        distil(student, SoftTargets(teacher, DISTILGPT2), data, held_out, training, RunFolder(tmp_path / name))
        return student

    student, again = taught(training, "a"), taught(training, "b")
    assert student.config.layers == 2
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), again.parameters()))
    once = dataclasses.replace(training, steps=1, seed=7)  # the teacher is seed 0
    fresh, close = taught(once, "c", 4, from_teacher=False), taught(once, "d", 4)


    def distance(model):
        return float(SoftTargets(teacher, DISTILGPT2).parts(model, held_out[0])["cosine"].detach())

    assert distance(close) < distance(fresh)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: student_config(SHAPE, 5), "cannot learn from a teacher of 4; give it 1 to 4"),
        (lambda: start_from(build(layers=2, width=16), build(layers=4)),
         "width is 16, the teacher's 32; .* start it at random"),
        (lambda: start_from(build(layers=2), build(layers=4), [0, 4]), "are not 2 of 0 to 3"),
        (lambda: SoftTargetConfig(soft=0.0), "all weights are 0"),
        (lambda: SoftTargetConfig(temperature=0.0), "temperature"),
    ],
)
def test_impossible_students_are_refused_with_what_would_work(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_soft_targets_are_not_for_an_encoder_decoder():
    shape = dataclasses.replace(SHAPE, kind="encoder-decoder")
    with pytest.raises(UserError, match="for decoders and encoders"):
        SoftTargets(LanguageModel(shape), DISTILGPT2).begin(LanguageModel(shape, seed=1))
