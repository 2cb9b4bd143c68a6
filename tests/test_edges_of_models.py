"""Quantizers, students, mixtures and their commands, where a model, a file or an option is unusual."""

import copy
import dataclasses
import functools
import json

import pytest
import torch
from conftest import build
from test_play import make_run
from test_report import make, write_report
from torch import nn
from typed import type_in

from minialign.__main__ import run
from minialign.distill.minilm import MINILM, MiniLM
from minialign.distill.student import start_from
from minialign.distill.tinybert import TINYBERT, TinyBERT
from minialign.generation import Generated, SamplingConfig, continue_texts
from minialign.heads import ScalarModel, load_model
from minialign.instruct.flan import Conversations, conversation_rows
from minialign.instruct.fresh import FreshMixture, FreshRows
from minialign.instruct.mixture import MixtureConfig
from minialign.instruct.t5 import prefix_templates
from minialign.lab.commands import sample
from minialign.lab.commands.pretrain import hold_out_the_end
from minialign.lab.demo.instruct import FAST, questions, trained_on
from minialign.lab.interchange.tasks_file import read_tasks
from minialign.lab.play.material import collect
from minialign.lab.pretrained.bert import Bert, BertConfig
from minialign.quant.half import overflow_report
from minialign.quant.ptq import quantize
from minialign.quant.qat import prepare
from minialign.quant.scheme import SCHEMES
from minialign.quant.smoothquant import smooth
from minialign.runs.errors import UserError
from minialign.world.datasets import PROMPTS


def small_bert():
    torch.manual_seed(0)
    model = Bert(BertConfig(320, 48, 32, 2, 2, 64), masked_words=True).eval()
    for name, p in model.named_parameters():
        if name.endswith("_norm.weight"):
            p.data[:2] = 20.0
    return model


def test_smoothing_refuses_a_post_norm_model_and_leaves_it():
    model, tokens = small_bert(), torch.randint(4, 320, (4, 24))
    before = model(tokens)
    with pytest.raises(UserError, match="attention_norm"):
        smooth(model, [tokens])
    assert torch.equal(model(tokens), before)


def test_encoder_and_decoder_may_share_their_weights(trained_runs, tmp_path):
    assert (
        type_in(
            "pretrain --text {d}/text.txt --split paragraphs --vocabulary 320 --width 16 --heads 2 --layers 1 "
            f"--context 32 --steps 2 --batch 2 --objective span-corruption --shared --out {tmp_path}/t5",
            trained_runs,
        )
        == 0
    )
    assert json.loads((tmp_path / "t5" / "config.json").read_text())["model"]["shared"] is True
    assert type_in(f"pretrain --text {{d}}/text.txt --shared --out {tmp_path}/gpt", trained_runs) == 2


@pytest.mark.parametrize("teacher, student", [("r64", "r128"), ("r128", "r64")])
@pytest.mark.parametrize("recipe", ["sequence-level --beams 2", "on-policy"])
def test_teacher_and_student_may_have_other_contexts(teacher, student, recipe, trained_runs, tmp_path):
    assert (
        type_in(
            f"distill --teacher {{d}}/{teacher} --recipe {recipe} --student {{d}}/{student} --text {{d}}/text.txt "
            f"--steps 2 --batch 2 --new-tokens 8 --fast --out {tmp_path}/o",
            trained_runs,
        )
        == 0
    )
    assert (tmp_path / "o" / "report.json").exists()


@pytest.mark.parametrize("more", ["", "--top-k 3", "--cosine 1"])
def test_a_cache_serves_training_in_bfloat16(more, trained_runs, tmp_path):
    line = "distill --teacher {d}/r64 --text {d}/text.txt --split paragraphs --steps 2 --batch 4"
    line += f" {more} --cache {tmp_path}/c"
    assert type_in(f"{line} --bf16 --out {tmp_path}/half", trained_runs) == 0
    kept = sorted((tmp_path / "c").rglob("*.safetensors"))
    content = [file.read_bytes() for file in kept]
    for file in kept:
        file.unlink()
    assert type_in(f"{line} --out {tmp_path}/whole", trained_runs) == 0
    assert [file.read_bytes() for file in kept] == content, "what is kept does not depend on --bf16"


