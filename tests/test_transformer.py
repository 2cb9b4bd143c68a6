"""The transformer: its attention is the formula, nobody sees what they must not, and the cache changes nothing."""

import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, build

from minialign.cache import Cache
from minialign.heads import LanguageModel
from minialign.peft import lora
from minialign.quant import ptq
from minialign.quant.scheme import SCHEMES
from minialign.runs.errors import UserError
from minialign.runs.tensors import load_into, read_tensors, tensor_file, tensors_of
from minialign.transformer import (
    ShortConvolution,
    Sight,
    TransformerConfig,
    attention,
    causal_mask,
    positions_from_mask,
    rotate,
    rotation_table,
    who_sees_whom,
)

CLOSE = {"rtol": 0, "atol": 1e-5}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def padded(tokens, pads, side):
    """The same rows with `pads[i]` zeros before or after row i and cut to one length, with their mask."""
    rows, length = [row.tolist() for row in tokens], tokens.shape[1] + max(pads)
    fill = [length - len(row) for row in rows]
    keep = [row[: len(row) - (max(pads) - n)] if max(pads) - n else row for row, n in zip(rows, pads)]
    whole = [([0] * (length - len(k)) + k) if side == "left" else (k + [0] * (length - len(k))) for k in keep]
    assert all(n > 0 for n in fill)
    result = torch.tensor(whole)
    return result, result != 0, [len(k) for k in keep]


# attention


@pytest.mark.parametrize("fused", [True, False])
def test_attention_is_softmax_of_scaled_products_token_by_token(fused):
    query, key, value = random(2, 3, 5, 8, seed=1), random(2, 3, 7, 8, seed=2), random(2, 3, 7, 8, seed=3)
    allowed = random(2, 1, 5, 7, seed=4) > -0.5
    allowed[..., 0] = True
    mixed = attention(query, key, value, allowed, fused=fused)
    for b in range(2):
        for h in range(3):
            for t in range(5):
                scores = [float(query[b, h, t] @ key[b, h, s]) / math.sqrt(8) for s in range(7)]
                weights = [math.exp(score) * bool(allowed[b, 0, t, s]) for s, score in enumerate(scores)]
                expected = sum(w / sum(weights) * value[b, h, s] for s, w in enumerate(weights))
                torch.testing.assert_close(mixed[b, h, t], expected, **CLOSE)


@pytest.mark.parametrize("T, S, mask", [(6, 6, "none"), (6, 6, "causal"), (6, 6, "padding"), (1, 6, "padding"),
                                        (4, 9, "padding"), (1, 9, "none")])
def test_attention_equals_torch_s_own(T, S, mask):
    query, key, value = random(2, 3, T, 8, seed=1), random(2, 3, S, 8, seed=2), random(2, 3, S, 8, seed=3)
    allowed = torch.arange(S) < torch.tensor([S, S - 2])[:, None, None, None] if mask == "padding" else None
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, is_causal=mask == "causal")
    for fused in (True, False):
        torch.testing.assert_close(attention(query, key, value, allowed, mask == "causal", fused), expected, **CLOSE)


@pytest.mark.parametrize("kind", ["decoder", "encoder", "encoder-decoder"])
def test_the_fused_kernel_and_the_formula_give_the_same_logits(kind, tokens):
    inputs, mask, _ = padded(tokens, [3, 1, 2], "right")
    arguments = (tokens, inputs, mask) if kind == "encoder-decoder" else (inputs, mask)
    fused, formula = (build(kind=kind, fused_attention=choice)(*arguments) for choice in (True, False))
    seen = slice(None) if kind == "encoder-decoder" else mask
    torch.testing.assert_close(fused[seen], formula[seen], **CLOSE)


def test_a_masked_key_has_no_influence_whatever_it_holds():
    query, key, value = random(1, 2, 3, 4, seed=1), random(1, 2, 5, 4, seed=2), random(1, 2, 5, 4, seed=3)
    allowed = torch.tensor([True, True, True, True, False])
    for fused in (True, False):
        before = attention(query, key, value, allowed[None, None, None], fused=fused)
        garbage = key.clone(), value.clone()
        garbage[0][:, :, 4], garbage[1][:, :, 4] = 1e4, -1e4
        torch.testing.assert_close(attention(query, *garbage, allowed[None, None, None], fused=fused), before, **CLOSE)


