"""Span corruption and LM adaptation: nothing is lost, as much is cut out as was asked for, and chance is a function of
seed, step and row."""

import itertools
import math
import random
from collections import Counter

import pytest
import torch
from conftest import build

from minialign.batching import IGNORE, text_rows
from minialign.pretrain.pretrain import pretrain
from minialign.pretrain.span_corruption import (
    GAPS,
    DividedText,
    LMAdaptation,
    SpanCorruptedText,
    SpanCorruption,
    SpanCorruptionConfig,
    TextToTextRows,
    corrupt,
    cut,
    longest_text,
    noise_budget,
    noise_spans,
    rebuild,
    text_to_text_loss,
)
from minialign.runs.errors import UserError
from minialign.runs.run_folder import RunFolder
from minialign.tokenizer import BEGIN, END, SENTINELS, SEPARATOR, SPECIAL
from minialign.training import TrainingConfig

SETTINGS = [SpanCorruptionConfig(), SpanCorruptionConfig(0.5, 3), SpanCorruptionConfig(0.3, 1),
            SpanCorruptionConfig(0.9, 1), SpanCorruptionConfig(0.15, 8)]
PAIRS = [([1, 50, 51, 52], [60, 61]), ([1, 53], [62]), ([1, 54, 55, 56, 57, 58], [63, 64, 65])]


def words(length, chance):
    """A random text of ordinary tokens."""
    return [chance.randrange(len(SPECIAL), 320) for _ in range(length)]


@pytest.fixture
def model():
    return build(kind="encoder-decoder")


# the corruption of one text


@pytest.mark.parametrize("config", SETTINGS)
def test_targets_and_inputs_rebuild_the_text_exactly(config):
    chance = random.Random(0)
    for length in [*range(60), 100, 177, 400, 2000]:
        text = words(length, chance)
        inputs, targets = corrupt(text, noise_spans(length, config, chance))
        assert rebuild(inputs, targets) == text
        assert [i for i in inputs if i in GAPS] == [i for i in targets if i in GAPS] == list(GAPS[: noise_budget(length,
            config)[1]])


@pytest.mark.parametrize("config", SETTINGS)
def test_as_many_tokens_in_as_many_spans_are_cut_out_as_the_budget_says(config):
    chance = random.Random(1)
    for length in range(2, 200):
        spans = noise_spans(length, config, chance)
        assert (sum(end - start for start, end in spans), len(spans)) == noise_budget(length, config)
        assert all(start < end for start, end in spans) and 0 <= spans[0][0] and spans[-1][1] <= length
        assert all(end < start for (_, end), (start, _) in zip(spans, spans[1:]))  # a kept token between any two


def test_the_budget_is_the_share_and_the_mean_span_that_were_asked_for():
    for config in SETTINGS:
        for length in range(40, 60):
            tokens, spans = noise_budget(length, config)
            assert abs(tokens - config.noise * length) <= 0.5
            assert abs(spans - tokens / config.mean_span) <= 0.5 or spans in (SENTINELS, length - tokens + 1)
    assert noise_budget(100, SpanCorruptionConfig()) == (15, 5)
    assert [noise_budget(length, SpanCorruptionConfig()) for length in (0, 1, 2, 3)] == [(0, 0), (0, 0), (1, 1), (1, 1)]


def test_a_long_text_gets_longer_spans_not_less_noise():
    config = SpanCorruptionConfig()
    assert noise_budget(1000, config) == (150, SENTINELS)
    spans = noise_spans(1000, config, random.Random(0))
    assert len(spans) == SENTINELS and sum(end - start for start, end in spans) == 150


def test_every_placing_of_the_spans_is_equally_likely():
    config, length = SpanCorruptionConfig(0.4, 2), 10  # 4 tokens in 2 spans
    tokens, spans = noise_budget(length, config)
    possible = set()
    for chosen in itertools.combinations(range(length), tokens):
        starts = [i for i in chosen if i - 1 not in chosen]
        if len(starts) == spans:
            possible.add(chosen)
    chance, n = random.Random(0), 20_000
    found = Counter(tuple(i for start, end in noise_spans(length, config, chance) for i in range(start, end))
                    for _ in range(n))
    assert set(found) == possible
    expected, free = n / len(possible), len(possible) - 1
    chi_square = sum((count - expected) ** 2 / expected for count in found.values())
    # mean and std of χ²: beyond four times the std once in ten thousand
    assert chi_square < free + 4 * math.sqrt(2 * free)


