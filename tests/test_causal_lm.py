"""Pretraining: the loss is the chain rule over packed text, and a tiny model learns from it."""

import math

import pytest
import torch
from conftest import build

from minialign.batching import IGNORE, Order, next_token_batch, pack
from minialign.pretrain.causal_lm import (
    LabelledRows,
    NextToken,
    PackedText,
    encode_documents,
    mean_loss,
    next_token_loss,
    training_rows,
)
from minialign.pretrain.pretrain import pretrain
from minialign.runs.errors import UserError
from minialign.runs.run_folder import RunFolder
from minialign.runs.tensors import read_tensors
from minialign.training import TrainingConfig

ROWS = [([1, 50, 51, 52, 60, 2], 4), ([1, 53, 61, 2], 2), ([1, 54, 62, 63, 64, 65, 66, 2], 2)]


def test_the_loss_is_minus_the_logprob_of_each_taught_token_by_a_loop(decoder):
    batch = next_token_batch([ids for ids, _ in ROWS], [start for _, start in ROWS])
    expected = 0.0
    for ids, start in ROWS:
        logprobs = decoder(torch.tensor([ids]))[0].log_softmax(dim=-1).detach()
        expected -= sum(float(logprobs[t - 1, ids[t]]) for t in range(start, len(ids)))
    assert float(next_token_loss(decoder, batch).detach()) == pytest.approx(expected, rel=1e-5)


def test_the_loss_and_its_gradient_do_not_depend_on_padding(decoder):
    def gradient(batches):
        decoder.zero_grad()
        sum(next_token_loss(decoder, batch) for batch in batches).backward()
        return torch.cat([p.grad.flatten() for p in decoder.parameters()])

    together = next_token_batch([ids for ids, _ in ROWS], [start for _, start in ROWS])
    alone = [next_token_batch([ids], [start]) for ids, start in ROWS]
    torch.testing.assert_close(gradient([together]), gradient(alone), rtol=0, atol=1e-4)
    garbage = next_token_batch([ids for ids, _ in ROWS], [start for _, start in ROWS])
    garbage.tokens[~garbage.mask] = 99
    assert torch.equal(next_token_loss(decoder, garbage), next_token_loss(decoder, together))


def test_a_document_that_ends_with_a_row_begins_no_other_one():
    """context + 1 tokens are context labels; a row of the last token alone would teach nothing."""
    for length, rows in ((9, [9]), (10, [9, 2]), (17, [9, 9]), (2, [2])):
        data = training_rows([list(range(20, 20 + length))], 8, TrainingConfig(steps=1, batch=1), packed=False)
        assert [len(ids) for ids, _ in data.rows] == rows
        taught = sum(int((data.batch([i]).labels != IGNORE).sum()) for i in range(len(rows)))
        assert taught == length - 1
    packed = training_rows([list(range(20, 40))], 8, TrainingConfig(steps=1, batch=4), packed=True).batch([0])
    assert packed.tokens.shape == packed.labels.shape == packed.mask.shape == (1, 8) and bool(packed.mask.all())


@pytest.mark.parametrize("packed", [False, True])
def test_where_text_is_missing_its_place_is_told(packed):
    with pytest.raises(UserError, match="texts.txt"):
        training_rows([], 8, TrainingConfig(steps=1, batch=1), packed, "texts.txt")


def test_the_mean_loss_weighs_every_label_the_same(decoder):
    data = LabelledRows(ROWS, 1, seed=0)
    together, apart = [data.batch([0, 1, 2])], [data.batch([i]) for i in (2, 0, 1)]
    assert mean_loss(decoder, together) == pytest.approx(mean_loss(decoder, apart), rel=1e-5)
    labels = sum(len(ids) - start for ids, start in ROWS)
    assert mean_loss(decoder, apart) == pytest.approx(sum(float(next_token_loss(decoder, b).detach()) for b in apart)
                                                      / labels, rel=1e-5)
    assert mean_loss(decoder, []) == 0


def test_every_document_stands_between_begin_and_end(tokenizer, texts):
    for ids, text in zip(encode_documents(tokenizer, texts), texts):
        assert (ids[0], ids[-1]) == (tokenizer.begin, tokenizer.end) and tokenizer.decode(ids[1:-1]) == text


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_the_pieces_of_a_step_are_the_step(parts):
    rows = torch.arange(10 * 6).view(10, 6)
    packed, labelled = PackedText(rows, 4, seed=0), LabelledRows(ROWS * 4, 4, seed=0)
    for step in range(6):
        pieces = packed.microbatches(step, parts)
        assert len(pieces) == parts and sorted(i for piece in pieces for i in piece.rows) == sorted(packed.order(step))
        for piece in pieces:
            assert torch.equal(piece.tokens, rows[piece.rows][:, :-1]) and torch.equal(piece.labels,
                rows[piece.rows][:, 1:])
            assert piece.mask.all() and piece.count == piece.size == 5 * len(piece.rows)
        assert sorted(i for piece in labelled.microbatches(step, parts)
                      for i in piece.rows) == sorted(labelled.order(step))


