"""Recipes that look inside the layers: DistilBERT, TinyBERT, MiniLM."""

import dataclasses
import math

import pytest
import torch
from conftest import TINY, build

from minialign.batching import IGNORE, pad
from minialign.classification import LabelledTexts
from minialign.distill.distilbert import DISTILBERT
from minialign.distill.minilm import MINILM, MINILM_V2, MiniLM, MiniLMConfig, train_assistant
from minialign.distill.recipe import Recipe, distil, read
from minialign.distill.recording import may_look, recorded
from minialign.distill.soft_targets import SoftTargetConfig, SoftTargets
from minialign.distill.student import start_from, student_config
from minialign.distill.tinybert import (
    PREDICTION,
    TINYBERT,
    AugmentationConfig,
    TinyBERT,
    TinyBERTConfig,
    augment,
    distil_task,
    layer_of,
)
from minialign.heads import Classifier, LanguageModel, describe_model, load_model
from minialign.pretrain.masked_lm import MaskedText
from minialign.runs.errors import UserError
from minialign.runs.run_folder import RunFolder
from minialign.tokenizer import BEGIN
from minialign.training import TrainingConfig

TRAINING = TrainingConfig(steps=4, batch=4, learning_rate=1e-3, validate_every=2, checkpoint_every=2)
SHAPES = [dict(kind="encoder"), dict(short_convolution=4),
          dict(kind="decoder"), dict(kind="encoder", positions="learned")]


@pytest.fixture
def teacher():
    return build(layers=4, kind="encoder")


@pytest.fixture
def data():
    chance = torch.Generator().manual_seed(0)
    rows = [[BEGIN, *torch.randint(20, 320, (5 + i % 6,), generator=chance).tolist()] for i in range(12)]
    return MaskedText(rows, 4, 0, 320)


def student_of(teacher, layers=2, width=0, heads=0, seed=5):
    return LanguageModel(student_config(teacher.config, layers, width, heads), seed)


@pytest.mark.parametrize("shape", SHAPES)
def test_recorded_scores_are_those_that_the_model_used(shape, data):
    model, batch = build(layers=2, **shape), data.batch([0, 1, 2])
    mixed = []
    hooks = [block.attention.output.register_forward_pre_hook(lambda module, inputs: mixed.append(inputs[0]))
             for block in model.body.blocks]
    with recorded(model.body) as recording:
        read(model, batch)
    for hook in hooks:
        hook.remove()
    for layer, block in enumerate(model.body.blocks):
        weights = recording.scores(layer).masked_fill(~may_look(model, batch), -torch.inf).softmax(dim=-1)
        again = (weights @ block.attention.split(recording.values[layer])).transpose(1, 2).flatten(2)
        torch.testing.assert_close(again[batch.mask], mixed[layer][batch.mask], atol=1e-5, rtol=1e-4)


def test_an_encoder_is_compared_at_every_real_token(teacher, data):
    student, batch = student_of(teacher), data.batch([0, 1, 2])
    parts = SoftTargets(teacher, DISTILBERT).parts(student, batch)
    ours, theirs = (model(batch.tokens, batch.mask)[batch.mask].detach() / 2 for model in (student, teacher))
    kl = sum(float((t.softmax(-1) * (t.log_softmax(-1) - s.log_softmax(-1))).sum()) for s, t in zip(ours, theirs))
    assert float(parts["soft"].detach()) == pytest.approx(4 * kl / len(ours), rel=1e-4)
    asked = batch.labels != IGNORE
    hard = torch.nn.functional.cross_entropy(student(batch.tokens, batch.mask)[asked], batch.labels[asked])
    torch.testing.assert_close(parts["hard"], hard)


def test_distilbert_takes_any_list_of_layers(teacher, data, tmp_path):
    once = dataclasses.replace(TRAINING, steps=1, learning_rate=1e-12)
    student = start_from(student_of(teacher), teacher, [1, 3])
    recipe = SoftTargets(teacher, DISTILBERT)
    result = distil(student, recipe, data, [data.batch([9, 10])], once, RunFolder(tmp_path))
    assert result["steps"] == 1
    for ours, theirs in zip(student.body.blocks, (1, 3)):
        torch.testing.assert_close(ours.feed_forward.inner.weight,
                                   teacher.body.blocks[theirs].feed_forward.inner.weight)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@pytest.mark.parametrize(
    "recipe, config", [(SoftTargets, DISTILBERT), (TinyBERT, dataclasses.replace(TINYBERT, prediction=1.0)),
                       (MiniLM, MINILM), (MiniLM, MINILM_V2)]
)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(kind, recipe, config, data):
    teacher, student = build(layers=3, kind=kind), build(layers=3, kind=kind)
    loss = recipe(teacher, config)
    loss.begin(student)
    parts = loss.parts(student, data.batch([0, 1, 2]))
    for name in set(parts) - {"hard"}:
        assert abs(float(parts[name].detach())) < 1e-5, name


