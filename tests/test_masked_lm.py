"""Masked language modelling: as many tokens are asked for as was said, each is hidden in the way that chance chose, and
nothing else carries loss."""

import math
import random

import pytest
import torch
from conftest import build

from minialign.batching import IGNORE
from minialign.pretrain.masked_lm import (
    MASK,
    MaskedLM,
    MaskedText,
    MaskingConfig,
    mask_tokens,
    masked_lm_loss,
    show_masked,
)
from minialign.pretrain.pretrain import pretrain
from minialign.runs.errors import UserError
from minialign.runs.run_folder import RunFolder
from minialign.tokenizer import BEGIN, SEPARATOR, SPECIAL
from minialign.training import TrainingConfig

VOCABULARY = 320


def words(length, chance):
    """A random text of ordinary tokens."""
    return [chance.randrange(len(SPECIAL), VOCABULARY) for _ in range(length)]


def rows_of(seed=0, batch=4, **settings):
    chance = random.Random(5)
    rows = [[BEGIN, *words(chance.randrange(1, 40), chance), SEPARATOR, *words(5, chance)] for _ in range(13)]
    return MaskedText(rows, batch, seed, VOCABULARY, MaskingConfig(**settings))


@pytest.fixture
def encoder():
    return build(kind="encoder")


# which tokens, and how they are hidden


@pytest.mark.parametrize("share", [0.01, 0.15, 0.5, 0.9])
def test_the_share_that_was_asked_for_is_chosen_and_at_least_one(share):
    chance = random.Random(0)
    for length in range(1, 80):
        _, labels = mask_tokens(words(length, chance), MaskingConfig(share), VOCABULARY, chance)
        assert sum(label != IGNORE for label in labels) == max(1, round(share * length))


@pytest.mark.parametrize("masked, replaced", [(0.8, 0.1), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.5, 0.3)])
def test_of_the_chosen_80_10_and_10_of_a_hundred_are_masked_replaced_and_kept(masked, replaced):
    chance, config = random.Random(0), MaskingConfig(0.5, masked, replaced)
    text = words(2000, chance)
    counts, n = {"masked": 0, "other": 0, "same": 0}, 0
    for _ in range(20):
        tokens, labels = mask_tokens(text, config, VOCABULARY, chance)
        for token, label, word in zip(tokens, labels, text):
            if label == IGNORE:
                assert token == word
            else:
                assert label == word
                counts["masked" if token == MASK else "same" if token == word else "other"] += 1
                n += 1
    hit = replaced / (VOCABULARY - len(SPECIAL))  # a random token may be the very one that stood there
    for name, share in (("masked", masked), ("other", replaced - hit), ("same", 1 - masked - replaced + hit)):
        # four deviations of a binomial
        assert abs(counts[name] - n * share) <= 4 * math.sqrt(n * share * (1 - share)) + 1e-6, (name, counts)


def test_every_place_is_chosen_equally_often_and_every_word_comes_in_its_place():
    chance, text, n = random.Random(0), words(20, random.Random(1)), 6000
    chosen, drawn = torch.zeros(20), torch.zeros(VOCABULARY)
    for _ in range(n):
        tokens, labels = mask_tokens(text, MaskingConfig(masked=0.0, replaced=1.0), VOCABULARY, chance)
        for place, label in enumerate(labels):
            if label != IGNORE:
                chosen[place] += 1
                drawn[tokens[place]] += 1
    assert ((chosen - n * 3 / 20).abs() < 4 * math.sqrt(n * 0.15 * 0.85)).all()
    expected = 3 * n / (VOCABULARY - len(SPECIAL))
    assert (drawn[: len(SPECIAL)] == 0).all() and ((drawn[len(SPECIAL) :] - expected).abs() < 4.5
                                                   * math.sqrt(expected)).all()


def test_special_tokens_are_never_hidden_and_never_made_up():
    chance = random.Random(0)
    for _ in range(200):
        text = [chance.randrange(len(SPECIAL)) if chance.random() < 0.3 else word for word in words(30, chance)]
        tokens, labels = mask_tokens(text, MaskingConfig(0.9, 0.3, 0.7), VOCABULARY, chance)
        for before, after, label in zip(text, tokens, labels):
            if before < len(SPECIAL):
                assert after == before and label == IGNORE
            else:
                assert after == MASK or after >= len(SPECIAL)
    assert mask_tokens([BEGIN, SEPARATOR], MaskingConfig(), VOCABULARY, chance) == ([BEGIN, SEPARATOR],
        [IGNORE, IGNORE])
    assert mask_tokens([], MaskingConfig(), VOCABULARY, chance) == ([], [])


@pytest.mark.parametrize(
    "change", [{"chosen": 0}, {"chosen": 1.0}, {"masked": 1.1}, {"replaced": -0.1}, {"masked": 0.8, "replaced": 0.3},
               {"masked": math.nan}]
)
def test_settings_out_of_range_are_errors(change):
    with pytest.raises(UserError, match="must be"):
        MaskingConfig(**change)


# training data


def same(first, second):
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in ("tokens", "labels",
        "mask")) and first.rows == second.rows


def test_a_resumed_run_hides_the_same_tokens():
    forwards = [rows_of().microbatches(step, 1)[0] for step in range(9)]
    data = rows_of()
    torch.manual_seed(7)
    random.seed(7)
    assert all(same(one, data.microbatches(step, 1)[0]) for step, one in reversed(list(enumerate(forwards))))
    assert not same(forwards[0], rows_of(seed=1).microbatches(0, 1)[0])


