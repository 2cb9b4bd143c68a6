"""Folders, files and labels as other libraries, other people and other tabs leave them: read as they are meant, or
refused."""

import json
from pathlib import Path

import pytest
import torch
from gguf_files import tiny_file
from published_folders import llama
from safetensors.torch import save_file
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers

from minialign.lab.demo.settings import FAST, DemoConfig
from minialign.lab.interchange.folder import PretrainedTokenizer
from minialign.lab.interchange.gguf import read_gguf
from minialign.lab.interchange.gguf_llama import load_gguf
from minialign.lab.interchange.promptsource import read_promptsource
from minialign.lab.interchange.published import load_published, write_bert
from minialign.lab.labelling.store import LabelStore
from minialign.lab.pretrained.bert import Bert, BertConfig
from minialign.lab.pretrained.llama import load_llama
from minialign.lab.pretrained.t5 import load_t5
from minialign.lab.report.run import Run
from minialign.lab.report.words import commands
from minialign.runs.errors import UserError
from minialign.runs.settings import to_dict
from minialign.tokenizer import SpecialIds


def sentencepiece():
    words = ["<unk>", "<s>", "</s>", "▁", *"Isitredyno?", "▁I", "▁Is", "▁i", "▁it", "▁y", "▁ye", "▁yes", "es"]
    vocab = {word: i for i, word in enumerate(dict.fromkeys(words))}
    merges = [("▁", "I"), ("▁I", "s"), ("▁", "i"), ("▁i", "t"), ("▁", "y"), ("▁y", "e"), ("▁ye", "s")]
    library = Library(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    return library


def test_a_completion_in_sentencepiece_has_one_blank():
    library = sentencepiece()
    whole = library.encode("Is it yes", add_special_tokens=False).ids
    words = PretrainedTokenizer(library, SpecialIds(1, 2, 0))
    assert words.encode("Is it") + words.encode(" yes") == whole
    assert words.decode(words.encode(" yes")) == " yes"


def test_a_bert_without_its_marks_is_refused(tmp_path):
    words = ["<pad>", "<unk>", "<s>", "</s>", "<mask>", *(f"w{i}" for i in range(150))]
    library = Library(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    model = Bert(BertConfig(len(words), context=24, width=16, layers=1, heads=2, inner=32))
    write_bert(model, PretrainedTokenizer(library, SpecialIds(2, 3, 0)), tmp_path)
    with pytest.raises(UserError, match=r"\[CLS\]"):
        load_published(tmp_path)


@pytest.mark.parametrize("fact", ["llama.rope.scaling.factor", "llama.rope.scale_linear"])
def test_a_gguf_that_stretches_without_a_type_is_refused(tmp_path, fact):
    with pytest.raises(UserError, match="stretches"):
        load_gguf(read_gguf(tiny_file(tmp_path / "a.gguf", **{fact: 4.0})))
    load_gguf(read_gguf(tiny_file(tmp_path / "b.gguf", **{fact: 1.0})))
    load_gguf(read_gguf(tiny_file(tmp_path / "c.gguf", **{fact: 4.0, "llama.rope.scaling.type": "none"})))


def test_token_types_that_are_no_list_are_refused(tmp_path):
    with pytest.raises(UserError, match="fit together"):
        load_gguf(read_gguf(tiny_file(tmp_path / "a.gguf", **{"tokenizer.ggml.token_type": 3})))


def test_what_map_gives_is_drawn_from_alike_in_every_run(tmp_path):
    file = tmp_path / "t.yaml"
    file.write_text('templates:\n  a:\n    name: n\n    jinja: \'{{ words | map("upper") | choice }} ||| x\'\n')
    (template,), _ = read_promptsource(file, "t")
    drawn = [[template.pose({"words": list("abcdefgh"), "n": i}).prompt for i in range(20)] for _ in range(3)]
    assert drawn[0] == drawn[1] == drawn[2] and len(set(drawn[0])) > 1


PAIRS = [{"prompt": f"p{i}", "first": "a", "second": "b", "first_policy": "x", "second_policy": "y"} for i in range(40)]


def say(store, tab, n):
    for _ in range(n):
        store.answer(tab, store.question(tab).key, "first")


def test_another_persons_undo_takes_no_label_back(tmp_path):
    for name, n in (("ada", 4), ("bob", 3)):
        store = LabelStore(tmp_path / name, PAIRS, name)
        say(store, "t", n)
        if name == "bob":
            store.undo("t")
        store.close()
    both = tmp_path / "both"
    both.write_text((tmp_path / "ada").read_text() + (tmp_path / "bob").read_text())
    store = LabelStore(both, PAIRS, "ada")
    assert store.progress()["done"] == 4
    store.close()
    store = LabelStore(both, PAIRS, "bob")
    assert store.progress()["done"] == 2


def test_a_tab_is_not_kept_on_a_repeat_whose_first_was_taken_back(tmp_path):
    store = LabelStore(tmp_path / "labels", PAIRS, "me")
    say(store, "A", 1)
    say(store, "B", 9)
    assert store.question("B").key == "0b"
    store.undo("A")
    store.release("A")
    store.answer("B", store.question("B").key, "first")


def test_the_command_for_another_seed_is_of_the_same_job():
    run = Run(Path("runs/demo-fast"), {"settings": to_dict(DemoConfig(**FAST)), "seed": 0}, {}, [], [])
    assert "--fast" in commands(run)
    run = Run(Path("runs/x"), {"settings": to_dict(DemoConfig(base="none", beta=0.3)), "seed": 0}, {}, [], [])
    assert "--base none" in commands(run) and "--beta 0.3" in commands(run) and "--fast" not in commands(run)
    run = Run(Path("runs/x"), {"settings": to_dict(DemoConfig()), "seed": 0}, {}, [], [])
    assert "python -m minialign --seed 1 --out runs/x-seed1" in commands(run)
    assert commands(Run(Path("runs/x"), {}, {}, [], []))


def test_a_llama_with_both_names_of_its_scaling_is_read_by_both(tmp_path):
    both = {"rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
            "rope_scaling": {"type": "linear", "factor": 2.0}}
    with pytest.raises(UserError, match="linear"):
        load_llama(llama(tmp_path / "l", **both))


@pytest.mark.parametrize("more", [{"dense_act_fn": "gelu"}, {"is_gated_act": True}])
def test_a_t5_that_names_another_activation_twice_is_refused(tmp_path, more):
    shape = {"model_type": "t5", "vocab_size": 9, "d_model": 8, "d_kv": 4, "num_heads": 2, "d_ff": 8, "num_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(shape | more))
    save_file({"shared.weight": torch.zeros(9, 8)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=next(iter(more))):
        load_t5(tmp_path)


def test_the_remedy_is_that_of_the_setting(tmp_path):
    shape = {"model_type": "t5", "vocab_size": 9, "d_model": 8, "d_kv": 4, "num_heads": 2, "d_ff": 8, "num_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(shape | {"scale_decoder_outputs": False}))
    save_file({"shared.weight": torch.zeros(9, 8)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="scale_decoder_outputs is false") as error:
        load_t5(tmp_path)
    assert "write true" not in str(error.value)
