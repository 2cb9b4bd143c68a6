"""Every command as a newcomer types it: what it leaves, what its help promises, and one clear line for whatever is
wrong with its input."""

import dataclasses
import errno
import importlib
import io
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from typed import type_in

from minialign import generation
from minialign.__main__ import COMMANDS, read_standard_input_as_a_file, run
from minialign.generation import SamplingConfig
from minialign.heads import load_model
from minialign.lab.demo.settings import DemoConfig
from minialign.pretrain.masked_lm import MaskingConfig
from minialign.pretrain.span_corruption import SpanCorruptionConfig
from minialign.rlhf.dpo import DPOConfig
from minialign.rlhf.ppo import PPOConfig
from minialign.rlhf.pretraining_mix import MixConfig
from minialign.runs import files
from minialign.runs import run_folder as checkpoints
from minialign.runs.run_folder import RunFolder
from minialign.runs.tensors import digest, read_tensors
from minialign.training import TrainingConfig
from minialign.transformer import TransformerConfig

SHAPE = "--vocabulary 300 --context 64 --width 16 --heads 2 --layers 1"
QUICK = "--steps 6 --batch 4 --checkpoint-every 2 --validate-every 3"
PRETRAIN = f"pretrain --text {{d}}/text.txt {SHAPE} {QUICK}"
SFT = f"sft --base {{d}}/base --demonstrations {{d}}/demos.jsonl {QUICK}"
REWARD = f"reward --base {{d}}/sft --comparisons {{d}}/pairs.jsonl --references 8 {QUICK}"
T5 = PRETRAIN + " --objective span-corruption --lm-adaptation-steps 4"
BERT = PRETRAIN + " --objective masked-lm"
DPO = f"dpo --policy {{d}}/sft --comparisons {{d}}/pairs.jsonl {QUICK}"
PPO = ("ppo --policy {d}/sft --reward {d}/reward --prompts {d}/prompts.txt --updates 3 --batch 4 --minibatch 2 "
       "--new-tokens 6")


def lines(path, *records):
    """A JSONL file; strings are written as they are."""
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8")


def contents(folder):
    """Every file below a folder with its bytes, locks left out."""
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
            and path.name != ".lock"}


def bits(folder):
    """A digest of a finished run's weights."""
    return digest(read_tensors(folder / "model.safetensors")[0])


def complaint(capsys):
    """The one line on standard error, without its "error: "."""
    # what is left are no progress bars
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "%|" not in line]
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


@pytest.fixture(scope="module")
def d(tmp_path_factory):
    """A newcomer's folder: files that are right, files that are wrong, and a finished run of every stage."""
    d = tmp_path_factory.mktemp("newcomer")
    names = ["Mira", "Nora", "Sam", "Ben", "Rosa", "Leo"]
    demos = [{"prompt": f"Where is {name} at {hour}?", "completion": f" {name} is at home."} for name in names
             for hour in range(10)]
    pairs = [{"prompt": r["prompt"], "chosen": r["completion"], "rejected": " Go away, " + r["prompt"][9:13]}
             for r in demos]
    (d / "text.txt").write_text("\n\n".join(r["prompt"] + r["completion"] for r in demos * 2), encoding="utf-8")
    (d / "prompts.txt").write_text("\n".join(r["prompt"] for r in demos), encoding="utf-8")
    long = {"prompt": "Where? " * 60, "completion": " Here.", "chosen": "a", "rejected": "b"}
    lines(d / "texts.jsonl", *({"text": r["prompt"] + r["completion"]} for r in demos * 2), {"text": ""})
    lines(d / "demos.jsonl", *demos)
    lines(d / "pairs.jsonl", *pairs)
    lines(d / "wordy.jsonl", *({**p, "prompt": p["prompt"] + " I ask" * 3} for p in pairs))
    lines(d / "long.jsonl", *demos, long)
    lines(d / "long-pairs.jsonl", *pairs, long)
    lines(d / "all-long.jsonl", *({**long, "prompt": f"{i} " + long["prompt"]} for i in range(60)))
    lines(d / "few.jsonl", *({**demo, **pair} for demo, pair in zip(demos[:30], pairs[:30])))
    lines(d / "one.jsonl", demos[0])
    lines(d / "equal.jsonl", *({**p, "rejected": p["chosen"]} for p in pairs))
    lines(d / "broken.jsonl", {"text": "a", "prompt": "a", "completion": "b", "chosen": "c", "rejected": "d"},
          "{broken")
    lines(d / "fields.jsonl", {"title": "a"})
    lines(d / "types.jsonl", {"text": 1, "prompt": 1, "completion": 1, "chosen": 1, "rejected": 1})
    lines(d / "no-text.jsonl", {"text": ""}, {"text": "  "})
    lines(d / "long-answer.jsonl", *demos[:3], {"prompt": "Where?", "completion": " Here." * 60})
    lines(d / "half.jsonl", {"text": "a", "prompt": "a", "completion": "b", "chosen": "c", "rejected": "d",
                             "source": "chat \ud83d"})
    lines(d / "liked.jsonl", {"prompt": "a", "completion": "b", "label": False})
    (d / "empty.txt").write_text("")
    (d / "short.txt").write_text("Hi.")
    (d / "latin.txt").write_bytes("gut\nfür\n".encode("latin-1"))
    (d / "long.txt").write_text("Where?\n" * 8 + long["prompt"] + "\n")
    (d / "folder").mkdir()
    stages = (PRETRAIN + " --out {d}/base", SFT + " --out {d}/sft", REWARD + " --out {d}/reward",
              PPO + " --out {d}/ppo", DPO + " --out {d}/dpo")
    for stage in (*stages, f"pretrain {d}/prompts.txt {SHAPE} {QUICK} --out {d}/stranger", T5 + " --out {d}/t5",
                  BERT + " --out {d}/bert"):
        assert type_in(stage, d=d) == 0
    for name, file in (("damaged", "model.safetensors"), ("mixed", "tokenizer.json"), ("reshaped", "config.json"),
                       ("unfinished", "")):
        (d / name).mkdir()
        for path in (d / "sft").iterdir():
            (d / name / path.name).write_bytes(path.read_bytes()[: 999 if (name, path.name) == ("damaged", file)
                else None])
    (d / "mixed" / "tokenizer.json").write_bytes((d / "stranger" / "tokenizer.json").read_bytes())
    (d / "reshaped" / "config.json").write_text((d / "sft" / "config.json").read_text().replace('"width": 16',
        '"width": 32'))
    (d / "unfinished" / "model.safetensors").unlink()
    return d


