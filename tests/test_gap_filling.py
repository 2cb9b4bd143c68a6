"""Gap filling: what stands around a gap stays as it was, and what comes into it is what the model finds likely."""

import pytest
import torch
from conftest import build

from minialign.generation import SamplingConfig
from minialign.pretrain.gap_filling import fill_gaps, fill_with_spans, fill_with_tokens
from minialign.pretrain.masked_lm import MASK, MaskedText, masked_lm_loss
from minialign.pretrain.pretrain import train_and_validate
from minialign.pretrain.span_corruption import GAPS, SpanCorruptedText, SpanCorruptionConfig, text_to_text_loss
from minialign.runs.errors import UserError
from minialign.runs.run_folder import RunFolder
from minialign.tokenizer import BEGIN, SPECIAL
from minialign.training import TrainingConfig

PARTS = [[50, 51], [52], [53, 54]]
GREEDY = SamplingConfig(8, temperature=0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_an_encoder_fills_each_gap_with_one_ordinary_token():
    model = build(kind="encoder", initial_std=0.3)
    filled = fill_with_tokens(model, PARTS, 200, SamplingConfig(8, temperature=3.0), seeded())
    assert len(filled) == 200 and len({(row[3], row[5]) for row in filled}) > 100
    for row in filled:
        assert [row[0], *row[1:3], row[4], *row[6:]] == [BEGIN, 50, 51, 52, 53, 54] and min(row[3],
            row[5]) >= len(SPECIAL)


def test_at_temperature_0_an_encoder_takes_the_likeliest_token():
    model = build(kind="encoder", initial_std=0.3)
    logits = model(torch.tensor([[BEGIN, 50, 51, MASK, 52, MASK, 53, 54]]))[0]
    likeliest = [len(SPECIAL) + int(logits[place, len(SPECIAL) :].argmax()) for place in (3, 5)]
    assert fill_with_tokens(model, PARTS, 2, GREEDY, seeded()) == [[BEGIN, 50, 51, likeliest[0], 52, likeliest[1], 53,
        54]] * 2


def test_an_encoder_in_16_bits_keeps_every_token(monkeypatch):
    model = build(kind="encoder")
    monkeypatch.setattr(model, "logits", lambda hidden: torch.zeros(len(hidden), 1044, dtype=torch.bfloat16))
    filled = fill_with_tokens(model, [[50], [51]], 4000, SamplingConfig(), seeded())
    assert len({row[2] for row in filled}) > 950  # of 1,024 equally likely ones


def test_an_encoder_decoder_is_given_sentinels_and_its_spans_come_into_the_gaps(monkeypatch):
    model, asked = build(kind="encoder-decoder"), []
    written = [GAPS[0], 60, 61, GAPS[1], 62, 2]

    def generate(model, prompts, config, generator, completions):
        asked.extend(prompts)
        return type("Written", (), {"completion": torch.tensor([written] * completions),
                                    "mask": torch.ones(completions, 6, dtype=torch.bool)})

    monkeypatch.setattr("minialign.pretrain.gap_filling.generate", generate)
    filled = fill_with_spans(model, PARTS, 2, GREEDY, seeded())
    assert asked == [[BEGIN, 50, 51, GAPS[0], 52, GAPS[1], 53, 54]]
    assert [[token for token in row if token >= len(SPECIAL)] for row in filled] == [[50, 51, 60, 61, 52, 62, 53,
        54]] * 2


@pytest.mark.parametrize("kind", ["encoder", "encoder-decoder"])
def test_the_space_before_a_gap_belongs_to_what_fills_it(kind, tokenizer, monkeypatch):
    seen = []
    monkeypatch.setattr(
        f"minialign.pretrain.gap_filling.fill_with_{'tokens' if kind == 'encoder' else 'spans'}", lambda model, parts,
        *_: seen.extend(parts) or []
    )
    for short, long in (("___", "___"), ("____", "________")):
        fill_gaps(build(kind=kind), tokenizer, f"Rosa lost {short} in the {long} .", 1, GREEDY, seeded())
        assert [tokenizer.decode(part) for part in seen] == ["Rosa lost", " in the", " ."]
        seen.clear()


@pytest.mark.parametrize("kind", ["encoder", "encoder-decoder"])
def test_a_pretrained_model_fills_a_gap_with_what_always_stood_there(kind, tmp_path):
    steps = {"encoder": 150, "encoder-decoder": 80}[kind]
    model, config = build(kind=kind, vocabulary=90), TrainingConfig(steps=steps, batch=16, learning_rate=5e-3)
    # four texts that nobody could take for one another
    rows = [[start + i for i in range(8)] for start in (50, 60, 70, 80)] * 8
    if kind == "encoder":
        data = MaskedText([[BEGIN, *row] for row in rows], 16, 0, 90)
        train_and_validate(model, data, data, masked_lm_loss, config, RunFolder(tmp_path), "test")
        filled = fill_with_tokens(model, [[50, 51, 52], [54, 55], [57]], 1, GREEDY, seeded())
    else:
        data = SpanCorruptedText(rows, 16, 0, SpanCorruptionConfig(0.3, 2))
        train_and_validate(model, data, data, text_to_text_loss, config, RunFolder(tmp_path), "test")
        filled = fill_with_spans(model, [[50, 51, 52], [55, 56, 57]], 1, GREEDY, seeded())
    assert [token for token in filled[0] if token >= len(SPECIAL)] == rows[0]


def test_what_cannot_be_filled_is_an_error(tokenizer):
    for text, found in (("Rosa.", 0), ("a___" * 17, 17)):
        with pytest.raises(UserError, match=f"the text has {found} gaps"):
            fill_gaps(build(kind="encoder"), tokenizer, text, 1, GREEDY, seeded())
    with pytest.raises(UserError, match="a decoder goes on from a text"):
        fill_gaps(build(), tokenizer, "a___", 1, GREEDY, seeded())
    with pytest.raises(UserError, match="fit the model's context"):
        fill_gaps(build(kind="encoder"), tokenizer, "a___" + "word " * 60, 1, GREEDY, seeded())
