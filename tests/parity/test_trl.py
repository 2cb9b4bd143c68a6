"""Our equations give the numbers of TRL's own lines.

TRL keeps its PPO equations inside one long method. These tests cut the lines out of the installed library's source and
run them on our tensors, so nothing is restated here. Known differences, each with a test: TRL whitens with the unbiased
variance (n − 1), and puts the score one place after the last token where there is room.
"""

import inspect
import textwrap
from types import SimpleNamespace

import pytest
import torch

from minialign.logprobs import masked_mean, masked_variance, whiten
from minialign.rlhf.kl import k1, k3
from minialign.rlhf.ppo import advantages_and_returns, penalised_rewards, policy_loss, value_loss
from minialign.rlhf.reward_model import bradley_terry_loss, penalise_missing_end

ppo_trainer = pytest.importorskip("trl.experimental.ppo.ppo_trainer")
pytestmark = pytest.mark.filterwarnings("ignore")
ARGS = SimpleNamespace(
    kl_estimator="k1", kl_coef=0.07, whiten_rewards=False, gamma=0.97, lam=0.9, cliprange=0.2, cliprange_value=0.2,
    missing_eos_penalty=1.0, vf_coef=0.1
)


def lines(first: str, last: str) -> str:
    """TRL's lines from the one that begins with `first` to the one that begins with `last`, inclusive."""
    source = inspect.getsource(ppo_trainer.PPOTrainer.train).splitlines()
    start = next(i for i, line in enumerate(source) if line.strip().startswith(first))
    end = next(i for i, line in enumerate(source) if i >= start and line.strip().startswith(last))
    return textwrap.dedent("\n".join(source[start : end + 1]))


def run(code: str, **values) -> dict:
    """TRL's lines, run in TRL's module on our tensors."""
    values = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in values.items()}
    space = {**vars(ppo_trainer), **values, "args": ARGS, "empty_cache": lambda: None}
    exec(code, space)
    return space


def episodes(lengths, R=7, seed=0):
    g = torch.Generator().manual_seed(seed)
    B = len(lengths)
    mask = torch.arange(R)[None] < torch.tensor(lengths)[:, None]
    logprobs, reference = (-torch.rand(B, R, generator=g) * 3 for _ in range(2))
    return mask, logprobs * mask, reference * mask, torch.randn(B, R, generator=g) * mask, torch.randn(B, generator=g)


def theirs(mask, logprobs, reference, values, scores):
    code = lines("response_idxs =", "advantages = torch.masked_fill")
    responses = torch.zeros_like(mask, dtype=torch.long)
    return run(code, responses=responses, sequence_lengths=mask.sum(1) - 1, logprobs=logprobs, ref_logprobs=reference,
               values=values, scores=scores)


@pytest.mark.piece("PPO: penalised rewards, returns, advantages", "trl")
def test_penalised_rewards_advantages_and_returns_are_those_of_trl():
    mask, logprobs, reference, values, scores = episodes([7, 7, 7])
    found = theirs(mask, logprobs, reference, values, scores)
    rewards = penalised_rewards(scores, logprobs, reference, mask, ARGS.kl_coef)
    torch.testing.assert_close(rewards, found["rewards"])
    advantages, returns = advantages_and_returns(rewards, values, mask, ARGS.gamma, ARGS.lam)
    torch.testing.assert_close(returns, found["returns"])
    n = mask.sum()
    torch.testing.assert_close(whiten(advantages, mask) * ((n - 1) / n).sqrt(), found["advantages"], atol=1e-5,
                               rtol=1e-5)


@pytest.mark.piece("PPO: rewards of ragged answers, but for the score's place", "trl")
def test_in_shorter_answers_trl_puts_the_score_one_place_later_and_the_rest_is_equal():
    mask, logprobs, reference, values, scores = episodes([3, 7, 5])
    found = theirs(mask, logprobs, reference, values, scores)["rewards"]
    plain = penalised_rewards(torch.zeros(3), logprobs, reference, mask, ARGS.kl_coef)
    expected = plain.clone()
    for row, place in enumerate([3, 6, 5]):
        expected[row, place] += scores[row]
    torch.testing.assert_close(found * (mask | (expected != 0)), expected)


