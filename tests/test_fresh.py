"""Fresh questions: none twice, none of a held-out passage, and the same wherever and whenever they are drawn."""

import functools
from dataclasses import replace

import pytest
import torch
from conftest import TINY

from minialign.batching import IGNORE, Interleaved
from minialign.heads import LanguageModel, describe_model
from minialign.instruct.flan import Conversations, conversation_rows
from minialign.instruct.fresh import Ahead, FreshMixture, FreshRows
from minialign.instruct.t0 import first_questions, tune_on_questions
from minialign.pretrain.causal_lm import PackedText
from minialign.pretrain.span_corruption import TextToTextRows
from minialign.runs.errors import UserError
from minialign.runs.run_folder import RunFolder
from minialign.tokenizer import train_tokenizer
from minialign.training import TrainingConfig
from minialign.world.datasets import CLUSTERS, HELD_OUT, PROMPTS
from minialign.world.templates import texts

ASKED = {task: PROMPTS[task] for cluster, tasks in CLUSTERS.items() if cluster not in HELD_OUT for task in tasks}


@pytest.fixture(scope="module")
def mixture():
    return FreshMixture(ASKED, 3)


@pytest.fixture(scope="module")
def tokenizer(mixture):
    return train_tokenizer([mixture.question(i).prompt for i in range(300)], 400)


def square(number):
    return number * number


def test_a_fresh_question_depends_on_seed_and_number_alone(mixture):
    again = [FreshMixture(ASKED, 3).question(i) for i in (7, 3, 5)]
    assert again == [mixture.question(i) for i in (7, 3, 5)]
    assert FreshMixture(ASKED, 4).question(7) != again[0]


@pytest.mark.parametrize("tasks, turns", [({}, 1), (ASKED, 0)])
def test_a_conversation_of_nothing_is_refused_before_it_is_looked_for(tasks, turns):
    with pytest.raises(UserError, match="give at least one of each"):
        FreshMixture(tasks, 3, turns=turns)


def test_no_question_comes_twice_and_every_task_comes(mixture):
    drawn = [mixture.question(i) for i in range(1500)]
    read = [q.prompt for q in drawn if len(q.prompt.split()) > 20]  # words alone are few
    assert len(set(read)) > 0.995 * len(read)
    assert {q.task for q in drawn} == set(ASKED)


def test_fresh_questions_leave_out_held_out_passages():
    whole = FreshMixture({"who": PROMPTS["who"][:1]}, 3)
    stories = [whole.question(i).prompt.rsplit("\n", 1)[0] for i in range(40)]
    kept_out = texts({"story": stories[5]})
    without = FreshMixture({"who": PROMPTS["who"][:1]}, 3, kept_out)
    again = [without.question(i).prompt.rsplit("\n", 1)[0] for i in range(40)]
    assert kept_out and stories[5] not in again
    assert [a for i, a in enumerate(again) if i != 5] == [s for i, s in enumerate(stories) if i != 5]


def test_another_process_writes_ahead():
    ahead = Ahead(square)
    assert [ahead(number) for number in (0, 1, 2, 5)] == [0, 1, 4, 25]
    assert set(ahead.made) == {5, 6, 7}


def test_training_on_fresh_questions_goes_on_where_it_was_stopped(tokenizer, monkeypatch):
    mixture = FreshMixture(ASKED, 3, size=64)
    encode = functools.partial(first_questions, tokenizer, context=256)

    def data():
        rows = FreshRows(mixture, encode, lambda rows: TextToTextRows(rows, 16, 0), 16)
        monkeypatch.setattr(rows, "ahead", rows.ahead.make)  # in this process
        return rows

    rows, later = data(), data()
    first = [rows.microbatches(step, 1)[0].tokens for step in range(6)]
    assert later.microbatches(5, 1)[0].tokens.equal(first[5]), "a run that goes on begins in a later chunk"
    assert rows.microbatches(1, 1)[0].tokens.equal(first[1])
    assert first[0].shape != first[4].shape or not first[0].equal(first[4])


def test_a_conversation_tells_its_passage_once_and_each_kind_of_task_comes_first():
    mixture = FreshMixture(ASKED, 3, turns=6)
    found = [mixture.conversation(number) for number in range(800)]
    assert {turns[0].task for turns in found} == set(ASKED)
    assert 3.5 < sum(map(len, found)) / len(found) < 6
    for turns in found:
        assert len({turn.task for turn in turns}) == len(turns)
        told = [line for line in turns[0].prompt.split("\n") if line.count(". ") > 1 and line.endswith(".")]
        for line, turn in ((line, turn) for line in told[:1] for turn in turns[1:]):
            assert line not in turn.prompt, turn
    assert mixture.question(5) == found[5][0]


def test_every_answer_of_a_conversation_is_taught_with_its_end_and_no_question_is(tokenizer):
    turns = FreshMixture(ASKED, 3, turns=4).conversation(2)
    ((ids, labels),), left = conversation_rows(tokenizer, [turns], 256)
    data = Conversations([(ids, labels)] * 2, 2, 0)
    batch = data.batch([0, 1])
    taught = batch.labels[0] != IGNORE
    said = tokenizer.library.decode(batch.labels[0][taught].tolist(), skip_special_tokens=False)
    assert len(turns) > 1 and left == 0
    assert said == "".join(f" {turn.target}<end>" for turn in turns)
    assert torch.equal(batch.labels[0][taught], torch.tensor(ids[1:])[taught]), "labels are the tokens that follow"
    assert conversation_rows(tokenizer, [turns], 8) == ([], 1)


def test_no_question_is_asked_of_a_passage_that_did_not_fit(tokenizer):
    turns = FreshMixture(ASKED, 3, turns=4).conversation(2)
    room = [len(tokenizer.encode(turn.prompt)) for turn in turns]
    assert max(room[1:]) + 4 < room[0], "without their passage the others would fit"
    assert conversation_rows(tokenizer, [turns], room[0]) == ([], 1)


def test_every_so_many_steps_the_other_data_come():
    often, seldom = (PackedText(torch.arange(40).view(20, 2) + 100 * k, 1, 0) for k in (0, 1))
    both = Interleaved(often, seldom, 3)
    shown = [both.microbatches(step, 1)[0].tokens.item() for step in range(9)]
    a, b = ([data.microbatches(step, 1)[0].tokens.item() for step in range(6)] for data in (often, seldom))
    assert shown == [*a[:2], b[0], *a[2:4], b[1], *a[4:6], b[2]]


@pytest.mark.parametrize("kind, turns", [("encoder-decoder", 1), ("decoder", 4)])
def test_models_learn_from_fresh_questions(kind, turns, tokenizer, tmp_path):
    mixture = FreshMixture(ASKED, 3, turns=turns, size=32)
    model = LanguageModel(replace(TINY, vocabulary=tokenizer.size, kind=kind, context=256), 0)
    run = RunFolder(tmp_path)
    run.begin({**describe_model(model), "stage": "t0"}, tokenizer)
    valid = [mixture.question(i) for i in range(10_000, 10_016)]
    found = tune_on_questions(model, tokenizer, mixture, valid, TrainingConfig(3, 8, 1e-3), run)
    assert found["steps"] == 3 and torch.isfinite(torch.tensor(found["validation"]))
