"""`minialign distill` as a newcomer types it."""

import json
import os
import re
import shutil

import pytest
import torch
from published_folders import with_marks
from typed import type_in

from minialign.__main__ import run
from minialign.distill.soft_targets import SoftTargets
from minialign.distill.student import evenly
from minialign.heads import Classifier, load_model
from minialign.lab import teacher_cache
from minialign.lab.commands.distill_options import RECIPES
from minialign.lab.commands.distill_texts import table
from minialign.lab.finetuning import labelled_task
from minialign.lab.interchange.folder import PretrainedTokenizer
from minialign.lab.interchange.published import write_bert
from minialign.lab.pretrained.bert import BertConfig, load_bert
from minialign.lab.pretrained.sentence_vectors import random_student
from minialign.peft import saving
from minialign.runs.files import read_json, write_json
from minialign.runs.run_folder import RunFolder
from minialign.runs.tensors import read_tensors
from minialign.tokenizer import train_tokenizer
from minialign.training import TrainingConfig

LINES = [f"{name} found the {thing} in the {place}." for name in ("Mira", "Sam", "Rosa") for thing in ("kite", "key")
         for place in ("barn", "lake", "hall")]
ABC = "abcdefghijklmnopqrstuvwxyz"
SHAPE = ("--vocabulary 300 --context 16 --width 16 --heads 2 --layers 3 --steps 2 --batch 2 --checkpoint-every 4 "
         "--validate-every 4")
SHORT = "--steps 4 --batch 2 --checkpoint-every 2 --validate-every 4"


@pytest.fixture(scope="module")
def d(tmp_path_factory):
    """A folder with a decoder, an encoder, an encoder-decoder, one with other words, a BERT, and texts."""
    d = tmp_path_factory.mktemp("distill")
    (d / "text.txt").write_text("\n\n".join(LINES * 4), encoding="utf-8")
    (d / "other.txt").write_text("\n\n".join(line.upper() for line in LINES * 4), encoding="utf-8")
    (d / "few.txt").write_text("\n\n".join(LINES[:9]), encoding="utf-8")
    kinds = {"decoder": "next-token", "encoder": "masked-lm", "t5": "span-corruption", "foreign": "next-token"}
    for name, objective in kinds.items():
        text = d / ("other.txt" if name == "foreign" else "text.txt")
        assert run(["pretrain", "--text", str(text), "--objective", objective, *SHAPE.split(), "--out",
                    str(d / name)]) == 0
    library = train_tokenizer(LINES, 300)
    model = random_student(BertConfig(library.size + 4, context=24, width=16, layers=3, heads=2, inner=32), 0)
    write_bert(model, PretrainedTokenizer(with_marks(library.library), model.special), d / "bert")
    return d


@pytest.mark.parametrize("kind, recipe", [(kind, name) for name, recipe in RECIPES.items() for kind in recipe.kinds])
def test_every_recipe_makes_a_run_that_other_commands_take(kind, recipe, d, capsys):
    out, writes = f"{d}/{recipe}-{kind}", "--prompt-tokens 4 --new-tokens 5" if RECIPES[recipe].reads != "texts" else ""
    assert type_in(f"distill --teacher {{d}}/{kind} --recipe {recipe} --layers 2 --text {{d}}/text.txt {SHORT} --fast "
                   f"{writes} --out {out}", d) == 0
    said = capsys.readouterr().out
    for words in ("loss on held-out text", "perplexity", "parameters", "bytes on the disk",
                  "milliseconds to read 16 tokens"):
        assert words in said
    assert ("teaches how to read, no words" in said) is not RECIPES[recipe].predicts_words
    student, teacher = load_model(out)[0], load_model(d / kind)[0]
    assert student.config.layers == 2 and student.config.kind == kind and not [name
        for name in dict(student.named_parameters()) if "projection" in name]
    result = json.loads((d / f"{recipe}-{kind}" / "report.json").read_text())
    assert result["parameters"] == [sum(p.numel() for p in model.parameters()) for model in (teacher, student)]
    assert result["bytes"] == [os.path.getsize(f"{folder}/model.safetensors")
                               for folder in (f"{d}/{kind}", out)] and min(result["seconds"]) > 0
    assert type_in(f"sample {out} --prompt {'___' if kind == 'encoder' else 'Mira'} --new-tokens 2", d) == 0
    assert type_in(f"quantize {out} --scheme weights --text {{d}}/few.txt --fast --out {out}-int8", d) == 0
    assert type_in(f"sample {out}-int8 --prompt {'___' if kind == 'encoder' else 'Mira'} --new-tokens 2", d) == 0
    asked = {"encoder": lambda i: {"text": ABC[i], "label": "ab"[i % 2]}, "decoder": lambda i:
             {"prompt": ABC[i], "completion": " Yes."}}[kind]
    (d / f"{kind}.jsonl").write_text("\n".join(json.dumps(asked(i)) for i in range(26)), encoding="utf-8")
    assert type_in(f"finetune --method lora --base {out} --data {{d}}/{kind}.jsonl --steps 1 --batch 2 "
                   f"--validate-every 1 --out {out}-tuned", d) == 0


