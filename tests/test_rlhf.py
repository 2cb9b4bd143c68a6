"""The equations of reinforcement learning from feedback, against enumeration, definitions and invariants."""

import copy
import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import build

from minialign.batching import pad
from minialign.generation import SamplingConfig
from minialign.heads import LanguageModel, ScalarModel, describe_model
from minialign.logprobs import token_logprobs, whiten
from minialign.rlhf.best_of_n import best_of, best_of_n_kl
from minialign.rlhf.comparisons import Candidate, sample_pairs, split_by_prompt
from minialign.rlhf.kl import KLPrice, exact_kl, k1, k2, k3, learner_and_reference, sampled_kl
from minialign.rlhf.ppo import (
    Learner,
    PPOConfig,
    advantages_and_returns,
    collect,
    estimate_advantages,
    penalised_rewards,
    policy_loss,
    ppo_update,
    rollout_metrics,
    train_ppo,
    value_loss,
)
from minialign.rlhf.ranked import Comparisons, Ranked, ranked_rows
from minialign.rlhf.reward_model import (
    bradley_terry_loss,
    completion_rows,
    evaluate_pairs,
    head_at_the_end,
    normalise,
    pair_accuracy,
    penalise_missing_end,
    reward_loss,
    score_completions,
    score_rows,
)
from minialign.runs.errors import UserError
from minialign.runs.files import Record
from minialign.runs.run_folder import RunFolder
from minialign.transformer import TransformerConfig

SHAPE = TransformerConfig(320, 48, 32, 2, 2, initial_std=0.2, dropout=0.1)
SHORT = PPOConfig(prompts=4, minibatch=4, epochs=1, new_tokens=10, temperature=0.7, missing_end="subtract",
                  missing_end_score=1.0)
PROMPTS = [[1, 30, 31, 32], [1, 40], [1, 50, 51, 52, 53, 54], [1, 60, 61]]


def models():
    policy = LanguageModel(SHAPE, 0)
    value, reward = (ScalarModel(copy.deepcopy(policy.body), seed=1) for _ in range(2))
    return policy, copy.deepcopy(policy), value, reward


def rolled():
    policy, reference, value, reward = models()
    policy.train()
    rollout = collect(policy, reference, value, reward, PROMPTS, SHORT, torch.Generator().manual_seed(0))
    return policy, reward, rollout, value