def test_the_causal_mask_is_a_lower_triangle():
    assert causal_mask(3).tolist() == [[True, False, False], [True, True, False], [True, True, True]]


# positions


def test_positions_count_real_tokens_only():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.bool)
    positions = positions_from_mask(mask)
    assert positions[0].tolist()[2:] == [0, 1, 2] and positions[1].tolist()[:3] == [0, 1, 2]
    assert positions.min() >= 0


def test_rotation_is_the_pairwise_turn_of_the_paper():
    d, x = 8, random(1, 1, 5, 8)
    turned = rotate(x, rotation_table(torch.arange(5), d))
    for t in range(5):
        for i in range(d // 2):
            angle = t * 10_000 ** (-2 * i / d)
            a, b = float(x[0, 0, t, i]), float(x[0, 0, t, i + d // 2])
            assert float(turned[0, 0, t, i]) == pytest.approx(a * math.cos(angle) - b * math.sin(angle), abs=1e-5)
            assert float(turned[0, 0, t, i + d // 2]) == pytest.approx(a * math.sin(angle) + b * math.cos(angle),
                abs=1e-5)


def test_rotary_scores_depend_only_on_the_distance():
    query, key = random(1, 1, 1, 16, seed=1), random(1, 1, 1, 16, seed=2)
    def at(x, t):
        return rotate(x, rotation_table(torch.tensor([t]), 16))
    def score(t, s):
        return float((at(query, t) * at(key, s)).sum())
    for distance in (0, 1, 5, 30):
        assert score(distance, 0) == pytest.approx(score(distance + 40, 40), abs=1e-4)
    assert abs(score(5, 0) - score(0, 0)) > 1e-2


def test_a_rotation_preserves_lengths():
    x = random(2, 3, 50, 16)
    turned = rotate(x, rotation_table(torch.arange(50).expand(2, -1), 16))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), **CLOSE)
    assert torch.equal(turned[:, :, 0], x[:, :, 0])


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_the_order_of_tokens_matters_to_a_reader_of_both_sides(positions, tokens):
    model = build(kind="encoder", positions=positions)
    swapped = tokens[:, [1, 0, *range(2, 12)]]
    assert (model(tokens)[:, 5] - model(swapped)[:, 5]).abs().max() > 1e-3


def test_without_positions_an_encoder_could_not_tell_orders_apart(tokens):
    model = build(kind="encoder", positions="learned")
    model.body.position_embedding.weight.data.zero_()
    swapped = tokens[:, [1, 0, *range(2, 12)]]
    torch.testing.assert_close(model(tokens)[:, 5], model(swapped)[:, 5], **CLOSE)


def test_learned_positions_are_added_to_the_tokens(tokens):
    model = build(positions="learned")
    shifted = copy.deepcopy(model)
    shifted.body.position_embedding.weight.data = torch.roll(model.body.position_embedding.weight.data, 1, dims=0)
    assert (model(tokens) - shifted(tokens)).abs().max() > 1e-3
    assert build(positions="rotary").body.position_embedding is None


# who sees whom


@pytest.mark.parametrize("causal", [True, False])
def test_real_tokens_see_real_ones_and_a_pad_sees_itself_too(causal):
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 1]], dtype=torch.bool)
    before, allowed = mask.clone(), who_sees_whom(mask, 3, causal)
    assert allowed.shape == (2, 1, 3, 5) and torch.equal(mask, before)
    for b in range(2):
        for t in range(3):
            seen = [s for s in range(5) if s == t + 2 or (mask[b, s] and (s <= t + 2 or not causal))]
            assert allowed[b, 0, t].nonzero().flatten().tolist() == seen


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
@pytest.mark.parametrize("positions", ["rotary", "learned"])
@pytest.mark.parametrize("fused", [True, False])
def test_left_padding_changes_no_logit(kind, positions, fused, tokens):
    model = build(kind=kind, positions=positions, fused_attention=fused)
    shifted, mask, lengths = padded(tokens, [1, 4, 7], "left")
    logits = model(shifted, mask)
    for i, n in enumerate(lengths):
        torch.testing.assert_close(logits[i, -n:], model(tokens[i : i + 1, :n])[0], **CLOSE)


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_right_padding_changes_no_logit(kind, positions, tokens):
    model = build(kind=kind, positions=positions)
    filled, mask, lengths = padded(tokens, [1, 4, 7], "right")
    logits = model(filled, mask)
    for i, n in enumerate(lengths):
        torch.testing.assert_close(logits[i, :n], model(tokens[i : i + 1, :n])[0], **CLOSE)