def test_all_ways_to_cut_come_up_equally_often():
    chance, n = random.Random(0), 12_000
    found = Counter(tuple(cut(6, 3, chance)) for _ in range(n))
    assert set(found) == {ways for ways in itertools.product(range(1, 7), repeat=3) if sum(ways) == 6}
    assert max(abs(count - n / 10) for count in found.values()) < 4 * math.sqrt(n * 0.1 * 0.9)


def test_a_model_s_own_targets_rebuild_something_whatever_they_are():
    inputs = [50, GAPS[0], 51, GAPS[1]]
    assert rebuild(inputs, [GAPS[0], 60, GAPS[1], 61, 62]) == [50, 60, 51, 61, 62]
    assert rebuild(inputs, [70, GAPS[1], 60, GAPS[7], 61]) == [50, 51, 60]
    assert rebuild(inputs, []) == [50, 51]


@pytest.mark.parametrize("change", [{"noise": 0}, {"noise": 1.0}, {"mean_span": 0.5}, {"noise": math.nan}])
def test_settings_out_of_range_are_errors(change):
    with pytest.raises(UserError, match="it must be"):
        SpanCorruptionConfig(**change)


# texts as rows


@pytest.mark.parametrize("context", [2, 5, 48, 160, 512])
@pytest.mark.parametrize("config", SETTINGS)
def test_the_longest_text_fits_the_context_and_a_longer_one_does_not(context, config):
    longest = longest_text(context, config)
    def room(length):
        return 1 + max(length - noise_budget(length, config)[0],
                                      noise_budget(length, config)[0]) + noise_budget(length, config)[1]
    assert room(longest) <= context < room(longest + 1)
    rows = SpanCorruptedText([words(length, random.Random(0)) for length in range(1, longest + 1)], 1, 0, config)
    for name in range(longest):
        inputs, targets = rows.pair(name, 0)
        assert len(inputs) <= context and 1 + len(targets) <= context


def test_one_document_a_row_loses_no_token_and_crosses_no_boundary():
    documents = [words(length, random.Random(length)) for length in (3, 10, 25, 0, 1)]
    rows = text_rows(documents, 10, packed=False)
    assert [len(row) for row in rows] == [3, 10, 10, 10, 5, 1] and sum(rows, []) == sum(documents, [])


def test_packed_documents_lose_no_token_but_the_last_few():
    documents = [words(length, random.Random(length)) for length in (3, 10, 25)]
    stream = [*documents[0], SEPARATOR, *documents[1], SEPARATOR, *documents[2]]
    rows = text_rows(documents, 7, packed=True)
    assert all(len(row) == 7 for row in rows) and sum(rows, []) == stream[:35]


def test_too_little_text_is_an_error_that_says_so(tmp_path, tokenizer, texts):
    with pytest.raises(UserError, match="the-file: the text has 2 tokens, fewer than one row of 5"):
        text_rows([[50, 51]], 5, True, "the-file")
    with pytest.raises(UserError, match="the context is too short"):
        pretrain(build(kind="encoder-decoder", context=1), tokenizer, texts, texts, TrainingConfig(steps=1, batch=4),
                 RunFolder(tmp_path), SpanCorruption())
    for packed, message in ((True, "fewer than one row"), (False, "no documents")):
        for learned, held_out in (([], texts), (texts, [])):
            for objective in (SpanCorruption(packed=packed), LMAdaptation(packed)):
                with pytest.raises(UserError, match=message):
                    pretrain(build(kind="encoder-decoder"), tokenizer, learned, held_out,
                             TrainingConfig(steps=1, batch=4), RunFolder(tmp_path), objective)


# training data


def rows_of(kind, seed=0, batch=4):
    chance = random.Random(5)
    rows = [words(chance.randrange(1, 50), chance) for _ in range(13)]
    return {"noise": SpanCorruptedText, "divided": DividedText}[kind](rows, batch, seed)


