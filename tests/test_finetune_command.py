"""`finetune` as a newcomer types it: every method, on demonstrations and on labelled texts, and what is wrong with the
input."""

from pathlib import Path

import pytest
import torch
from conftest import build
from typed import complaint, type_in, write_feelings, write_records

from minialign.__main__ import run
from minialign.heads import load_model
from minialign.lab.finetuning import must_fit
from minialign.runs.errors import UserError
from minialign.runs.files import read_json
from minialign.runs.tensors import digest, read_tensors
from minialign.transformer import Transformer

SHAPE = "--vocabulary 300 --context 40 --width 16 --heads 2 --layers 1 --steps 3 --batch 4 --validate-every 3"
QUICK = "--steps 4 --batch 4 --validate-every 2 --checkpoint-every 2"


@pytest.fixture(scope="module")
def d(tmp_path_factory):
    d = tmp_path_factory.mktemp("tuned")
    write_feelings(d)
    write_records(d / "one.jsonl", [{"text": f"a {i}", "label": "x"} for i in range(60)])
    write_records(d / "long.jsonl", [{"text": f"{i} " + "kite " * 60, "label": str(i % 2)} for i in range(60)])
    write_records(d / "empty.jsonl", [{"prompt": f"a {i}", "completion": ""} for i in range(60)])
    write_records(d / "few.jsonl", [{"prompt": "a", "completion": " b"}])
    for name, objective in (("gpt", "next-token"), ("bert", "masked-lm"), ("t5", "span-corruption")):
        assert type_in(f"pretrain --text {{d}}/text.txt {SHAPE} --objective {objective} --out {{d}}/{name}", d=d) == 0
    return d


@pytest.mark.parametrize("base, data, methods", [("gpt", "demos", 6), ("gpt", "labels", 7), ("bert", "labels", 7)])
def test_all_methods_side_by_side_leave_a_table_and_a_plot(d, capsys, base, data, methods):
    out = d / f"all-{base}-{data}"
    line = (f"finetune --method all --base {{d}}/{base} --data {{d}}/{data}.jsonl {QUICK} --rank 2 --length 3 "
            f"--bottleneck 2 --out {out}")
    assert type_in(line, d=d) == 0
    shown = capsys.readouterr().out
    results = read_json(out / "comparison.json")
    assert len(results) == methods and (out / "comparison.png").stat().st_size > 5000
    assert all(name in shown for name in results) and results["full"]["trained"] > results["lora"]["trained"] > 0
    for name, result in results.items():
        assert result["file_bytes"] == (out / name / "tuned.safetensors").stat().st_size
        assert result["optimizer_bytes"] == 8 * result["trained"] and result["steps"] == 4
    before = {name: (out / name / "tuned.safetensors").read_bytes() for name in results}
    assert type_in(line, d=d) == 0, "the same command finds it done"
    assert before == {name: (out / name / "tuned.safetensors").read_bytes() for name in results}


@pytest.mark.parametrize("base", ["gpt", "bert"])
def test_the_body_reads_each_text_once(d, capsys, monkeypatch, base):
    read, forward = [], Transformer.forward

    def counted(body, tokens, *rest):
        read.append(len(tokens))
        return forward(body, tokens, *rest)

    monkeypatch.setattr(Transformer, "forward", counted)
    line = (f"finetune --method feature-based --base {{d}}/{base} --data {{d}}/labels.jsonl {QUICK} --out "
            f"{{d}}/read-once-{base}")
    assert type_in(line, d=d) == 0 and sum(read) == 60
    shown = capsys.readouterr().out
    assert "the body read 60 texts once" in shown and "4 steps without them would read" in shown
    assert type_in(line, d=d) == 0 and sum(read) == 60, "what is done is not read again"