@pytest.mark.parametrize(
    "line, check",
    [
        ("--recipe minilm --width 24", lambda m: m.config.width == 24),
        ("--recipe minilm-v2 --width 24 --heads 4 --relation-heads 8 --layer 0", lambda m: m.config.heads == 4),
        ("--recipe tinybert --width 8 --prediction 1 --attention 0 --heads 4", lambda m: m.config.width == 8),
        ("--recipe soft-targets --start teacher --temperature 3 --hard 1 --soft 0.5 --width 16",
         lambda m: m.config.layers == 1),
        ("--recipe distilbert --layers 2 --layers-from 1,2 --cosine 0 --no-packed --split paragraphs --chosen 0.3",
         lambda m: m.config.layers == 2),
        ("--recipe minilm --width 8 --assistant", lambda m: m.config.width == 8),
        ("--recipe distilbert --start random --width 8 --cosine 0", lambda m: m.config.width == 8),
    ],
)
def test_students_of_other_shapes_and_with_other_weights(line, check, d, tmp_path):
    assert type_in(f"distill --teacher {{d}}/encoder --text {{d}}/text.txt {SHORT} --fast {line} --out {tmp_path}/out",
                   d) == 0
    assert check(load_model(tmp_path / "out")[0])
    assert (tmp_path / "out" / "assistant").exists() is ("--assistant" in line)


def test_the_teacher_writes_once_after_the_first_words_of_each_text(d, tmp_path, monkeypatch):
    line = (f"distill --teacher {{d}}/decoder --recipe sequence-level --text {{d}}/text.txt --valid {{d}}/few.txt "
            f"{SHORT} --fast --beams 2")
    line += f" --prompt-tokens 4 --new-tokens 5 --soft 0.5 --out {tmp_path}/out"
    assert type_in(line, d) == 0
    first, *written = map(json.loads, (tmp_path / "out" / "written.jsonl").read_text().splitlines())
    tokenizer, config = load_model(tmp_path / "out")[1], json.loads((tmp_path / "out" / "config.json").read_text())
    begun = [[tokenizer.begin, *ids][:4] for ids in tokenizer.encode_many(LINES * 4)]
    assert [line["prompt"] for line in written] == begun and all(1 <= len(line["answer"]) <= 5 for line in written)
    assert config["loss"] == {"temperature": 1.0, "soft": 0.5, "hard": 1.0,
                              "cosine": 0.0} and config["prompt_tokens"] == 4
    assert config["writing"] == {"beams": 2, "drawn_at": 0.0, "new_tokens": 5, "together": 64}
    monkeypatch.setattr(teacher_cache, "write", None)
    assert type_in(line, d) == 0, "what is finished is not written again"


