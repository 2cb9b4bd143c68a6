"""Heads: the vocabulary's is the table of token vectors itself, a score stands at every token, a class at the one that
saw everything."""

import copy
import math

import pytest
import torch
from conftest import build

from minialign.heads import Classifier, ScalarModel, build_body, first_real, last_real, read_completions
from minialign.runs.errors import UserError
from minialign.transformer import EncoderDecoder

CLOSE = {"rtol": 0, "atol": 1e-5}


def test_the_head_of_a_language_model_is_its_table_of_token_vectors(tokens):
    model = build()
    hidden = model.body(tokens)
    torch.testing.assert_close(model(tokens), hidden @ model.body.token_embedding.weight.T, **CLOSE)
    assert len([p for p in model.parameters() if 320 in p.shape]) == 1


def test_an_encoder_decoder_has_one_table_for_reading_and_writing():
    model = build(kind="encoder-decoder")
    assert isinstance(model.body, EncoderDecoder)
    tables = (model.body.encoder.token_embedding.weight, model.body.decoder.token_embedding.weight)
    assert tables[0] is tables[1] and tables[0].data_ptr() == tables[1].data_ptr()
    twin = copy.deepcopy(model)
    assert twin.body.encoder.token_embedding.weight is twin.body.decoder.token_embedding.weight
    assert twin.body.encoder.token_embedding.weight is not tables[0]
    assert len([p for p in model.parameters() if 320 in p.shape]) == 1


def test_logits_can_be_asked_for_at_chosen_places_only(tokens):
    model = build()
    hidden = model.body(tokens)
    places = torch.zeros_like(tokens, dtype=torch.bool)
    places[0, 3] = places[2, 11] = True
    torch.testing.assert_close(model.logits(hidden[places]), model(tokens)[places], **CLOSE)


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_a_scalar_model_gives_one_number_for_every_token(kind, tokens):
    model = ScalarModel(build(kind=kind).body)
    scores = model(tokens)
    assert scores.shape == tokens.shape
    torch.testing.assert_close(scores, (model.body(tokens) * model.head.weight).sum(dim=-1), **CLOSE)


def test_a_value_head_starts_at_0_everywhere(tokens):
    assert (ScalarModel(build().body, head_std=0.0)(tokens) == 0).all()


def test_a_reward_head_starts_with_deviation_1_over_the_root_of_the_width_plus_1():
    head = ScalarModel(build(width=1024, layers=1, vocabulary=8).body, seed=3).head
    assert float(head.weight.detach().std()) == pytest.approx(1 / math.sqrt(1025), rel=0.1)
    assert float(head.bias.detach()) == 0
    given = ScalarModel(build(width=1024, layers=1, vocabulary=8).body, head_std=0.5).head
    assert float(given.weight.detach().std()) == pytest.approx(0.5, rel=0.1)


def test_heads_of_one_seed_are_equal_and_of_another_differ():
    first, second, other = (ScalarModel(build().body, seed=seed).head.weight for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)
    first, second, other = (Classifier(build().body, 3, seed=seed).head.weight for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_a_scalar_model_takes_the_body_over_and_copies_nothing():
    model = build()
    assert ScalarModel(model.body).body is model.body and Classifier(model.body, 2).body is model.body


def test_first_and_last_real_token_are_found_wherever_the_padding_is():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0]], dtype=torch.bool)
    assert first_real(mask).tolist() == [2, 0, 0, 1]
    assert last_real(mask).tolist() == [3, 1, 3, 2]


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_class_does_not_depend_on_padding(kind, side, tokens):
    model = Classifier(build(kind=kind).body, classes=3)
    model.head.weight.data.mul_(50)
    assert model(tokens, torch.ones_like(tokens, dtype=torch.bool)).shape == (3, 3)
    pads, none = torch.zeros(3, 4, dtype=torch.long), torch.zeros(3, 4, dtype=torch.bool)
    real = torch.ones_like(tokens, dtype=torch.bool)
    order = (0, 1) if side == "left" else (1, 0)
    filled, mask = (torch.cat([pair[i] for i in order], dim=1) for pair in ((pads, tokens), (none, real)))
    torch.testing.assert_close(model(filled, mask), model(tokens, real), **CLOSE)


