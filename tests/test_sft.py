"""Supervised fine-tuning: only the answer is taught, its end included, and a tiny model learns to answer."""

import math

import pytest
import torch
from conftest import build

from minialign.batching import IGNORE
from minialign.generation import SamplingConfig, continue_texts
from minialign.instruct.sft import SFT, demonstration_rows, fine_tune
from minialign.pretrain.causal_lm import LabelledRows
from minialign.runs.errors import UserError
from minialign.runs.files import Record
from minialign.runs.run_folder import RunFolder
from minialign.training import TrainingConfig

CALLS = [{"prompt": f"{name} asks: {thing}?", "completion": f" {thing}"} for name in ("Rosa", "Finn", "Mira")
         for thing in ("kite", "boat", "hat", "barn")]


def test_a_row_is_begin_prompt_completion_end_and_teaches_from_the_completion_on(tokenizer):
    (row, start), *_ = demonstration_rows(tokenizer, CALLS, 48)[0]
    assert row[0] == tokenizer.begin and row[-1] == tokenizer.end
    assert tokenizer.decode(row[1:start]) == "Rosa asks: kite?" and tokenizer.decode(row[start:-1]) == " kite"


def test_the_labels_of_a_batch_are_the_completions_and_their_ends(tokenizer):
    rows, _ = demonstration_rows(tokenizer, CALLS, 48)
    batch = LabelledRows(rows, 4, seed=0).batch([3, 0, 7])
    for labels, i in zip(batch.labels, (3, 0, 7)):
        taught = [int(label) for label in labels if label != IGNORE]
        assert taught == [*tokenizer.encode(CALLS[i]["completion"]), tokenizer.end]


def test_prompt_and_completion_are_cut_into_tokens_apart_as_they_are_when_it_answers(tokenizer):
    demonstration = {"prompt": "The ki", "completion": "te"}
    (row, start), *_ = demonstration_rows(tokenizer, [demonstration], 48)[0]
    assert row[1:start] == tokenizer.encode("The ki") and row[start:-1] == tokenizer.encode("te")


def test_a_demonstration_that_just_fits_is_kept_and_a_longer_one_is_an_error_with_its_line(tokenizer):
    demonstration = Record({"prompt": "The kite", "completion": " was red."}, "f.jsonl", 7)
    longest = len(demonstration_rows(tokenizer, [demonstration], 48)[0][0][0])
    rows, skipped = demonstration_rows(tokenizer, [demonstration], longest - 1)
    assert len(rows) == 1 and skipped == 0
    build(context=longest - 1)(LabelledRows(rows, 1, 0).batch([0]).tokens)
    with pytest.raises(UserError, match=f"a.jsonl, line 7: {longest} tokens do not fit the model's context of "
                                        f"{longest - 2}.*--skip-long"):
        demonstration_rows(tokenizer, [demonstration], longest - 2, file="a.jsonl")


def test_on_request_what_is_too_long_is_left_out_and_counted_never_cut(tokenizer):
    demonstrations = [*CALLS, {"prompt": "The kite " * 20, "completion": " was red."}]
    rows, skipped = demonstration_rows(tokenizer, demonstrations, 48, skip_long=True)
    assert skipped == 1 and rows == demonstration_rows(tokenizer, CALLS, 48)[0]


def test_an_empty_completion_is_an_error_with_its_line_and_an_empty_prompt_is_none(tokenizer):
    with pytest.raises(UserError, match="a.jsonl, line 3: the completion is empty"):
        demonstration_rows(tokenizer, [Record({"prompt": "Who?", "completion": ""}, "f.jsonl", 3)], 48, skip_long=True,
                           file="a.jsonl")
    (row, start), *_ = demonstration_rows(tokenizer, [{"prompt": "", "completion": "Rosa"}], 48)[0]
    assert start == 1 and row == [tokenizer.begin, *tokenizer.encode("Rosa"), tokenizer.end]


def test_a_tiny_model_learns_to_answer_and_to_stop(tmp_path, tokenizer):
    rows, _ = demonstration_rows(tokenizer, CALLS, 48)
    model = build()
    config = TrainingConfig(steps=120, batch=6, learning_rate=1e-2, validate_every=60)
    result = fine_tune(model, rows, rows, config, RunFolder(tmp_path))
    assert result["steps"] == 120 and result["validation"] < 0.1
    assert result["perplexity"] == pytest.approx(math.exp(result["validation"]))
    answers = continue_texts(model, tokenizer, [c["prompt"] for c in CALLS], SamplingConfig(12, temperature=0),
                             torch.Generator())
    assert answers == [c["completion"] for c in CALLS]
    assert RunFolder(tmp_path).finished


def test_fewer_demonstrations_to_validate_on_than_a_batch_are_enough(tmp_path, tokenizer):
    rows, _ = demonstration_rows(tokenizer, [{"prompt": "kite?" * i, "completion": "x"} for i in range(1, 9)], 48)
    found = fine_tune(build(), rows, rows[:3], TrainingConfig(steps=1, batch=8), RunFolder(tmp_path))
    assert found["steps"] == 1 and math.isfinite(found["validation"])


def test_the_prompt_is_read_but_not_taught(tmp_path, tokenizer):
    rows, _ = demonstration_rows(tokenizer, [{"prompt": "kite?" * 3, "completion": "x"}] * 4, 48)
    model = build()
    seen = []
    model.body.token_embedding.weight.register_hook(lambda gradient: seen.append(gradient.clone()))
    before = model(torch.tensor([rows[0][0]]))[0].detach().log_softmax(dim=-1)
    fine_tune(model, rows, rows, TrainingConfig(steps=20, batch=4, learning_rate=1e-3), RunFolder(tmp_path))
    after = model(torch.tensor([rows[0][0]]))[0].detach().log_softmax(dim=-1)
    ids, start = rows[0]
    rise = [float(after[t - 1, ids[t]] - before[t - 1, ids[t]]) for t in range(1, len(ids))]
    assert min(rise[start - 1 :]) > 0.5 and seen[0].abs().sum() > 0
    assert sum(rise[: start - 1]) / (start - 1) < 0.1


def test_its_own_settings_are_those_of_a_second_gentler_stage():
    assert SFT.learning_rate < TrainingConfig().learning_rate and SFT.weight_decay < TrainingConfig().weight_decay