def test_a_student_that_can_write_goes_on_by_itself(d, tmp_path):
    start = (f"distill --teacher {{d}}/decoder --layers 1 --start teacher --text {{d}}/text.txt {SHORT} --fast --out "
             f"{tmp_path}/start")
    assert type_in(start, d) == 0
    line = (f"distill --teacher {{d}}/decoder --recipe on-policy --student {tmp_path}/start --text {{d}}/text.txt "
            f"--valid {{d}}/few.txt {SHORT} --fast")
    line += f" --prompt-tokens 3 --new-tokens 6 --reverse 0 --shannon 1 --beta 0.3 --share 0.5 --out {tmp_path}/out"
    assert type_in(line, d) == 0
    before, after = (load_model(tmp_path / name)[0] for name in ("start", "out"))
    assert after.config == before.config and not torch.equal(after.body.norm.weight, before.body.norm.weight)


def test_what_the_teacher_thinks_is_kept_for_later_epochs_and_other_students(d, tmp_path, capsys, monkeypatch):
    texts = len(LINES) * 4
    line = (f"distill --teacher {{d}}/decoder --text {{d}}/text.txt --valid {{d}}/few.txt --split paragraphs "
            f"--no-packed --fast --cache {tmp_path}/kept")
    line += f" --steps {2 * texts // 6} --batch 6 --checkpoint-every 100 --validate-every 100"
    assert type_in(f"{line} --out {tmp_path}/first", d) == 0
    rows, asked = (int(x.replace(",", "")) for x in re.search(r"of ([\d,]+) texts ([\d,]+) were known; \d+\.\d MB",
        capsys.readouterr().out).groups())
    assert rows == 2 * texts and asked >= texts, "the second epoch's are known, and so are texts that stand there twice"
    monkeypatch.setattr(SoftTargets, "teacher_outputs", None)
    assert type_in(f"{line} --layers 2 --recipe distilgpt2 --cosine 0 --out {tmp_path}/second",
                   d) == 0, "the teacher is not asked again"
    assert json.loads((tmp_path / "second" / "config.json").read_text())["top_k"] == 0


# the second stage of TinyBERT


@pytest.fixture(scope="module")
def staged(d):
    """A student of the first stage, a task, and teachers that were tuned on it in three ways."""
    words = ["happy", "sad", "proud", "angry"]
    records = [{"text": f"{words[i % 4]} {i}", "label": ["bad", "good"][i % 2]} for i in range(60)]
    (d / "task.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    assert type_in(f"distill --teacher {{d}}/encoder --recipe tinybert --layers 2 --width 8 --text {{d}}/text.txt "
                   f"{SHORT} --fast --out {{d}}/general", d) == 0
    for method in ("lora", "feature-based", "prompt-tuning"):
        line = (f"finetune --method {method} --base {{d}}/encoder --data {{d}}/task.jsonl --steps 2 --batch 4 "
                f"--validate-every 2 --length 2 --out {{d}}/expert")
        assert type_in(line, d) == 0
    return "distill --teacher {d}/encoder --tuned {d}/expert/lora --student {d}/general --task {d}/task.jsonl " + SHORT


MORE = "--copies 3 --candidates 4 --chance 0.9 --attention 0"


@pytest.mark.parametrize("method, more", [("lora", "--fast"), ("feature-based", MORE), ("lora", "--copies 0")])
def test_the_second_stage_teaches_a_task_and_leaves_a_body_and_a_head(staged, method, more, d, tmp_path, capsys):
    line = f"{staged.replace('expert/lora', 'expert/' + method)} {more} --out {tmp_path}/out"
    assert type_in(line, d) == 0
    said, result = capsys.readouterr().out, json.loads((tmp_path / "out" / "report.json").read_text())
    learned = 60 - result["texts"]
    times = {"--fast": 3, "--copies 0": 1}.get(more, 4)
    assert f"{learned} texts became {learned * times};" in said and "accuracy" in said
    assert result["labels"] == ["bad", "good"] and result["parameters"][1] < result["parameters"][0]
    model, tokenizer = load_model(tmp_path / "out")
    student, start = saving.load(Classifier(model.body, 2), tmp_path / "out" / "head"), load_model(d / "general")[0]
    assert not torch.equal(model.body.blocks[0].attention.query.weight, start.body.blocks[0].attention.query.weight)
    kept = read_tensors(tmp_path / "out" / "task" / "prediction" / "model.safetensors")[0]
    assert torch.equal(student.head.weight, kept["head.weight"]) and torch.equal(model.body.norm.bias,
        kept["body.norm.bias"])
    assert type_in(f"finetune --method bitfit --base {tmp_path}/out --data {{d}}/task.jsonl --steps 1 --batch 4 --out "
                   f"{tmp_path}/more", d) == 0
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert type_in(line, d) == 0 and (tmp_path / "out" / "model.safetensors").read_bytes() == before