def fresh(tokenizer, context, batch, size=64):
    mixture = FreshMixture({task: PROMPTS[task] for task in ("who", "what")}, 0, size=size)
    encode = functools.partial(conversation_rows, tokenizer, context=context)
    rows = FreshRows(mixture, encode, lambda rows: Conversations(rows, batch, 0), batch)
    rows.ahead = rows.ahead.make
    return rows


def test_where_some_questions_do_not_fit_none_comes_twice(tokenizer):
    data, seen = fresh(tokenizer, 150, 8), []
    for step in range(2 * data.steps):
        (batch,) = data.microbatches(step, 1)
        seen += [tuple(tokens[mask].tolist()) for tokens, mask in zip(batch.tokens, batch.mask)]
    assert len(seen) == 128 == len(set(seen))


def test_a_batch_beyond_a_chunk_is_an_error(tokenizer):
    with pytest.raises(UserError, match="--batch"):
        fresh(tokenizer, 256, 65)


def test_instructions_by_letter_are_asked_of_fixed_examples_too():
    templates = trained_on(MixtureConfig(manners=True, letters=True))
    learned, _ = questions(dataclasses.replace(FAST, fixed=10, examined=2), "decoder", templates, 0)
    assert any(", letters" in question.template for question in learned)


def test_a_field_that_no_prefix_can_name_is_an_error(tmp_path):
    (tmp_path / "tasks.jsonl").write_text('{"task": "spam", "mail text": "a", "answer": "yes"}')
    with pytest.raises(UserError, match="tasks.jsonl, line 1: field 'mail text'"):
        prefix_templates(read_tasks(tmp_path / "tasks.jsonl"))


def test_what_is_examined_in_the_world_is_found_to_fit_before_training(trained_runs, tmp_path, capsys):
    line = f"instruct --base {{d}}/r64 --style flan --batch 4 --steps 2 --fast --out {tmp_path}/o"
    assert type_in(line, trained_runs) == 2
    assert (
        "--skip-long" in capsys.readouterr().err
        and not (tmp_path / "o" / "2-instructed" / "model.safetensors").exists()
    )
    assert type_in(line + " --skip-long", trained_runs) == 0 and "left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line",
    [
        "nf4 --bits 8",
        "nf4 --group 16",
        "weights --group 16",
        "weights --threshold 3",
        "vector-wise --observer mse",
        "vector-wise --outlier-weights dequantized",
        "weights --activation-bits 4",
        "bf16 --calibration {d}/text.txt",
    ],
)
def test_an_option_that_changes_nothing_in_a_scheme_is_refused(line, trained_runs, capsys):
    assert type_in(f"quantize {{d}}/r64 --fast --scheme {line}", trained_runs) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_weight_beyond_16_bits_is_an_error_in_llm_int8():
    model = nn.Sequential(nn.Linear(16, 8))
    model[0].weight.data[0, 3] = 70_000.0
    x = torch.zeros(2, 16)
    x[:, 3] = 10.0
    with pytest.raises(UserError, match="0: its weights hold 7e.04"):
        quantize(copy.deepcopy(model), SCHEMES["llm-int8"])
    fine, _ = quantize(model, dataclasses.replace(SCHEMES["llm-int8"], outlier_weights="dequantized"))
    assert bool(torch.isfinite(fine(x)).all())


def test_a_table_that_cannot_be_mapped_is_named_and_the_model_is_as_it_was():
    model = build()
    model.body.token_embedding.weight.data[7, 0] = float("inf")
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(UserError, match="body.token_embedding"):
        quantize(model, SCHEMES["smoothquant"], [torch.randint(20, 300, (2, 12))], embeddings=True)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_an_encoder_without_a_head_gets_none():
    model, _ = quantize(Bert(BertConfig(320, 48, 32, 1, 2, 64)), SCHEMES["weights"], embeddings=True)
    with pytest.raises(UserError, match="no head"):
        model(torch.zeros(1, 3, dtype=torch.long))


def test_training_refuses_a_rounding_that_it_would_leave_out():
    with pytest.raises(UserError, match="gptq"):
        prepare(build(), SCHEMES["gptq"])


def test_a_broken_log_is_named_with_its_line(tmp_path):
    make(tmp_path)
    (tmp_path / "5-rlhf" / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, loss}\n')
    with pytest.raises(UserError, match="metrics.jsonl, line 2"):
        write_report(tmp_path)


