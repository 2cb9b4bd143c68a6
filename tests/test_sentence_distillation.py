"""Students of a sentence encoder: what they keep of the teacher's similarities, and the folder that they are written
to."""

import dataclasses

import pytest
import torch

from minialign.batching import pad
from minialign.lab.interchange.folder import PretrainedTokenizer, read_tokenizer
from minialign.lab.interchange.published import write_bert
from minialign.lab.pretrained.bert import Bert, BertConfig, load_bert, row_vectors, sentence_rows, sentence_vectors
from minialign.lab.pretrained.sentence_vectors import (
    SentenceConfig,
    Sentences,
    SentenceVectors,
    distil_sentences,
    kept,
    random_student,
    ranks,
    sentence_config,
    sentence_student,
    similarity_loss,
    vector_loss,
)
from minialign.runs.errors import UserError
from minialign.runs.run_folder import RunFolder
from minialign.tokenizer import train_tokenizer
from minialign.training import TrainingConfig

SHAPE = BertConfig(320, context=24, width=24, layers=4, heads=3, inner=48, dropout=0.1)
TRAINING = TrainingConfig(steps=6, batch=8, learning_rate=2e-3, weight_decay=0.0, validate_every=3, checkpoint_every=3)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(*shape, seed=0):
    return torch.nn.functional.normalize(numbers(*shape, seed=seed), dim=-1)


@pytest.fixture
def teacher():
    model = random_student(SHAPE, 0)
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):  # opinions that differ; no bias is 0, no norm is 1
            parameter.copy_(4.0 * parameter if parameter.dim() > 1 else parameter + 0.1
                            * numbers(*parameter.shape, seed=i))
    return model.eval()


@pytest.fixture
def rows():
    chance = torch.Generator().manual_seed(1)
    return [[101, *torch.randint(103, 320, (3 + i % 7,), generator=chance).tolist(), 102] for i in range(40)]


# the equations


def test_both_losses_are_their_definitions():
    student, teacher = unit(5, 6), unit(5, 6, seed=1)
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    slow = sum(float((student[i] @ student[j] - teacher[i] @ teacher[j]) ** 2) for i, j in pairs) / len(pairs)
    assert float(similarity_loss(student, teacher)) == pytest.approx(slow, rel=1e-5)
    half = float(((student - teacher) ** 2).sum(dim=-1).mean()) / 2
    assert float(vector_loss(student, teacher)) == pytest.approx(half, rel=1e-5)
    assert float(similarity_loss(student[:1], teacher[:1])) == 0.0


def test_similarities_do_not_change_when_all_vectors_are_turned():
    student, turn = unit(5, 6), torch.linalg.qr(numbers(6, 6, seed=2))[0]
    assert float(similarity_loss(student @ turn, student)) == pytest.approx(0.0, abs=1e-10)
    assert float(vector_loss(student @ turn, student)) > 0.1


def test_ranks_share_their_mean_where_numbers_are_equal():
    assert ranks(torch.tensor([3.0, 1.0, 3.0, 2.0])).tolist() == [2.5, 0.0, 2.5, 1.0]


def test_what_is_kept_equals_the_slow_definitions():
    student, teacher = unit(6, 4), unit(6, 5, seed=1)
    pairs = [(i, j) for i in range(6) for j in range(i + 1, 6)]
    a, b = ([float(v[i].double() @ v[j].double()) for i, j in pairs] for v in (student, teacher))

    def pearson(x, y):
        mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
        cross = sum((p - mean_x) * (q - mean_y) for p, q in zip(x, y))
        return cross / (sum((p - mean_x) ** 2 for p in x) * sum((q - mean_y) ** 2 for q in y)) ** 0.5

    def rank(x):
        return [sum(other < value for other in x) for value in x]

    found = kept(student, teacher)
    assert found["pearson"] == pytest.approx(pearson(a, b), abs=1e-5)
    assert found["spearman"] == pytest.approx(pearson(rank(a), rank(b)), abs=1e-5)
    nearest = [[max((j for j in range(6) if j != i), key=lambda j: float(v[i] @ v[j])) for i in range(6)]
               for v in (student, teacher)]
    assert found["nearest"] == pytest.approx(sum(p == q for p, q in zip(*nearest)) / 6)
    itself = kept(teacher, teacher)
    assert itself["pearson"] == pytest.approx(1) and itself["spearman"] == pytest.approx(1)
    assert itself["nearest"] == 1 and itself["validation"] == 0


