"""Outlier features: found where they are, told apart, and what silencing them does; and a model whose answers are
remembered."""

import copy

import pytest
import torch
import torch.nn.functional as F

from minialign.heads import LanguageModel
from minialign.lab.claims.int8_outliers import plant_outliers
from minialign.lab.fidelity import Remembered, fidelity, questions
from minialign.quant.outliers import FeatureSizes, feature_sizes, share_of_columns, silenced, systematic_feature
from minialign.runs.errors import UserError
from minialign.transformer import TransformerConfig

SHAPE = TransformerConfig(320, 48, 32, 2, 2, initial_std=0.2)
TOKENS = torch.randint(20, 320, (4, 24), generator=torch.Generator().manual_seed(0))
ATTENTION = ("*.attention.query", "*.attention.key", "*.attention.value")


@pytest.fixture
def model():
    return LanguageModel(SHAPE, 0).eval()


def test_sizes_places_and_shares_equal_their_definitions():
    x = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(0))
    x[:, 0, 1] = 9.0  # the first token of each row
    x[3, 4, 2] = -20.0
    found = FeatureSizes(6.0)
    found.see(x[:2])
    found.see(x[2:])
    assert found.largest.equal(x.abs().amax(dim=(0, 1)))
    assert found.place[1:].tolist() == [0, 4] and found.outliers == [2, 1]
    assert found.tokens.tolist() == pytest.approx([0, 1 / 7, 1 / 35])
    one_row = FeatureSizes(6.0)
    one_row.see(x[3])
    assert one_row.largest.equal(x[3].abs().amax(dim=0)) and one_row.count == 7


def test_planted_features_are_found_in_the_layers_that_read_them(model):
    (chosen,) = torch.randperm(32, generator=torch.Generator().manual_seed(3))[:1].tolist()
    planted = plant_outliers(model, 3, factor=100.0, features=1)
    before = copy.deepcopy(planted.state_dict())
    found = feature_sizes(planted, TOKENS.split(2))
    feature, names = systematic_feature({name: sizes for name, sizes in found.items() if len(sizes.largest) == 32})
    readers = ("attention.query", "attention.key", "attention.value", "feed_forward.inner")
    assert feature == chosen and {f"body.blocks.{i}.{reader}" for i in (0, 1) for reader in readers} <= set(names)
    assert float(found["body.blocks.0.attention.query"].tokens[chosen]) > 0.9, "in nearly all tokens"
    assert all(planted.state_dict()[name].equal(value) for name, value in before.items())


def test_the_share_of_columns_is_over_all_layers(model):
    found = feature_sizes(model, [TOKENS], ["body.blocks.0.*"])
    largest = torch.cat([sizes.largest for sizes in found.values()])
    assert share_of_columns(found, float(largest.median())) == pytest.approx(0.5, abs=0.02)
    assert share_of_columns(found, 1e9) == 0.0


def test_without_outliers_the_largest_value_is_named(model):
    with pytest.raises(UserError, match="no feature reaches the threshold .* largest value is"):
        systematic_feature(feature_sizes(model, [TOKENS], ATTENTION, threshold=1e6))


def test_silenced_features_are_read_as_zeros_and_come_back(model):
    layer = model.body.blocks[1].attention.query
    x, before = torch.randn(3, 32), copy.deepcopy(model.state_dict())
    zeroed = x.clone()
    zeroed[:, [4, 9]] = 0
    with torch.no_grad(), silenced(model, ATTENTION, [4, 9]):
        expected = F.linear(zeroed, before["body.blocks.1.attention.query.weight"], layer.bias)
        torch.testing.assert_close(layer(x), expected)
        other = "body.blocks.1.feed_forward.inner.weight"
        assert model.get_parameter(other).equal(before[other]), "others read on"
    with pytest.raises(ZeroDivisionError), silenced(model, ATTENTION, [4]):
        1 / 0  # noqa: B018
    assert all(model.state_dict()[name].equal(value) for name, value in before.items())


def test_what_is_remembered_is_what_the_model_says(model):
    other = LanguageModel(SHAPE, 1).eval()
    kept = Remembered(model, TOKENS)
    plain, remembered = (fidelity(before, other, TOKENS, batch=2).to_dict() for before in (model, kept))
    assert remembered == pytest.approx(plain, rel=1e-4)
    with pytest.raises(UserError, match="was not asked about these rows"):
        fidelity(kept, other, TOKENS.flip(1))


def test_an_encoder_is_asked_with_its_own_vocabulary_s_mask():
    rows = torch.arange(20, 60).view(2, 20)
    read, said, places = questions(rows, "encoder", hidden_word=103)
    assert bool((read[places] == 103).all()) and torch.equal(rows[places], said)
    assert torch.equal(read[~places], rows[~places])
    assert not bool((questions(rows, "encoder")[0] == 103).any())
