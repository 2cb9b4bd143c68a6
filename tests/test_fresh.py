"""Fresh questions: none twice, none of a held-out passage, and the same wherever and whenever they are drawn."""

import functools
from dataclasses import replace

import pytest
import torch
from conftest import TINY

from minialign.heads import LanguageModel, describe_model
from minialign.instruct.fresh import Ahead, FreshMixture, FreshRows
from minialign.instruct.mixture import question_ids
from minialign.instruct.t0 import tune_on_questions
from minialign.pretrain.span_corruption import TextToTextRows
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
    encode = functools.partial(question_ids, tokenizer, context=256, skip_long=True)

    def data():
        rows = FreshRows(mixture, encode, lambda rows: TextToTextRows(rows, 16, 0), 16)
        monkeypatch.setattr(rows, "ahead", rows.ahead.make)  # in this process
        return rows

    rows, later = data(), data()
    first = [rows.microbatches(step, 1)[0].tokens for step in range(6)]
    assert later.microbatches(5, 1)[0].tokens.equal(first[5]), "a run that goes on begins in a later chunk"
    assert rows.microbatches(1, 1)[0].tokens.equal(first[1])
    assert first[0].shape != first[4].shape or not first[0].equal(first[4])


def test_t0_learns_from_fresh_questions(tokenizer, tmp_path):
    mixture = FreshMixture(ASKED, 3, size=32)
    model = LanguageModel(replace(TINY, vocabulary=tokenizer.size, kind="encoder-decoder", context=256), 0)
    run = RunFolder(tmp_path)
    run.begin({**describe_model(model), "stage": "t0"}, tokenizer)
    valid = [mixture.question(i) for i in range(10_000, 10_016)]
    found = tune_on_questions(model, tokenizer, mixture, valid, TrainingConfig(3, 8, 1e-3), run)
    assert found["steps"] == 3 and torch.isfinite(torch.tensor(found["validation"]))