@pytest.mark.parametrize(
    "recipe, config, width",
    [(SoftTargets, SoftTargetConfig(hard=1.0), 48), (TinyBERT, TINYBERT, 16), (MiniLM, MINILM, 64),
     (MiniLM, MINILM_V2, 48)],
)
def test_padding_changes_no_part(recipe, config, width, teacher, data):
    student, batch = student_of(teacher, 2, width), data.batch([0])
    loss = recipe(teacher, config)
    loss.begin(student)
    wider = dataclasses.replace(batch, tokens=pad([batch.tokens[0].tolist()], length=20)[0],
                                mask=pad([[1] * batch.tokens.shape[1]], length=20)[0].bool())
    wider.labels = pad([batch.labels[0].tolist()], length=20, value=IGNORE)[0]
    other = dataclasses.replace(wider, tokens=wider.tokens.masked_fill(~wider.mask, 33))
    plain, padded, filled = (loss.parts(student, b) for b in (batch, wider, other))
    for name in plain:
        assert float(padded[name].detach()) == pytest.approx(float(plain[name].detach()), rel=1e-4), name
        assert float(filled[name].detach()) == pytest.approx(float(padded[name].detach()), rel=1e-5), name


def test_a_part_with_weight_0_is_left_out(teacher, data):
    student, batch = student_of(teacher), data.batch([0])
    for recipe, config in ((SoftTargets, DISTILBERT), (TinyBERT, TINYBERT), (MiniLM, MINILM_V2)):
        for name in vars(config):
            if name not in ("temperature", "layer") and getattr(config, name):
                loss = recipe(teacher, dataclasses.replace(config, **{name: 0.0}))
                loss.begin(student)
                assert name not in loss.parts(student, batch)
    with pytest.raises(NotImplementedError):
        Recipe(teacher, TINYBERT).parts(student, batch)


def test_what_each_part_pulls_at_can_be_seen(teacher, data):
    loss, student, batch = SoftTargets(teacher, DISTILBERT), student_of(teacher), data.batch([0, 1])
    whole = float(loss(student, batch).detach())
    assert sum(loss.weighed(student, batch).values()) * batch.count == pytest.approx(whole, rel=1e-5)


def test_minilm_equals_its_definition(teacher, data):
    """Written out slowly: one head, one token at a time, no padding."""
    student, batch = student_of(teacher, 2, 48), data.batch([1])
    parts = MiniLM(teacher, MINILM).parts(student, batch)
    with recorded(student.body) as ours, recorded(teacher.body) as theirs, torch.no_grad():
        read(student, batch), read(teacher, batch)
    T, H = batch.tokens.shape[1], 2
    total = 0.0
    for head in range(H):
        tables = []
        for recording, d in ((theirs, 16), (ours, 24)):
            v = recording.values[-1][0, :, head * d : (head + 1) * d]
            tables.append([[float(v[i] @ v[j]) / math.sqrt(d) for j in range(T)] for i in range(T)])
        for p, q in zip(*tables):
            p, q = torch.tensor(p).softmax(0), torch.tensor(q).softmax(0)
            total += float((p * (p / q).log()).sum()) / (H * T)
    assert float(parts["values"].detach()) == pytest.approx(total, rel=1e-3)
    with torch.no_grad():
        a, b = (t.scores(-1)[0].softmax(-1) for t in (theirs, ours))
    assert float(parts["attention"].detach()) == pytest.approx(float((a * (a / b).log()).sum()) / (H * T), rel=1e-3)


def test_minilm_takes_any_width_and_v2_any_heads(teacher, data):
    batch = data.batch([0, 1])
    MiniLM(teacher, MINILM).parts(student_of(teacher, 1, 64), batch)
    other = student_of(teacher, 1, 48, 3)
    with pytest.raises(UserError, match="the student has 3 heads, the teacher 2; give it 2"):
        MiniLM(teacher, MINILM).begin(other)
    loss = MiniLM(teacher, dataclasses.replace(MINILM_V2, relation_heads=8))
    loss.begin(other)
    assert set(loss.parts(other, batch)) == {"queries", "keys", "values"}
    with pytest.raises(UserError, match="width of 48 does not divide into 5 relation heads"):
        MiniLM(teacher, dataclasses.replace(MINILM_V2, relation_heads=5)).begin(other)
    with pytest.raises(UserError, match="layer is 4; the teacher's are 0 to 3"):
        MiniLM(teacher, MiniLMConfig(layer=4)).begin(student_of(teacher))


