"""`minialign quantize` as a newcomer types it, and what it measures."""

import dataclasses
import json
import math

import pytest
import torch
from typed import type_in

from minialign.__main__ import run
from minialign.generation import SamplingConfig, continue_texts
from minialign.heads import LanguageModel, load_model
from minialign.lab.commands import inputs
from minialign.lab.fidelity import fidelity, windows
from minialign.pretrain.masked_lm import MASK
from minialign.quant.half import HALVES
from minialign.quant.ptq import quantize
from minialign.quant.saving import load_quantized, load_quantized_run
from minialign.quant.scheme import SCHEMES
from minialign.runs.errors import UserError
from minialign.transformer import TransformerConfig

SHAPE = TransformerConfig(320, 48, 32, 2, 2, initial_std=0.2)


@pytest.fixture(scope="module")
def d(tmp_path_factory):
    """A folder with a finished run, two texts and a few things that are wrong."""
    d = tmp_path_factory.mktemp("quantize")
    lines = [f"{name} found the {thing} in the {place}." for name in ("Mira", "Sam", "Rosa")
             for thing in ("kite", "key") for place in ("barn", "lake", "hall")]
    (d / "text.txt").write_text("\n\n".join(lines[::2] * 6), encoding="utf-8")
    (d / "calibration.txt").write_text("\n\n".join(lines[1::2] * 6), encoding="utf-8")
    (d / "copy.txt").write_bytes((d / "text.txt").read_bytes())
    shape = ("--vocabulary 300 --context 32 --width 16 --heads 2 --layers 1 --steps 4 --batch 2 --checkpoint-every 4 "
             "--validate-every 4")
    assert run(["pretrain", "--text", str(d / "text.txt"), *shape.split(), "--out", str(d / "run")]) == 0
    return d


@pytest.mark.parametrize("scheme", [*SCHEMES, *HALVES])
def test_every_scheme_is_measured_on_disk_in_memory_in_what_it_predicts_and_in_time(scheme, d, capsys):
    calibration = "--calibration {d}/calibration.txt" if scheme in SCHEMES and SCHEMES[scheme].calibrated else ""
    assert type_in(f"quantize {{d}}/run --scheme {scheme} --text {{d}}/text.txt {calibration} --fast --out "
                   f"{{d}}/{scheme}", d) == 0
    out = capsys.readouterr().out
    for words in ("perplexity, a token", "KL from before", "same first choice", "bytes on the disk",
                  "tokens a second, writing one"):
        assert words in out
    result = json.loads((d / scheme / "report.json").read_text())
    assert result["file"] == (d / scheme / "quantized.safetensors").stat().st_size
    # that one keeps the original weights, too: 3 bytes of 4, and a header
    assert scheme == "llm-int8" or result["disk"][1] < result["disk"][0]
    assert result["text"]["kl"] >= 0 and min(result["writing"] + result["reading"]) > 0
    assert scheme in HALVES or "body.blocks.0.attention.query" in out


