"""Rank classification: the sum of an option's log-probabilities, all options of a batch in one pass."""

import pytest
import torch

from minialign.heads import LanguageModel
from minialign.ranking import option_logprobs, rank
from minialign.runs.errors import UserError
from minialign.tokenizer import BEGIN, END
from minialign.transformer import TransformerConfig

KINDS = ("decoder", "encoder-decoder")


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    config = TransformerConfig(40, context=24, width=16, layers=2, heads=2, kind=request.param, short_convolution=4,
                               initial_std=0.3)
    return LanguageModel(config, seed=1).eval()


def random_questions(count, seed=0):
    chance = torch.Generator().manual_seed(seed)
    def row(low, high):
        return torch.randint(4, 40, (int(torch.randint(low, high, (), generator=chance)),),
                                              generator=chance).tolist()
    return [[BEGIN, *row(1, 10)] for _ in range(count)], [[row(1, 5) for _ in range(2 + i % 3)] for i in range(count)]


def slow(model, prompt, option):
    """The chain rule, a token and a full pass at a time."""
    total, said = 0.0, []
    for token in [*option, END]:
        if model.config.kind == "decoder":
            logits = model(torch.tensor([[*prompt, *said]]))[0, -1]
        else:
            logits = model(torch.tensor([[BEGIN, *said]]), torch.tensor([prompt]))[0, -1]
        total += float(logits.log_softmax(-1)[token])
        said.append(token)
    return total


def test_ranking_in_one_pass_equals_the_one_by_one_loop(model):
    prompts, options = random_questions(7)
    with torch.no_grad():
        expected = [torch.tensor([slow(model, prompt, option) for option in choices]) for prompt,
                    choices in zip(prompts, options)]
    for batch in (1, 3, 32):
        for ours, theirs in zip(option_logprobs(model, prompts, options, batch=batch), expected):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_the_mean_is_the_sum_over_the_tokens_with_the_end(model):
    prompts, options = random_questions(5, seed=3)
    for total, mean, choices in zip(option_logprobs(model, prompts, options),
                                    option_logprobs(model, prompts, options, mean=True), options):
        torch.testing.assert_close(mean, total / torch.tensor([len(option) + 1.0 for option in choices]))


def test_the_end_token_tells_an_option_from_its_own_beginning(model):
    whole, beginning = option_logprobs(model, [[BEGIN, 5]], [[[7, 8], [7]]])[0]
    assert whole > beginning or whole < beginning
    with torch.no_grad():
        assert float(beginning) == pytest.approx(slow(model, [BEGIN, 5], [7]), abs=1e-4)


def test_all_options_of_one_step_are_a_distribution(model):
    """P(end at once | x) + Σ P(token …): all first tokens together have probability 1, so no sum of options exceeds
    it."""
    every = [[token] for token in range(40) if token != END]
    assert float(option_logprobs(model, [[BEGIN, 9]], [every])[0].exp().sum()) < 1


def test_ranking_gives_the_model_its_mode_back_and_no_gradient(model):
    model.train()
    scores = option_logprobs(model, [[BEGIN, 5]], [[[7], [8]]])[0]
    assert model.training and not scores.requires_grad
    model.eval()


def test_rank_names_the_likeliest():
    assert rank([torch.tensor([-3.0, -1.0, -2.0]), torch.tensor([-0.5, -4.0])]) == [1, 0]


@pytest.mark.parametrize("options, message", [([[]], "no options"), ([[[5], []]], "an option of no token")])
def test_nothing_to_rank_is_an_error(model, options, message):
    with pytest.raises(UserError, match=message):
        option_logprobs(model, [[BEGIN, 5]], options)
