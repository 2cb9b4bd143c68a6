"""Where a model computes: what stands on another device, and that nothing is forgotten on the CPU."""

import importlib
import inspect

import pytest
import torch
from conftest import build
from pretended_device import MixedDevices, pretended
from small_pipeline import PROMPTS, stages, written

from minialign import batching, cache, generation, heads, logprobs
from minialign.__main__ import run
from minialign.batching import next_token_batch
from minialign.distill.tinybert import AugmentationConfig, augment
from minialign.lab.bases.growing import grow
from minialign.ranking import option_logprobs
from minialign.runs.devices import choose_device, default_device, device_of, moved
from minialign.runs.errors import UserError
from minialign.runs.run_folder import RunFolder
from minialign.runs.tensors import digest, tensors_of
from minialign.training import TrainingConfig, train


def numbers(found, place=""):
    """All numbers in nested dictionaries and lists, each with its place."""
    inside = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list | tuple) else ()
    if isinstance(found, int | float):
        yield place, float(found)
    for name, value in inside:
        yield from numbers(value, f"{place}/{name}")


@pytest.mark.filterwarnings("ignore")
def test_every_stage_gives_the_same_on_another_device(tokenizer, texts, tmp_path):
    here = stages(tokenizer, texts, tmp_path / "cpu", torch.device("cpu"))
    with pretended() as device:
        there = stages(tokenizer, texts, tmp_path / "device", device)
    assert dict(numbers(there)) == pytest.approx(dict(numbers(here)), rel=1e-4, abs=1e-5, nan_ok=True)
    assert len(dict(numbers(here))) > 500


FORGOTTEN = [(logprobs, "completion_logprobs", "mask.shape, device=mask.device)", "mask.shape)"),
             (heads, "read_completions", "start = torch.tensor([len(prompt) for prompt in prompts], device=device)",
              "start = torch.tensor([len(prompt) for prompt in prompts])"),
             (batching, "pad", "tokens.to(device), mask.to(device)", "tokens.to(device), mask"),
             (generation, "generate", "filler, device=device)\n    logprobs", "filler)\n    logprobs"),
             (cache, "Cache", "dtype=torch.bool, device=device)", "dtype=torch.bool)")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("module, name, right, wrong", FORGOTTEN, ids=[name for _, name, *_ in FORGOTTEN])
def test_a_forgotten_device_is_noticed(module, name, right, wrong, monkeypatch):
    source = inspect.getsource(getattr(module, name))
    assert source.count(right) == 1
    planted = dict(vars(module))
    exec(source.replace(right, wrong), planted)
    for user in (module, *map(importlib.import_module, ("minialign.generation", "minialign.heads", "minialign.logprobs",
                                                        "minialign.ranking", "small_pipeline"))):
        if hasattr(user, name):
            monkeypatch.setattr(user, name, planted[name])
    with pretended() as device:
        model = build(short_convolution=2).to(device)
        with pytest.raises((MixedDevices, NotImplementedError)):
            written(model)
            option_logprobs(model, PROMPTS[:2], [[[5], [6, 7]]] * 2)
            option_logprobs(model, PROMPTS[:2], [[[5]]] * 2)


def test_a_batch_is_moved_only_where_it_must_be():
    batch, model = next_token_batch([[1, 5, 2], [1, 2]]), build()
    assert moved(batch, model) is batch
    with pretended() as device:
        there = moved(batch, model.to(device))
        assert device_of(model) == there.tokens.device == there.labels.device == device
        assert batch.tokens.device.type == "cpu" and there.rows == batch.rows


def test_the_same_start_and_the_same_lots_on_every_device():
    with pretended() as device:
        assert digest(tensors_of(build(seed=3).to(device))) == digest(tensors_of(build(seed=3)))
    draws = [written(build()), written(build(fused_attention=False))]
    with pretended() as device:
        assert written(build(fused_attention=False).to(device)) == draws[1]


def test_a_run_goes_on_on_another_device(tmp_path):
    from small_pipeline import ROWS

    from minialign.pretrain.causal_lm import LabelledRows, next_token_loss

    config = TrainingConfig(steps=4, batch=4, checkpoint_every=2)

    def train_on(device, folder, steps=None):
        model = build(fused_attention=False).to(device)
        stop = RuntimeError("pulled out")

        def loss(model, batch):
            if steps is not None and len(RunFolder(folder).metrics()) == steps:
                raise stop
            return next_token_loss(model, batch)

        try:
            train(model, LabelledRows(ROWS, 4, 0), loss, config, RunFolder(folder))
        except RuntimeError as error:
            assert error is stop
        return RunFolder(folder).metrics()

    whole = train_on("cpu", tmp_path / "whole")
    with pretended() as device:
        train_on(device, tmp_path / "moved", steps=3)
    there = train_on("cpu", tmp_path / "moved")
    assert [line["loss"] for line in there] == pytest.approx([line["loss"] for line in whole], rel=1e-5)


# which device


def test_auto_is_the_cpu_where_there_is_no_graphics_card():
    assert torch.cuda.is_available() or torch.backends.mps.is_available() or choose_device() == torch.device("cpu")


def test_a_device_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no device 'cuda' here, only cpu"):
        choose_device("cuda")
    with pytest.raises(UserError, match="'tpu' is not known; choose one of auto, cpu, cuda, mps"):
        choose_device("tpu")


def test_each_process_takes_a_card_of_its_own_or_says_that_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device() == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="process 2 has no device of its own: there are 2"):
        choose_device("auto")


def test_a_command_takes_a_device_and_says_when_there_is_none(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(["sample", str(tmp_path), "--device", "cuda"]) == 2
    assert "no device 'cuda' here" in capsys.readouterr().err
    assert run(["sample", str(tmp_path), "--device", "tpu"]) == 2
    assert default_device() == torch.device("cpu")


@pytest.mark.filterwarnings("ignore")
def test_a_command_s_models_stand_on_its_device(texts, tmp_path, capsys, monkeypatch):
    (tmp_path / "text.txt").write_text("\n\n".join(texts), encoding="utf-8")
    with pretended() as device:
        monkeypatch.setattr("minialign.runs.devices.choose_device", lambda name: device)
        seen, plain = [], generation.generate
        monkeypatch.setattr(generation, "generate",
                            lambda model, *a, **k: (seen.append(device_of(model)), plain(model, *a, **k))[1])
        shape = ["--width", "16", "--heads", "2", "--layers", "1", "--context", "32", "--steps", "2", "--batch", "2"]
        out = ["--out", str(tmp_path / "run")]
        assert run(["pretrain", "--text", str(tmp_path / "text.txt"), "--vocabulary", "300", *shape, *out]) == 0
        assert run(["sample", str(tmp_path / "run"), "--new-tokens", "4"]) == 0
        assert seen == [device] and "on pretended" in capsys.readouterr().err
    assert default_device() == torch.device("cpu")


def test_words_are_exchanged_and_a_base_grows_where_the_models_are():
    rows = [[1, 30, 31, 40, 2], [1, 50, 2]]
    made = augment(rows, build(kind="encoder", fused_attention=False), AugmentationConfig(), 0)
    wide = {"width": 64, "heads": 4, "fused_attention": False}
    with pretended() as device:
        encoder = build(kind="encoder", fused_attention=False).to(device)
        assert augment(rows, encoder, AugmentationConfig(), 0) == made
        grow(grown := build(**wide), build(fused_attention=False).to(device))
        grow(there := build(**wide).to(device), build(fused_attention=False))
    assert digest(tensors_of(grown)) == digest(tensors_of(there))
