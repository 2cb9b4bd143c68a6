"""PPO at depth: pretraining text beside the reward, the tax on what is not optimised, batches that cannot be learned
from, hacking, calibration."""

import copy
import dataclasses
import math

import pytest
import torch

from minialign.heads import LanguageModel, ScalarModel
from minialign.rlhf.ppo import Learner, PPOConfig, collect, estimate_advantages, ppo_update, train_ppo
from minialign.rlhf.pretraining_mix import MixConfig, PretrainingMix, alignment_tax, text_logprobs
from minialign.rlhf.reward_checks import (
    blind_baselines,
    calibration,
    calibration_error,
    show_calibration,
    show_hacking,
    widest,
)
from minialign.rlhf.reward_model import Ensemble, score_completions
from minialign.rlhf.rollout_table import show_rollout
from minialign.runs.errors import UserError
from minialign.runs.run_folder import RunFolder
from minialign.runs.tensors import read_tensors
from minialign.transformer import TransformerConfig

SHAPE = TransformerConfig(320, 24, 32, 1, 2, initial_std=0.2)
PROMPTS = [[1, 30, 31, 32], [1, 40], [1, 50, 51, 52, 53, 54], [1, 60, 61]]
FAILED = "failed-rollout.safetensors"
CONFIG = PPOConfig(updates=4, prompts=4, minibatch=2, epochs=1, new_tokens=6, learning_rate=3e-3)
ROWS = torch.randint(20, 320, (9, 25), generator=torch.Generator().manual_seed(3))


def models():
    policy = LanguageModel(SHAPE, 0).eval()
    return policy, ScalarModel(copy.deepcopy(policy.body), seed=1).eval()


def vector(model):
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach()


def test_the_mix_adds_its_gradient_to_that_of_ppo():
    policy, reward = models()
    value = ScalarModel(copy.deepcopy(policy.body), head_std=0.0)
    config = PPOConfig(updates=1, prompts=4, minibatch=4, epochs=1, new_tokens=6, learning_rate=1e-3, beta=0.0)
    rollout = collect(policy, copy.deepcopy(policy), value, reward, PROMPTS, config, torch.Generator().manual_seed(0))
    # no reward: nothing but the text pulls
    rollout.scores, rollout.values = torch.zeros(4), torch.zeros(rollout.values.shape)
    estimate_advantages(rollout, 0.0, config)
    learner = Learner(policy, value, config, PretrainingMix(ROWS, MixConfig(mix_weight=2.0, mix_rows=4)))
    before, seen = copy.deepcopy(policy), []

    def note_gradient(*_):
        seen.append(torch.cat([p.grad.flatten() for p in policy.parameters()]).clone())

    learner.optimizers["policy"].register_step_pre_hook(note_gradient)
    metrics = ppo_update(learner, rollout, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    torch.randperm(4, generator=generator)  # the order of the minibatches is drawn first
    drawn = ROWS[torch.randint(len(ROWS), (4,), generator=generator)]
    slow = -sum(before(row[None, :-1])[0].log_softmax(-1)[torch.arange(24), row[1:]].mean() for row in drawn) / 4
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(2.0 * slow, list(before.parameters()))])
    torch.testing.assert_close(seen[0], expected / max(1.0, float(expected.norm())), atol=1e-5, rtol=1e-3)
    assert metrics["text_loss"] == pytest.approx(float(slow.detach()), abs=1e-4)


def test_a_rollout_is_shown_a_token_a_line_with_the_score_below(tokenizer):
    policy, reward = models()
    rollout = collect(policy, policy, reward, reward, PROMPTS, CONFIG, torch.Generator().manual_seed(0))
    estimate_advantages(rollout, CONFIG.beta, CONFIG)
    shown = show_rollout(rollout, tokenizer, row=1).splitlines()
    assert len(shown) == 2 + int(rollout.mask[1].sum()) and shown[0].split()[-2:] == ["V", "Â"]
    assert float(shown[1].split()[-1]) == pytest.approx(float(rollout.advantages[1, 0]), abs=1e-3)
    assert shown[-1].startswith(f"score {float(rollout.scores[1]):.3f}, ")