# help

CONFIGURATIONS = [("demo", DemoConfig), ("pretrain", TrainingConfig), ("pretrain", TransformerConfig),
                  ("sft", TrainingConfig), ("reward", TrainingConfig)]
CONFIGURATIONS += [("dpo", DPOConfig), ("dpo", TrainingConfig)]
CONFIGURATIONS += [("ppo", PPOConfig), ("ppo", MixConfig), ("compare", SamplingConfig), ("evaluate", SamplingConfig),
                   ("sample", SamplingConfig)]
CONFIGURATIONS += [("pretrain", SpanCorruptionConfig), ("pretrain", MaskingConfig)]
# --prompts is the file there; the objective says what is built
ELSEWHERE = {("ppo", "prompts"): "batch", ("pretrain", "kind"): "objective"}


@pytest.mark.parametrize("name, config", CONFIGURATIONS, ids=lambda value: getattr(value, "__name__", value))
def test_every_field_of_a_stage_s_configuration_is_an_option_in_its_help(name, config, capsys):
    assert run([name, "--help"]) == 0
    text = capsys.readouterr().out
    missing = [f.name for f in dataclasses.fields(config)
               if f"--{ELSEWHERE.get((name, f.name), f.name).replace('_', '-')}" not in re.split(r"[\s,]", text)]
    assert missing == []


def test_the_map_names_every_command_and_every_command_explains_itself(capsys):
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in COMMANDS)
    for name in COMMANDS:
        assert run([name, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"Usage: python -m minialign {name} ")


def test_no_command_has_two_options_of_one_name():
    for name in COMMANDS:
        flags = [flag for option in importlib.import_module(f"minialign.lab.commands.{name}").command.params
                 for flag in option.opts + option.secondary_opts]
        assert len(flags) == len(set(flags)), name


# what each command leaves


SOURCES = ["--text {d}/text.txt --split paragraphs", "{d}/text.txt --split lines --no-packed", "{d}/texts.jsonl --fast",
           "--text {d}/text.txt {d}/texts.jsonl"]


@pytest.mark.parametrize("source", SOURCES)
def test_pretrain_reads_texts_lines_paragraphs_jsonl_and_several_files(source, d, tmp_path, capsys):
    assert type_in(f"pretrain {source} {SHAPE} {QUICK} --out {tmp_path}/run", d=d) == 0
    # what is typed wins over --fast
    assert "perplexity" in capsys.readouterr().out and RunFolder(tmp_path / "run").facts()["steps"] == 6


def test_one_reader_takes_prompts_and_texts_by_their_content(d, tmp_path, capsys):
    """U+2028 inside a prompt, JSONL under other names, a byte-order mark, \\r\\n: as many prompts as there are."""
    prompts = [f"Where is\u2028Mira\x0cat {i}?" for i in range(6)]
    (tmp_path / "a.txt").write_bytes(("\ufeff" + "\r\n".join(prompts)).encode())
    lines(tmp_path / "a.JSONL", *({"prompt": prompt, "line": "x"} for prompt in prompts))
    for name in ("a.txt", "a.JSONL"):
        assert type_in(f"compare --policies {d}/sft {d}/base --prompts {tmp_path}/{name} --new-tokens 4 "
                       f"--out {tmp_path}/{name}.pairs") == 0
    assert f"{tmp_path}/a.JSONL: read as JSONL, one object a line" in capsys.readouterr().out
    first, second = (files.read_jsonl(tmp_path / f"{name}.pairs") for name in ("a.txt", "a.JSONL"))
    assert first == second and {pair["prompt"] for pair in first} <= set(prompts) and len(first) > 3
    found = []
    for name in ("texts.jsonl", "texts.JSON", "texts.jsonl.txt"):
        shutil.copy(d / "texts.jsonl", tmp_path / name)
        assert type_in(f"evaluate {d}/base --text {tmp_path}/{name} --out {tmp_path}/{name}.json") == 0
        found.append(files.read_json(tmp_path / f"{name}.json")["text"])
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("line", ["sample {d}/sft --new-tokens 2 --prompt -", "ask {d}/sft --new-tokens 2"])
def test_what_is_piped_in_has_neither_a_byte_order_mark_nor_a_carriage_return(line, d, monkeypatch, capsys):
    said, asked = [], []
    monkeypatch.setattr(generation, "prompt_ids", lambda _, texts, kind: asked.extend(texts) or [[1]] * len(texts))
    for typed in ("Where is Mira?\n", "\ufeffWhere is Mira?\r\n"):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(typed.encode()), encoding="ascii", newline="\n"))
        read_standard_input_as_a_file()
        assert type_in(line, d=d) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and asked == ["Where is Mira?"] * 2


