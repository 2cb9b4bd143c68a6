"""The small files of fine-tuning: what is sealed in them, whose base and whose head they need, and that they mean the
same in another process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import build

from minialign.heads import Classifier, LanguageModel
from minialign.peft import adapters, bitfit, lora
from minialign.peft.adapters import AdapterConfig
from minialign.peft.lora import LoRAConfig
from minialign.peft.saving import ABOUT, TENSORS, load, save
from minialign.peft.trainable import train_also, trained
from minialign.runs.errors import UserError

ELSEWHERE = """
import json, sys
import torch
from conftest import build
from minialign.heads import Classifier
from minialign.peft.saving import load
tokens = torch.tensor(json.loads(sys.argv[2]))
model = load(Classifier(build(kind="encoder").body, 3, seed=9), sys.argv[1])
print(json.dumps(model(tokens, torch.ones_like(tokens, dtype=torch.bool)).tolist()))
"""


def classifier(classes=3, seed=0):
    return Classifier(build(kind="encoder").body, classes, seed)


def stir(model):
    generator = torch.Generator().manual_seed(1)
    for parameter in trained(model).values():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def refused(model, folder, message):
    """Loading raises the message, and the model is as it was."""
    before, parts = {name: t.clone() for name, t in model.state_dict().items()}, [type(part)
        for part in model.modules()]
    free = {name: p.requires_grad for name, p in model.named_parameters()}
    with pytest.raises(UserError, match=message):
        load(model, folder)
    assert [type(part) for part in model.modules()] == parts and {name: p.requires_grad for name,
        p in model.named_parameters()} == free
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items()) and getattr(model, "tuning",
        None) is None


@pytest.mark.parametrize("change", [{"rank": 3}, {"alpha": 99.0}, {"targets": ["query", "key"]}])
def test_an_edited_setting_is_refused_and_the_model_untouched(tmp_path, change):
    """A rank of 1 edited to 3 would be filled up by broadcasting, and an α would scale what was trained with another,
    both without a word."""
    save(stir(lora.wrap(build(), LoRAConfig(rank=1))), tmp_path)
    about = json.loads((tmp_path / ABOUT).read_text())
    about["config"] |= change
    (tmp_path / ABOUT).write_text(json.dumps(about))
    refused(build(), tmp_path, "or one of them was altered")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"method": "lora"}'])
def test_a_description_that_is_none_is_refused(tmp_path, text):
    save(lora.wrap(build(), LoRAConfig(rank=1)), tmp_path)
    (tmp_path / ABOUT).write_text(text)
    refused(build(), tmp_path, "JSON|does not describe a tuned model|the file is empty")


@pytest.mark.parametrize("name", [ABOUT, TENSORS])
def test_a_missing_file_is_named(tmp_path, name):
    save(lora.wrap(build(), LoRAConfig(rank=1)), tmp_path)
    (tmp_path / name).unlink()
    refused(build(), tmp_path, f"{name}.*no such file")


@pytest.mark.parametrize("wrap", [lora.wrap, bitfit.wrap, adapters.wrap])
def test_a_head_s_start_does_not_matter_and_its_absence_does(wrap, tmp_path, tokens):
    model, mask = stir(wrap(classifier(seed=0))), torch.ones_like(tokens, dtype=torch.bool)
    save(model, tmp_path / "head")
    assert torch.equal(load(classifier(seed=7), tmp_path / "head")(tokens, mask), model(tokens, mask))
    refused(build(kind="encoder"), tmp_path / "head", "holds a head for a task, and this model has none; load it onto "
                                                      "a Classifier")
    refused(classifier(classes=5), tmp_path / "head", r"head.weight has shape \(3, 32\), the model's is \(5, 32\)")
    save(stir(wrap(build(kind="encoder"))), tmp_path / "plain")
    refused(classifier(), tmp_path / "plain", "holds no head for a task, and this model has one")


def test_what_was_freed_or_frozen_besides_is_so_again(tmp_path, tokens):
    model = adapters.wrap(build(), AdapterConfig(bottleneck=2, norms=False))
    assert train_also(model, ["body.norm"]) == ["body.norm.weight", "body.norm.bias"]
    model.body.blocks[0].attention.output.down.requires_grad_(False)
    save(stir(model), tmp_path)
    again = load(build(), tmp_path)
    assert set(trained(again)) == set(trained(model)) and torch.equal(again(tokens), model(tokens))
    assert "body.blocks.0.attention.output.down.weight" not in trained(again)


def test_a_reload_in_another_process_gives_the_same_logits(tmp_path, tokens):
    """Head, norms and adapters: whatever trains is in the file."""
    model, mask = stir(adapters.wrap(classifier())), torch.ones_like(tokens, dtype=torch.bool)
    save(model, tmp_path)
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path), json.dumps(tokens.tolist())]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), model(tokens, mask), atol=1e-6, rtol=1e-5)


def test_a_model_with_a_table_of_its_own_is_not_taken_for_another(tmp_path):
    """The fingerprint looks at names as well as at numbers."""
    save(lora.wrap(build(), LoRAConfig(rank=1)), tmp_path)
    other = build()
    other.body.extra = torch.nn.Parameter(torch.zeros(1))
    assert isinstance(other, LanguageModel)
    refused(other, tmp_path, "was made for another base")