@pytest.mark.piece("KL estimators k1 and k3", "trl")
def test_k1_and_k3_are_those_of_trl():
    mask, logprobs, reference, values, scores = episodes([7, 7])
    for name, estimator in (("k1", k1), ("k3", k3)):
        ARGS.kl_estimator = name
        found = run(lines("logr =", "kl ="), logprobs=logprobs, ref_logprobs=reference)["kl"]
        ARGS.kl_estimator = "k1"
        torch.testing.assert_close(estimator(logprobs, reference), found)


@pytest.mark.piece("PPO: policy loss, clipped share, value loss", "trl")
def test_policy_and_value_losses_are_those_of_trl():
    mask, new, old, values, _ = episodes([7, 4, 6], seed=3)
    g = torch.Generator().manual_seed(9)
    advantage, returns, old_values = (torch.randn(3, 7, generator=g) for _ in range(3))
    space = dict(mb_advantage=advantage, padding_mask=~mask, micro_batch_inds=slice(None), mb_logprobs=old,
                 new_logprobs=new)
    found = run(lines("logprobs_diff =", "pg_loss = "), **space)
    losses, clipped = policy_loss(new, old, advantage, 0.2)
    torch.testing.assert_close(masked_mean(losses, mask), found["pg_loss"])
    torch.testing.assert_close(clipped, found["pg_losses2"] > found["pg_losses"])
    space = dict(vpred=values, mb_values=old_values, mb_return=returns, padding_mask_p1=~mask,
                 micro_batch_inds=slice(None))
    found = run(lines("vpredclipped =", "vf_loss = "), **space)
    torch.testing.assert_close(masked_mean(value_loss(values, old_values, returns, 0.2), mask), found["vf_loss"])


@pytest.mark.piece("whitening under a mask, but for the unbiased variance", "trl")
def test_whitening_is_that_of_trl_but_for_the_unbiased_variance():
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(4, 6, generator=torch.Generator().manual_seed(1)) > 0.3
    n = mask.sum()
    torch.testing.assert_close(masked_variance(x, mask) * n / (n - 1), ppo_trainer.masked_var(x, mask))
    for shift in (True, False):
        theirs = ppo_trainer.masked_whiten(x, mask, shift_mean=shift)
        mean = 0.0 if shift else masked_mean(x, mask)
        ours = (whiten(x, mask, shift_mean=shift) - mean) * ((n - 1) / n).sqrt() + mean
        torch.testing.assert_close(ours[mask], theirs[mask], atol=1e-5, rtol=1e-5)


@pytest.mark.piece("PPO: penalty of a missing end", "trl")
def test_a_missing_end_is_penalised_as_trl_does_it():
    scores, ended = torch.tensor([0.3, -0.4]), torch.tensor([True, False])
    trainer = SimpleNamespace(args=ARGS)
    found = run(lines("if self.args.missing_eos_penalty", "scores[~contain_eos_token]"), self=trainer, scores=scores,
                contain_eos_token=ended)
    torch.testing.assert_close(penalise_missing_end(scores, ended, "subtract", 1.0), found["scores"])


@pytest.mark.piece("reward model: the loss of pairs", "trl")
def test_the_reward_loss_is_that_of_trl():
    from trl import RewardTrainer

    source = inspect.getsource(RewardTrainer.compute_loss).splitlines()
    code = next(line.strip() for line in source if "logsigmoid" in line and "margin" not in line)
    chosen, rejected = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)) * 5
    space = {"nn": torch.nn, "rewards_chosen": chosen, "rewards_rejected": rejected}
    exec(code, space)
    torch.testing.assert_close(bradley_terry_loss(chosen, rejected).mean(), space["loss"])