def test_labelled_rows_are_taught_from_their_place_on():
    batch = LabelledRows(ROWS, 3, seed=0).batch([2, 0])
    assert batch.rows == [2, 0]
    assert batch.labels.tolist() == [[IGNORE, 62, 63, 64, 65, 66, 2], [IGNORE, IGNORE, IGNORE, 60, 2, IGNORE, IGNORE]]


def test_pretraining_teaches_a_tiny_model_something_about_text_it_has_not_seen(tmp_path, tokenizer, texts):
    model = build(initial_std=0.1)
    config = TrainingConfig(steps=30, batch=8, learning_rate=5e-3, validate_every=10)
    result = pretrain(model, tokenizer, texts[:50], texts[50:], config, RunFolder(tmp_path))
    assert result["steps"] == 30 and result["perplexity"] == pytest.approx(math.exp(result["validation"]))
    measured = [record["validation"] for record in RunFolder(tmp_path).metrics() if "validation" in record]
    assert len(measured) == 3 and measured[-1] == result["validation"] < measured[0]
    assert result["validation"] < 4.5 < math.log(320)
    held_out = pack(encode_documents(tokenizer, texts[50:]), 48)
    order = Order(len(held_out), 8, seed=0)
    by_hand = mean_loss(model, [next_token_batch(held_out[order(step)].tolist())
                                for step in range(order.steps_in_epoch)])
    assert result["validation"] == pytest.approx(by_hand, rel=1e-5)
    assert RunFolder(tmp_path).finished and read_tensors(tmp_path
        / "model.safetensors")[0].keys() == dict(model.named_parameters()).keys()


def test_the_same_seed_pretrains_the_same_model(tmp_path, tokenizer, texts):
    config, models = TrainingConfig(steps=4, batch=4, seed=3), [build(seed=3), build(seed=3)]
    for i, model in enumerate(models):
        (tmp_path / str(i)).mkdir()
        pretrain(model, tokenizer, texts[:40], texts[40:], config, RunFolder(tmp_path / str(i)))
    assert (tmp_path / "0" / "model.safetensors").read_bytes() == (tmp_path / "1" / "model.safetensors").read_bytes()


def test_a_hopeless_model_has_an_infinite_perplexity_and_no_crash(tmp_path, tokenizer, texts):
    model = build()
    model.body.norm.weight.data.fill_(1e4)
    result = pretrain(model, tokenizer, texts[:50], texts[50:], TrainingConfig(steps=1, batch=8), RunFolder(tmp_path))
    assert result["validation"] > 710 and result["perplexity"] == math.inf


def test_too_little_text_to_learn_from_or_to_validate_on_is_an_error(tmp_path, tokenizer, texts):
    for learned, held_out in ((["Hi."], texts), (texts, ["Hi."]), ([], texts)):
        with pytest.raises(UserError, match="one row of context 48 takes 49"):
            pretrain(build(), tokenizer, learned, held_out, TrainingConfig(steps=1, batch=8), RunFolder(tmp_path))


def test_no_documents_at_all_are_an_error_without_packing_too(tmp_path, tokenizer, texts):
    for learned, held_out in (([], texts), (texts, [])):
        with pytest.raises(UserError):
            pretrain(build(), tokenizer, learned, held_out, TrainingConfig(steps=1, batch=8), RunFolder(tmp_path),
                     NextToken(packed=False))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_few_documents_make_a_smaller_batch(packed, accumulation, tmp_path, tokenizer):
    texts = ["Mira ran home. " * (6 if packed else 1)] * 2
    config = TrainingConfig(steps=2, batch=500, accumulation=accumulation)
    assert pretrain(build(), tokenizer, texts, texts, config, RunFolder(tmp_path), NextToken(packed))["steps"] == 2


@pytest.mark.parametrize("context", [5, 48, 10_000])
def test_one_document_a_row_teaches_every_token_but_the_first_once(context, tokenizer, texts):
    documents = encode_documents(tokenizer, texts[:8])
    rows = training_rows(documents, context, TrainingConfig(batch=4), packed=False)
    taught = [int(label) for i in range(len(rows.rows)) for label in rows.batch([i]).labels[0] if label != IGNORE]
    assert taught == [token for ids in documents for token in ids[1:]]
    assert all(len(ids) - 1 <= context and start == 1 for ids, start in rows.rows)
    if context == 10_000:
        assert [ids for ids, _ in rows.rows] == documents


def test_pretraining_without_packing_learns_too(tmp_path, tokenizer, texts):
    config = TrainingConfig(steps=30, batch=8, learning_rate=5e-3, validate_every=10)
    result = pretrain(build(), tokenizer, texts[:50], texts[50:], config, RunFolder(tmp_path), NextToken(packed=False))
    assert result["validation"] < 4.5 < math.log(320)


def test_every_seed_is_validated_on_the_same_text(tmp_path, tokenizer, texts):
    found = []
    for seed in (0, 1, 2):
        (tmp_path / str(seed)).mkdir()
        config = TrainingConfig(steps=1, batch=8, learning_rate=1e-12, seed=seed)
        found.append(pretrain(build(), tokenizer, texts[:50], texts[50:], config,
                              RunFolder(tmp_path / str(seed)))["validation"])
    assert found == pytest.approx([found[0]] * 3, abs=1e-6)