@pytest.mark.parametrize("kind, place", [("decoder", -1), ("encoder", 0)])
def test_the_class_is_read_where_the_whole_text_was_seen(kind, place, tokens):
    model = Classifier(build(kind=kind).body, classes=3)
    hidden = model.body(tokens)[:, place]
    torch.testing.assert_close(model(tokens, torch.ones_like(tokens, dtype=torch.bool)),
                               hidden @ model.head.weight.T + model.head.bias, **CLOSE)


@pytest.mark.parametrize("kind, causal", [("decoder", True), ("encoder", False)])
def test_a_body_is_of_the_kind_that_is_asked_for(kind, causal):
    assert build_body(build(kind=kind).config).causal is causal


@pytest.mark.parametrize("changes", [{}, {"short_convolution": 4}, {"positions": "learned"}])
def test_a_prompt_is_read_once_for_all_its_answers(changes):
    body = build(**changes).body
    prompts, answers, of = [[1, 30, 31, 32, 33], [1, 40]], [[50, 51, 2], [60, 2], [70, 71, 72, 2], [80, 2]], [0, 1, 0,
        1]
    seen, grads = [], []
    for shared in (True, False):
        body.zero_grad()
        if shared:
            hidden, mask = read_completions(body, prompts, answers, of)
            parts = [hidden[i, mask[i]] for i in range(4)]
        else:
            parts = [body(torch.tensor([prompts[p] + answer]))[0, len(prompts[p]) :] for p, answer in zip(of, answers)]
        sum((part * torch.arange(1.0, 1 + part.numel()).view_as(part)).sum() for part in parts).backward()
        seen.append(torch.cat(parts))
        grads.append(torch.cat([p.grad.flatten() for p in body.parameters() if p.grad is not None]))
    torch.testing.assert_close(seen[0], seen[1], **CLOSE)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-2)
    with torch.no_grad():  # and without a gradient, where the cache is laid out once
        hidden, mask = read_completions(body, prompts, answers, of)
        torch.testing.assert_close(torch.cat([hidden[i, mask[i]] for i in range(4)]), seen[1], **CLOSE)
        hidden, mask = read_completions(body, [[]], answers, [0] * 4)  # several answers to nothing at all
        for i, answer in enumerate(answers):
            torch.testing.assert_close(hidden[i, mask[i]], body(torch.tensor([answer]))[0], **CLOSE)


def test_padding_needs_no_room_in_the_context():
    body = build(context=8).body
    prompts, answers = [[1, 30, 31, 32, 33, 34], [1]], [[40, 2], [50, 51, 52, 53, 54, 2]]
    # 6 + 2 and 1 + 6 tokens fit; the longest of each together would not
    hidden, mask = read_completions(body, prompts, answers, [0, 1])
    for row, keep, prompt, answer in zip(hidden, mask, prompts, answers):
        torch.testing.assert_close(row[keep], body(torch.tensor([prompt + answer]))[0, len(prompt) :], **CLOSE)
    with pytest.raises(UserError, match="9 tokens do not fit the model's context of 8"):
        read_completions(body, prompts, [[40, 41, 2]], [0])


def test_the_gradient_of_many_answers_to_a_prompt_is_the_same_to_the_last_bit_every_time():
    body = build(context=64, width=64).body
    prompts, of = [list(range(1, 41))] * 8, [i // 8 for i in range(64)]
    answers = [list(range(50 + 3 * i, 70 + 3 * i)) for i in range(64)]
    grads = []
    for _ in range(6):
        body.zero_grad()
        read_completions(body, prompts, answers, of)[0].square().sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in body.parameters() if p.grad is not None]))
    assert all(torch.equal(grad, grads[0]) for grad in grads)