# students


@pytest.mark.parametrize("layers, layers_from, taken", [(2, None, [0, 3]), (3, [0, 1, 3], [0, 1, 3]),
                                                        (4, None, [0, 1, 2, 3])])
def test_a_student_begins_as_layers_of_its_teacher(layers, layers_from, taken, teacher, rows):
    student = sentence_student(teacher, layers, layers_from=layers_from)
    for block, layer in zip(student.body.blocks, taken):
        assert all(torch.equal(a, b) for a, b in zip(block.state_dict().values(),
                                                     teacher.body.blocks[layer].state_dict().values()))
    for part in ("norm", "token_embedding", "position_embedding", "segment_embedding"):
        assert torch.equal(getattr(student.body, part).weight, getattr(teacher.body, part).weight), part
    assert torch.equal(student.body.norm.bias, teacher.body.norm.bias) and student.config.dropout == 0.0
    assert torch.equal(row_vectors(student, rows), row_vectors(teacher, rows)) is (layers == 4)


def test_padding_and_the_other_texts_of_a_batch_change_no_vector(teacher, rows):
    data = Sentences(rows, row_vectors(teacher, rows), 8, 0)
    loss = SentenceVectors(teacher, SentenceConfig(similarities=0.0))
    student = sentence_student(teacher, 2)
    one = [float(loss.parts(student, data.batch([i]))["vectors"].detach()) for i in (0, 6)]
    both = float(loss.parts(student, data.batch([0, 6]))["vectors"].detach())  # of different lengths
    assert len(rows[0]) != len(rows[6]) and both == pytest.approx(sum(one) / 2, abs=1e-6)


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_sentences(teacher, rows):
    batch = Sentences(rows, row_vectors(teacher, rows), 8, 0).batch([0, 3, 6])
    parts = SentenceVectors(teacher, SentenceConfig()).parts(sentence_student(teacher, 4), batch)
    assert all(abs(float(part.detach())) < 1e-6 for part in parts.values())
    assert set(parts) == {"vectors", "similarities"}


@pytest.mark.parametrize("weights, names", [({"vectors": 0.0}, {"similarities"}), ({"similarities": 0.0}, {"vectors"})])
def test_a_part_of_weight_0_is_not_computed(weights, names, teacher, rows):
    batch = Sentences(rows, row_vectors(teacher, rows), 8, 0).batch([0, 3])
    assert set(SentenceVectors(teacher, SentenceConfig(**weights)).parts(sentence_student(teacher, 2), batch)) == names


def test_training_brings_a_cut_student_closer_to_its_teacher(teacher, rows, tmp_path):
    training = dataclasses.replace(TRAINING, steps=40, validate_every=40, learning_rate=4e-3)
    student, goal = sentence_student(teacher, 2), row_vectors(teacher, rows[:8])
    before = kept(row_vectors(student, rows[:8]), goal)
    after = distil_sentences(student, teacher, rows[8:], rows[:8], training, RunFolder(tmp_path), SentenceConfig())
    assert after["spearman"] > before["spearman"] and after["steps"] == 40
    assert after["validation"] < 0.5 * before["validation"]


def test_a_narrow_student_learns_similarities_and_is_told_that_it_cannot_learn_vectors(teacher, rows, tmp_path):
    student = random_student(sentence_config(SHAPE, 2, width=12), 0)
    assert student.config.inner == 24
    with pytest.raises(UserError, match="set the weight of vectors to 0"):
        distil_sentences(student, teacher, rows, rows[:4], TRAINING, RunFolder(tmp_path / "a"), SentenceConfig())
    config = SentenceConfig(vectors=0.0, frozen_words=False)
    before = kept(row_vectors(student, rows[:8]), row_vectors(teacher, rows[:8]))["validation"]
    after = distil_sentences(student, teacher, rows[8:], rows[:8], dataclasses.replace(TRAINING, steps=40),
                             RunFolder(tmp_path / "b"), config)
    assert after["validation"] < 0.7 * before


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_words_are_the_teacher_s_at_the_end(frozen, teacher, rows, tmp_path):
    student = sentence_student(teacher, 2)
    distil_sentences(student, teacher, rows, rows[:4], TRAINING, RunFolder(tmp_path),
                     SentenceConfig(frozen_words=frozen))
    assert torch.equal(student.body.token_embedding.weight, teacher.body.token_embedding.weight) is frozen
    assert all(parameter.requires_grad for parameter in student.parameters())