def test_a_decoder_needs_no_mask_when_all_pads_are_on_the_right(tokens):
    model = build()
    filled, mask, _ = padded(tokens, [1, 4, 7], "right")
    torch.testing.assert_close(model(filled)[mask], model(filled, mask)[mask], **CLOSE)


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_what_stands_at_pads_changes_no_logit(kind, tokens):
    model = build(kind=kind)
    filled, mask, _ = padded(tokens, [1, 4, 7], "left")
    assert torch.equal(model(filled, mask)[mask], model(filled.masked_fill(~mask, 77), mask)[mask])


def test_a_row_of_nothing_but_pads_gives_no_nan(tokens):
    for kind in ("decoder", "encoder"):
        mask = torch.ones_like(tokens, dtype=torch.bool)
        mask[1] = False
        for fused in (True, False):
            assert build(kind=kind, fused_attention=fused)(tokens, mask).isfinite().all()


@pytest.mark.parametrize("fused", [True, False])
def test_a_decoder_does_not_see_the_future(fused, tokens):
    model = build(fused_attention=fused)
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 300 + 20
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert all((before[:, t] != after[:, t]).any() for t in range(7, 12))


def test_an_encoder_sees_both_sides(tokens):
    model = build(kind="encoder")
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 300 + 20
    before, after = model(tokens), model(changed)
    assert all((before[:, t] != after[:, t]).any() for t in range(12))


def test_cross_attention_does_not_see_the_pads_of_its_memory(tokens):
    model = build(kind="encoder-decoder")
    inputs, mask, lengths = padded(tokens, [1, 4, 7], "right")
    logits = model(tokens, inputs, mask)
    for i, n in enumerate(lengths):
        torch.testing.assert_close(logits[i], model(tokens[i : i + 1], inputs[i : i + 1, :n])[0], **CLOSE)
    memory = model.body.encoder(inputs, mask)
    garbage = memory.masked_fill(~mask[..., None], 100.0)
    torch.testing.assert_close(model(tokens, input_mask=mask, memory=garbage), logits, **CLOSE)


def test_every_token_of_the_input_reaches_every_word_of_the_output(tokens):
    model = build(kind="encoder-decoder")
    inputs = tokens[:, :5]
    before = model(tokens, inputs)
    for place in range(5):
        changed = inputs.clone()
        changed[:, place] = (changed[:, place] + 1) % 300 + 20
        after = model(tokens, changed)
        assert all((before[:, t] != after[:, t]).any() for t in range(12))


# the cache


@pytest.mark.parametrize("positions", ["rotary", "learned"])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("pads", [None, [1, 4, 7]])
def test_cached_steps_equal_the_full_pass(positions, fused, pads, tokens):
    model = build(positions=positions, fused_attention=fused)
    row, mask, _ = padded(tokens, pads, "left") if pads else (tokens, None, None)
    full = model(row, mask)
    real = torch.ones_like(row, dtype=torch.bool) if mask is None else mask
    prompt = row.shape[1] - 5
    cache = Cache(model.config, 3, row.shape[1])
    parts = [model(row[:, :prompt], None if mask is None else mask[:, :prompt], cache)]
    parts += [model(row[:, t : t + 1], None, cache) for t in range(prompt, row.shape[1])]
    torch.testing.assert_close(torch.cat(parts, dim=1)[real], full[real], **CLOSE)
    assert cache.length == row.shape[1]