def test_k1_and_k3_average_to_the_exact_kl():
    policy, reference = torch.randn(2, 7, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    exact = exact_kl(policy, reference)
    assert exact > 0.1
    for estimator in (k1, k3):
        torch.testing.assert_close((policy.exp() * estimator(policy, reference)).sum(), exact)
    assert (k3(policy, reference) >= 0).all() and (k2(policy, reference) >= 0).all() and (k1(policy,
        reference) < 0).any()
    assert abs(float((policy.exp() * k2(policy, reference)).sum() - exact)) > 1e-3
    assert float(k2(torch.tensor(-1.0), torch.tensor(-3.0))) == 2.0


def test_adaptive_beta_follows_its_rule():
    price = KLPrice(0.1, target=6.0, horizon=100)
    price.update(60.0, 10)
    assert price.beta == pytest.approx(0.1 * 1.02)
    price.update(0.0, 10)
    assert price.beta == pytest.approx(0.1 * 1.02 * 0.98)
    price.update(5.4, 10)  # a tenth below the target
    assert price.beta == pytest.approx(0.1 * 1.02 * 0.98 * 0.99)


def test_gae_equals_its_double_sum():
    g = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(3, 6, generator=g), torch.randn(3, 6, generator=g)
    lengths = [6, 4, 1]
    mask = torch.arange(6)[None] < torch.tensor(lengths)[:, None]
    for gamma, lam in ((1.0, 0.95), (0.9, 0.0), (1.0, 1.0)):
        found, returns = advantages_and_returns(rewards, values, mask, gamma, lam)
        for b, n in enumerate(lengths):
            v = [*values[b, :n].tolist(), 0.0]
            deltas = [float(rewards[b, t]) + gamma * v[t + 1] - v[t] for t in range(n)]
            for t in range(n):
                slow = sum((gamma * lam) ** k * deltas[t + k] for k in range(n - t))
                assert float(found[b, t]) == pytest.approx(slow, abs=1e-5)
        torch.testing.assert_close(returns, (found + values) * mask)


def test_gae_never_looks_past_the_end():
    mask = torch.tensor([[True, True, False]])
    rewards = torch.tensor([[0.0, 1.0, 0.0]])
    a = advantages_and_returns(rewards, torch.tensor([[0.2, 0.3, 0.0]]), mask)
    b = advantages_and_returns(rewards + torch.tensor([[0, 0, 9.0]]), torch.tensor([[0.2, 0.3, math.nan]]), mask)
    torch.testing.assert_close(a[0], b[0])


def test_returns_are_raw():
    mask = torch.ones(1, 3, dtype=torch.bool)
    values = torch.tensor([[0.5, 0.1, -0.2]])
    advantages, returns = advantages_and_returns(torch.tensor([[0.0, 0.0, 2.0]]), values, mask, 1.0, 1.0)
    torch.testing.assert_close(returns, torch.full((1, 3), 2.0))
    assert not torch.allclose(whiten(advantages, mask) + values, returns)


def test_the_score_stands_at_the_last_real_token():
    for length in range(1, 6):
        mask = torch.arange(5)[None] < length
        rewards = penalised_rewards(torch.tensor([3.0]), torch.zeros(1, 5), torch.zeros(1, 5), mask, 0.1)
        assert rewards.nonzero().tolist() == [[0, length - 1]] and float(rewards.sum()) == 3.0


def test_the_penalty_is_beta_times_the_logged_kl():
    _, _, rollout, _ = rolled()
    reference = rollout.reference_logprobs - 0.3 * rollout.mask
    rewards = penalised_rewards(torch.zeros(4), rollout.logprobs, reference, rollout.mask, 0.5)
    torch.testing.assert_close(-rewards.sum() / 0.5, k1(rollout.logprobs, reference).sum())


def test_kl_is_0_before_the_first_update():
    _, _, rollout, _ = rolled()
    assert float(k1(rollout.logprobs, rollout.reference_logprobs).abs().max()) < 1e-5


def test_rollout_logprobs_equal_a_full_pass():
    policy, _, rollout, _ = rolled()
    policy.eval()
    shared = token_logprobs(policy.logits(rollout.vectors(policy.body)), rollout.completion, 0.7)
    assert float(((shared - rollout.logprobs) * rollout.mask).detach().abs().max()) < 1e-5
    for prompt, row, keep, logprobs in zip(PROMPTS, rollout.completion, rollout.mask, rollout.logprobs):
        logits = policy(torch.tensor([prompt + row[keep].tolist()]))[0, len(prompt) - 1 : -1]
        torch.testing.assert_close(token_logprobs(logits, row[keep], 0.7), logprobs[keep], atol=1e-5, rtol=1e-5)


def test_several_answers_to_a_prompt_are_those_of_several_prompts():
    policy, reference, value, reward = models()
    prompts = [*PROMPTS, [1]]
    three = dataclasses.replace(SHORT, prompts=5, completions=3, minibatch=15)
    one = dataclasses.replace(SHORT, prompts=15, minibatch=15)
    once = collect(policy, reference, value, reward, prompts, three, torch.Generator().manual_seed(0))
    again = collect(policy, reference, value, reward, [p for p in prompts for _ in range(3)], one,
                    torch.Generator().manual_seed(0))
    assert once.completion_ids()[1] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert again.completion_ids()[1] == list(range(15))
    for name in ("completion", "mask", "logprobs", "reference_logprobs", "values", "scores"):
        torch.testing.assert_close(getattr(once, name), getattr(again, name), atol=1e-5, rtol=1e-5)
    part = once.take(torch.tensor([4, 1]))
    assert part.prompts == [prompts[4], prompts[1]] and part.completion.shape[1] == int(part.mask.sum(dim=1).max())
    torch.testing.assert_close(part.scores, once.scores[[12, 13, 14, 3, 4, 5]])
    trained = []
    for rollout, config in ((once, three), (again, one)):  # and PPO makes the same of both
        learner = Learner(copy.deepcopy(policy), copy.deepcopy(value), config)
        estimate_advantages(rollout, config.beta, config)
        ppo_update(learner, rollout, torch.Generator().manual_seed(0))
        trained.append(torch.nn.utils.parameters_to_vector(learner.policy.parameters()))
    torch.testing.assert_close(*trained, atol=2e-4, rtol=0)


def test_a_part_of_a_rollout_is_as_long_as_its_longest_answer_and_a_perfect_value_function_explains_all():
    policy, reference, value, reward = models()
    rollout = collect(policy, reference, value, reward, PROMPTS, PPOConfig(prompts=4, minibatch=4, new_tokens=8),
                      torch.Generator().manual_seed(1))
    rollout.mask[1, 3:] = False
    part = rollout.take(torch.tensor([1]))
    assert part.mask.shape == part.logprobs.shape == part.completion.shape == (1, 3) and part.scores.shape == (1,)
    assert rollout.take(torch.tensor([1, 0])).mask.shape == (2, int(rollout.mask[0].sum()))
    config = PPOConfig(prompts=4, minibatch=4, new_tokens=8, learning_rate=0.0, value_learning_rate=0.0)
    estimate_advantages(rollout, config.beta, config)
    for said, explained in ((rollout.returns, 1.0), (torch.zeros_like(rollout.returns) + 3.0, 0.0),
                            (-rollout.returns, -3.0)):
        rollout.values = said.clone()
        found = ppo_update(Learner(copy.deepcopy(policy), copy.deepcopy(value), config), rollout,
                           torch.Generator().manual_seed(0))
        assert found["explained_variance"] == pytest.approx(explained, abs=1e-4)


def test_while_the_value_function_learns_alone_the_policy_stays(tmp_path):
    policy, _, _, reward = models()
    config = PPOConfig(updates=3, prompts=4, minibatch=2, new_tokens=8, learning_rate=1e-2, value_warmup=2)
    train_ppo(policy.eval(), reward, PROMPTS * 2, config, RunFolder(tmp_path))
    first, second, third = RunFolder(tmp_path).metrics()
    assert abs(second["kl"]) < 1e-4 and abs(third["kl"]) < 1e-4
    assert second["explained_variance"] != first["explained_variance"]


def test_learning_rates_fall_to_0_and_no_weight_decays():
    policy, _, _, value = rolled()
    learner = Learner(policy, value, dataclasses.replace(SHORT, updates=4, value_warmup=1))
    found = []
    for update in range(4):
        learner.set_learning_rates(update)
        found.append([optimizer.param_groups[0]["lr"] for optimizer in learner.optimizers.values()])
    rates = [SHORT.learning_rate, SHORT.value_learning_rate]
    assert found[0] == [0.0, rates[1]], "the value function learns alone"
    assert found[1:] == [[pytest.approx(rate * left) for rate in rates] for left in (0.75, 0.5, 0.25)]
    groups = [group for optimizer in learner.optimizers.values() for group in optimizer.param_groups]
    assert {group["weight_decay"] for group in groups} == {0.0}


def test_the_reference_is_a_copy_that_cannot_train():
    policy = build()
    learner, reference = learner_and_reference(policy)
    assert {p.requires_grad for p in learner.parameters()} == {True}
    assert {p.requires_grad for p in reference.parameters()} == {False} and not reference.training
    assert all(a is not b and torch.equal(a, b) for a, b in zip(learner.parameters(), reference.parameters()))


def test_ratios_are_1_before_the_first_step():
    policy, _, rollout, value = rolled()
    policy.train()
    learner = Learner(policy, value, dataclasses.replace(SHORT, learning_rate=0.0, value_learning_rate=0.0))
    before = copy.deepcopy(policy.state_dict())
    policy.eval()
    estimate_advantages(rollout, SHORT.beta, SHORT)
    metrics = ppo_update(learner, rollout, torch.Generator().manual_seed(0))
    assert metrics["clip_fraction"] == 0.0 and abs(metrics["policy_loss"]) < 1e-5
    assert all(torch.equal(a, b) for a, b in zip(before.values(), policy.state_dict().values()))


def test_what_stands_after_the_end_token_changes_no_score():
    _, reward, rollout, _ = rolled()
    rows = [(prompt, row[keep].tolist()) for prompt, row, keep in zip(PROMPTS, rollout.completion, rollout.mask)]
    ended = (rollout.completion == 2).any(dim=1)
    expected = penalise_missing_end(score_rows(reward.eval(), rows), ended, "subtract", 1.0)
    torch.testing.assert_close(rollout.scores, expected, atol=1e-5, rtol=1e-5)


def test_both_conventions_for_a_missing_end():
    scores, ended = torch.tensor([0.5, 0.5]), torch.tensor([True, False])
    assert penalise_missing_end(scores, ended, "subtract", 1.0).tolist() == [0.5, -0.5]
    assert penalise_missing_end(scores, ended, "replace", 1.0).tolist() == [0.5, -1.0]


@pytest.mark.parametrize("change", [{}, {"missing_end": "subtract", "missing_end_score": 0.5}])
def test_a_rollout_scores_a_missing_end_as_the_configuration_says(change):
    """There is one default, the configuration's: 3 standard deviations below the reference in place of the score."""
    policy, reference, value, reward = models()
    config = PPOConfig(prompts=4, minibatch=4, new_tokens=4, **change)
    rollout = collect(policy, reference, value, reward, PROMPTS, config, torch.Generator().manual_seed(1))
    rows = list(zip(PROMPTS, rollout.completion_ids()[0]))
    scores, ended = score_rows(reward, rows), (rollout.completion == 2).any(dim=1)
    assert not ended.all()
    expected = torch.where(ended, scores, scores - 0.5 if change else torch.full((4,), -3.0))
    torch.testing.assert_close(rollout.scores, expected, atol=1e-5, rtol=1e-5)


def test_policy_loss_in_all_four_quadrants():
    ratio, advantage = torch.tensor([1.5, 1.5, 0.5, 0.5]), torch.tensor([1.0, -1.0, 1.0, -1.0])
    losses, clipped = policy_loss(ratio.log(), torch.zeros(4), advantage, 0.2)
    torch.testing.assert_close(losses, torch.tensor([-1.2, 1.5, -0.5, 0.8]))
    assert clipped.tolist() == [True, False, False, True]


def test_value_loss_takes_the_worse_of_plain_and_clipped():
    found = value_loss(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 0.0]), torch.tensor([1.0, -2.0]), 0.2)
    torch.testing.assert_close(found, torch.tensor([0.5 * 0.64, 0.5 * 9.0]))