@pytest.mark.parametrize("steps, texts_read", [(12, 32 + 8), (2, 16 + 8)])
def test_the_teacher_reads_each_text_once(steps, texts_read, teacher, rows, tmp_path):
    """And in evaluation mode, without gradients, though it was handed over in training mode; texts that no step shows
    are not read."""
    read, modes = [], set()
    teacher.train()

    def note(body, inputs, output):
        read.append(len(inputs[0]))
        modes.add((body.training, output.requires_grad))

    hook = teacher.body.register_forward_hook(note)
    training = dataclasses.replace(TRAINING, steps=steps)
    distil_sentences(sentence_student(teacher, 2), teacher, rows[8:], rows[:8], training, RunFolder(tmp_path),
                     SentenceConfig())
    hook.remove()
    assert sum(read) == texts_read and modes == {(False, False)}
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_resumed_run_of_sentences_ends_with_the_same_bits(teacher, rows, tmp_path):
    class Broken(Exception):
        pass

    whole = sentence_student(teacher, 2)
    distil_sentences(whole, teacher, rows, rows[:4], TRAINING, RunFolder(tmp_path / "whole"), SentenceConfig())
    halves = sentence_student(teacher, 2)

    def fault(record):
        if record["step"] == 4:
            raise Broken

    run = RunFolder(tmp_path / "halves")
    run.log = fault
    with pytest.raises(Broken):
        distil_sentences(halves, teacher, rows, rows[:4], TRAINING, run, SentenceConfig())
    again = sentence_student(teacher, 2)
    distil_sentences(again, teacher, rows, rows[:4], TRAINING, RunFolder(tmp_path / "halves"), SentenceConfig())
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters()))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda t: sentence_student(t, 5), "a student of 5 layers cannot learn from a teacher of 4; give it 1 to 4"),
        (lambda t: sentence_student(t, 2, width=12), "begin at random, or leave --width and --heads out"),
        (lambda t: sentence_student(t, 2, layers_from=[0, 4]), "are not 2 of 0 to 3"),
        (lambda t: sentence_config(t.config, 2, width=25), "does not divide by 3 heads"),
        (lambda t: SentenceConfig(vectors=0.0, similarities=0.0), "all weights are 0"),
        (lambda t: SentenceVectors(t, SentenceConfig()).begin(Bert(dataclasses.replace(SHAPE, vocabulary=300))),
         "300 tokens, the teacher's 320"),
    ],
)
def test_impossible_students_of_sentences_are_refused(call, message, teacher):
    with pytest.raises(UserError, match=message):
        call(teacher)


# the folder


def test_a_bert_that_was_written_reads_back_to_the_same_bits(tmp_path, texts):
    library = train_tokenizer(texts, vocabulary=320).library
    for name, head in (("body", False), ("head", True)):
        torch.manual_seed(0)
        model = Bert(SHAPE, masked_words=head).eval()
        tokenizer = PretrainedTokenizer(library, model.special)
        write_bert(model, tokenizer, tmp_path / name)
        again, words = load_bert(tmp_path / name), read_tokenizer(tmp_path / name, model.special)
        assert again.config == SHAPE and (again.head is not None) is head
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
        assert torch.equal(sentence_vectors(model, tokenizer, texts[:3], longest=20),
                           sentence_vectors(again, words, texts[:3], longest=20))
        tokens, mask = pad(sentence_rows(words, texts[:2], 20))
        assert mask.shape[1] == 20 and torch.equal(model.body(tokens, mask), again.body(tokens, mask))
