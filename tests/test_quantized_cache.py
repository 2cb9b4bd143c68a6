"""A cache of few bits: what comes back, what it costs, and what it takes."""

import dataclasses

import pytest
import torch
from conftest import TINY

from minialign.cache import Cache
from minialign.heads import LanguageModel
from minialign.quant.cache import QuantizedCache, kl_of_cache
from minialign.runs.errors import UserError

SHAPE = dataclasses.replace(TINY, context=64, initial_std=0.3, short_convolution=3)


@pytest.fixture
def model():
    model = LanguageModel(SHAPE, 0).eval()
    with torch.no_grad():  # a channel of the keys that is large in all tokens, as large models have it
        for block in model.body.blocks:
            block.attention.key.bias[:2] += 8.0
    return model


def tokens(count=3, length=48):
    return torch.randint(4, SHAPE.vocabulary, (count, length), generator=torch.Generator().manual_seed(0))


def mean_kl(model, **how):
    return kl_of_cache(model, tokens(), QuantizedCache(SHAPE, 3, 48, group=8, **how))[:, 8:].mean().item()


def test_a_plain_cache_costs_nothing(model):
    assert kl_of_cache(model, tokens(), Cache(SHAPE, 3, 48)).abs().max() < 1e-5
    assert kl_of_cache(model, tokens(), QuantizedCache(SHAPE, 3, 48, 2, group=48))[:, :47].abs().max() < 1e-5


def test_fewer_bits_cost_more_and_the_axis_matters(model):
    found = [mean_kl(model, bits=bits) for bits in (8, 4, 2)]
    assert found[0] < 1e-3 and found[0] < found[1] / 10 < found[2] / 100
    assert mean_kl(model, bits=4, keys_by="token") > 2 * found[1]


def test_each_value_is_within_half_a_step():
    cache = QuantizedCache(dataclasses.replace(SHAPE, layers=1), 2, 16, 4, 8)
    g = torch.Generator().manual_seed(0)
    key, value = (torch.randn(2, SHAPE.heads, 16, 4, generator=g) for _ in range(2))
    for start, end in ((0, 5), (5, 6), (6, 16)):
        k, v = cache.extend(0, key[:, :, start:end], value[:, :, start:end])
    for found, exact, axis in ((k, key, 2), (v, value, 3)):
        parts = exact.split(8, dim=2)
        steps = torch.cat([(p.amax(axis, True).clamp(min=0) - p.amin(axis, True).clamp(max=0)).expand_as(p) / 15
                           for p in parts], dim=2)
        assert ((found - exact).abs() <= steps / 2 + 1e-6).all() and not torch.equal(found, exact)


def test_bytes_are_those_of_the_codes(model):
    plain = 2 * SHAPE.layers * 3 * SHAPE.width * 48 * 4
    found = {}
    for bits in (8, 4):
        cache = QuantizedCache(SHAPE, 3, 48, bits, 16)
        kl_of_cache(model, tokens(), cache)
        found[bits] = cache.bytes
        scales = sum((q.scale.numel() + q.zero_point.numel()) * 4 for g in cache.codes for pair in g for q in pair)
        assert cache.bytes == plain / 4 * bits / 8 + scales
    assert found[4] < found[8] < plain


def test_a_cache_repeats_its_rows(model):
    one, rows = tokens(1, 20), torch.tensor([0, 0, 0])
    cache, three = QuantizedCache(SHAPE, 1, 40, 4, 8), QuantizedCache(SHAPE, 3, 40, 4, 8)
    with torch.no_grad():
        model.body(one, None, cache)
        model.body(one.repeat(3, 1), None, three)
        cache.repeat(rows)
        following = tokens(3, 1)
        torch.testing.assert_close(model.body(following, None, cache), model.body(following, None, three))


@pytest.mark.parametrize("change", [{"keys_by": "head"}, {"group": 0}, {"bits": 9}])
def test_settings_that_make_no_sense_are_refused(change):
    with pytest.raises(UserError):
        QuantizedCache(SHAPE, 1, 4, **change)