def test_a_prompt_may_start_as_the_words_of_a_text(d, capsys):
    out = d / "words"
    line = (f"finetune --method prompt-tuning --base {{d}}/gpt --data {{d}}/demos.jsonl {QUICK} --length 3 "
            f"--learning-rate 1e-9 --out {out}")
    assert run([*(word.format(d=d) for word in line.split()), "--prompt-text", "happy sad"]) == 0
    model, tokenizer = load_model(d / "gpt")
    ids = tokenizer.encode_many(["happy sad"])[0]
    (vectors,) = read_tensors(out / "prompt-tuning" / "tuned.safetensors")[0].values()
    torch.testing.assert_close(vectors, model.body.token_embedding.weight[(ids * 3)[:3]], atol=1e-6, rtol=0)


def test_a_rank_above_the_break_even_is_said_on_one_line(d, capsys):
    assert type_in(f"finetune --base {{d}}/gpt --data {{d}}/demos.jsonl {QUICK} --targets query --rank 9 --dropout 0.1 "
                   f"--out {{d}}/wide", d=d) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "break-even" in line]
    assert line == ("note: body.blocks.0.attention.query: rank 9 is above the break-even 8.0: the update has 288 "
                    "numbers, the matrix 256")
    assert read_json(d / "wide" / "lora" / "tuned.json")["config"]["dropout"] == 0.1


def test_a_merged_lora_is_a_plain_run_for_every_other_command(d, capsys):
    line = f"finetune --base {{d}}/gpt --data {{d}}/demos.jsonl {QUICK} --targets query,inner --merged --out {{d}}/lora"
    assert type_in(line, d=d) == 0
    assert type_in("sample {d}/lora/lora-merged --prompt sad --new-tokens 3", d=d) == 0
    tensors, _ = read_tensors(d / "lora" / "lora-merged" / "model.safetensors")
    base, _ = read_tensors(d / "gpt" / "model.safetensors")
    assert set(tensors) == set(base) and digest(tensors) != digest(base)
    assert {name for name in tensors if not tensors[name].equal(base[name])} <= {name for name in base
        if "query" in name or "inner" in name}


@pytest.mark.parametrize(
    "line, message",
    [
        ("--data {d}/few.jsonl", "too few"),
        ("--data {d}/empty.jsonl", "the completion is empty"),
        ("--data {d}/one.jsonl", "all labels are 'x'"),
        ("--data {d}/long.jsonl", "do not fit the model's context of 40"),
        ("--data {d}/demos.jsonl --method feature-based", "needs lines with `text` and `label`"),
        ("--data {d}/demos.jsonl --method bitfit --merged", "--merged is for lora"),
        ("--data {d}/labels.jsonl --merged", "cannot be merged into a language model"),
        ("--data {d}/demos.jsonl --targets q_proj", "'q_proj'; there are attention.query"),
        ("--data {d}/demos.jsonl --rank 0", "rank"),
        ("--data {d}/demos.jsonl --method prompt-tuning --start text", "(as a command: --prompt-text)"),
        ("--data {d}/demos.jsonl --method prompt-tuning --start random --prompt-text sad", "leave one of them out"),
        ("--data {d}/demos.jsonl --dropout 1", "dropout"),
        ("--data {d}/demos.jsonl --batch 500", "fewer than one batch of 500"),
        ("--data {d}/nowhere.jsonl", "no such file"),
    ],
)
def test_wrong_input_is_one_clear_line(d, capsys, line, message):
    assert type_in(f"finetune --base {{d}}/gpt {QUICK} {line} --out {{d}}/wrong-{abs(hash(line))}", d=d) == 2
    assert message in complaint(capsys)


def test_an_encoder_decoder_has_no_place_for_a_head(d, capsys):
    assert type_in(f"finetune --base {{d}}/t5 --data {{d}}/labels.jsonl {QUICK} --out {{d}}/x", d=d) == 2
    assert "the base is an encoder-decoder" in complaint(capsys)


def test_the_vectors_of_a_tuned_prompt_need_room_beside_every_line():
    model = build()
    must_fit(model, model.config.context - 3, Path("a.jsonl"), 7, before=3)
    with pytest.raises(UserError, match=r"a.jsonl, line 7: .* of which a tuned prompt takes 4; shorten it"):
        must_fit(model, model.config.context - 3, Path("a.jsonl"), 7, before=4)