def test_several_tokens_at_a_time_can_follow_a_padded_prompt(tokens):
    model = build()
    row, mask, _ = padded(tokens, [1, 4, 7], "left")
    cache = Cache(model.config, 3, row.shape[1])
    model(row[:, :9], mask[:, :9], cache)
    torch.testing.assert_close(model(row[:, 9:], mask[:, 9:], cache), model(row, mask)[:, 9:], **CLOSE)


def test_a_mask_without_pads_changes_nothing_in_a_filled_cache(tokens):
    model = build()
    cache = Cache(model.config, 3, 12)
    real = torch.ones_like(tokens, dtype=torch.bool)
    model(tokens[:, :8], real[:, :8], cache)
    torch.testing.assert_close(model(tokens[:, 8:9], real[:, 8:9], cache)[:, 0], model(tokens)[:, 8], **CLOSE)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_cached_steps_of_an_encoder_decoder_equal_the_full_pass(fused, shared, tokens):
    model = build(kind="encoder-decoder", fused_attention=fused, shared=shared)
    inputs, mask, _ = padded(tokens, [1, 4, 7], "right")
    full = model(tokens, inputs, mask)
    memory = model.body.encoder(inputs, mask)
    cache = Cache(model.config, 3, 12)
    steps = [model(tokens[:, t : t + 1], input_mask=mask, cache=cache, memory=memory) for t in range(12)]
    torch.testing.assert_close(torch.cat(steps, dim=1), full, **CLOSE)


def test_shared_weights_read_and_write_and_are_kept_once(tokens, tmp_path):
    model, apart = (build(kind="encoder-decoder", short_convolution=4, shared=shared) for shared in (True, False))
    D, N = TINY.width, TINY.layers
    block = sum(p.numel() for p in apart.body.encoder.blocks[0].parameters())
    assert (sum(p.numel() for p in apart.parameters()) - sum(p.numel() for p in model.parameters())
            == N * block + 2 * D), "the decoder's own: cross-attention and its norm, nothing else"
    before = model(tokens, tokens)
    with torch.no_grad():
        model.body.encoder.blocks[1].feed_forward.output.bias += torch.linspace(0, 1, D)
    by_memory = model(tokens, memory=model.body.encoder(tokens))
    unchanged_memory = model(tokens, memory=build(kind="encoder-decoder", short_convolution=4,
                                                  shared=True).body.encoder(tokens))
    assert (by_memory - unchanged_memory).abs().max() > 1e-4, "the encoder reads with it"
    assert (unchanged_memory - before).abs().max() > 1e-4, "the decoder writes with it"
    (tmp_path / "m.safetensors").write_bytes(tensor_file(tensors_of(model)))
    other = build(3, kind="encoder-decoder", short_convolution=4, shared=True)
    load_into(other, read_tensors(tmp_path / "m.safetensors")[0], tmp_path)
    assert torch.equal(other(tokens, tokens), model(tokens, tokens))
    with pytest.raises(UserError, match="shared"):
        build(shared=True)


def test_an_update_of_shared_weights_is_one_for_both_parts(tokens):
    model = build(kind="encoder-decoder", shared=True)
    before = model(tokens, tokens)
    lora.wrap(model, lora.LoRAConfig(rank=2, targets=("*query", "*value")))
    attention = model.body.decoder.blocks[0].attention
    assert attention.query is model.body.encoder.blocks[0].attention.query
    assert len(lora.lora_layers(model)) == 2 * 2 * TINY.layers, "two a block's attention, two a cross-attention"
    with torch.no_grad():
        for layer in lora.lora_layers(model).values():
            layer.B.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    tuned = model(tokens, tokens)
    assert (tuned - before).abs().max() > 1e-3
    torch.testing.assert_close(lora.merged_plain(model)(tokens, tokens), tuned, **CLOSE)
    int8 = ptq.quantize(model, SCHEMES["vector-wise"])[0]
    assert type(int8.body.decoder.blocks[0].attention.query) is not torch.nn.Linear
    assert (int8(tokens, tokens) - tuned).abs().max() < 0.1 * tuned.abs().max()


