"""Commands and files whose tensors are on another device, pretended."""

import contextlib
import json

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


@pytest.fixture(scope="module")
def runs(tmp_path_factory, texts):
    d = tmp_path_factory.mktemp("runs")
    (d / "text.txt").write_text("\n\n".join(t.replace("\n", " ") for t in texts))
    shape = "--vocabulary 320 --width 16 --heads 2 --layers 2 --steps 2 --batch 2 --split paragraphs"
    for out, more in (
        ("r64", "--context 64"),
        ("r128", "--context 128"),
        ("enc", "--context 64 --objective masked-lm"),
    ):
        assert type_in(f"pretrain --text {{d}}/text.txt {shape} {more} --out {{d}}/{out}", d) == 0
    (d / "lab.jsonl").write_text(
        "\n".join(json.dumps({"text": f"the kite {i}", "label": "yn"[i % 2]}) for i in range(80))
    )
    assert (
        type_in("finetune --base {d}/enc --data {d}/lab.jsonl --method full --steps 2 --batch 4 --out {d}/ft", d) == 0
    )
    assert (
        type_in(
            "distill --teacher {d}/enc --recipe tinybert --text {d}/text.txt --split paragraphs --steps 2 --batch 2 "
            "--out {d}/tiny",
            d,
        )
        == 0
    )
    return d


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
def test_a_command_runs_on_another_device(line, runs, monkeypatch):
    with elsewhere(monkeypatch):
        assert type_in(line, runs) == 0


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