def test_the_loss_is_finite_for_hopeless_pairs():
    chosen = torch.tensor([-200.0, 0.0], requires_grad=True)
    losses = bradley_terry_loss(chosen, torch.zeros(2))
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([200.0, math.log(2)])
    assert chosen.grad.tolist() == pytest.approx([-1.0, -0.5])


def test_the_loss_sees_the_difference_of_two_scores_and_nothing_else():
    chosen, rejected = torch.tensor([1.5, -2.0]), torch.tensor([0.5, 1.0])
    expected = [math.log(1 + math.exp(-1.0)), math.log(1 + math.exp(3.0))]
    assert bradley_terry_loss(chosen, rejected).tolist() == pytest.approx(expected)
    assert bradley_terry_loss(chosen + 7, rejected + 7).tolist() == pytest.approx(expected, abs=1e-5)


def test_equal_scores_count_one_half():
    assert pair_accuracy(torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.0, 0.0, 3.0])) == 0.5


def test_the_score_does_not_depend_on_padding():
    _, _, _, reward = models()
    row, longer = [1, 30, 31, 32, 2], [1, 30, 31, 32, 33, 34, 35, 2]
    plain = score_rows(reward.eval(), [(row[:2], row[2:])])
    both = score_rows(reward, [(longer[:3], longer[3:]), (row[:2], row[2:])])
    torch.testing.assert_close(both[1:], plain, atol=1e-5, rtol=1e-5)
    tokens, mask = pad([row, longer], side="left")
    left = head_at_the_end(reward, reward.body(tokens, mask), mask)[:1].detach()
    torch.testing.assert_close(left, plain, atol=1e-5, rtol=1e-5)


