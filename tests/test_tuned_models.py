"""Models of every kind as the base of `finetune`, and what was tuned on top of them in the hands of the commands that
use it."""

import pytest
import torch
from gguf_files import tiny_file, tiny_llama
from published_folders import gpt2, with_marks
from typed import complaint, type_in, write_feelings

from minialign.lab.commands import chat, inputs
from minialign.lab.commands.inputs import open_base, two_sides
from minialign.lab.finetuning import written_task
from minialign.lab.interchange.folder import PretrainedTokenizer
from minialign.lab.interchange.gguf import read_gguf
from minialign.lab.interchange.gguf_llama import tokenizer_from_gguf
from minialign.lab.interchange.published import write_bert
from minialign.lab.pretrained.bert import Bert, BertConfig
from minialign.lab.pretrained.smollm2 import SYSTEM
from minialign.runs.errors import UserError
from minialign.runs.files import read_json
from minialign.tokenizer import SpecialIds, load_tokenizer
from minialign.training import TrainingConfig

SHAPE = "--vocabulary 300 --context 40 --width 16 --heads 2 --layers 1 --steps 3 --batch 4 --validate-every 3"
QUICK = "--steps 6 --batch 4 --validate-every 3 --checkpoint-every 3"


@pytest.fixture(scope="module")
def d(tmp_path_factory):
    d = tmp_path_factory.mktemp("bases")
    write_feelings(d)
    for name, objective in (("gpt", "next-token"), ("t5", "span-corruption")):
        assert type_in(f"pretrain --text {{d}}/text.txt {SHAPE} --objective {objective} --out {{d}}/{name}", d) == 0
    tokenizer = load_tokenizer(d / "gpt" / "tokenizer.json")
    gpt2(d / "gpt2", tokenizer)
    torch.manual_seed(0)
    bert = Bert(BertConfig(tokenizer.size + 4, context=40, width=16, layers=1, heads=2, inner=20, dropout=0.0))
    write_bert(bert, PretrainedTokenizer(with_marks(tokenizer.library), SpecialIds(1, 2, 0)), d / "bert")
    return d


@pytest.fixture
def named(d, monkeypatch):
    """A tiny Llama under SmolLM2's name."""
    tokenizer = tokenizer_from_gguf(read_gguf(tiny_file(d / "tiny.gguf")))

    def load():
        return tiny_llama(), tokenizer

    monkeypatch.setattr(chat, "load_smollm2", load)
    monkeypatch.setitem(inputs.PRETRAINED, "smollm2", load)
    monkeypatch.setattr("minialign.lab.finetuning.SYSTEM", "S")  # the real one fills the tiny context
    return tokenizer


@pytest.mark.parametrize("base, data", [("t5", "demos"), ("gpt2", "demos"), ("gpt2", "labels"), ("bert", "labels")])
def test_every_method_takes_every_base(d, capsys, base, data):
    out = d / f"{base}-{data}"
    assert type_in(f"finetune --method all --base {{d}}/{base} --data {{d}}/{data}.jsonl {QUICK} --rank 2 --length 3 "
                   f"--bottleneck 2 --out {out}", d) == 0
    assert len(read_json(out / "comparison.json")) == (7 if data == "labels" else 6)
    for method in ("lora", "prompt-tuning", "full"):
        assert type_in(f"ask {{d}}/{base} --tuned {out}/{method} --prompt 'sad 3?' "
                       + ("" if data == "labels" else "--options bad,good"), d) == 0
        shares = [line.split("%") for line in capsys.readouterr().out.splitlines() if "%  " in line]
        assert {name.strip() for _, name in shares[-2:]} == {"bad", "good"}
        assert abs(sum(float(share) for share, _ in shares[-2:]) - 100) < 0.11


def test_a_real_model_learns_in_the_marks_of_its_chat_and_talks_with_what_it_learned(d, capsys, named):
    out = d / "named"
    line = f"finetune --base smollm2 --data {{d}}/demos.jsonl {QUICK} --method all --out {out}"
    assert type_in(line, d) == 0
    assert "bitfit is left out, since the base has no biases" in capsys.readouterr().err
    assert type_in(f"chat smollm2 --tuned {out}/lora --prompt sad --new-tokens 4 --system S", d) == 0
    said = capsys.readouterr().out
    assert type_in("chat smollm2 --prompt sad --new-tokens 4 --system S", d) == 0
    assert said and capsys.readouterr().out != said, "what was learned is heard"