def test_minilm_moves_everything_below_the_last_attention_and_nothing_above(teacher, data):
    student = student_of(teacher)
    MiniLM(teacher, MINILM)(student, data.batch([0, 1])).backward()
    moved = {name for name, p in student.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert "body.blocks.0.feed_forward.inner.weight" in moved and "body.blocks.1.attention.value.weight" in moved
    assert not {name for name in moved if name.startswith(("body.blocks.1.feed_forward",
                                                           "body.blocks.1.attention.output", "body.norm"))}


def test_an_assistant_stands_between_teacher_and_student(teacher, tokenizer, data, tmp_path):
    run, held_out = RunFolder(tmp_path / "student"), [data.batch([9])]
    first = train_assistant(MiniLM(teacher, MiniLMConfig(layer=1)), 16, tokenizer, data, held_out, TRAINING, run)
    assistant = load_model(run.path / "assistant")[0]
    assert (assistant.config.layers, assistant.config.width) == (4, 16) and first.config.layer == -1
    again = train_assistant(MiniLM(teacher, MINILM), 16, tokenizer, None, held_out, TRAINING, run)
    for a, b, c in zip(assistant.parameters(), first.teacher.parameters(), again.teacher.parameters()):
        assert torch.equal(a, b) and torch.equal(a, c), "a finished assistant is not taught again"
    assert distil(student_of(first.teacher, 1), first, data, held_out, TRAINING, run)["steps"] == 4


def test_the_layer_map_counts_from_one(teacher, data):
    assert [layer_of(m, 2, 4) for m in range(3)] == [0, 2, 4]
    assert [layer_of(m, 4, 12) for m in range(1, 5)] == [3, 6, 9, 12]
    student, batch = student_of(teacher, 2), data.batch([0, 1])
    loss = TinyBERT(teacher, TINYBERT)
    loss.begin(student)
    parts = loss.parts(student, batch)
    with recorded(student.body) as ours, recorded(teacher.body) as theirs, torch.no_grad():
        read(student, batch), read(teacher, batch)

    def square(a, b):
        return float(((a - b) ** 2)[batch.mask].mean())  # the projections begin as identities

    assert float(parts["embedding"].detach()) == pytest.approx(square(ours.hidden[0], theirs.hidden[0]), rel=1e-4)
    hidden = (square(ours.hidden[1], theirs.hidden[2]) + square(ours.hidden[2], theirs.hidden[4])) / 2
    assert float(parts["hidden"].detach()) == pytest.approx(hidden, rel=1e-4)
    allowed = (may_look(student, batch) & batch.mask[:, None, :, None]).expand(-1, 2, -1, -1)
    scores = [(ours.scores(a) - theirs.scores(b))[allowed].square().mean() for a, b in ((0, 1), (1, 3))]
    assert float(parts["attention"].detach()) == pytest.approx(float(sum(scores)) / 2, rel=1e-4)


def test_projections_train_and_are_not_in_the_file(teacher, tokenizer, data, tmp_path):
    student, run, seen = student_of(teacher, 2, 16), RunFolder(tmp_path), []
    run.begin(describe_model(student), tokenizer)

    class Watched(TinyBERT):
        def end(self, student):
            seen.append(student.projections["hidden"].weight.detach().clone())
            super().end(student)

    distil(student, Watched(teacher, TINYBERT), data, [data.batch([9])], TRAINING, run)
    assert seen[0].shape == (32, 16) and not torch.equal(seen[0], torch.eye(32, 16)), "the optimizer did not have it"
    loaded = load_model(run.path, "language-model")[0]
    tokens = data.batch([0]).tokens
    assert not hasattr(student, "projections") and torch.equal(loaded(tokens), student(tokens))


def test_a_student_whose_lesson_fails_keeps_no_projections(teacher, data, tmp_path):
    """Another recipe would go on with them and write them into the student's file, which nothing could read."""
    student = student_of(teacher, 2, 16)

    def fails(model):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distil(student, TinyBERT(teacher, TINYBERT), data, [], TRAINING, RunFolder(tmp_path), fails)
    assert not hasattr(student, "projections")


def test_a_stopped_tinybert_goes_on_to_the_same_bits(teacher, data, tmp_path, monkeypatch):
    whole, halves = student_of(teacher), student_of(teacher)
    distil(whole, TinyBERT(teacher, TINYBERT), data, [data.batch([9])], TRAINING, RunFolder(tmp_path / "a"))
    calls = []

    class Falls(TinyBERT):
        def __call__(self, student, batch):
            calls.append(1)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return super().__call__(student, batch)

    with pytest.raises(KeyboardInterrupt):
        distil(halves, Falls(teacher, TINYBERT), data, [data.batch([9])], TRAINING, RunFolder(tmp_path / "b"))
    fresh = student_of(teacher)
    distil(fresh, TinyBERT(teacher, TINYBERT), data, [data.batch([9])], TRAINING, RunFolder(tmp_path / "b"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), fresh.parameters()))