@pytest.mark.parametrize("stage", ["base", "sft", "reward", "ppo", "dpo", "t5", "bert"])
def test_every_stage_leaves_a_run_that_the_same_command_finds_finished(stage, d, capsys):
    line = {"base": PRETRAIN, "sft": SFT, "reward": REWARD, "ppo": PPO, "dpo": DPO, "t5": T5,
            "bert": BERT}[stage] + f" --out {d}/{stage}"
    before = contents(d)
    assert type_in(line, d=d) == 0 and contents(d) == before
    assert f"{d}/{stage}: " in capsys.readouterr().out


def test_each_objective_builds_its_kind_of_model_and_says_which_settings_it_had(d):
    config = {name: files.read_json(d / name / "config.json") for name in ("base", "t5", "t5/span-corruption", "bert")}
    assert {name: found["model"]["kind"] for name, found in config.items()} == {
        "base": "decoder",
        "t5": "encoder-decoder",
        "t5/span-corruption": "encoder-decoder",
        "bert": "encoder",
    }
    assert (config["t5"]["lm_adaptation_steps"], config["t5/span-corruption"]["lm_adaptation_steps"]) == (4, 0)
    assert config["t5"]["noise"] == {"noise": 0.15, "mean_span": 3.0} and config["bert"]["masking"]["chosen"] == 0.15
    # as before there was a choice: runs from then go on
    assert not {"objective", "noise", "masking"} & set(config["base"])
    steps = {name: RunFolder(d / name).facts()["steps"] for name in config}
    assert steps == {"base": 6, "t5": 4, "t5/span-corruption": 6, "bert": 6}
    assert bits(d / "t5") != bits(d / "t5" / "span-corruption")


def test_a_score_that_is_the_mean_of_all_tokens_is_read_so_by_whoever_opens_the_run(d, tmp_path):
    assert type_in(f"{REWARD} --read mean --out {tmp_path}/reward", d=d) == 0
    assert load_model(tmp_path / "reward")[0].read == "mean" and load_model(d / "reward")[0].read == "end"
    line = PPO.replace("{d}/reward", f"{tmp_path}/reward").replace("--updates 3", "--updates 1")
    assert type_in(f"{line} --out {tmp_path}/ppo", d=d) == 0
    assert type_in(f"{REWARD} --out {tmp_path}/reward", d=d) == 2  # another run


@pytest.mark.parametrize("options", ["--objective span-corruption --noise 0.3 --mean-span 2",
                                     "--objective masked-lm --chosen 0.3 --masked 0.5 --replaced 0.2"])
def test_how_much_is_hidden_can_be_set_and_makes_another_model(options, d, tmp_path):
    plain = options[: options.index(" --", 3)]
    for name, line in (("plain", plain), ("set", options), ("rows", f"{plain} --no-packed --split paragraphs")):
        assert type_in(f"{PRETRAIN} {line} --out {tmp_path}/{name}", d=d) == 0
    assert len({bits(tmp_path / name) for name in ("plain", "set", "rows")}) == 3


def test_sample_goes_on_from_a_prompt_or_fills_its_gaps(d, capsys):
    said = []
    for line in (f"{d}/t5 --prompt Where", f"{d}/t5/span-corruption --prompt Where___at___home",
                 f"{d}/bert --prompt Where___at___home"):
        assert type_in(f"sample {line} --count 2 --new-tokens 9") == 0
        said.append(capsys.readouterr().out.split("---\n")[:2])
    assert all(text.startswith("Where") for texts in said for text in texts)
    assert all("at" in text and text.endswith("home\n") for text in said[1] + said[2])


def test_another_seed_or_setting_in_a_finished_run_s_folder_is_refused_and_changes_nothing(d, capsys):
    before = contents(d)
    assert type_in(f"{SFT} --seed 1 --out {d}/sft", d=d) == 2
    assert "training.seed is 0 there and 1 now; choose another --out" in complaint(capsys)
    assert type_in(SFT.replace("/base", "/sft") + f" --out {d}/sft", d=d) == 2  # the same settings on another model
    assert "this folder holds another run: base is" in complaint(capsys) and contents(d) == before


def test_fast_is_less_of_everything(d, tmp_path):
    assert type_in(f"sft --base {d}/base --demonstrations {d}/demos.jsonl --fast --out {tmp_path}/run") == 0
    assert RunFolder(tmp_path / "run").facts()["steps"] == 30