@torch.no_grad()
def test_the_memory_s_keys_are_computed_once(tokens):
    model = build(kind="encoder-decoder")
    memory = model.body.encoder(tokens)
    cache = Cache(model.config, 3, 12)
    model(tokens[:, :1], cache=cache, memory=memory)
    first = model(tokens[:, 1:2], cache=copy.deepcopy(cache), memory=memory)
    assert torch.equal(first, model(tokens[:, 1:2], cache=cache, memory=torch.full_like(memory, 9.0)))


@pytest.mark.parametrize("with_cache", [False, True])
def test_more_tokens_than_the_context_are_an_error_that_says_how_many(with_cache, tokens):
    model = build(context=12)
    assert model(tokens).shape == (3, 12, 320)
    with pytest.raises(UserError, match="13 tokens do not fit the model's context of 12"):
        if with_cache:
            cache = Cache(model.config, 3, 13)
            model(tokens, None, cache)
            model(tokens[:, :1], None, cache)
        else:
            model(torch.cat([tokens, tokens[:, :1]], dim=1))


# the weights at the start


def test_residual_projections_start_smaller():
    wide = build(width=128, layers=8, initial_std=0.02)
    for name, parameter in wide.named_parameters():
        if parameter.dim() == 2:
            parameter = parameter.detach()
            expected = 0.02 / math.sqrt(2 * 8) if name.endswith("output.weight") else 0.02
            assert float(parameter.std()) == pytest.approx(expected, rel=0.05), name
            assert abs(float(parameter.mean())) < 5 * expected / math.sqrt(parameter.numel()), name
    assert sum(name.endswith("output.weight") for name, _ in wide.named_parameters()) == 2 * 8


def test_biases_start_at_0_and_norms_at_1():
    for kind in ("decoder", "encoder", "encoder-decoder"):
        for name, parameter in build(kind=kind).named_parameters():
            if parameter.dim() == 1:
                assert (parameter == (1.0 if name.endswith("norm.weight") else 0.0)).all(), name


def test_an_untrained_model_is_about_as_unsure_as_it_can_be(tokens):
    loss = F.cross_entropy(build(initial_std=0.02)(tokens).flatten(0, 1), tokens.roll(1, dims=0).flatten())
    assert float(loss.detach()) == pytest.approx(math.log(320), abs=0.2)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    first, second, other = (build(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["body.token_embedding.weight"], other["body.token_embedding.weight"])


def test_building_a_model_does_not_depend_on_the_global_generator():
    torch.manual_seed(1)
    first = build().state_dict()
    torch.manual_seed(2)
    assert all(torch.equal(tensor, first[name]) for name, tensor in build().state_dict().items())


@pytest.mark.parametrize("kind", ["decoder", "encoder", "encoder-decoder"])
def test_a_deep_copy_shares_no_storage(kind, tokens):
    model = build(kind=kind)
    twin = copy.deepcopy(model)
    own, copied = ({p.untyped_storage().data_ptr() for p in m.parameters()} for m in (model, twin))
    assert not own & copied and len(own) == len(copied)
    arguments = (tokens, tokens) if kind == "encoder-decoder" else (tokens,)
    before = twin(*arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1.0
    assert torch.equal(twin(*arguments), before)


# the options


def test_dropout_acts_in_training_only(tokens):
    model = build(dropout=0.3)
    assert torch.equal(model(tokens), model(tokens)) and torch.equal(model(tokens), build()(tokens))
    model.train()
    torch.manual_seed(0)
    assert not torch.equal(model(tokens), model(tokens))


@pytest.mark.parametrize("activation, function", [("gelu", F.gelu), ("gelu_tanh",
    lambda x: F.gelu(x, approximate="tanh")), ("relu", torch.relu)])
def test_the_feed_forward_layer_is_two_maps_with_a_nonlinearity_between(activation, function):
    layer = build(activation=activation, feed_forward=3).body.blocks[0].feed_forward
    x = random(2, 5, 32)
    assert layer.inner.weight.shape == (96, 32)
    expected = function(x @ layer.inner.weight.T + layer.inner.bias) @ layer.output.weight.T + layer.output.bias
    torch.testing.assert_close(layer(x), expected, **CLOSE)


def test_a_block_adds_what_attention_and_feed_forward_say_of_the_normed_stream():
    block = build().body.blocks[0]
    x = random(2, 5, 32)
    sight = Sight(torch.arange(5), causal=True, rotation=rotation_table(torch.arange(5), 16))
    middle = x + block.attention(F.layer_norm(x, (32,)), sight)
    expected = middle + block.feed_forward(F.layer_norm(middle, (32,)))
    torch.testing.assert_close(block(x, sight), expected, **CLOSE)


def test_every_weight_takes_part(tokens):
    for kind in ("decoder", "encoder", "encoder-decoder"):
        model = build(kind=kind, positions="learned")
        model(*(tokens, tokens) if kind == "encoder-decoder" else (tokens,)).square().sum().backward()
        idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert idle == []


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kind": "recurrent"}, "decoder, encoder, encoder-decoder"),
        ({"positions": "absolute"}, "rotary, learned"),
        ({"activation": "swish"}, "gelu, gelu_tanh, relu"),
        ({"layers": 0}, "layers is 0"),
        ({"vocabulary": 0}, "vocabulary is 0"),
        ({"context": -1}, "context is -1"),
        ({"heads": 5}, "width 32 does not divide by 5 heads"),
        ({"width": 6, "heads": 2}, "even"),
        ({"dropout": 1.0}, "dropout 1.0"),
        ({"dropout": -0.1}, "dropout -0.1"),
        ({"initial_std": 0.0}, "initial std 0.0"),
    ],
)
def test_a_shape_that_cannot_be_is_an_error_that_names_it(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TINY, **change)