def test_a_student_of_a_few_of_the_teacher_s_labels_keeps_the_teacher_s_classes_and_can_be_asked(staged, d, tmp_path,
                                                                                                 capsys):
    lines = (d / "task.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "good.jsonl").write_text("\n".join(line for line in lines if "good" in line), encoding="utf-8")
    assert type_in(f"{staged.replace('{d}/task.jsonl', '{t}/good.jsonl')} --fast --out {{t}}/out", d, t=tmp_path) == 0
    assert read_json(tmp_path / "out" / "report.json")["labels"] == ["bad", "good"]
    capsys.readouterr()
    assert type_in("ask {t}/out --tuned {t}/out/head --prompt 'happy 3'", t=tmp_path) == 0
    shares = {line.split("%")[1].strip() for line in capsys.readouterr().out.splitlines()}
    assert shares == {"bad", "good"}


def test_the_classes_of_lines_stand_in_the_order_of_the_teacher_s_labels(d, tmp_path):
    model, tokenizer = load_model(d / "encoder")
    sides = [[{"text": f"Mira {i}", "label": "ab"[i % 2], "line": i} for i in range(8)]] * 2
    for known, classes in (((), [0, 1, 0, 1]), (("b", "c", "a"), [2, 0, 2, 0])):
        task = labelled_task(model, tokenizer, sides, TrainingConfig(steps=1, batch=4), tmp_path, known=known)
        assert task.learned.classes.tolist()[:4] == classes and list(task.labels) == (list(known) or ["a", "b"])


def test_a_second_stage_that_was_stopped_ends_with_the_same_bits(staged, d, tmp_path, monkeypatch):
    save = RunFolder.save_checkpoint

    def save_and_die(run, *arguments):
        save(run, *arguments)
        if run.path.name == "prediction":
            raise KeyboardInterrupt

    assert type_in(f"{staged} --fast --out {tmp_path}/whole", d) == 0
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_checkpoint", save_and_die)
        assert type_in(f"{staged} --fast --out {tmp_path}/stopped", d) == 130
    assert type_in(f"{staged} --fast --out {tmp_path}/stopped", d) == 0
    for file in ("model.safetensors", "head/tuned.safetensors"):
        whole, stopped = (read_tensors(tmp_path / name / file)[0] for name in ("whole", "stopped"))
        assert set(whole) == set(stopped) and all(torch.equal(whole[name], stopped[name]) for name in whole)


@pytest.mark.parametrize(
    "change, message",
    [
        (("--tuned {d}/expert/lora", ""), "needs --task, --tuned and --student"),
        (("--student {d}/general", "--layers 2"), "needs --task, --tuned and --student"),
        (("--teacher", "--text {d}/text.txt --teacher"), "takes neither --text nor"),
        (("--teacher", "--recipe minilm --teacher"), "the second stage of tinybert"),
        (("expert/lora", "expert/prompt-tuning"), "was made by prompt tuning"),
        (("expert/lora", "expert/nothing"), "no such file"),
        (("--teacher {d}/encoder", "--teacher {d}/general"), "was made for another base"),
        (("--teacher {d}/encoder", "--teacher {d}/decoder"), "the teacher is a decoder; add --copies 0"),
        (("--student {d}/general", "--student {d}/foreign"), "its tokenizer is not that of"),
        (("--student {d}/general", "--student {d}/decoder"), "the student's kind is decoder, the teacher's encoder"),
        (("--task {d}/task.jsonl", "--task {d}/text.txt"), "text.txt, line 1: not JSON"),
        (("--task {d}/task.jsonl", "--task {d}/three.jsonl"), "three.jsonl, line 1: the teacher was not tuned on the "
         "label '0'; it knows bad, good: rename it, or tune the teacher on these lines"),
        (("--task {d}/task.jsonl", "--task {d}/renamed.jsonl"), "renamed.jsonl, line 2: the teacher was not tuned on "
         "the label 'fine'; it knows bad, good"),
        (("expert/lora", "unlabelled"), "was not tuned on labels; give --tuned what finetune made"),
        (("expert/lora", "twice"), "labels is ['bad', 'bad']; it must be a list of different texts, one a class"),
        (("--teacher", "--beams 3 --teacher"), "--beams is not an option of tinybert"),
    ],
)
def test_what_the_second_stage_cannot_do_is_said_on_one_line(staged, change, message, d, tmp_path, capsys):
    lines = [json.dumps({"text": f"Mira {i}", "label": str(i % 3)}) for i in range(40)]
    (d / "three.jsonl").write_text("\n".join(lines), encoding="utf-8")
    task = (d / "task.jsonl").read_text(encoding="utf-8")
    (d / "renamed.jsonl").write_text(task.replace('"good"', '"fine"'), encoding="utf-8")
    for name, labels in (("unlabelled", []), ("twice", ["bad", "bad"])):
        shutil.copytree(d / "expert" / "lora", d / name, dirs_exist_ok=True)
        write_json(d / name / "config.json", {**read_json(d / name / "config.json"), "labels": labels})
    capsys.readouterr()
    assert type_in(f"{staged.replace(*change, 1)} --fast --out {tmp_path}/out", d) == 2
    (found,) = [text for text in capsys.readouterr().err.splitlines() if text]
    assert found.startswith("error: ") and message in found and not (tmp_path / "out" / "config.json").exists()


def test_a_run_may_go_on_as_a_student_of_another_recipe(d, tmp_path, capsys):
    assert type_in(f"distill --teacher {{d}}/encoder --recipe minilm --layers 2 --text {{d}}/text.txt {SHORT} --fast "
                   f"--out {tmp_path}/a", d) == 0
    line = (f"distill --teacher {{d}}/encoder --student {tmp_path}/a --learning-rate 1e-9 --text {{d}}/text.txt "
            f"{SHORT} --fast --out {tmp_path}/b")
    assert type_in(line, d) == 0
    first, second = (dict(load_model(tmp_path / name)[0].named_parameters()) for name in "ab")
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)