def test_every_epoch_hides_others_and_so_do_two_rows_of_the_same_text():
    text = words(60, random.Random(0))
    data = MaskedText([text, text], 2, 0, VOCABULARY)
    hidden = [tuple((row != IGNORE).nonzero().flatten().tolist()) for step in range(10)
              for row in data.microbatches(step, 1)[0].labels]
    assert len(set(hidden)) == 20


@pytest.mark.parametrize("parts", [2, 3])
def test_the_pieces_of_a_step_are_the_step_with_the_same_tokens_hidden(parts):
    data = rows_of()
    for step in range(4):
        whole, pieces = data.microbatches(step, 1)[0], data.microbatches(step, parts)
        assert len(pieces) == parts and sum(piece.count for piece in pieces) == whole.count
        read = {row: tokens[mask].tolist() for piece in pieces for row, tokens,
                mask in zip(piece.rows, piece.tokens, piece.mask)}
        assert read == {row: tokens[mask].tolist() for row, tokens, mask in zip(whole.rows, whole.tokens, whole.mask)}


def test_a_label_stands_where_its_token_stood():
    data = rows_of()
    batch = data.microbatches(0, 1)[0]
    for i, name in enumerate(batch.rows):
        row, n = data.rows[name], len(data.rows[name])
        restored = torch.where(batch.labels[i] == IGNORE, batch.tokens[i], batch.labels[i])
        assert restored[:n].tolist() == row and batch.mask[i].tolist() == [True] * n + [False] * (batch.mask.shape[1]
            - n)
        assert (batch.labels[i][n:] == IGNORE).all()
    assert batch.count == sum(round(0.15 * (len(data.rows[name]) - 2)) or 1 for name in batch.rows)


# the loss


def test_the_loss_falls_on_the_chosen_places_only(encoder):
    batch, expected = rows_of().microbatches(0, 1)[0], 0.0
    for tokens, labels, mask in zip(batch.tokens, batch.labels, batch.mask):
        logprobs = encoder(tokens[mask][None])[0].log_softmax(dim=-1).detach()
        expected -= sum(float(logprobs[place, label]) for place, label in enumerate(labels[mask].tolist())
                        if label != IGNORE)
    assert float(masked_lm_loss(encoder, batch).detach()) == pytest.approx(expected, rel=1e-5)


def test_the_loss_does_not_depend_on_padding(encoder):
    data = rows_of()
    together, garbage = data.batch([0, 1, 2, 3]), data.batch([0, 1, 2, 3])
    alone = sum(float(masked_lm_loss(encoder, data.batch([i])).detach()) for i in range(4))
    assert float(masked_lm_loss(encoder, together).detach()) == pytest.approx(alone, rel=1e-5)
    garbage.tokens[~garbage.mask] = 99
    assert torch.equal(masked_lm_loss(encoder, garbage), masked_lm_loss(encoder, together))


def test_an_encoder_sees_both_sides_of_a_hidden_token(encoder):
    tokens = torch.tensor([[BEGIN, 50, MASK, 60]])
    before, after = encoder(tokens)[0, 2], encoder(torch.tensor([[BEGIN, 50, MASK, 61]]))[0, 2]
    assert not torch.allclose(before, after, atol=1e-3)


# the story


@pytest.mark.parametrize("packed", [True, False])
def test_a_tiny_encoder_learns_something_about_text_it_has_not_seen(packed, tmp_path, tokenizer, texts):
    config = TrainingConfig(steps=40, batch=8, learning_rate=5e-3, validate_every=10)
    result = pretrain(build(kind="encoder"), tokenizer, texts[:50], texts[50:], config, RunFolder(tmp_path),
                      MaskedLM(packed=packed))
    measured = [record["validation"] for record in RunFolder(tmp_path).metrics() if "validation" in record]
    assert result["steps"] == 40 and measured[-1] == result["validation"] < measured[0]
    assert result["validation"] < 4.9 < math.log(VOCABULARY)
    assert result["perplexity"] == pytest.approx(math.exp(result["validation"])) and RunFolder(tmp_path).finished


def test_a_packed_row_fills_the_context(tokenizer, texts):
    shape, config = build().config, TrainingConfig(steps=1, batch=2)
    (batch,) = MaskedLM().batches(tokenizer, texts, shape, config).microbatches(0, 1)
    assert batch.tokens.shape == (2, shape.context) and bool(batch.mask.all())
    assert batch.tokens[:, 0].tolist() == [BEGIN, BEGIN]


def test_every_seed_is_validated_on_the_same_hidden_tokens(tmp_path, tokenizer, texts):
    found = []
    for seed in (0, 1):
        config = TrainingConfig(steps=1, batch=8, learning_rate=1e-12, seed=seed)
        found.append(pretrain(build(kind="encoder"), tokenizer, texts[:50], texts[50:], config,
                              RunFolder(tmp_path / str(seed)), MaskedLM())["validation"])
    assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_people_see_a_mask_and_no_sentinel(tokenizer):
    a, b = tokenizer.encode("a")[0], tokenizer.encode("b")[0]
    shown = show_masked(tokenizer, [BEGIN, a, MASK, b, a], [IGNORE, IGNORE, b, a, a])
    assert shown == "<begin>a [<mask>←b] [b←a] [a←a]"