def test_a_classifier_learns_a_task_from_a_classifier(tmp_path):
    """Class 1 holds the token 40. The labels that the student's texts carry are all wrong: it can have learned from its
    teacher alone."""
    chance = torch.Generator().manual_seed(0)
    rows = [[BEGIN, *torch.randint(50, 60, (4,), generator=chance).tolist(), 40 if i % 2 else 41] for i in range(40)]
    right = [i % 2 for i in range(40)]
    teacher = Classifier(build(layers=2, kind="encoder", width=16, heads=2).body, 2)
    optimizer = torch.optim.Adam(teacher.parameters(), 3e-3)
    tokens, mask = pad(rows)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(teacher(tokens, mask), torch.tensor(right)).backward()
        optimizer.step()
    student = Classifier(build(seed=3, layers=1, kind="encoder", width=16, heads=2).body, 2, 3)
    training = TrainingConfig(steps=40, batch=8, learning_rate=5e-3, validate_every=40, checkpoint_every=40)
    data = LabelledTexts(rows, [1 - c for c in right], 8, 0)
    result = distil_task(student, teacher, data, LabelledTexts(rows, right, 8, 0), training, RunFolder(tmp_path))
    assert result["accuracy"] > 0.9 and not hasattr(student, "projections")
    assert (tmp_path / "layers").is_dir() and PREDICTION.prediction == 1.0
    again = Classifier(build(seed=8, layers=1, kind="encoder", width=16, heads=2).body, 2, 8)
    assert distil_task(again, teacher, data, LabelledTexts(rows, right, 8, 0), training,
                       RunFolder(tmp_path)) == result, "done already: nothing is trained"
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), student.parameters()))


def test_augmented_texts_differ_in_some_words_and_keep_special_tokens(teacher, data):
    rows = data.rows[:3]
    config = AugmentationConfig(copies=40, chance=0.4, candidates=3)
    made = augment(rows, teacher, config, 0)
    assert len(made) == 120 and made == augment(rows, teacher, config, 0)
    changed = [a != b for i, text in enumerate(made) for a, b in zip(text[1:], rows[i // 40][1:])]
    assert all(text[0] == BEGIN and len(text) == len(rows[i // 40]) for i, text in enumerate(made))
    assert 0.3 < sum(changed) / len(changed) < 0.45
    assert min(min(text[1:]) for text in made) >= 20, "no special token is put in"
    for place in range(1, len(rows[0])):
        assert len({text[place] for text in made[:40]}) <= 4, "its own word, or one of three"
    assert augment(rows, teacher, AugmentationConfig(copies=0), 0) == []


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda t: SoftTargets(t, DISTILBERT).begin(student_of(t, 2, 16)),
         "the student's width is 16, the teacher's 32; .* use tinybert or minilm"),
        (lambda t: TinyBERT(t, TINYBERT).begin(student_of(t, 2, 48, 3)),
         "the student has 3 heads, the teacher 2; give it 2"),
        (lambda t: MiniLM(t, MINILM).begin(LanguageModel(dataclasses.replace(TINY, kind="encoder", vocabulary=400))),
         "vocabulary is 400, the teacher's 320"),
        (lambda t: MiniLM(t, MINILM).begin(build()), "kind is decoder, the teacher's encoder"),
        (lambda t: TinyBERT(t, TINYBERT).begin(build(layers=5, kind="encoder")),
         "5 layers cannot learn from a teacher of 4; give it 1 to 4"),
        (lambda t: student_of(t, 5), "5 layers cannot learn from a teacher of 4; give it 1 to 4"),
        (lambda t: TinyBERTConfig(0, 0, 0, 0), "all weights are 0"),
        (lambda t: MiniLMConfig(0, 0, 0, 0), "all weights are 0"),
        (lambda t: SoftTargetConfig(temperature=0), "temperature"),
        (lambda t: TinyBERTConfig(temperature=-1), "temperature"),
    ],
)
def test_what_cannot_be_taught_is_said(make, message, teacher):
    with pytest.raises(UserError, match=message):
        make(teacher)