def test_a_reward_model_alone_makes_no_page(tokenizer, tmp_path):
    with pytest.raises(UserError, match="reward model"):
        collect(make_run(tmp_path / "r", tokenizer, _4_reward=ScalarModel(build(context=400).body)), 2)


def test_nan_is_no_output_of_size_0():
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].weight.data[:] = float("nan")
    with pytest.raises(UserError, match="NaN"):
        overflow_report(model, [torch.ones(1, 2)], torch.float16)


@pytest.mark.parametrize(
    "line",
    [
        "--questions 9",
        "--cap 3",
        "--skip-unfit",
        "--tasks a --templates b --fixed 3",
        "--tasks a --templates b --turns 2",
        "--tasks a --templates b --reread 0",
    ],
)
def test_an_option_of_the_other_kind_of_tasks_is_refused(line, tmp_path, capsys):
    assert run(["instruct", *line.split(), "--out", str(tmp_path / "o")]) == 2
    assert "changes nothing here" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change", [{"activation": "relu"}, {"short_convolution": 2}, {"positions": "learned", "context": 24},
               {"kind": "encoder-decoder", "shared": True}]
)
def test_a_student_of_another_kind_of_block_does_not_begin_as_its_teacher(change):
    teacher = build(**{name: change[name] for name in ("positions", "kind") if name in change})
    with pytest.raises(UserError, match="the student's"):
        start_from(build(1, **change), teacher)


def test_recipes_that_look_into_layers_refuse_two_stacks():
    for recipe, config in ((MiniLM, MINILM), (TinyBERT, TINYBERT)):
        with pytest.raises(UserError, match="encoder-decoder"):
            recipe(build(kind="encoder-decoder"), config).begin(build(1, kind="encoder-decoder"))


def test_what_is_held_out_of_few_documents_is_never_nothing():
    for documents in (["a" * 3000, "x"], ["x", "a" * 3000], ["ab"], ["hello world"], ["a" * 500] * 2):
        learned, held_out = hold_out_the_end(documents, 32)
        assert all(learned) and all(held_out) and sorted("".join(learned + held_out)) == sorted("".join(documents))
        assert len(held_out[0]) >= 0.05 * sum(map(len, documents)) - 1


def test_a_task_that_was_left_out_is_not_said_to_be_trained(trained_runs, tmp_path, capsys):
    lines = [
        {"task": task, "text": f"{task} {i}", "answer": "yn"[i % 2], "options": ["y", "n"]}
        for task in "ab"
        for i in range(12)
    ]
    (tmp_path / "two.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "two.json").write_text(json.dumps({task: [{"name": "p", "input": "{text}?"}] for task in "ab"}))
    line = "instruct --base {d}/r64 --style flan --steps 1 --batch 4 --questions 20 --instructions 1"
    line += f" --tasks {tmp_path}/two.jsonl --templates {tmp_path}/two.json --out {tmp_path}/o"
    assert type_in(line, trained_runs) == 0
    assert "20 questions of 1 tasks" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "o/2-instructed/examination.json").read_text())) == 1


@pytest.mark.parametrize("token, note", [(3, "nothing but blanks"), (2, "ended at once")])
def test_what_a_draft_helped_to_write_is_shown_as_without_it(token, note, trained_runs, monkeypatch):
    model, tokenizer = load_model(trained_runs / "r64")
    with torch.no_grad():  # a model that always says this one token
        table = model.body.token_embedding.weight
        model.body.norm.weight.zero_()
        model.body.norm.bias.copy_(table[token] / table[token].norm())
        table[token] *= 50
    monkeypatch.setattr(sample, "open_model", lambda folder: (model, tokenizer))
    how = SamplingConfig(5, 0.0)
    (said,) = sample.guessed_ahead(model, tokenizer, trained_runs / "r64", "a", 1, how, torch.Generator())
    assert note in said
    assert [said] == continue_texts(model, tokenizer, ["a"], how, torch.Generator(), read=Generated.shown)


def test_a_norm_that_is_passed_by_cannot_be_smoothed():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.feed_forward_norm, self.feed_forward = nn.LayerNorm(4), nn.ModuleDict({"inner": nn.Linear(4, 4)})

        def forward(self, x):
            return self.feed_forward["inner"](x)

    with pytest.raises(UserError, match="feed_forward_norm"):
        smooth(nn.Sequential(Block()), [torch.ones(2, 4)])