def test_normalised_scores_have_mean_0_and_std_1():
    _, _, _, reward = models()
    rows = [([1, 30 + i], [99 - i, 2]) for i in range(20)]
    for reward.read in ("end", "mean"):
        normalise(reward.eval(), rows)
        scores = score_rows(reward, rows)
        assert abs(float(scores.mean())) < 1e-4 and float(scores.std(correction=0)) == pytest.approx(1, abs=1e-4)


def test_the_mean_of_all_tokens_as_a_score():
    """However it is read: alone, padded, or with the prompt read once for several completions."""
    _, _, _, reward = models()
    reward.eval().read = "mean"
    prompts, completions = [[1, 30, 31], [1, 40]], [[32, 33, 2], [50, 2], [51, 52, 53, 54, 2]]
    of = [0, 1, 1]
    expected = [reward(torch.tensor([prompts[p] + c]))[0, len(prompts[p]) :].mean().item()
                for p, c in zip(of, completions)]
    rows = [(prompts[p], c) for p, c in zip(of, completions)]
    assert score_rows(reward, rows).tolist() == pytest.approx(expected, abs=1e-5)
    assert score_completions(reward, prompts, completions, of).tolist() == pytest.approx(expected, abs=1e-5)
    assert describe_model(reward)["read"] == "mean" and "read" not in describe_model(models()[3])