def test_text_that_is_mixed_in_is_forgotten_less(tmp_path):
    policy, reward = models()
    plain, last = train_ppo(policy, reward, PROMPTS, CONFIG, RunFolder(tmp_path / "plain"))
    mixed, other = train_ppo(policy, reward, PROMPTS, CONFIG, RunFolder(tmp_path / "mixed"),
                             mix=PretrainingMix(ROWS, MixConfig(5.0, 9)))
    assert "text_loss" not in last and other["text_loss"] > 0
    assert alignment_tax(mixed, policy, ROWS).mean < alignment_tax(plain, policy, ROWS).mean


def test_a_resumed_run_with_a_mix_ends_with_the_same_bits(tmp_path):
    policy, reward = models()
    mix = PretrainingMix(ROWS, MixConfig(1.0, 2))
    whole, _ = train_ppo(policy, reward, PROMPTS, CONFIG, RunFolder(tmp_path / "whole"), mix=mix)

    def fault(rollout, names, policy, left=[3]):  # noqa: B006 (counts over the calls)
        left[0] -= 1
        if left[0] == 0:
            raise UserError("the power is gone")
        return {}

    with pytest.raises(UserError, match="power"):
        train_ppo(policy, reward, PROMPTS, CONFIG, RunFolder(tmp_path / "parts"), watch=fault, mix=mix)
    again, _ = train_ppo(policy, reward, PROMPTS, CONFIG, RunFolder(tmp_path / "parts"), mix=mix)
    assert torch.equal(vector(whole), vector(again))


def test_the_tax_is_the_difference_of_held_out_losses():
    policy, other = LanguageModel(SHAPE, 0).eval(), LanguageModel(SHAPE, 1).eval()
    found = alignment_tax(other, policy, ROWS)
    losses = [-float(text_logprobs(model, ROWS).mean().detach()) for model in (other, policy)]
    assert found.mean == pytest.approx(losses[0] - losses[1], abs=1e-4) and found.low < found.mean < found.high
    assert alignment_tax(policy, policy, ROWS).mean == 0.0
    with pytest.raises(UserError, match="at least two"):
        alignment_tax(policy, policy, ROWS[:1])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_no_number_stops_the_run_with_the_batch_saved_and_the_checkpoint_whole(tmp_path, bad):
    policy, reward = models()
    run, config = RunFolder(tmp_path), dataclasses.replace(CONFIG, missing_end="subtract", missing_end_score=1.0)

    def spoil(rollout, names, policy):
        if len(run.metrics()) == 1:
            reward.head.bias.data.fill_(bad)
        return {}

    with pytest.raises(UserError, match=r"update 3: the score of completion 0 is (nan|inf) \(4 of 4 completions\); the "
                                        r"batch "
                                        r"is in .*" + FAILED):
        train_ppo(policy, reward, PROMPTS, config, run, watch=spoil)
    tensors, about = read_tensors(tmp_path / FAILED)
    assert tensors["completion"].shape[0] == 4 and not tensors["scores"].isfinite().any()
    assert sorted(about["prompts"]) == sorted(PROMPTS)
    reward.head.bias.data.zero_()
    train_ppo(policy, reward, PROMPTS, config, run)
    assert [record["step"] for record in run.metrics()] == [1, 2, 3, 4] and run.finished


@pytest.mark.parametrize("change", [{"mix_weight": -1.0}, {"mix_rows": 0}, {"mix_weight": math.nan}])
def test_a_mix_that_makes_no_sense_is_an_error_that_names_it(change):
    with pytest.raises(UserError, match=next(iter(change))):
        MixConfig(**change)


# what a reward model likes


def test_the_widest_gaps_between_proxy_and_gold_come_first_whatever_their_scales():
    proxy, gold = [1.0, 2.0, 3.0, 4.0, 5.0], [0.1, 0.2, 0.3, 0.9, 0.0]
    found = widest(list("pqrst"), list("abcde"), proxy, gold, 2)
    assert [sample.completion for sample in found] == ["e", "d"] and found[0].excess > 2 > 0 > found[1].excess
    moved = widest(list("pqrst"), list("abcde"), [100 * x - 7 for x in proxy], [x / 9 + 3 for x in gold], 2)
    assert [(s.prompt, s.completion) for s in moved] == [(s.prompt, s.completion)
        for s in found] and moved[0].excess == pytest.approx(found[0].excess)
    shown = show_hacking(found)
    assert "liked beyond its worth" in shown.splitlines()[0] and "better than the model thinks" in shown
    assert "-> 'e'" in shown


