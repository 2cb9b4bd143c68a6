"""Embeddings and the heads that share them in int8, and as files."""

import math

import pytest
import torch
from torch import nn

from minialign.heads import LanguageModel
from minialign.quant.mappings import MappingConfig, quantize_tensor
from minialign.quant.ptq import module_bytes, quantize
from minialign.quant.saving import load_quantized, save_quantized
from minialign.quant.scheme import SCHEMES, SchemeConfig
from minialign.quant.tables import QuantizedTable, TableHead
from minialign.runs.errors import UserError
from minialign.transformer import TransformerConfig

SHAPE = TransformerConfig(320, 48, 32, 2, 2, initial_std=0.2)
TOKENS = torch.randint(20, 320, (4, 24), generator=torch.Generator().manual_seed(0))


class Tied(nn.Module):
    """A model in miniature whose head shares the table, or has a place for one."""

    def __init__(self, place=False, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.table, self.inner = nn.Embedding(40, 16), nn.Linear(16, 16)
        self.head = None if place else nn.Linear(16, 40)
        if not place:
            self.head.weight = self.table.weight

    def forward(self, tokens):
        hidden = self.inner(self.table(tokens))
        return nn.functional.linear(hidden, self.table.weight) if self.head is None else self.head(hidden)


@pytest.mark.parametrize("place", [False, True])
def test_a_shared_table_is_stored_once_and_serves_both(place, tmp_path):
    model, tokens = Tied(place), torch.arange(12).view(3, 4)
    weight = quantize_tensor(model.table.weight, MappingConfig(per="row")).dequantize()
    bias = 0 if place else model.head.bias.detach()
    _, report = quantize(model, SCHEMES["weights"], [tokens], embeddings=True)
    assert isinstance(model.table, QuantizedTable) and isinstance(model.head, TableHead)
    assert model.head.table is model.table
    torch.testing.assert_close(model.table(tokens), weight[tokens])
    hidden = torch.randn(2, 3, 16)
    torch.testing.assert_close(model.head(hidden), hidden @ weight.T + bias)
    expected = (40 * 16 + 40 * 4) + (16 * 16 + 16 * 4 + 16 * 4) + (0 if place else 40 * 4)
    assert report.bytes_after == module_bytes(model) == expected
    assert [row.name for row in report.rows if not row.kept] == ["table", "inner"] + ([] if place else ["head"])
    save_quantized(model, tmp_path / "model.safetensors")
    loaded = load_quantized(Tied(place, seed=5), tmp_path / "model.safetensors")
    assert torch.equal(loaded(tokens), model(tokens)) and loaded.head.table is loaded.table


def test_a_model_that_multiplies_by_the_table_finds_it(tmp_path):
    model = LanguageModel(SHAPE).eval()
    with torch.no_grad():
        before = model(TOKENS)
    _, report = quantize(model, SCHEMES["vector-wise"], embeddings=True)
    assert 0 < (model(TOKENS) - before).norm() / before.norm() < 0.1
    assert report.rows[0].name == "body.token_embedding" and 0 < report.rows[0].weight_error < 0.01
    assert report.bytes_after < 0.36 * report.bytes_before
    save_quantized(model, tmp_path / "model.safetensors")
    loaded = load_quantized(LanguageModel(SHAPE, seed=3), tmp_path / "model.safetensors")
    assert torch.equal(loaded(TOKENS), model(TOKENS))


def test_a_head_may_take_the_fast_way_for_single_tokens():
    slow, fast = (quantize(Tied(place=True), SchemeConfig("weights", single_token=flag), embeddings=True)[0]
                  for flag in (False, True))
    x = torch.randn(1, 16, generator=torch.Generator().manual_seed(0))
    assert 0 < (fast.head(x) - slow.head(x)).norm() / slow.head(x).norm() < 0.02


def test_embeddings_that_are_not_finite_are_an_error():
    model = Tied()
    model.table.weight.data[3, 3] = math.nan
    with pytest.raises(UserError, match="not finite"):
        quantize(model, SCHEMES["weights"], embeddings=True)
    assert type(model.table) is nn.Embedding and type(model.inner) is nn.Linear


def test_a_table_with_two_seats_is_replaced_in_both():
    model = LanguageModel(TransformerConfig(320, 48, 32, 1, 2, kind="encoder-decoder")).eval()
    quantize(model, SCHEMES["weights"], embeddings=True)
    table = model.body.encoder.token_embedding
    assert isinstance(table, QuantizedTable) and table is model.body.decoder.token_embedding


def test_without_asking_embeddings_stay():
    model = quantize(Tied(), SCHEMES["weights"])[0]
    assert type(model.table) is nn.Embedding and model.head.weight is model.table.weight
