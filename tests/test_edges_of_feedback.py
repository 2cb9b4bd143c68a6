"""Commands and equations on feedback and tuning, where a file, a batch or a number is unusual."""

import io
import json

import pytest
import torch
from conftest import build
from typed import complaint, type_in, write_records

from minialign.heads import ScalarModel
from minialign.lab.commands import evaluate
from minialign.peft import lora, many_tasks, saving
from minialign.rlhf.comparisons import read_comparisons
from minialign.rlhf.grpo import group_advantages
from minialign.rlhf.kto import Judged, JudgedAnswers, reference_point
from minialign.rlhf.reward_checks import standardised
from minialign.rlhf.reward_model import normalise, score_rows
from minialign.runs.errors import UserError

JUDGE = "reward --base sft --comparisons pairs.jsonl --fast --batch 8 --references 20 --out judge"


def test_parts_of_a_batch_have_the_point_of_reference_of_the_whole():
    policy, reference = build(), build(seed=1)
    data = JudgedAnswers([Judged([1, 30 + i], [40 + i, 50 + i, 2], i % 2 > 0) for i in range(8)], 8, 0)
    (whole,), parts = data.microbatches(0, 1), data.microbatches(0, 4)
    expected = reference_point(policy, reference, whole)
    assert all(torch.allclose(reference_point(policy, reference, part), expected) for part in parts)


def test_a_neighbours_answer_that_does_not_fit_behind_a_prompt_is_cut(runs):
    lines = [{"prompt": "Mira lost the kite. " * 3, "completion": " yes", "liked": i % 4 > 1} if i % 2 else
             {"prompt": "Tom", "completion": " Mira lost the kite." * 4, "liked": i % 4 > 1} for i in range(40)]
    write_records(runs / "uneven.jsonl", lines)
    assert type_in("kto --policy sft --judged uneven.jsonl --valid uneven.jsonl --steps 6 --batch 8 --out k", runs) == 0


@pytest.mark.parametrize("method, data", [("lora", "demos"), ("adapters", "demos"), ("feature-based", "labels")])
def test_a_base_kept_in_sixteen_bits_is_validated_in_sixteen(runs, method, data, monkeypatch):
    def on_a_card(model, task, training):  # what put_in_place does on one
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()
    monkeypatch.setattr("minialign.lab.finetuning.put_in_place", on_a_card)
    write_records(runs / "labels.jsonl", [{"text": f"{'happy' if i % 2 else 'sad'} {i}", "label": str(i % 2)}
                                       for i in range(60)])
    assert type_in(f"finetune --method {method} --base sft --data {data}.jsonl --fast --bf16 --out b", runs) == 0


@pytest.mark.parametrize("what", ["--text text.txt",
                                  "--prompts long.jsonl --judge judge --against sft --new-tokens 19"])
def test_a_tuned_prompt_counts_when_it_is_evaluated(runs, what, capsys):
    write_records(runs / "long.jsonl", [{"prompt": "Mira " + "sad " * (20 if i == 5 else 1)} for i in range(8)])
    assert type_in(JUDGE, runs) == 0
    assert type_in("finetune --method prompt-tuning --base sft --data demos.jsonl --fast --out tuned", runs) == 0
    code = type_in(f"evaluate sft --tuned tuned/prompt-tuning {what}", runs)
    assert code == 0 if "--text" in what else "long.jsonl, line 6" in complaint(capsys)


def test_the_score_before_is_that_of_the_reference(runs, capsys):
    assert type_in(JUDGE, runs) == 0
    capsys.readouterr()
    assert type_in("ppo --policy sft --reward judge --prompts prompts.jsonl --fast --learning-rate 0 --best-of 2 "
                   "--out p", runs) == 0
    said = capsys.readouterr().out
    assert "the reference's is 0" not in said and "best of 2 " in said


def test_held_out_lines_are_the_same_whatever_the_batch(runs):
    found = []
    for batch, seed in ((2, 0), (16, 0), (16, 1)):
        assert type_in(f"finetune --base sft --data demos.jsonl --steps 1 --learning-rate 1e-9 --batch {batch} "
                       f"--seed {seed} --out f{batch}{seed}", runs) == 0
        found.append(json.loads((runs / f"f{batch}{seed}" / "lora" / "result.json").read_text())["validation"])
    assert found == pytest.approx(found[:1] * 3, abs=1e-4)


def test_a_reward_model_learns_from_completions_that_were_all_cut(runs):
    write_records(runs / "cut.jsonl", [{"prompt": f"Mira {i}", "chosen": " yes" * 60, "rejected": " no" * 60}
                                    for i in range(60)])
    line = "reward --base sft --comparisons cut.jsonl --fast --batch 8 --cut-long --references 20 --out r"
    assert type_in(line, runs) == 0


def test_one_line_without_a_completion_is_named(runs, capsys, monkeypatch):
    write_records(runs / "some.jsonl", [{"prompt": f"Mira {i}"} | ({"completion": " yes"} if i else {})
                                        for i in range(9)])
    monkeypatch.setattr("sys.stdin", io.StringIO("q\n"))
    assert type_in("label sft --prompts some.jsonl --terminal --new-tokens 4 --out l", runs) == 2
    assert "some.jsonl, line 1" in complaint(capsys)


def test_encoder_decoders_have_two_contexts(runs):
    write_records(runs / "long.jsonl", [{"prompt": "Mira " + "sad " * 20}] * 4)
    assert type_in("compare --policies t5 --prompts long.jsonl --new-tokens 30 --out c.jsonl", runs) == 0