def same(first, second):
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in ("inputs", "input_mask", "tokens",
        "labels")) and first.rows == second.rows


@pytest.mark.parametrize("kind", ["noise", "divided"])
def test_a_resumed_run_reads_the_same_noise(kind):
    forwards = [rows_of(kind).microbatches(step, 1)[0] for step in range(9)]
    data = rows_of(kind)
    torch.manual_seed(7)
    random.seed(7)
    backwards = [data.microbatches(step, 1)[0] for step in reversed(range(9))]
    assert all(same(one, other) for one, other in zip(forwards, reversed(backwards)))
    assert not same(forwards[0], rows_of(kind, seed=1).microbatches(0, 1)[0])


@pytest.mark.parametrize("kind", ["noise", "divided"])
@pytest.mark.parametrize("parts", [2, 3])
def test_the_pieces_of_a_step_are_the_step_with_the_same_noise(kind, parts):
    data = rows_of(kind)
    for step in range(4):
        whole, pieces = data.microbatches(step, 1)[0], data.microbatches(step, parts)
        assert len(pieces) == parts and sorted(i for piece in pieces for i in piece.rows) == sorted(whole.rows)
        assert sum(piece.count for piece in pieces) == whole.count
        labels = {row: labels[labels != IGNORE].tolist() for piece in pieces for row,
                  labels in zip(piece.rows, piece.labels)}
        assert labels == {row: labels[labels != IGNORE].tolist() for row, labels in zip(whole.rows, whole.labels)}


def test_every_epoch_cuts_other_spans():
    data = SpanCorruptedText([words(50, random.Random(0))], 1, seed=0)
    seen = {tuple(data.microbatches(step, 1)[0].tokens[0].tolist()) for step in range(20)}
    assert len(seen) == 20


def test_two_rows_of_the_same_text_get_noise_of_their_own():
    data = SpanCorruptedText([words(50, random.Random(0))] * 2, 2, seed=0)
    assert data.pair(0, 0) != data.pair(1, 0)


@pytest.mark.parametrize("kind", ["noise", "divided"])
def test_the_decoder_is_taught_every_target_and_the_end(kind):
    data = rows_of(kind)
    batch = data.microbatches(0, 1)[0]
    for i, name in enumerate(batch.rows):
        inputs, targets = data.pair(name, 0)
        assert batch.inputs[i][batch.input_mask[i]].tolist() == inputs and inputs[0] == BEGIN
        assert batch.labels[i][batch.labels[i] != IGNORE].tolist() == [*targets, END]
        assert batch.tokens[i, : len(targets) + 1].tolist() == [BEGIN, *targets]


def test_the_beginning_and_the_rest_are_the_text():
    data = rows_of("divided")
    for name, step in itertools.product(range(13), range(40)):
        inputs, targets = data.pair(name, step)
        assert [*inputs[1:-1], *targets] == data.rows[name] and targets


def test_the_beginning_is_ended_for_the_encoder():
    """Without that token a decoder does not find where to go on: after 1,000 steps .01 of who and what was right."""
    data = rows_of("divided")
    assert all(data.pair(name, step)[0][-1] == END for name in range(13) for step in range(5))
    assert all(len(data.pair(name, step)[0]) <= len(data.rows[name]) + 1 for name in range(13) for step in range(40))


def test_every_place_to_cut_comes_up():
    data, n = DividedText([words(10, random.Random(0))], 1, seed=0), 2000
    found = Counter(len(data.pair(0, step)[0]) - 2 for step in range(n))
    assert set(found) == set(range(10)) and max(abs(count - n / 10) for count in found.values()) < 4 * math.sqrt(n * 0.1
        * 0.9)


def test_texts_cut_at_the_same_share_need_little_padding():
    chance = random.Random(0)
    data = DividedText([words(chance.randrange(40, 60), chance) for _ in range(64)], 8, seed=0)
    batches = [data.microbatches(step, 1)[0] for step in range(40)]
    padding = 1 - sum(int(b.input_mask.sum()) + b.count for b in batches) / sum(b.size for b in batches)
    assert padding < 0.1  # with a share for each row about a third