def test_compare_writes_pairs_to_be_judged_and_never_over_a_file(d, tmp_path, capsys):
    line = (f"compare --policies {d}/sft {d}/base --prompts {d}/demos.jsonl --references --answers 3 --fast "
            f"--new-tokens 4 --out {tmp_path}/pairs.jsonl")
    assert type_in(line) == 0
    pairs = files.read_jsonl(tmp_path / "pairs.jsonl", ("prompt", "first", "second", "first_policy", "second_policy"))
    assert {pair["first_policy"] for pair in pairs} == {f"{d}/sft", f"{d}/base", "reference"}
    assert "pairs" in capsys.readouterr().out
    before = contents(tmp_path)
    assert type_in(line) == 2 and "may hold somebody's work; choose another --out" in complaint(capsys)
    assert contents(tmp_path) == before


def test_reward_measures_other_people_s_comparisons_and_has_room_for_answers_to_long_prompts(d, tmp_path, capsys):
    wordy = REWARD.replace("/pairs.jsonl", "/wordy.jsonl")
    assert type_in(f"{wordy} --test {d}/pairs.jsonl --out {tmp_path}/run", d=d) == 0
    said = capsys.readouterr().out
    for words in (f"{d}/pairs.jsonl: ", "always takes the longer one: ", "observed", "mean distance"):
        assert words in said
    assert (tmp_path / "run" / "calibration.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("line", [REWARD, "dpo --policy {d}/sft --comparisons {d}/pairs.jsonl " + QUICK])
def test_prompts_that_are_measured_on_and_learned_from_are_counted(line, d, tmp_path, capsys):
    pairs = (d / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    new = [json.dumps(json.loads(pair) | {"prompt": f"{number} is new"}) for number, pair in enumerate(pairs[:3])]
    (tmp_path / "some.jsonl").write_text("\n".join([*pairs[:5], *new]), encoding="utf-8")
    (tmp_path / "none.jsonl").write_text("\n".join(new), encoding="utf-8")
    shared = len({json.loads(pair)["prompt"] for pair in pairs[:5]})
    assert type_in(f"{line} --valid {tmp_path}/some.jsonl --out {tmp_path}/one", d=d) == 0
    assert f"some.jsonl: {shared} of its {shared + 3} prompts are learned from as well" in capsys.readouterr().out
    assert type_in(f"{line} --valid {tmp_path}/none.jsonl --out {tmp_path}/two",
                   d=d) == type_in(f"{line} --out {tmp_path}/three", d=d) == 0
    assert "learned from as well" not in capsys.readouterr().out


def test_ppo_climbs_several_reward_models_at_once_and_says_what_best_of_n_reaches(d, tmp_path, capsys):
    line = f"{PPO} --reward {{d}}/reward --caution 0.5 --best-of 3 --out {tmp_path}/run"
    assert type_in(line, d=d) == 0
    said = capsys.readouterr().out
    assert "best of 3 without training: " in said and "at 0.4 nats at most" in said
    assert type_in(line.replace("0.5", "0.4"), d=d) == 2 and "caution is 0.5 there and 0.4 now" in complaint(capsys)
    assert type_in(f"{PPO} --caution 0.5 --out {tmp_path}/other",
                   d=d) == 2 and "give --reward several times" in complaint(capsys)


def test_evaluate_shows_what_the_reward_model_and_the_judge_see_most_differently(d, tmp_path, capsys):
    line = (f"evaluate {d}/ppo --prompts {d}/demos.jsonl --judge {d}/reward --proxy {d}/reward --fast --out "
            f"{tmp_path}/e.json")
    assert type_in(line) == 0
    found = files.read_json(tmp_path / "e.json")["win_rate"]
    assert found["length_controlled_low"] <= found["length_controlled"] <= found["length_controlled_high"]
    assert 0 < len(found["hacking"]) <= 10 and all(sample["proxy"] == sample["gold"] for sample in found["hacking"])
    assert "seen most differently by" in capsys.readouterr().out


def test_evaluate_measures_perplexity_and_wins_and_never_writes_over_something_else(d, tmp_path, capsys):
    duel = (f"evaluate {d}/ppo --text {d}/text.txt --prompts {d}/demos.jsonl --judge {d}/reward --fast --out "
            f"{tmp_path}/ppo.json")
    assert type_in(duel) == 0 and type_in(duel) == 0
    found = files.read_json(tmp_path / "ppo.json")
    assert found["text"]["perplexity"] > 1 and found["win_rate"]["prompts"] == 32
    assert "preferred to the references" in capsys.readouterr().out
    shorter = f"evaluate {d}/../{d.name}/ppo --text {d}/text.txt --out {tmp_path}/ppo.json"  # the same run
    assert type_in(shorter) == 0 and "win_rate" in files.read_json(tmp_path / "ppo.json"), "what was measured stays"
    files.write_json(tmp_path / "tuned.json", {"run": f"{d}/ppo", "tuned": "elsewhere", "win_rate": {}})
    assert type_in(f"evaluate {d}/ppo --text {d}/text.txt --out {tmp_path}/tuned.json") == 0
    assert set(files.read_json(tmp_path / "tuned.json")) == {"run", "text"}, "what another model won is not this one's"
    assert type_in(shorter + f" --judge {d}/reward") == 2 and "give --prompts" in complaint(capsys)
    (tmp_path / "notes.txt").write_text("mine")
    for out in ("notes.txt", "ppo.json"):
        before = contents(tmp_path)
        assert type_in(f"evaluate {d}/sft --text {d}/text.txt --out {tmp_path}/{out}") == 2
        assert "no evaluation of this run; choose another --out" in complaint(capsys) and contents(tmp_path) == before


def test_a_judge_reads_what_it_can_of_an_answer_that_fills_the_context(d, tmp_path):
    (tmp_path / "a.txt").write_text("a\nb\nc\n")
    assert type_in(f"evaluate {d}/stranger --against {d}/stranger --judge {d}/reward --prompts {tmp_path}/a.txt "
                   f"--new-tokens 62 --out {tmp_path}/e.json") == 2
    assert type_in(f"evaluate {d}/base --against {d}/sft --judge {d}/reward --prompts {tmp_path}/a.txt --new-tokens 62 "
                   f"--out {tmp_path}/e.json") == 0


def test_sample_says_the_same_for_the_same_seed_and_shows_tokens(d, capsys):
    said = []
    for options in ("--seed 1", "--seed 1", "--seed 2", "--seed 1 --show tokens"):
        assert type_in(f"sample {d}/sft --prompt Where --count 2 --new-tokens 20 {options}") == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2] and said[0].count("---") == 2 and "|" in said[3]


def test_ppo_with_pretraining_text_says_what_the_text_costs_afterwards(d, tmp_path, capsys):
    assert type_in(f"{PPO} --pretraining {{d}}/text.txt --mix-rows 2 --out {tmp_path}/run", d=d) == 0
    assert "alignment tax: held-out text costs" in capsys.readouterr().out
    assert RunFolder(tmp_path / "run").facts()["text_loss"] > 0


def test_people_label_in_the_terminal_and_a_reward_model_learns_from_it(d, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("1 7\n" * 70))
    line = (f"label {d}/sft --prompts {d}/demos.jsonl --count 60 --new-tokens 6 --terminal --annotator Ada --out "
            f"{tmp_path}/labels")
    assert type_in(line) == 0 and "That was the last pair" in capsys.readouterr().out
    assert type_in(line + f" --pairs {tmp_path}/labels/pairs.jsonl") == 0  # the same pairs: nothing is left to do
    assert type_in(line + f" --pairs {d}/pairs.jsonl") == 2 and "field 'first' is missing" in capsys.readouterr().err
    # of another folder: named
    assert type_in(REWARD.replace("pairs.jsonl", "labels.jsonl") + f" --out {tmp_path}/run", d=tmp_path) == 2
    capsys.readouterr()
    reward = (f"reward --base {d}/sft --comparisons {tmp_path}/labels/labels.jsonl --references 8 {QUICK} --out "
              f"{tmp_path}/run")
    assert type_in(reward) == 0 and "asked again" in capsys.readouterr().out
    assert type_in(f"annotators {tmp_path}/labels/labels.jsonl") == 0 and "Ada" in capsys.readouterr().out


def test_the_world_s_annotators_are_listed_with_their_agreement_and_price(capsys):
    assert type_in("annotators --pairs 20 --people 5") == 0
    said = capsys.readouterr().out
    assert "Priya" in said and "Omar" in said and said.count("panel") == 3 and "a bit" in said


def test_the_lists_need_neither_network_nor_time(capsys):
    assert type_in("realdata") == 0 and type_in("claims --list") == 0
    assert "shakespeare" in (text := capsys.readouterr().out) and "over-optimisation" in text


# bad input

BAD = {
    "no text": ("pretrain", "there is no text to learn from; name files with --text"),
    "missing": ("pretrain --text {d}/nothing.txt", "nothing.txt: there is no such file"),
    "empty": ("pretrain --text {d}/empty.txt", "empty.txt: the file is empty"),
    "not UTF-8": ("pretrain --text {d}/latin.txt", "latin.txt, line 2: not UTF-8: byte 0xfc"),
    "folder": ("pretrain --text {d}/folder", "folder: cannot be read (Is a directory)"),
    "broken JSON": ("pretrain --text {d}/broken.jsonl", "broken.jsonl, line 2: not JSON"),
    "no field": ("pretrain --text {d}/fields.jsonl", "fields.jsonl, line 1: field 'text' is missing; the line has "
                                                     "'title'"),
    "type": ("pretrain --text {d}/types.jsonl", "types.jsonl, line 1: field 'text' is int, not text"),
    "empty texts": ("pretrain --text {d}/no-text.jsonl", "no-text.jsonl: every text in it is empty"),
    "short text": ("pretrain --text {d}/short.txt", "tokens, and one row of context 160 takes 161; give more text or a "
                                                    "shorter --context"),
    "short text for gaps": ("pretrain --objective span-corruption --text {d}/short.txt",
                            "tokens, fewer than one row of 177; give more text or a shorter"),
    "short text to mask": ("pretrain --objective masked-lm --text {d}/short.txt",
                           "tokens, fewer than one row of 159; give more text or a shorter"),
    "short validation for gaps": (T5 + " --valid {d}/short.txt", "short.txt: the text has"),
    "unknown objective": ("pretrain --text {d}/text.txt --objective gpt", "'gpt' is not one of 'next-token', "
                          "'span-corruption', 'masked-lm'"),
    "adaptation": (BERT + " --lm-adaptation-steps 3", "--lm-adaptation-steps can only be used with --objective "
                                                      "span-corruption, and this is masked-lm"),
    "gaps elsewhere": (PRETRAIN + " --noise 0.3", "--noise or --mean-span can only be used with --objective "
                                                  "span-corruption"),
    "masks elsewhere": (PRETRAIN + " --replaced 0.2", "--chosen, --masked or --replaced can only be used with "
                                                      "--objective masked-lm"),
    "all noise": (T5 + " --noise 1", "noise is 1.0; it must be from 0.01 to 0.9"),
    "too many shares": (BERT + " --masked 0.8 --replaced 0.3", "masked 0.8 and replaced 0.3 are shares of the same "
                        "tokens"),
    "encoder-decoder as decoder": ("sft --base {d}/t5 --demonstrations {d}/demos.jsonl",
                                   "t5: holds an encoder-decoder, and a decoder is needed here"),
    "encoder as policy": (PPO.replace("{d}/sft", "{d}/bert"), "bert: holds an encoder, and a decoder is needed here"),
    "encoder as base": ("reward --base {d}/bert --comparisons {d}/pairs.jsonl",
                        "bert: holds an encoder, and a decoder is needed here"),
    "perplexity of an encoder": ("evaluate {d}/bert --text {d}/text.txt", "bert: holds an encoder, and a decoder is "
                                 "needed here"),
    "an encoder that writes": ("compare --policies {d}/bert --prompts {d}/demos.jsonl --new-tokens 4",
                               "an encoder reads and does not write"),
    "an encoder without a gap":
    ("sample {d}/bert --prompt Where", "the text has 0 gaps; mark 1 to 16 of them with ___"),
    "many gaps": ("sample {d}/t5 --prompt " + "a___" * 17, "the text has 17 gaps; mark 1 to 16 of them with ___"),
    "short validation": (PRETRAIN + " --valid {d}/short.txt", "short.txt: the text has"),
    "unknown option": (PRETRAIN + " --stpes 3", "--stpes"),
    "unknown command": ("pertrain", "there is no command 'pertrain'; known are demo, pretrain"),
    "unknown split": (PRETRAIN + " --split words", "'words' is not one of 'file', 'paragraphs', 'lines'"),
    "unknown choice": (PRETRAIN + " --positions sines", "positions is 'sines'; choose one of rotary, learned"),
    "zero": (PRETRAIN + " --steps 0", "steps is 0; it must be at least 1"),
    "negative": (PRETRAIN + " --learning-rate -1", "learning rate -1.0 (above 0, below 1)"),
    "NaN": (PRETRAIN + " --weight-decay nan", "'nan' is not finite"),
    "infinite": ("ppo --beta inf", "'inf' is not finite"),
    "huge": (PRETRAIN + " --vocabulary 99999999999999999999", "is too large; the largest is"),
    "no number": (PRETRAIN + " --steps some", "'some' is not a whole number"),
    "seed": (PRETRAIN + " --seed -1", "-1 is not in the range"),
    "heads": (PRETRAIN + " --heads 3", "width 16 does not divide by 3 heads"),
    "vocabulary": (PRETRAIN + " --vocabulary 9", "vocabulary is 9; it must be at least 276"),
    "file as folder": (PRETRAIN + " --out {d}/text.txt", "text.txt: not a folder that can be written; choose another "
                                                         "--out"),
    "long name": (PRETRAIN + " --out {d}/" + "a" * 300, "choose another --out"),
    "no base": ("sft --base {d}/nothing --demonstrations {d}/demos.jsonl", "nothing: there is no such run folder"),
    "no run": ("sft --base {d}/folder --demonstrations {d}/demos.jsonl", "config.json: there is no such file"),
    "missing option": ("sft --base {d}/base", "Missing option '--demonstrations'"),
    "unfinished": ("sft --base {d}/unfinished --demonstrations {d}/demos.jsonl",
                   "unfinished: this run has not finished; run its command again"),
    "damaged": ("sft --base {d}/damaged --demonstrations {d}/demos.jsonl", "model.safetensors: not a whole safetensors "
                "file"),
    "another shape": ("sft --base {d}/reshaped --demonstrations {d}/demos.jsonl",
                      "has shape (300, 16), the model's is (300, 32)"),
    "another tokenizer": ("sft --base {d}/mixed --demonstrations {d}/demos.jsonl",
                          "tokenizer.json is not the one that this model was trained with"),
    "wrong kind": ("sft --base {d}/reward --demonstrations {d}/demos.jsonl",
                   "holds a scalar-model, and a decoder is needed here"),
    "long demonstration": ("sft --base {d}/base --demonstrations {d}/long.jsonl", "long.jsonl, line 61: "),
    "only long ones": ("sft --base {d}/base --skip-long --demonstrations {d}/all-long.jsonl",
                       "all-long.jsonl: 0 demonstrations are too few"),
    "few demonstrations": ("sft --base {d}/base --demonstrations {d}/few.jsonl",
                           "demonstrations to learn from, fewer than one batch of 32; give more, or"),
    "few comparisons": ("reward --base {d}/sft --comparisons {d}/few.jsonl", "few.jsonl: there are "),
    "equal answers": ("reward --base {d}/sft --comparisons {d}/equal.jsonl", "equal.jsonl: 0 comparisons are too few"),
    "long comparison": ("reward --base {d}/sft --comparisons {d}/long-pairs.jsonl", "long-pairs.jsonl, line 61: "),
    "only long comparisons": ("reward --base {d}/sft --skip-long --comparisons {d}/pairs.jsonl --valid "
                              "{d}/all-long.jsonl", "all-long.jsonl: 0 comparisons"),
    "no pairs to label": ("label {d}/sft --pairs {d}/pairs.jsonl", "pairs.jsonl, line 1: field 'first' is missing"),
    "nobody": ("label {d}/sft --annotator \t", "annotator"),
    "no world in it": ("label {d}/sft", "no story fits its context of 64; give --prompts"),
    "no labels": ("annotators {d}/fields.jsonl", "fields.jsonl, line 1: no label"),
    "encoder for DPO": ("dpo --policy {d}/bert --comparisons {d}/pairs.jsonl",
                        "bert: holds an encoder, and a decoder is needed here"),
    "encoder-decoder for DPO": ("dpo --policy {d}/t5 --comparisons {d}/pairs.jsonl",
                                "t5: holds an encoder-decoder, and a decoder is needed here"),
    "few for DPO": ("dpo --policy {d}/sft --comparisons {d}/few.jsonl", "few.jsonl: there are "),
    "equal for DPO": ("dpo --policy {d}/sft --cut-long --comparisons {d}/equal.jsonl",
                      "equal.jsonl: 0 comparisons are too few"),
    "smoothing": (DPO + " --label-smoothing 0.5", "label_smoothing is 0.5; it must be from 0 to 0.499"),
    "little text": (PPO + " --pretraining {d}/short.txt", "the text has 5 tokens, and one row of context 64 takes 65"),
    "broken test": (REWARD + " --test {d}/broken.jsonl", "broken.jsonl, line 2: not JSON"),
    "one reference": (REWARD + " --references 1", "1 is not in the range"),
    "few prompts": ("ppo --policy {d}/sft --reward {d}/reward --prompts {d}/long.txt --batch 99 --new-tokens 1",
                    "long.txt, line 9: a prompt of"),
    "fewer than a batch": ("ppo --policy {d}/sft --reward {d}/reward --prompts {d}/prompts.txt",
                           "there are 60 prompts, fewer than one batch of 64"),
    "no room": (PPO + " --new-tokens 60", "prompts.txt, line 1: a prompt of"),
    "two vocabularies": (PPO.replace("/sft", "/stranger"), "both models must come from the same `minialign pretrain` "
                                                           "run"),
    "no reward model": (PPO.replace("/reward", "/sft"), "holds a language-model, and a scalar-model is needed here"),
    "no judge": ("evaluate {d}/ppo --prompts {d}/demos.jsonl", "give --judge, the run of a reward model"),
    "nothing to do": ("evaluate {d}/ppo", "nothing to evaluate on; give --text, or --prompts with --judge"),
    "no references": ("evaluate {d}/ppo --judge {d}/reward --prompts {d}/prompts.txt",
                      "prompts.txt: has no references to compare with"),
    "long reference": ("evaluate {d}/ppo --judge {d}/reward --prompts {d}/long-answer.jsonl",
                       "long-answer.jsonl, line 4: prompt and completion of"),
    "long prompt": ("compare --policies {d}/sft {d}/base --new-tokens 4 --prompts {d}/long.jsonl",
                    "long.jsonl, line 61: a prompt of"),
    "one prompt": ("evaluate {d}/ppo --judge {d}/reward --fast --prompts {d}/one.jsonl",
                   "one.jsonl: one prompt gives no interval"),
    "no models": ("compare --prompts {d}/demos.jsonl", "no model to sample from; name runs with --policies"),
    "full prompt": ("sample {d}/sft --prompt " + "why?" * 60,
                    "do not fit the model's context of 64; shorten the prompt"),
    "half a character": ("sample {d}/sft --prompt \udcff", "half a character"),
    "half a character in a path": ("compare --policies {d}/sft --prompts {d}/demos.jsonl --out \udcff",
                                   "half a character"),
    **{f"half a character for {command}": (f"{command} {{d}}/half.jsonl",
                                           "half.jsonl, line 1: field 'source' holds half a character")
       for command in ("pretrain --text", "sft --base {d}/base --demonstrations", "reward --base {d}/sft --comparisons",
                       "compare --policies {d}/sft --prompts", "finetune --base {d}/base --data",
                       "ppo --policy {d}/sft --reward {d}/reward --prompts", "quantize {d}/base --text",
                       "evaluate {d}/base --text", "distill --teacher {d}/base --text", "hacking", "annotators",
                       "label {d}/sft --prompts")},
    "liked answers": ("sft --base {d}/base --demonstrations {d}/liked.jsonl", "line 1: label says whether"),
    "plain references": ("compare --policies {d}/sft --references --prompts {d}/prompts.txt",
                         "prompts.txt: has no references to compare with"),
    "no data set": ("realdata shakespear", "there is no data set 'shakespear'; known are shakespeare"),
    "no claim": ("claims nothing", "there is no claim 'nothing'; known are"),
    "main job": ("--fast --documents 0", "documents is 0; it must be at least 50"),
}


@pytest.mark.parametrize("line, expected", BAD.values(), ids=BAD)
def test_bad_input_is_one_line_that_says_what_and_where_and_leaves_everything_as_it_was(line, expected, d, tmp_path,
        capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # for the default of --out
    before = contents(d)
    assert type_in(line, d=d) == 2
    assert expected in complaint(capsys) and contents(d) == before and contents(tmp_path) == {}


@pytest.mark.parametrize("line", ["distill --teacher {d}/base --text {d}/short.txt --valid {d}/text.txt",
                                  "distill --teacher {d}/bert --recipe minilm {d}/short.txt --valid {d}/text.txt",
                                  PPO + " --pretraining {d}/short.txt"])
def test_no_remedy_names_an_option_that_the_command_lacks(line, d, tmp_path, capsys):
    assert type_in(f"{line} --out {tmp_path}/run", d=d) == 2
    assert complaint(capsys).endswith("; give more text")


def test_the_corrected_command_finds_the_folder_free(d, tmp_path, capsys):
    assert type_in(f"{PRETRAIN} --context 9999 --out {tmp_path}/run", d=d) == 2
    assert "shorter --context" in complaint(capsys) and contents(tmp_path) == {}
    assert type_in(f"{PRETRAIN} --out {tmp_path}/run", d=d) == 0


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "metrics.jsonl"])
def test_files_of_somebody_else_are_not_written_over(name, d, tmp_path, capsys):
    (tmp_path / name).write_text("mine")
    (tmp_path / ".mine.tmp").write_text("mine")
    before = contents(tmp_path)
    assert type_in(f"{PRETRAIN} --out {tmp_path}", d=d) == 2
    assert f"holds {name} and no config.json" in complaint(capsys) and contents(tmp_path) == before


