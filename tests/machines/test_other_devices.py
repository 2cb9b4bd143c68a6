"""Commands and files whose tensors are on another device, pretended."""

import contextlib

import pytest
import torch
from conftest import build
from pretended_device import pretended  # before anything learns: the backward pass counts the devices once
from test_play import make_run
from typed import type_in

from minialign.lab.play.material import collect
from minialign.quant.ptq import quantize
from minialign.quant.saving import quantized_file
from minialign.quant.scheme import SCHEMES
from minialign.runs.devices import use_device


@contextlib.contextmanager
def elsewhere(monkeypatch):
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)  # views in it are beyond the pretended device
    with pretended() as device:
        monkeypatch.setattr("minialign.runs.devices.choose_device", lambda name: device)
        yield device


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "line",
    [
        "ask {d}/enc --tuned {d}/ft/full --prompt kite",
        "distill --teacher {d}/enc --tuned {d}/ft/full --student {d}/tiny --task {d}/lab.jsonl --steps 2 --batch 4 "
        "--copies 0 "
        "--fast --out {d}/task",
    ],
)
def test_a_command_runs_on_another_device(line, trained_runs, monkeypatch):
    with elsewhere(monkeypatch):
        assert type_in(line, trained_runs) == 0


def test_codes_are_packed_wherever_they_are():
    here = quantized_file(quantize(build(), SCHEMES["4-bit-weights"])[0])
    with pretended() as device:
        assert quantized_file(quantize(build().to(device), SCHEMES["4-bit-weights"])[0]) == here


@pytest.mark.filterwarnings("ignore")
def test_the_page_of_a_run_is_made_on_another_device(tokenizer, tmp_path, monkeypatch):
    folder = make_run(tmp_path / "run", tokenizer, _1_pretrained=build(context=400, fused_attention=False))
    with elsewhere(monkeypatch) as device:
        before = use_device(device)
        try:
            assert len(collect(folder, 2, all_panels=False).packed) > 0
        finally:
            use_device(before)