def test_pairs_are_the_same_in_every_epoch_and_stand_by_input_length():
    data = TextToTextRows(PAIRS * 8, 4, seed=0)
    for step in range(20):
        batch = data.microbatches(step, 1)[0]
        for i, name in enumerate(batch.rows):
            assert batch.inputs[i][batch.input_mask[i]].tolist() == PAIRS[name % 3][0]
            assert batch.labels[i][batch.labels[i] != IGNORE].tolist() == [*PAIRS[name % 3][1], END]
    assert sum(bool(data.microbatches(step, 1)[0].input_mask.all()) for step in range(6)) >= 4


# the loss


def test_the_loss_is_minus_the_logprob_of_each_target_by_a_loop(model):
    expected = 0.0
    for inputs, targets in PAIRS:
        logprobs = model(torch.tensor([[BEGIN, *targets]]), torch.tensor([inputs]))[0].log_softmax(dim=-1).detach()
        expected -= sum(float(logprobs[t, label]) for t, label in enumerate([*targets, END]))
    assert float(text_to_text_loss(model, TextToTextRows(PAIRS, 3, 0).batch([2, 0,
        1])).detach()) == pytest.approx(expected, rel=1e-5)


def test_the_loss_and_its_gradient_do_not_depend_on_padding(model):
    def gradient(batches):
        model.zero_grad()
        sum(text_to_text_loss(model, batch) for batch in batches).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    data = TextToTextRows(PAIRS, 3, 0)
    together, garbage = data.batch([0, 1, 2]), data.batch([0, 1, 2])
    torch.testing.assert_close(gradient([together]), gradient([data.batch([i]) for i in range(3)]), rtol=0, atol=1e-4)
    garbage.inputs[~garbage.input_mask] = 99
    garbage.tokens[garbage.labels == IGNORE] = 99
    assert torch.equal(text_to_text_loss(model, garbage), text_to_text_loss(model, together))


def test_fewer_texts_than_a_batch_are_a_smaller_batch(tokenizer, texts):
    shape = build(kind="encoder-decoder").config
    data = SpanCorruption(packed=False).batches(tokenizer, texts[:3], shape, TrainingConfig(steps=1, batch=32))
    (batch,) = data.microbatches(0, 1)
    assert len(batch.tokens) == data.order.batch <= len(data.rows) < 32


def test_a_pair_that_does_not_fit_is_an_error_and_never_cut(model):
    for inputs, targets in (([BEGIN] * 49, [50]), ([BEGIN], [50] * 48)):
        with pytest.raises(UserError, match="49 tokens do not fit the model's context of 48"):
            text_to_text_loss(model, TextToTextRows([(inputs, targets)], 1, 0).batch([0]))
    text_to_text_loss(model, TextToTextRows([([BEGIN] * 48, [50] * 47)], 1, 0).batch([0]))


# the stories


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("objective", [SpanCorruption, LMAdaptation])
def test_a_tiny_encoder_decoder_learns_something_about_text_it_has_not_seen(objective, packed, tmp_path, tokenizer,
                                                                            texts):
    config = TrainingConfig(steps=30, batch=8, learning_rate=5e-3, validate_every=10)
    result = pretrain(build(kind="encoder-decoder", initial_std=0.1), tokenizer, texts[:50], texts[50:], config,
                      RunFolder(tmp_path), objective(packed=packed))
    measured = [record["validation"] for record in RunFolder(tmp_path).metrics() if "validation" in record]
    assert result["steps"] == 30 and measured[-1] == result["validation"] < measured[0]
    assert result["validation"] < 4.8 < math.log(320)
    assert result["perplexity"] == pytest.approx(math.exp(result["validation"])) and RunFolder(tmp_path).finished


@pytest.mark.parametrize("objective", [SpanCorruption, LMAdaptation])
def test_every_seed_is_validated_on_the_same_gaps(objective, tmp_path, tokenizer, texts):
    found = []
    for seed in (0, 1):
        config = TrainingConfig(steps=1, batch=8, learning_rate=1e-12, seed=seed)
        found.append(pretrain(build(kind="encoder-decoder"), tokenizer, texts[:50], texts[50:], config,
                              RunFolder(tmp_path / str(seed)), objective())["validation"])
    assert found[0] == pytest.approx(found[1], abs=1e-6)