def test_a_run_folder_in_use_is_refused(d, tmp_path, capsys):
    with FileLock(tmp_path / ".lock"):
        assert type_in(f"{PRETRAIN} --out {tmp_path}", d=d) == 2
    assert "in use by another process; wait for it or choose another --out" in complaint(capsys)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("line", [PRETRAIN, "compare --policies {d}/sft {d}/base --fast --new-tokens 2 --prompts "
                                            "{d}/demos.jsonl"])
@pytest.mark.parametrize("number, remedy", [(errno.ENOSPC, "free some space"), (errno.EROFS, "choose another --out")])
def test_a_full_disk_and_a_place_that_cannot_be_written_are_one_line(line, number, remedy, d, tmp_path, capsys,
        monkeypatch):
    def fails(*_, **__):
        raise OSError(number, os.strerror(number))

    for place, name in ((files.os, "fsync"), (checkpoints.FileLock, "acquire")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, fails)
            if (status := type_in(f"{line} --out {tmp_path}/out", d=d)) == 2:
                assert remedy in complaint(capsys) and contents(tmp_path) == {}
            assert status == 2 or (name == "acquire" and line != PRETRAIN)


@pytest.mark.parametrize("error, remedy", [
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 36600000000 bytes"), "a smaller"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.5 GiB"), "--accumulation"),
    (NotImplementedError("The operator 'aten::_foo' is not currently implemented for the MPS device."), "--device cpu"),
])
def test_too_little_memory_and_a_missing_operation_are_one_line(error, remedy, d, tmp_path, capsys, monkeypatch):
    def fails(*_):
        raise error

    monkeypatch.setattr("minialign.lab.commands.pretrain.LanguageModel", fails)
    assert type_in(f"{PRETRAIN} --out {tmp_path}/run", d=d) == 2 and remedy in complaint(capsys)