def test_a_written_model_can_be_read_again(d):
    assert type_in("quantize {d}/run --scheme vector-wise --text {d}/text.txt --fast --out {d}/written", d) == 0
    model, _ = load_model(d / "run")
    tokens = torch.randint(20, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    loaded = load_quantized(load_model(d / "run")[0], d / "written" / "quantized.safetensors")
    assert torch.equal(loaded(tokens), quantize(model, SCHEMES["vector-wise"])[0](tokens))


@pytest.mark.parametrize("scheme", ["4-bit-weights --embeddings", "llm-int8", "fp16"])
def test_a_quantized_run_writes_and_is_evaluated_as_its_model_would_be(scheme, d, tmp_path, capsys):
    assert type_in(f"quantize {{d}}/run --scheme {scheme} --fast --out {tmp_path}/small", d) == 0
    assert not {"model.safetensors"} & {path.name for path in (tmp_path / "small").iterdir()}
    capsys.readouterr()
    assert type_in(f"sample {tmp_path}/small --prompt Ida --new-tokens 6 --seed 1", d) == 0
    said = capsys.readouterr().out
    model, tokenizer = load_quantized_run(tmp_path / "small")
    sampling = SamplingConfig(new_tokens=6, temperature=0.8)
    assert said.rstrip("\n") == ("Ida" + continue_texts(model, tokenizer, ["Ida"], sampling,
                                                        torch.Generator().manual_seed(1))[0]).rstrip("\n")
    assert type_in(f"evaluate {tmp_path}/small --text {{d}}/text.txt", d) == 0
    assert "perplexity" in capsys.readouterr().out
    assert type_in(f"ask {tmp_path}/small --prompt Ida --options yes,no", d) == 0 and "yes" in capsys.readouterr().out


def test_a_quantized_run_is_not_trained_and_not_quantized_again(d, tmp_path, capsys):
    assert type_in(f"quantize {{d}}/run --scheme weights --fast --out {tmp_path}/small", d) == 0
    for line in (f"quantize {tmp_path}/small --fast", f"sft --base {tmp_path}/small --demonstrations {{d}}/none.jsonl "
                                                      f"--out {tmp_path}/more"):
        assert type_in(line, d) == 2
        assert "holds a quantized model" in (said := capsys.readouterr().err) or "none.jsonl" in said
    (tmp_path / "small" / "tokenizer.json").write_bytes((d / "run" / "tokenizer.json").read_bytes().replace(b"a", b"b"))
    assert type_in(f"sample {tmp_path}/small", d) == 2 and "tokenizer.json" in capsys.readouterr().err
    assert type_in(f"chat {tmp_path}/small", d) == 2 and "not taught to chat" in capsys.readouterr().err


def test_settings_of_the_scheme_and_patterns_may_be_changed(d, capsys):
    assert type_in("quantize {d}/run --scheme weights --bits 3 --include *.attention.* --keep *.query --fast", d) == 0
    out = capsys.readouterr().out
    assert "query" in out and "stays: in the list of what stays" in out and "stays: not included" in out
    assert type_in("quantize {d}/run --scheme llm-int8 --threshold 0.5 --outlier-weights dequantized --text "
                   "{d}/text.txt --fast", d) == 0
    assert "100.0%" in capsys.readouterr().out  # of the columns
    assert type_in("quantize {d}/run --scheme weights --single-token --embeddings --text {d}/text.txt --fast", d) == 0
    assert "body.token_embedding" in capsys.readouterr().out


def test_bench_compares_each_shape_with_fp32(d, capsys):
    assert type_in("quantize {d}/run --scheme vector-wise --bench --fast", d) == 0
    out = capsys.readouterr().out
    assert "layer against fp32" in out and "16 -> 64" in out and ("times slower" in out or "times as fast" in out)
    assert "no integer products" in out or "integer products by" in out


def test_a_pretrained_model_s_name_may_stand_in_the_place_of_a_run(d, capsys, monkeypatch):
    monkeypatch.setitem(inputs.PRETRAINED, "small", lambda: load_model(d / "run"))
    assert type_in("quantize small --fast", d) == 0
    assert "bytes on the disk" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line, message",
    [
        ("quantize {d}/nowhere", "there is no such run folder"),
        ("quantize {d}/run --scheme static", "give --calibration FILE"),
        ("quantize {d}/run --scheme static --text {d}/text.txt --calibration {d}/text.txt", "is also --text"),
        ("quantize {d}/run --scheme static --text {d}/text.txt --calibration {d}/copy.txt", "is also --text"),
        ("quantize {d}/run --scheme static --calibration {d}/none.txt", "none.txt: there is no such file"),
        ("quantize {d}/run --scheme bf16 --bits 4", "fp16 and bf16 store every weight"),
        ("quantize {d}/run --scheme weights --bits 1", "bits is 1; it must be from 2 to 8"),
        ("quantize {d}/run --scheme weights --include *.q_proj", "no linear layer is called"),
        ("quantize {d}/run --out {d}/run", "holds a run; choose another --out"),
        ("quantize {d}/run --scheme int9", "int9"),
    ],
)
def test_what_is_wrong_is_said_on_one_line(line, message, d, capsys):
    capsys.readouterr()
    assert type_in(line, d) == 2
    found = [text for text in capsys.readouterr().err.splitlines() if text]
    assert len(found) == 1 and found[0].startswith("error: ") and message in found[0]


# fidelity


def test_fidelity_equals_its_definition():
    before, after = LanguageModel(SHAPE, 0).eval(), LanguageModel(SHAPE, 1).eval()
    rows = windows(torch.randint(20, 320, (50,), generator=torch.Generator().manual_seed(0)).tolist(), 12, 1000)
    assert rows.shape == (4, 12)
    found = fidelity(before, after, rows, batch=3)
    nats = kl = same = 0.0
    with torch.no_grad():
        for row in rows:
            p, q = (model(row[None, :-1])[0].log_softmax(-1) for model in (before, after))
            for t in range(11):
                nats -= float(p[t, row[t + 1]])
                kl += sum(float(p[t, v].exp() * (p[t, v] - q[t, v])) for v in range(0, 320))
                same += float(p[t].argmax() == q[t].argmax())
    assert found.tokens == 44 and found.before == pytest.approx(math.exp(nats / 44), rel=1e-5)
    assert found.kl == pytest.approx(kl / 44, rel=1e-4) and found.agreement == pytest.approx(same / 44)


def test_an_encoder_is_compared_at_hidden_places():
    before, after = (LanguageModel(dataclasses.replace(SHAPE, kind="encoder"), seed).eval() for seed in (0, 1))
    rows = torch.arange(20, 44).view(2, 12)
    found, nats, kl = fidelity(before, after, rows), 0.0, 0.0
    with torch.no_grad():
        for row in rows:
            tokens = row.clone()
            tokens[[3, 10]] = MASK
            p, q = (model(tokens[None])[0].log_softmax(-1) for model in (before, after))
            for t in (3, 10):
                nats -= float(p[t, row[t]])
                kl += float((p[t].exp() * (p[t] - q[t])).sum())
    assert found.tokens == 4 and found.before == pytest.approx(math.exp(nats / 4), rel=1e-5)
    assert found.kl == pytest.approx(kl / 4, rel=1e-4)
    assert fidelity(before, before, rows[:, :2]).tokens == 2, "even the shortest text has a place to hide"


def test_a_model_is_faithful_to_itself():
    model = LanguageModel(SHAPE).eval()
    found = fidelity(model, model, torch.arange(20, 44).view(2, 12))
    assert found.kl == 0 and found.agreement == 1 and found.before == found.after


def test_windows_of_short_and_of_long_texts():
    assert windows([1, 2, 3], 10, 100).tolist() == [[1, 2, 3]]
    assert windows(list(range(10)), 3, 7).tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(UserError, match="two are needed"):
        windows([1], 10, 100)


def test_what_a_kill_left_half_written_goes_with_the_next_try(d, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".report.json.1.tmp").write_text("{")
    assert type_in(f"quantize {{d}}/run --scheme weights --fast --out {tmp_path}/out", d) == 0
    assert not [*(tmp_path / "out").glob("*.tmp")] and (tmp_path / "out" / "config.json").exists()