def test_the_same_command_twice_trains_once_and_a_stopped_one_ends_with_the_same_bits(d, tmp_path, monkeypatch):
    line = [word.format(d=d) for word in f"distill --teacher {{d}}/encoder --recipe tinybert --text {{d}}/text.txt "
                                         f"{SHORT} --fast".split()]
    assert run([*line, "--out", f"{tmp_path}/whole"]) == 0
    save = RunFolder.save_checkpoint

    def save_and_die(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_checkpoint", save_and_die)
        assert run([*line, "--out", f"{tmp_path}/stopped"]) == 130
    assert (tmp_path / "stopped" / "checkpoint.safetensors").exists() and not (tmp_path / "stopped"
        / "model.safetensors").exists()
    assert run([*line, "--out", f"{tmp_path}/stopped"]) == 0
    whole, stopped = (read_tensors(tmp_path / name / "model.safetensors")[0] for name in ("whole", "stopped"))
    assert set(whole) == set(stopped) and all(torch.equal(whole[name], stopped[name]) for name in whole)
    before = os.stat(tmp_path / "whole" / "model.safetensors").st_mtime_ns
    assert run([*line, "--out", f"{tmp_path}/whole"]) == 0 and os.stat(tmp_path / "whole"
        / "model.safetensors").st_mtime_ns == before


def test_the_table_says_the_differences():
    result = {"loss": [1.0, 1.5], "parameters": [1000, 400], "bytes": [4000, 1600], "seconds": [0.002, 0.001],
              "tokens": 16}
    lines = table(result).splitlines()
    for line, words in zip(lines[1:], ("+0.500", "1.65 times", "40%", "40%", "2.00 times as fast"), strict=True):
        assert line.endswith(words)


# a teacher of sentences


def test_a_bert_teaches_sentences_and_its_student_is_a_folder_again(d, tmp_path, capsys):
    line = (f"distill --teacher {{d}}/bert --layers 2 --text {{d}}/text.txt --valid {{d}}/other.txt --fast --out "
            f"{tmp_path}/s")
    assert type_in(line, d) == 0
    said = capsys.readouterr().out
    assert "cut off" in said and "Spearman" in said and "milliseconds a text" in said
    student = load_bert(tmp_path / "s" / "bert")
    result = json.loads((tmp_path / "s" / "report.json").read_text())
    assert student.config.layers == 2 and evenly(3, 2) == [0, 2] and set(result) == {"teacher", "cut off", "student"}
    assert result["teacher"]["spearman"] == pytest.approx(1) and result["student"]["parameters"] == sum(p.numel()
        for p in student.parameters())
    assert json.loads((tmp_path / "s" / "config.json").read_text())["training"]["batch"] == 8
    assert type_in(line, d) == 0  # finished: only measured again
    again = (f"distill --teacher {tmp_path}/s --layers 1 --start random --width 8 --vectors 0 --text {{d}}/text.txt "
             f"--valid {{d}}/other.txt --fast")
    assert type_in(f"{again} --out {tmp_path}/n", d) == 0 and load_bert(tmp_path / "n" / "bert").config.width == 8
    assert set(json.loads((tmp_path / "n" / "report.json").read_text())) == {"teacher", "student"}


@pytest.mark.parametrize(
    "line, message",
    [
        ("--teacher {d}/nowhere --text {d}/text.txt", "there is no such run folder"),
        ("--teacher {d}/decoder", "name files with --text"),
        ("--teacher {d}/decoder --text {d}/none.txt", "there is no such file"),
        ("--teacher {d}/decoder --text {d}/text.txt --recipe distilbert", "distilbert is not for a decoder; choose one "
         "of soft-targets, distilgpt2"),
        ("--teacher {d}/encoder --text {d}/text.txt --recipe distilgpt2", "distilgpt2 is not for an encoder; choose "
         "one of soft-targets, distilbert"),
        ("--teacher {d}/decoder --text {d}/text.txt --recipe sentence-vectors",
         "there is no recipe 'sentence-vectors'; choose one of soft-targets"),
        ("--teacher {d}/t5 --text {d}/text.txt", "the recipes are for decoders and encoders"),
        ("--teacher {d}/decoder --text {d}/text.txt --layers 4", "a student of 4 layers cannot learn from a teacher of "
         "3; give it 1 to 3"),
        ("--teacher {d}/decoder --text {d}/text.txt --temperature 0", "temperature is 0.0; it must be from 0.001"),
        ("--teacher {d}/decoder --text {d}/text.txt --temperature -1", "temperature is -1.0; it must be from 0.001"),
        ("--teacher {d}/encoder --text {d}/text.txt --recipe minilm --heads 4",
         "the student has 4 heads, the teacher 2; give it 2"),
        ("--teacher {d}/encoder --text {d}/text.txt --recipe tinybert --heads 4",
         "the student has 4 heads, the teacher 2; give it 2"),
        ("--teacher {d}/encoder --text {d}/text.txt --recipe minilm-v2 --relation-heads 5",
         "does not divide into 5 relation heads"),
        ("--teacher {d}/decoder --text {d}/text.txt --recipe distilgpt2 --width 8", "start it at random instead"),
        ("--teacher {d}/decoder --text {d}/text.txt --recipe distilgpt2 --width 8 --start random",
         "set its weight to 0, or use tinybert or minilm"),
        ("--teacher {d}/decoder --text {d}/text.txt --width 7", "width 7 does not divide by 2 heads"),
        ("--teacher {d}/decoder --text {d}/text.txt --student {d}/foreign", "its tokenizer is not that of"),
        ("--teacher {d}/decoder --text {d}/text.txt --student {d}/encoder",
         "the student's kind is encoder, the teacher's decoder"),
        ("--teacher {d}/decoder --text {d}/text.txt --student {d}/decoder --layers 1",
         "--student is a model that is there already"),
        ("--teacher {d}/decoder --text {d}/text.txt --queries 1", "--queries is not an option of soft-targets; it has "
         "--temperature"),
        ("--teacher {d}/decoder --text {d}/text.txt --soft 0", "all weights are 0"),
        ("--teacher {d}/decoder --text {d}/text.txt --prompt-tokens 3", "--prompt-tokens is for sequence-level and "
         "on-policy"),
        ("--teacher {d}/encoder --text {d}/text.txt --recipe on-policy", "on-policy is not for an encoder; choose one "
         "of soft-targets, distilbert"),
        ("--teacher {d}/decoder --text {d}/text.txt --recipe on-policy --no-packed", "on-policy reads one text a row"),
        ("--teacher {d}/decoder --text {d}/text.txt --recipe on-policy", "fit the context of 16; use a smaller "
         "--new-tokens or --prompt-tokens"),
        ("--teacher {d}/decoder --text {d}/text.txt --recipe sequence-level --beams 0",
         "beams is 0; it must be from 1"),
        ("--teacher {d}/decoder --text {d}/text.txt --recipe sequence-level --new-tokens 14 --prompt-tokens 3",
         "prompts of 3 tokens and 14 new ones do not"),
        ("--teacher {d}/decoder --text {d}/text.txt --top-k 3", "say how --cache keeps what the teacher thinks; add "
         "--cache FOLDER"),
        ("--teacher {d}/decoder --text {d}/text.txt --recipe minilm --cache {d}/kept",
         "which minilm does not ask; leave it out"),
        ("--teacher {d}/encoder --text {d}/text.txt --cache {d}/kept", "hidden anew in each epoch"),
        ("--teacher {d}/bert --text {d}/text.txt --cache {d}/kept", "--assistant, masking and a cache"),
        ("--teacher {d}/encoder --text {d}/text.txt --recipe tinybert --copies 3",
         "--copies makes more texts of a task's; give --task"),
        ("--teacher {d}/decoder --text {d}/text.txt --layers-from 0,x", "numbers of layers between commas"),
        ("--teacher {d}/decoder --text {d}/text.txt --layers-from 0", "add --start teacher"),
        ("--teacher {d}/decoder --text {d}/text.txt --recipe distilgpt2 --layers-from 7", "are not 1 of 0 to 2"),
        ("--teacher {d}/decoder --text {d}/text.txt --assistant", "--assistant is for minilm"),
        ("--teacher {d}/decoder --text {d}/text.txt --chosen 0.5", "hide words from an encoder"),
        ("--teacher {d}/decoder --text {d}/text.txt --out {d}/encoder", "holds another run"),
        ("--teacher {d}/bert --text {d}/text.txt --recipe minilm", "its recipe is sentence-vectors"),
        ("--teacher {d}/bert --text {d}/few.txt --batch 4", "too few for similarities"),
        ("--teacher {d}/bert --text {d}/text.txt --valid {d}/text.txt --fast", "too few for similarities"),
        ("--teacher {d}/bert --text {d}/few.txt --valid {d}/other.txt", "there are 9 texts to learn from, fewer than "
         "one batch of 32"),
        ("--teacher {d}/bert --text {d}/text.txt --valid {d}/other.txt --layers 4 --fast", "give it 1 to 3"),
        ("--teacher {d}/bert --text {d}/text.txt --valid {d}/other.txt --width 8 --fast",
         "set the weight of vectors to 0"),
        ("--teacher {d}/bert --text {d}/text.txt --valid {d}/other.txt --layers-from 0 --start random --fast",
         "leave --start random out"),
    ],
)
def test_what_distill_cannot_do_is_said_on_one_line(line, message, d, tmp_path, capsys):
    capsys.readouterr()
    assert type_in("distill " + line + ("" if "--out" in line else f" --out {tmp_path}/out"), d) == 2
    found = [text for text in capsys.readouterr().err.splitlines() if text]
    assert len(found) == 1 and found[0].startswith("error: ") and message in found[0]