def test_half_of_the_widest_gaps_are_of_answers_that_are_liked_too_much_where_there_are_so_many():
    # most answers are worth nothing, a few much: every widest gap is one that the model missed
    gold = [0.0] * 16 + [1.0] * 4
    proxy = [i / 16 for i in range(16)] + [0.0] * 4
    prompts, answers = [f"p{i}" for i in range(20)], [f"a{i}" for i in range(20)]
    found = widest(prompts, answers, proxy, gold, 4)
    assert [s.excess > 0 for s in found] == [False, False, True, True]
    assert [s.completion for s in found if s.excess > 0] == ["a15", "a14"], "the widest of them"
    assert len(widest(prompts, answers, proxy, gold, 20)) == 20 and len(widest(prompts, answers, proxy, gold, 3)) == 3
    one = widest(prompts, answers, [0.0] * 15 + [1.0] + [0.0] * 4, gold, 6)
    assert len(one) == 6 and len([s for s in one if s.excess > 0]) >= 1, "others take the place of those that are few"


def test_hacking_shows_equal_answers_once_and_refuses_lists_that_do_not_match():
    assert len(widest(["p"] * 4, ["a", "a", "a", "b"], [1, 1, 1, 0], [0, 0, 0, 1])) == 2
    assert all(sample.excess == 0 for sample in widest(["p", "q"], ["a", "b"], [1, 1], [2, 2]))
    with pytest.raises(UserError, match="equally many"):
        widest(["p"], ["a", "b"], [1, 2], [1, 2])
    # ten, and the one of "proxy"
    assert show_hacking(widest(["x" * 500], ["a"], [1], [1]), letters=10).count("x") == 11


def test_a_judge_that_is_as_sure_as_it_may_be_lies_on_the_diagonal():
    g = torch.Generator().manual_seed(0)
    gaps = torch.randn(20_000, generator=g).abs() * 2
    right = torch.rand(20_000, generator=g) < gaps.sigmoid()
    margins = torch.where(right, gaps, -gaps)
    bins = calibration(margins.tolist(), 8)
    assert len(bins) == 8 and sum(b.count for b in bins) == 20_000 and calibration_error(bins) < 0.02
    assert [b.predicted for b in bins] == sorted(b.predicted
                                                 for b in bins) and bins[0].predicted < 0.6 < 0.9 < bins[-1].predicted
    assert calibration_error(calibration((3 * margins).tolist(), 8)) > 0.08  # three times as sure as it may be
    assert "95 %" in show_calibration(bins) and len(show_calibration(bins).splitlines()) == 10
    assert calibration([0.0, 800.0], 9)[0].observed.mean == 0.5
    with pytest.raises(UserError, match="none"):
        calibration([])


def test_judges_that_do_not_read_have_their_accuracy_beside_it():
    pairs = [("a b", "a", "chosen"), ("a", "b", "chosen"), ("a b c", "a b", "rejected"), ("a", "b c", "chosen")]
    found = blind_baselines([dict(zip(("chosen", "rejected", "shown_first"), pair)) for pair in pairs])
    assert found["longer"].mean == 2.5 / 4 and found["first"].mean == 0.75
    assert blind_baselines([{"chosen": "a b", "rejected": "a"}]).keys() == {"longer"} and blind_baselines([]) == {}


def test_a_cautious_ensemble_distrusts_what_its_models_disagree_on():
    class Told(torch.nn.Module):
        def __init__(self, scores):
            super().__init__()
            self.config, self.scores = models()[1].config, torch.tensor(scores)

        def score_completions(self, prompts, completions, of):
            return self.scores

    first, second = Told([1.0, 2.0, 0.0]), Told([1.0, 0.0, 1.0])
    for members, caution, due in (((first, second), 0.0, [1.0, 1.0, 0.5]), ((first, second), 1.0, [1.0, 0.0, 0.0]),
                                  ((first,), 2.0, first.scores.tolist())):
        assert score_completions(Ensemble(members, caution), [], [], []).tolist() == due