def test_no_prompt_stands_on_both_sides_of_a_split():
    pairs = [{"prompt": f"story {i % 50}", "chosen": "a", "rejected": "b"} for i in range(200)]
    learned, held_out = split_by_prompt(pairs, 0.3)
    assert len(learned) + len(held_out) == 200 and held_out
    assert not {p["prompt"] for p in learned} & {p["prompt"] for p in held_out}


def test_k_answers_are_one_element():
    _, _, _, reward = models()
    rows = [[1, 30, 31 + i, 2] for i in range(4)]
    every = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    answers = [row[2:] for row in rows]
    data = Comparisons([Ranked([1, 30], answers, every), Ranked([1, 30], answers[:2], [(1, 0)])], 2, seed=0)
    batch = data.batch([0, 1])
    assert len(batch.prompts) == 2 and len(batch.chosen) == 7 and batch.count == 2
    assert len(batch.completions) == 6  # four are read for six pairs, not twelve
    scores = score_rows(reward.eval(), [(row[:2], row[2:]) for row in rows])
    first = sum(bradley_terry_loss(scores[i], scores[j]) for i, j in every) / 6
    torch.testing.assert_close(reward_loss(reward, batch), first + bradley_terry_loss(scores[1], scores[0]))
    found = evaluate_pairs(reward, data)
    right = sum(bool(scores[i] > scores[j]) for i, j in every) + bool(scores[1] > scores[0])
    assert found["accuracy"] == pytest.approx(right / 7)  # every pair counts once
    losses = [float(bradley_terry_loss(scores[i], scores[j])) for i, j in [*every, (1, 0)]]
    assert found["validation"] == pytest.approx(sum(losses) / 7, abs=1e-5)


def test_comparisons_of_one_prompt_come_together_and_texts_without_one_stay_apart(tokenizer):
    said = [("p", "a", "b"), ("q", "c", "d"), ("p", "c", "a"), ("", "a", "b"), ("", "c", "b"), ("p", "b", "c")]
    ranked, skipped = ranked_rows(tokenizer, [dict(zip(("prompt", "chosen", "rejected"), s)) for s in said], 48)
    assert not skipped and [len(r.pairs) for r in ranked] == [3, 1, 1, 1] and [len(r.completions)
        for r in ranked] == [3, 2,
        2, 2]
    back = {tuple(tokenizer.decode(r.prompt + r.completions[k]) for k in pair) for r in ranked for pair in r.pairs}
    assert back == {(p + c, p + r) for p, c, r in said}


def test_long_comparisons_are_left_out_on_request_and_counted(tokenizer):
    long = Record({"prompt": "p", "chosen": "kite " * 60, "rejected": "b"}, "f.jsonl", 7)
    short = Record({"prompt": "p", "chosen": "a", "rejected": "b"}, "f.jsonl", 8)
    with pytest.raises(UserError, match="answers.jsonl, line 7: .* do not fit"):
        ranked_rows(tokenizer, [short, long], 48, file="answers.jsonl")
    ranked, skipped = ranked_rows(tokenizer, [long, short], 48, "skip")
    assert skipped == {"too long for the context": 1} and [r.pairs for r in ranked] == [[(0, 1)]]


