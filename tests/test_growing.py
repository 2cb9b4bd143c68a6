"""Bases that grow out of others: the same function at first, or refused."""

from dataclasses import replace

import pytest
import torch
from conftest import TINY

from minialign.heads import LanguageModel
from minialign.lab.bases.growing import grow
from minialign.lab.bases.make import Maker
from minialign.runs.errors import UserError


@pytest.mark.parametrize("feed_forward", [4, 3])
def test_a_model_of_twice_the_width_is_the_same_function_at_first(feed_forward):
    small = replace(TINY, short_convolution=4, initial_std=0.2)
    old = LanguageModel(small, 1)
    for name, parameter in old.named_parameters():
        if parameter.dim() < 2 or "convolutions" in name:
            torch.nn.init.normal_(parameter, 0.5, 0.2)
    new = LanguageModel(replace(small, width=2 * small.width, heads=2 * small.heads, feed_forward=feed_forward), 2)
    grow(new, old)
    tokens = torch.randint(small.vocabulary, (3, 12))
    assert new(tokens).sub(old(tokens)).abs().max() < 1e-4 * old(tokens).abs().max()
    new(tokens).logsumexp(dim=-1).sum().backward()
    matrices = [p for name, p in new.named_parameters() if "attention" in name and p.dim() == 2]
    assert all((left - right).abs().max() > 1e-3 * part.abs().max()  # or both halves would stay alike for ever
               for part in (p.grad for p in matrices) for left, right in [part.chunk(2, dim=0)])


def test_a_model_with_more_blocks_is_the_same_function_at_first_and_all_of_them_learn():
    small = replace(TINY, short_convolution=4, initial_std=0.2)
    old, new = LanguageModel(small, 1), LanguageModel(replace(small, layers=small.layers + 2), 2)
    grow(new, old)
    tokens = torch.randint(small.vocabulary, (3, 12))
    assert torch.equal(new(tokens), old(tokens))
    new(tokens).logsumexp(dim=-1).sum().backward()
    assert all(block.attention.output.weight.grad.any() and block.feed_forward.output.weight.grad.any()
               for block in new.body.blocks)


def test_an_encoder_takes_a_decoders_weights():
    old, new = LanguageModel(TINY, 1), LanguageModel(replace(TINY, kind="encoder"), 2)
    grow(new, old)
    assert all(p.equal(old.state_dict()[name]) for name, p in new.state_dict().items())
    assert new.state_dict()["body.token_embedding.weight"].data_ptr() != old.body.token_embedding.weight.data_ptr()


@pytest.mark.parametrize("shared", [True, False])
def test_an_encoder_decoder_takes_another_ones_weights(shared):
    shape = replace(TINY, kind="encoder-decoder", shared=shared)
    old, new = LanguageModel(shape, 1), LanguageModel(shape, 2)
    grow(new, old)
    tokens = torch.randint(TINY.vocabulary, (3, 12))
    assert torch.equal(new(tokens, tokens), old(tokens, tokens))


@pytest.mark.parametrize("shared", [True, False])
def test_both_parts_of_an_encoder_decoder_take_a_decoders_weights(shared):
    small = replace(TINY, short_convolution=4)
    old, new = LanguageModel(small, 1), LanguageModel(replace(small, kind="encoder-decoder", shared=shared), 2)
    fresh = {name: p.clone() for name, p in new.named_parameters()}
    grow(new, old)
    tokens = torch.randint(small.vocabulary, (3, 12))
    encoder = LanguageModel(replace(small, kind="encoder"), 3)
    grow(encoder, old)
    assert torch.equal(new.body.encoder(tokens), encoder.body(tokens))
    for block in new.body.decoder.blocks:  # deaf to what is read, the decoder is the one that it grew out of
        torch.nn.init.zeros_(block.cross_attention.output.weight)
    assert torch.equal(new(tokens, tokens), old(tokens))
    changed = [name for name, p in new.named_parameters() if not torch.equal(p, fresh[name])]
    assert changed and not [name for name in changed if "cross" in name and not name.endswith("output.weight")]


@pytest.mark.parametrize("other", [{"heads": 2}, {"layers": 1}, {"width": 48}, {"kind": "encoder-decoder"},
                                   {"width": 32, "heads": 2, "kind": "encoder-decoder", "layers": 3}])
def test_what_would_not_be_the_same_function_is_not_grown(other):
    wide = replace(TINY, **{"width": 64, "heads": 4} | other)
    with pytest.raises(UserError, match="grow"):
        grow(LanguageModel(wide, 2), LanguageModel(replace(TINY, kind=wide.kind), 1))


def test_a_base_of_another_seed_is_not_taken_for_this_one(tmp_path):
    Maker(tmp_path / "work", tmp_path / "out", 0, True, 1, print).make("decoder-0.1m")
    with pytest.raises(UserError, match="of another seed, 0"):
        Maker(tmp_path / "work", tmp_path / "out", 7, True, 1, print).make("decoder-0.1m")


def test_a_base_that_grows_out_of_one_with_other_tokens_is_refused(tmp_path):
    Maker(tmp_path / "work", tmp_path / "out", 0, True, 1, print).make("decoder-0.4m")
    with pytest.raises(UserError, match="another seed"):
        Maker(tmp_path / "work", tmp_path / "out", 1, True, 1, print).make("encoder-0.4m")