def test_the_rows_of_a_chat_are_what_the_conversation_reads(d, named):
    model, tokenizer = open_base(inputs.Path("smollm2"))
    records = [{"prompt": f"he {i}", "completion": " no"} for i in range(40)]
    sides = two_sides(records, "prompt", 4, d / "x.jsonl")
    batch = written_task(model, tokenizer, sides, TrainingConfig(steps=1, batch=4), d / "x.jsonl",
                           chat=True).learned.batch([0])
    read = tokenizer.library.decode([*batch.tokens[0].tolist(), tokenizer.end], skip_special_tokens=False)
    start, end = (tokenizer.name(i) for i in (tokenizer.begin, tokenizer.end))
    asked = sides[0][0]["prompt"]
    assert read == f"{start}system\nS{end}\n{start}user\n{asked}{end}\n{start}assistant\nno{end}" and SYSTEM != "S"
    taught = [i for i in batch.labels[0].tolist() if i >= 0]
    assert tokenizer.decode(taught) == "no", "the reply is taught, and its end mark"


def test_a_published_t5_reads_prompts_that_are_ended(d):
    model, own = open_base(d / "t5")
    tokenizer = PretrainedTokenizer(own.library, SpecialIds(0, 2, 0), ends_prompts=True)
    model.special = tokenizer.special
    records = [{"prompt": f"sad {i}", "completion": " bad"} for i in range(40)]
    sides = two_sides(records, "prompt", 4, d / "x")
    batch = written_task(model, tokenizer, sides, TrainingConfig(steps=1, batch=4), d / "x").learned.batch([0])
    assert batch.inputs[0, -1] == 2 and batch.inputs[0, 0] != 0 and batch.tokens[0, 0] == 0 and batch.labels[0, -1] == 2


def test_what_was_tuned_is_sampled_and_evaluated_on_its_base(d, capsys):
    out = d / "tuned-gpt"
    line = (f"finetune --method lora --base {{d}}/gpt --data {{d}}/demos.jsonl {QUICK} --steps 40 --learning-rate 0.05 "
            f"--merged --out {out}")
    assert type_in(line, d) == 0
    capsys.readouterr()
    said = {}
    for name, arguments in (("plain", "gpt"), ("tuned", f"gpt --tuned {out}/lora"),
                            ("merged", "tuned-gpt/lora-merged")):
        assert type_in(f"sample {{d}}/{arguments} --prompt sad --new-tokens 6 --temperature 0", d) == 0
        said[name] = capsys.readouterr().out
    assert said["tuned"] == said["merged"] != said["plain"]
    assert type_in(f"evaluate {{d}}/gpt --tuned {out}/lora --text {{d}}/text.txt", d) == 0
    assert read_json(out / "lora" / "evaluation.json")["tuned"] == str(out / "lora")
    assert not (d / "gpt" / "evaluation.json").exists()


@pytest.mark.parametrize(
    "line, message",
    [
        ("finetune --base {d}/bert --data {d}/demos.jsonl", "an encoder writes nothing"),
        ("finetune --base {d}/t5 --data {d}/labels.jsonl", "the base is an encoder-decoder"),
        ("finetune --base {d}/gpt2 --data {d}/demos.jsonl --merged", "--merged writes a run of this project"),
        ("finetune --base {d}/nowhere --data {d}/demos.jsonl", "no such run folder"),
        ("sample {d}/t5 --tuned {d}/for-gpt/lora --prompt sad", "was made for another base"),
        ("sample {d}/gpt --tuned {d}/nowhere --prompt sad", "no such file"),
        ("ask {d}/gpt --tuned {d}/labelled/lora --prompt sad --options a,b", "tuned on labels"),
        ("sample {d}/gpt --tuned {d}/labelled/lora --prompt sad", "holds a head for a task"),
    ],
)
def test_wrong_input_is_one_clear_line(d, capsys, line, message):
    for name, data in (("for-gpt", "demos"), ("labelled", "labels")):
        assert type_in(f"finetune --base {{d}}/gpt --data {{d}}/{data}.jsonl {QUICK} --out {{d}}/{name}", d) == 0
    capsys.readouterr()
    out = f" {QUICK} --out {{d}}/wrong-{abs(hash(line))}" if line.startswith("finetune") else ""
    assert type_in(line + out, d) == 2
    assert message in complaint(capsys)


def test_a_folder_of_another_architecture_says_what_is_read(d):
    (d / "other").mkdir()
    (d / "other" / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(UserError, match="model_type is 'mamba'; read here are gpt2, bert, t5, llama"):
        open_base(d / "other")