OLD = Path(__file__).parent / "run_of_an_earlier_version"  # 5 of 12 steps; it knew smeared keys, and did not use them


def test_a_run_folder_of_an_earlier_version_goes_on_where_it_was(tmp_path):
    folder = shutil.copytree(OLD, tmp_path / "run")
    before = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    shape = "--vocabulary 300 --width 8 --layers 1 --heads 2 --context 48 --dropout 0.1"
    loop = "--batch 2 --steps 12 --checkpoint-every 5 --validate-every 6"
    assert run(f"pretrain --text {OLD / 'texts.txt'} {shape} {loop} --out {folder}".split()) == 0
    after = RunFolder(folder).metrics()
    assert [record["step"] for record in after] == list(range(1, 13))
    assert after[:5] == [json.loads(line) for line in before[:5]]
    assert after[-1]["validation"] == pytest.approx(5.4713, abs=2e-3)  # what the earlier version reached in one go


def test_a_model_of_an_earlier_version_that_smears_its_keys_is_refused(tmp_path, capsys):
    folder = shutil.copytree(OLD, tmp_path / "run")
    config = (OLD / "config.json").read_text(encoding="utf-8").replace('"smeared_keys": false', '"smeared_keys": true')
    (folder / "config.json").write_text(config, encoding="utf-8")
    (folder / "checkpoint.safetensors").rename(folder / "model.safetensors")
    assert run(f"sample {folder} --prompt x".split()) == 2
    assert "smeared_keys = True was a setting of an earlier version" in complaint(capsys)