def test_learned_positions_allow_an_odd_head():
    assert TransformerConfig(vocabulary=9, width=6, heads=2, positions="learned").width == 6


def test_a_short_convolution_adds_the_last_k_tokens_channel_by_channel():
    layer, x = ShortConvolution(dataclasses.replace(TINY, short_convolution=3), 0), random(2, 6, 32)
    layer.weight.data = random(3, 32, seed=1)
    found = layer(x, Sight(torch.arange(6)))
    for t in range(6):
        expected = x[:, t] + sum(layer.weight[2 - i] * x[:, t - i] for i in range(3) if t >= i)
        torch.testing.assert_close(found[:, t], expected, **CLOSE)


def test_a_new_short_convolution_changes_nothing(tokens):
    new = LanguageModel(dataclasses.replace(TINY, short_convolution=4))
    torch.testing.assert_close(new(tokens), LanguageModel(TINY)(tokens), **CLOSE)


def test_a_convolution_of_an_encoder_does_not_see_pads(tokens):
    model = build(kind="encoder", short_convolution=4)
    pads = torch.zeros(3, 4, dtype=torch.long)
    for left in (True, False):
        sides = (pads, tokens) if left else (tokens, pads)
        row, mask = torch.cat(sides, dim=1), torch.cat([side.bool() for side in sides], dim=1)
        found = model(row, mask)[:, 4:] if left else model(row, mask)[:, :-4]
        torch.testing.assert_close(found, model(tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_what_is_mixed_in_gives_the_same_numbers_with_the_cache_and_beside_padding(positions, tokens):
    model = build(positions=positions, short_convolution=4)
    plain = model(tokens)
    assert not torch.allclose(plain, build(positions=positions)(tokens), atol=1e-4)
    pads = torch.zeros(3, 4, dtype=torch.long)
    mask = torch.cat([pads.bool(), torch.ones_like(tokens).bool()], dim=1)
    padded = torch.cat([pads, tokens], dim=1)
    torch.testing.assert_close(model(padded, mask)[:, 4:], plain, atol=1e-5, rtol=1e-5)
    cache = Cache(model.config, 3, 16)
    parts = [model(padded[:, :9], mask[:, :9], cache)[:, 4:], *(model(padded[:, t : t + 1], None, cache)
        for t in range(9, 16))]
    torch.testing.assert_close(torch.cat(parts, dim=1), plain, atol=1e-5, rtol=1e-5)
