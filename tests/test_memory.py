"""How much memory a training takes: the estimate, what is said of it, and what gradient checkpoints change."""

import pytest
import torch
from published_folders import llama

from minialign.__main__ import run
from minialign.lab import memory
from minialign.lab.memory import GIB, Need, check_memory, training_need
from minialign.lab.pretrained.llama import Llama, LlamaConfig
from minialign.peft import lora
from minialign.runs.errors import UserError
from minialign.runs.files import read_json

SHAPE = LlamaConfig(vocabulary=500, context=128, width=128, layers=4, heads=4, key_value_heads=2, head_size=32,
                    inner=352)
CPU = torch.device("cpu")


def kept_by_autograd(model, tokens):
    """Bytes that the forward pass leaves for the backward pass, weights aside, with 3 tables of logits for its 1."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen, alive = {}, []

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits = model(tokens)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    return sum(seen.values()) + 2 * 4 * logits.numel()


def learner(method, checkpoints=False):
    torch.manual_seed(0)
    model = Llama(SHAPE)
    if method == "lora":
        lora.wrap(model)
    model.body.checkpoints = checkpoints
    return model.train()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_estimate_is_near_what_autograd_keeps(method):
    model, tokens = learner(method), torch.randint(0, 500, (4, 96))
    assert 4 * training_need(model, 96).each == pytest.approx(kept_by_autograd(model, tokens), rel=0.15)


def test_checkpoints_give_the_same_gradient_and_keep_less():
    tokens = torch.randint(0, 500, (4, 96), generator=torch.Generator().manual_seed(1))
    gradients, kept = [], []
    for checkpoints in (False, True):
        model = learner("full", checkpoints)
        torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
        gradients.append([p.grad for p in model.parameters()])
        kept.append(kept_by_autograd(model, tokens))
    assert all(torch.equal(a, b) for a, b in zip(*gradients))
    assert kept[1] < kept[0] / 2
    need = [training_need(learner("full"), 96, checkpoints=checkpoints).each for checkpoints in (False, True)]
    assert need[1] < need[0] / 2


def test_a_frozen_base_in_16_bits_needs_half_and_no_moments():
    full, small = training_need(learner("full"), 96), training_need(learner("lora"), 96, half=True)
    numbers = sum(p.numel() for p in Llama(SHAPE).parameters())
    assert full.fixed == 16 * numbers and small.fixed == pytest.approx(2 * numbers, rel=0.15)


def test_what_cannot_fit_is_refused_with_the_batch_that_would(monkeypatch):
    monkeypatch.setattr(memory, "room_on", lambda device: 10 * GIB)
    assert check_memory(Need(GIB / 4, GIB / 100), 8, CPU) is None
    assert check_memory(Need(5 * GIB, GIB / 8), 8, CPU) == "needs about 6.5 GiB; cpu has 10.0"
    with pytest.raises(UserError, match="this needs about 22.7 GiB, and cpu has 10.0; 4 examples fit together: use "
                                        "--batch 4, or more --accumulation"):
        check_memory(Need(5 * GIB, GIB), 16, CPU)
    with pytest.raises(UserError, match="not one example fits: use --bf16, --checkpoints"):
        check_memory(Need(20 * GIB, GIB), 1, CPU)
    assert Need(5 * GIB, GIB).of(4) <= 10 * GIB < Need(5 * GIB, GIB).of(5)


def lines(folder):
    path = folder / "lines.jsonl"
    path.write_text("".join(f'{{"prompt": "a {i}", "completion": "b"}}\n' for i in range(40)), encoding="utf-8")
    return path


def test_finetune_refuses_before_it_starts_and_takes_checkpoints(tmp_path, monkeypatch, capsys):
    base, data = llama(tmp_path / "base"), lines(tmp_path)
    command = ["finetune", "--base", str(base), "--data", str(data), "--steps", "2", "--batch", "2"]
    found = {}
    for name, more in (("plain", []), ("checkpoints", ["--checkpoints"])):
        assert run([*command, "--out", str(tmp_path / name), *more]) == 0
        found[name] = read_json(tmp_path / name / "lora" / "result.json")["validation"]
    assert found["plain"] == found["checkpoints"]
    monkeypatch.setattr(memory, "room_on", lambda device: 1000)
    assert run([*command, "--out", str(tmp_path / "none")]) == 2
    assert "not one example fits" in capsys.readouterr().err
    assert not (tmp_path / "none" / "lora" / "tuned.json").exists()


def test_checkpoints_are_for_a_llama(tmp_path, capsys):
    assert run(["finetune", "--base", str(tmp_path), "--data", str(lines(tmp_path)), "--checkpoints"]) == 2
    assert "--checkpoints is for a Llama" in capsys.readouterr().err