def test_k_answers_make_every_pair_and_texts_answer_once(tokenizer, decoder):
    candidates = [Candidate("model", decoder), Candidate("people", texts=("one", "two", "three"))]
    pairs, dropped = sample_pairs(candidates, tokenizer, ["x", "y", "z"], SamplingConfig(8), seed=3, completions=3)
    assert len(pairs) + dropped == 9
    for k in range(3):
        own = [pair for pair in pairs if pair["index"] == k]
        by_people = {p[side] for p in own for side in ("first", "second") if p[f"{side}_policy"] == "people"}
        assert by_people <= {("one", "two", "three")[k]} and all(p["first_policy"] != "people"
            or p["second_policy"] != "people" for p in own)
    assert pairs == sample_pairs(candidates, tokenizer, ["x", "y", "z"], SamplingConfig(8), seed=3, completions=3)[0]
    with pytest.raises(UserError, match="1 sources for 2 completions"):
        sample_pairs(candidates[1:], tokenizer, ["x", "y", "z"], SamplingConfig(8))


def test_an_answer_that_fills_the_context_is_read_with_its_end(tokenizer):
    whole = completion_rows(tokenizer, ["kite"], [" boat" * 40])[0]
    cut = completion_rows(tokenizer, ["kite"], [" boat" * 40], context=12)[0]
    whole, cut = ([*prompt, *completion] for prompt, completion in (whole, cut))
    assert len(whole) > 12 == len(cut) and cut[:-1] == whole[:11] and cut[-1] == whole[-1] == tokenizer.end
    assert completion_rows(tokenizer, ["kite"], [" boat"], context=12) == completion_rows(tokenizer, ["kite"],
        [" boat"])


def test_best_of_n_has_its_kl_and_takes_the_best():
    assert best_of_n_kl(1) == 0.0 and best_of_n_kl(4) == pytest.approx(math.log(4) - 0.75)
    texts, scores = best_of([["a", "b", "c"]], torch.tensor([[0.1, 0.3, 0.9]]), 2)
    assert texts == ["b"] and scores.tolist() == pytest.approx([0.3])


def test_the_value_function_starts_at_0_and_the_reference_never_moves(tmp_path):
    policy, _, _, reward = models()
    before = copy.deepcopy(policy.state_dict())
    seen = []

    def watch(rollout, names, policy):
        seen.append((rollout.values.abs().max().item(), k1(rollout.logprobs,
                                                           rollout.reference_logprobs).sum(dim=1).mean().item()))
        return {}

    config = PPOConfig(updates=4, prompts=4, minibatch=2, new_tokens=8, learning_rate=1e-2)
    trained, last = train_ppo(policy.eval(), reward, PROMPTS * 2, config, RunFolder(tmp_path), watch=watch)
    assert seen[0][0] == 0.0 and seen[1][0] > 0.0
    assert abs(seen[0][1]) < 1e-4 and seen[-1][1] > 0.01
    assert last["kl"] == pytest.approx(seen[-1][1])
    assert all(torch.equal(a, b) for a, b in zip(before.values(), policy.state_dict().values()))
    assert not {p.data_ptr() for p in policy.parameters()} & {p.data_ptr() for p in trained.parameters()}


def test_of_a_policy_with_a_lora_only_the_lora_is_optimised(tmp_path):
    from minialign.peft import lora

    policy, _, _, reward = models()
    plain = copy.deepcopy(policy.state_dict())
    wrapped = lora.wrap(policy.eval(), lora.LoRAConfig(rank=2))
    config = PPOConfig(updates=3, prompts=4, minibatch=2, new_tokens=8, learning_rate=1e-2)
    trained, last = train_ppo(wrapped, reward, PROMPTS, config, RunFolder(tmp_path))
    free = {name for name, p in trained.named_parameters() if p.requires_grad}
    assert free and all(name.endswith((".A", ".B")) for name in free)
    assert any(float(layer.B.detach().abs().max()) > 0
               for layer in lora.lora_layers(trained).values()) and last["kl"] != 0.0
    with torch.no_grad():
        tokens = torch.tensor([PROMPTS[2]])
        before = trained(tokens)
        assert all(value.equal(plain[name.replace(".base", "")]) for name, value in trained.state_dict().items()
                   if not name.endswith((".A", ".B")))
        torch.testing.assert_close(lora.merged_plain(trained)(tokens), before,
                                   msg="merged, it is a plain model that says the same")


