"""Log-probabilities: the chain rule, torch's own functions, and averages on which padding has no influence."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import build

from minialign.batching import IGNORE, next_token_batch
from minialign.cache import Cache
from minialign.generation import filter_logits
from minialign.logprobs import (
    completion_logprobs,
    entropy,
    label_loss,
    masked_mean,
    masked_variance,
    sequence_logprobs,
    token_logprobs,
    whiten,
)
from minialign.peft import lora
from minialign.peft.lora import LoRAConfig

CLOSE = {"rtol": 0, "atol": 1e-5}
GARBAGE = [0.0, 1e30, -1e30, math.inf, math.nan]


@pytest.fixture
def logits():
    return 3 * torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def chosen():
    return torch.randint(0, 7, (2, 5), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7, 2.0])
def test_token_logprobs_are_those_of_log_softmax_at_the_temperature(logits, chosen, temperature):
    expected = (logits / temperature).log_softmax(dim=-1)
    found = token_logprobs(logits, chosen, temperature)
    for b in range(2):
        for t in range(5):
            assert float(found[b, t]) == pytest.approx(float(expected[b, t, chosen[b, t]]), abs=1e-5)


def test_token_logprobs_survive_huge_logits(chosen, logits):
    assert token_logprobs(logits * 1e4, chosen).isfinite().all()
    torch.testing.assert_close(token_logprobs(logits + 500, chosen), token_logprobs(logits, chosen), rtol=0, atol=1e-3)


def test_the_label_loss_is_the_sum_over_labels_and_ignores_the_ignored(logits, chosen):
    labels = chosen.clone()
    labels[0, :3] = labels[1, 4] = IGNORE
    by_hand = sum(-float(logits[b, t].log_softmax(0)[labels[b, t]]) for b in range(2) for t in range(5)
                  if labels[b, t] != IGNORE)
    assert float(label_loss(logits, labels)) == pytest.approx(by_hand, abs=1e-4)
    assert float(label_loss(logits, torch.full_like(labels, IGNORE))) == 0


def test_the_label_loss_is_minus_the_sequence_logprobs(logits, chosen):
    labels = chosen.clone()
    labels[0, :3] = IGNORE
    torch.testing.assert_close(label_loss(logits, labels), -sequence_logprobs(logits, labels).sum())


def test_sequence_logprobs_equal_the_chain_rule():
    model = build()
    rows, starts = [[1, 50, 51, 60, 61, 62, 2], [1, 52, 70, 2]], [3, 2]
    batch = next_token_batch(rows, starts)
    found = sequence_logprobs(model(batch.tokens), batch.labels).detach()
    for row, start, value in zip(rows, starts, found):
        chain = sum(float(model(torch.tensor([row[:t]]))[0, -1].log_softmax(0)[row[t]].detach())
                    for t in range(start, len(row)))
        assert float(value) == pytest.approx(chain, abs=1e-4)


def test_the_probabilities_of_all_continuations_sum_to_1():
    model = build(vocabulary=5)
    pairs = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    tokens = torch.cat([torch.ones(25, 1, dtype=torch.long), pairs], dim=1)
    total = sequence_logprobs(model(tokens[:, :-1]), tokens[:, 1:]).detach().exp().sum()
    assert float(total) == pytest.approx(1, abs=1e-5)


def test_logits_where_nothing_counts_have_no_influence_on_a_sequence(logits, chosen):
    labels = chosen.clone()
    labels[0, :3] = IGNORE
    before = sequence_logprobs(logits, labels)
    for garbage in GARBAGE:
        spoiled = logits.clone()
        spoiled[0, :3] = garbage
        assert torch.equal(sequence_logprobs(spoiled, labels), before), garbage


# entropy


def test_the_entropy_is_that_of_torch(logits):
    torch.testing.assert_close(entropy(logits), torch.distributions.Categorical(logits=logits).entropy(), **CLOSE)
    torch.testing.assert_close(entropy(logits, 2.0), torch.distributions.Categorical(logits=logits / 2).entropy(),
                               **CLOSE)


def test_the_entropy_does_not_change_when_all_logits_move_together_or_trade_places(logits):
    torch.testing.assert_close(entropy(logits + 10), entropy(logits), rtol=0, atol=1e-4)
    torch.testing.assert_close(entropy(logits.flip(-1)), entropy(logits), **CLOSE)


def test_the_entropy_lies_between_0_and_log_v_and_rises_with_the_temperature(logits):
    assert float(entropy(torch.zeros(7))) == pytest.approx(math.log(7), abs=1e-6)
    assert float(entropy(torch.tensor([100.0, 0, 0]))) == pytest.approx(0, abs=1e-6)
    assert (entropy(logits, 0.5) < entropy(logits)).all() and (entropy(logits) < entropy(logits, 2.0)).all()


def test_the_entropy_does_not_depend_on_padding(logits):
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    spoiled = logits.masked_fill(~mask[..., None], math.nan)
    assert torch.equal(masked_mean(entropy(spoiled), mask), masked_mean(entropy(logits), mask))


def test_impossible_tokens_carry_no_entropy():
    logits = torch.tensor([[0.0, 0.0, 5.0, -math.inf], [2.0, 2.0, -math.inf, -math.inf]])
    torch.testing.assert_close(entropy(logits)[1], torch.tensor(math.log(2)), **CLOSE)
    torch.testing.assert_close(entropy(filter_logits(logits, 1, 1.0))[0], torch.tensor(0.0), **CLOSE)


# averages over real tokens


@pytest.fixture
def ragged():
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(2))
    return x, torch.arange(6) < torch.tensor([6, 2, 4])[:, None]


def test_masked_mean_and_variance_are_those_of_the_real_tokens(ragged):
    x, mask = ragged
    torch.testing.assert_close(masked_mean(x, mask), x[mask].mean())
    torch.testing.assert_close(masked_variance(x, mask), x[mask].var(correction=0))


@pytest.mark.parametrize("garbage", GARBAGE)
def test_masked_averages_ignore_what_stands_at_pads(ragged, garbage):
    x, mask = ragged
    spoiled = x.masked_fill(~mask, garbage)
    assert torch.equal(masked_mean(spoiled, mask), masked_mean(x, mask))
    assert torch.equal(masked_variance(spoiled, mask), masked_variance(x, mask))


def test_the_mean_of_nothing_is_0():
    assert float(masked_mean(torch.full((2, 2), math.nan), torch.zeros(2, 2, dtype=torch.bool))) == 0


@pytest.mark.parametrize("garbage", GARBAGE)
def test_whitening_ignores_padding(ragged, garbage):
    x, mask = ragged
    spoiled = x.masked_fill(~mask, garbage)
    for shift_mean in (True, False):
        whitened = whiten(spoiled, mask, shift_mean)
        assert torch.equal(whitened, whiten(x, mask, shift_mean)) and (whitened[~mask] == 0).all()


def test_whitened_values_have_mean_0_and_variance_1(ragged):
    x, mask = ragged
    whitened = whiten(x, mask)[mask]
    assert float(whitened.mean()) == pytest.approx(0, abs=1e-6)
    assert float(whitened.var(correction=0)) == pytest.approx(1, abs=1e-5)


def test_whitened_rewards_keep_their_mean(ragged):
    x, mask = ragged
    whitened = whiten(x + 5, mask, shift_mean=False)[mask]
    assert float(whitened.mean()) == pytest.approx(float((x + 5)[mask].mean()), abs=1e-5)
    assert float(whitened.var(correction=0)) == pytest.approx(1, abs=1e-5)


def test_whitening_a_fixed_vector_by_hand():
    mask = torch.tensor([True, True, True, False])
    root = math.sqrt(1.5)
    torch.testing.assert_close(whiten(torch.tensor([1.0, 2.0, 3.0, 9.0]), mask), torch.tensor([-root, 0.0, root, 0.0]),
                               **CLOSE)


def test_equal_values_whiten_to_0_not_to_nan():
    assert torch.equal(whiten(torch.full((4,), 3.0), torch.ones(4, dtype=torch.bool)), torch.zeros(4))


def test_label_loss_gives_the_gradient_of_torch(logits, chosen):
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    label_loss(ours, chosen).backward()
    F.nll_loss(theirs.log_softmax(-1).flatten(0, 1), chosen.flatten(), reduction="sum").backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_an_encoder_decoder_is_asked_for_completions_of_one_token():
    model, prompts = build(kind="encoder-decoder"), [[1, 30, 31], [1, 40]]
    short, _ = completion_logprobs(model, prompts, [[25], [26]], [0, 1])
    long, _ = completion_logprobs(model, prompts, [[25, 27], [26, 27]], [0, 1])
    torch.testing.assert_close(short, long[:, :1])


def test_a_lora_on_values_alone_leaves_no_gradient_in_the_cache(monkeypatch):
    caches = []

    class Kept(Cache):
        def __init__(self, *arguments, **keywords):
            super().__init__(*arguments, **keywords)
            caches.append(self)

    monkeypatch.setattr("minialign.heads.Cache", Kept)
    model = lora.wrap(build(), LoRAConfig(rank=2, targets=("value",)))
    logprobs, _ = completion_logprobs(model, [[1, 30, 31]], [[25, 26], [27, 28]], [0, 0])
    assert logprobs.requires_grad and caches and all(c.store is None or not c.store.requires_grad for c in caches)