@pytest.mark.parametrize("line, message", [
    ("finetune --method bitfit --targets nonsense --base sft --data demos.jsonl --fast --out x",
     "--targets is for lora"),
    ("finetune --method lora --prompt-text sad --base sft --data demos.jsonl --fast --out x", "--prompt-text is for"),
    ("ppo --policy sft --reward sft --prompts prompts.jsonl --batch 0 --out x", "batch is 0"),
    ("sft --base sft --demonstrations trl.jsonl --out x", "`kto` learns from such lines"),
    ("dpo --policy sft --comparisons pairs.jsonl --rank 2 --out x", "sft: all of it learns"),
    ("ppo --policy sft --reward sft --prompts prompts.jsonl --mix-weight 2 --out x", "text of --pretraining"),
    ("ppo --policy sft --reward sft --prompts prompts.jsonl --target-kl 6 --beta 0 --out x", "beta is 0"),
    ("annotators trl.jsonl --people 5", "--people is about the toy world's annotators"),
    ("realdata shakespeare --seed 3 --out x", "divided by play"),
])
def test_wrong_input_says_why(runs, line, message, capsys):
    write_records(runs / "trl.jsonl", [{"prompt": "a", "completion": "b", "label": True}])
    assert type_in(line, runs) == 2
    assert message in complaint(capsys)


def test_two_empty_turns_behind_a_conversation_are_equal(runs):
    turns = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    write_records(runs / "c.jsonl", [{"prompt": turns, "chosen": [], "rejected": ""}])
    kept, left_out = read_comparisons(runs / "c.jsonl")
    assert kept == [] and left_out["of two equal answers"] == 1


def test_typed_bytes_that_are_no_text_are_one_line(runs, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8"))
    assert type_in("label sft --prompts prompts.jsonl --terminal --new-tokens 4 --out l", runs) == 2
    assert "not UTF-8: byte 0xff" in complaint(capsys)


def test_where_all_completions_are_equal_no_file_blocks_the_corrected_command(runs, capsys):
    line = "compare --policies sft --prompts prompts.jsonl --new-tokens 4 --out c.jsonl"
    assert type_in(f"{line} --temperature 0", runs) == 2
    assert "raise --temperature" in complaint(capsys) and type_in(line, runs) == 0


def test_by_how_many_is_said(runs, capsys):
    write_records(runs / "q.jsonl", [{"prompt": f"Mira {i}", "answer": None, "completion": "yes"} for i in range(8)])
    assert type_in("grpo --policy sft --prompts q.jsonl --check answer --fast --out g", runs) == 0
    assert "by one of 4 " in capsys.readouterr().out


def test_a_number_that_no_float_holds_is_named(runs, capsys):
    write_records(runs / "h.jsonl", [{"prompt": "a", "text": "b", "proxy": 10**400, "gold": 1}])
    assert type_in("hacking h.jsonl", runs) == 2 and "h.jsonl, line 1" in complaint(capsys)


def test_an_undo_means_the_last_label_of_its_name(runs):
    label = {"chosen": "a", "rejected": "b", "annotator": "me", "id": 0}
    write_records(runs / "u.jsonl", [label | {"prompt": "first folder"}, label | {"prompt": "second folder"},
                                  {"undo": 0, "annotator": "me"}])
    kept, left_out = read_comparisons(runs / "u.jsonl")
    assert [record["prompt"] for record in kept] == ["first folder"] and left_out["taken back"] == 1


def test_many_loras_are_not_saved_as_one(tmp_path):
    saving.save(lora.wrap(build()), tmp_path / "a")
    with pytest.raises(UserError):
        saving.save(many_tasks.serve(build(), {"a": tmp_path / "a"}).model, tmp_path / "b")


def test_equal_scores_are_all_0_however_large():
    assert standardised([1e8 + 0.1] * 7).abs().max() == 0


def test_scores_have_no_dropout():
    model, rows = ScalarModel(build(dropout=0.3).body).train(), [([1, 30], [40, 2])] * 4
    assert torch.equal(score_rows(model, rows), score_rows(model, rows)) and model.training


def test_equal_rewards_have_no_advantage_however_many_and_large():
    for reward in (0.1, 123.4, 1234.567, 9876.543):
        for size in (3, 7, 8, 10, 12):
            assert group_advantages(torch.full((1, size), reward)).eq(0).all(), (reward, size)


@pytest.mark.parametrize("seed", range(8))
def test_rows_that_all_score_the_same_are_refused(seed):
    model = ScalarModel(build(seed=seed).body, seed=seed)
    with pytest.raises(UserError, match="same score"):
        normalise(model, [([1, 30, 31], [40, 2])] * 100)


def test_the_same_answer_is_a_tie_however_its_scores_are_rounded(runs, monkeypatch):
    assert type_in(JUDGE, runs) == 0
    monkeypatch.setattr(evaluate, "continue_texts", lambda model, tokenizer, texts, *_: [" yes"] * len(texts))
    scores = iter([[1.0000001] * 40, [1.0] * 40])
    monkeypatch.setattr(evaluate, "score_texts", lambda *_: next(scores))
    line = "evaluate sft --judge judge --against sft --prompts prompts.jsonl --new-tokens 4 --out e.json"
    assert type_in(line, runs) == 0
    assert json.loads((runs / "e.json").read_text())["win_rate"]["mean"] == 0.5


def test_thumbs_that_are_measured_on_what_they_taught_are_named(runs, capsys):
    line = "kto --policy sft --judged thumbs.jsonl --valid thumbs.jsonl --fast --batch 8 --out k"
    assert type_in(line, runs) == 0
    assert "60 of its 60 prompts are learned from as well" in capsys.readouterr().out