def test_a_resumed_ppo_run_ends_with_the_same_bits(tmp_path):
    policy, _, _, reward = models()
    config = PPOConfig(updates=6, prompts=4, minibatch=2, new_tokens=8, target_kl=1.0, horizon=50)
    whole, _ = train_ppo(policy.eval(), reward, PROMPTS * 3, config, RunFolder(tmp_path / "whole"))

    def fault(rollout, names, policy, left=[5]):  # noqa: B006 (counts over the calls)
        left[0] -= 1
        if left[0] == 0:
            raise UserError("the power is gone")
        return {}

    with pytest.raises(UserError, match="power"):
        train_ppo(policy, reward, PROMPTS * 3, config, RunFolder(tmp_path / "parts"), watch=fault)
    again, _ = train_ppo(policy, reward, PROMPTS * 3, config, RunFolder(tmp_path / "parts"))
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values()))
    assert [r["step"] for r in RunFolder(tmp_path / "parts").metrics()] == list(range(1, 7))
    assert RunFolder(tmp_path / "whole").metrics() == RunFolder(tmp_path / "parts").metrics()


@pytest.mark.parametrize(
    "change",
    [{name: 0} for name in ("updates", "prompts", "completions", "new_tokens", "epochs", "minibatch", "temperature",
                            "clip",
                            "horizon")]
    + [{"learning_rate": -1.0}, {"value_learning_rate": 2.0}, {"beta": -0.1}, {"gamma": 1.1}, {"lam": math.nan},
       {"value_warmup": -1}]
    + [{"missing_end": "maybe"}, {"minibatch": 65}, {"completions": 3}],
)
def test_settings_that_make_no_sense_are_errors_that_name_them(change):
    with pytest.raises(UserError, match=next(iter(change))):
        PPOConfig(**change)


def test_kl_is_estimated_from_plain_samples_only():
    for sampling in (SamplingConfig(4, 0.0), SamplingConfig(4, 1.0, top_k=3), SamplingConfig(4, 1.0, top_p=0.9)):
        with pytest.raises(UserError, match="plain samples"):
            sampled_kl(build(), build(), [[1, 30]], sampling, torch.Generator())
    policy, prompts = build(), [[1, 30], [1, 40]] * 16
    found = sampled_kl(policy, build(3), prompts, SamplingConfig(4, 1.0), torch.Generator().manual_seed(0))
    assert found.shape == (32,) and float(found.mean()) > 0
    assert float(sampled_kl(policy, policy, prompts, SamplingConfig(4, 1.0), torch.Generator()).abs().max()) < 1e-4


def test_the_share_that_ended_looks_for_the_policys_own_end_token():
    rows, mask = torch.tensor([[5, 7], [5, 2]]), torch.ones(2, 2, dtype=torch.bool)
    rollout = SimpleNamespace(logprobs=torch.zeros(2, 2), reference_logprobs=torch.zeros(2, 2), mask=mask,
                              scores=torch.zeros(2), completion=rows)
    assert rollout_metrics(rollout, 0.1, 7)["ended"] == rollout_metrics(rollout, 0.1)["ended"] == 0.5
    rollout.completion = rows[:1].expand(2, 2)
    assert rollout_metrics(rollout, 0.1, 7)["ended"] == 1.0 and rollout_metrics(rollout, 0.1)["ended"] == 0.0


def test_a_price_that_is_steered_cannot_turn_negative():
    with pytest.raises(UserError, match="horizon is 10"):
        PPOConfig(target_kl=6.0, horizon=10)
    PPOConfig(target_kl=6.0, horizon=64), PPOConfig(horizon=10)
    price = KLPrice(0.1, target=6.0, horizon=64)
    for _ in range(5):
        price.update(0.0, 64)
    assert 0 < price.beta < 0.1


def test_the_reference_of_a_sampled_kl_has_no_dropout():
    policy = build(dropout=0.3).train()
    found = sampled_kl(policy, policy, [[1, 30]] * 8, SamplingConfig(4, 1.0), torch.Generator().manual_seed(0))
    assert float(found.abs().max()) < 1e-4 and policy.training
