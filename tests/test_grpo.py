"""GRPO: advantages of groups, the loss and its averages, and that a policy learns what a checker says."""

import dataclasses
import itertools
import json
import math
import signal

import pytest
import torch
from conftest import TINY
from typed import complaint, type_in

from minialign.heads import LanguageModel, describe_model
from minialign.lab.commands.grpo import has_the_regex
from minialign.logprobs import token_logprobs
from minialign.rlhf import grpo
from minialign.rlhf.grpo import (
    GRPOConfig,
    checked,
    collect,
    group_advantages,
    grpo_update,
    mean_loss,
    pass_at_k,
    rollout_metrics,
    token_losses,
    train_grpo,
)
from minialign.runs.errors import UserError
from minialign.runs.files import read_jsonl
from minialign.runs.run_folder import RunFolder
from minialign.tokenizer import END, train_tokenizer
from minialign.training import adamw

QUICK = GRPOConfig(updates=2, prompts=3, completions=4, new_tokens=5, minibatch=12)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["Mira lost the kite. Tom found it. yes no"] * 4, 300)


@pytest.fixture
def policy(tokenizer):
    return LanguageModel(dataclasses.replace(TINY, vocabulary=tokenizer.size), 0)


def rollout_of(policy, tokenizer, config, check, seed=0):
    prompts = [[tokenizer.begin, *tokenizer.encode(text)] for text in ("Mira", "Tom found", "the kite")]
    generator = torch.Generator().manual_seed(seed)
    return collect(policy, policy, tokenizer, [{"prompt": ""}] * 3, prompts, check, config, generator)


def lots(seed=0):
    """A checker that draws: groups with a variance."""
    generator = torch.Generator().manual_seed(seed)
    return lambda example, said: float(torch.rand((), generator=generator))


def test_advantages_are_differences_from_the_group_in_its_standard_deviations():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [3.0, 5.0, 7.0, 9.0]])
    found = group_advantages(rewards)
    for row, values in zip(found, rewards):
        std = math.sqrt(sum((v - values.mean()) ** 2 for v in values.tolist()) / 3)
        assert row.tolist() == pytest.approx([(v - values.mean().item()) / (std + 1e-4) for v in values.tolist()])
    assert group_advantages(rewards, "none").tolist() == [[0.5, -0.5, -0.5, 0.5], [-3, -1, 1, 3]]


def test_a_group_of_equal_rewards_teaches_nothing(policy, tokenizer):
    assert group_advantages(torch.full((2, 4), 0.7)).eq(0).all()
    before = [p.clone() for p in policy.parameters()]
    config = dataclasses.replace(QUICK, beta=0.0)
    rollout = rollout_of(policy, tokenizer, config, lambda example, said: 1.0)
    metrics = rollout_metrics(rollout, END) | grpo_update(policy, adamw(policy, 1e-2, 0.0), rollout, config,
                                                     torch.Generator())
    assert metrics["even_groups"] == 1 and metrics["spread"] == 0 == metrics["policy_loss"]
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters()))


def test_even_groups_are_left_out_on_request_and_the_step_is_that_of_the_others(policy, tokenizer):
    config = dataclasses.replace(QUICK, drop_even=True, beta=0.0)
    rollout = rollout_of(policy, tokenizer, config, lots())
    rollout.scores[4:8] = 0.25  # the second group
    other, alone = LanguageModel(policy.config, 0), rollout.take(torch.tensor([0, 2]))
    grpo_update(policy, torch.optim.SGD(policy.parameters(), 1.0), rollout, config, torch.Generator())
    grpo_update(other, torch.optim.SGD(other.parameters(), 1.0), alone, config, torch.Generator())
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(policy.parameters(), other.parameters()))


def test_ratios_are_1_in_the_first_step(policy, tokenizer):
    rollout = rollout_of(policy, tokenizer, QUICK, lots())
    logits = policy.logits(rollout.vectors(policy.body))
    now = token_logprobs(logits, rollout.completion) * rollout.mask
    losses, clipped = token_losses(now, rollout.logprobs, rollout.reference_logprobs, torch.arange(12.0), QUICK)
    assert not clipped.any()
    wanted = -torch.arange(12.0)[:, None].expand_as(losses)[rollout.mask]
    assert torch.allclose(losses[rollout.mask], wanted, atol=1e-4)


def test_clip_high_lets_the_unlikely_grow_further_than_it_may_shrink():
    config = dataclasses.replace(QUICK, clip=0.2, clip_high=0.5, beta=0.0)
    ratio = torch.tensor([[0.5, 1.4, 1.6]])
    losses, clipped = token_losses(ratio.log(), torch.zeros(1, 3), torch.zeros(1, 3), torch.tensor([1.0]), config)
    assert losses.tolist() == [pytest.approx([-0.5, -1.4, -1.5])] and clipped.tolist() == [[False, False, True]]
    losses, clipped = token_losses(ratio.log(), torch.zeros(1, 3), torch.zeros(1, 3), torch.tensor([-1.0]), config)
    assert losses.tolist() == [pytest.approx([0.8, 1.4, 1.6])] and clipped.tolist() == [[True, False, False]]


def test_a_loss_is_a_mean_over_answers_over_tokens_or_over_the_budget():
    losses, mask = torch.tensor([[1.0, 2.0, 9.0], [4.0, 9.0, 9.0]]), torch.tensor([[1, 1, 0], [1, 0, 0]], dtype=bool)
    for average, wanted in (("answer", (1.5 + 4) / 2), ("tokens", 7 / 3), ("budget", 7 / 10)):
        config = dataclasses.replace(QUICK, average=average)
        assert mean_loss(losses, mask, config).item() == pytest.approx(wanted)


def test_pass_at_k_is_what_drawing_k_of_the_answers_gives():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0, 0.0], [0.0] * 5, [1.0] * 5])
    for k in (1, 2, 4):
        drawn = [max(row[i] for i in some) for row in rewards.tolist() for some in itertools.combinations(range(5), k)]
        assert pass_at_k(rewards, k) == pytest.approx(sum(drawn) / len(drawn))


@pytest.mark.parametrize("check, message", [
    (lambda example, said: 1 / 0, "the checker failed on the answer 'yes': ZeroDivisionError"),
    (lambda example, said: float("nan"), "the checker gave nan"),
    (lambda example, said: 1e300, "the checker gave 1e[+]300"),
    (lambda example, said: [1.0, 2.0], "the checker failed"),
    (lambda example, said: None, "the checker failed"),
])
def test_a_checker_that_fails_is_named_with_the_answer(check, message):
    with pytest.raises(UserError, match=message):
        checked(check, {"prompt": ""}, "yes")


@pytest.mark.parametrize("changes, message", [({"completions": 1, "minibatch": 3}, "completions"),
                                              ({"minibatch": 6}, "no number of whole groups"),
                                              ({"scale": "batch"}, "choose group or none"),
                                              ({"average": "mean"}, "choose answer or tokens or budget")])
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(QUICK, **changes)


def test_two_answers_are_a_group_and_the_log_counts_what_is_solved(policy, tokenizer):
    config = dataclasses.replace(QUICK, completions=2, minibatch=2)
    made = rollout_of(policy, tokenizer, config, lambda example, said: 0.0)
    made.scores = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0])
    found = rollout_metrics(made, tokenizer.end)
    assert found["pass_1"] == found["reward"] == 0.5 and found["pass_8"] == pytest.approx(2 / 3)
    assert found["even_groups"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("refresh, moves", [(1, [1, 2, 3, 4]), (2, [2, 4]), (3, [3]), (0, [])])
def test_the_reference_becomes_the_policy_after_every_so_many_updates(policy, tokenizer, tmp_path, refresh, moves):
    examples = [{"prompt": text} for text in ("Mira", "Tom", "the", "it")]
    prompts = [[tokenizer.begin, *tokenizer.encode(example["prompt"])] for example in examples]
    config = GRPOConfig(updates=4, prompts=4, completions=2, new_tokens=2, minibatch=8, learning_rate=1e-2,
                        refresh=refresh)
    run = RunFolder(tmp_path)
    run.begin({**describe_model(policy), "stage": "grpo"}, tokenizer)
    train_grpo(policy, tokenizer, examples, prompts, lots(), config, run)
    # after a refresh the next rollout is the reference's own: its KL is 0
    still = [number for number, metrics in enumerate(run.metrics()) if number and abs(metrics["kl"]) < 1e-6]
    assert still == [number for number in moves if number < 4]


def test_a_policy_learns_to_say_what_is_rewarded_and_goes_on_to_the_same_bits(policy, tokenizer, tmp_path,
                                                                                  monkeypatch):
    wanted = tokenizer.encode("kite")[0]
    examples = [{"prompt": text} for text in ("Mira", "Tom", "the", "it")]
    prompts = [[tokenizer.begin, *tokenizer.encode(example["prompt"])] for example in examples]
    config = GRPOConfig(updates=30, prompts=4, completions=8, new_tokens=1, minibatch=32, learning_rate=2e-2, refresh=7)

    def check(example, said):
        return float(said == tokenizer.decode([wanted]).strip())

    def train(folder):
        run = RunFolder(tmp_path / folder)
        run.begin({**describe_model(policy), "stage": "grpo"}, tokenizer)
        return train_grpo(policy, tokenizer, examples, prompts, check, config, run)

    def stop_once(*given):
        if next(updates) == 11:
            raise KeyboardInterrupt
        return grpo_update(*given)

    whole, last = train("whole")
    assert last["pass_1"] > 0.9 and RunFolder(tmp_path / "whole").metrics()[0]["pass_1"] < 0.2
    updates = itertools.count()
    monkeypatch.setattr(grpo, "grpo_update", stop_once)
    with pytest.raises(KeyboardInterrupt):
        train("parts")
    again, _ = train("parts")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters()))


@pytest.fixture
def d(policy, tokenizer, tmp_path, monkeypatch):
    run = RunFolder(tmp_path / "sft")
    run.begin({**describe_model(policy), "stage": "sft"}, tokenizer)
    run.finish(policy)
    lines = [{"prompt": f"Mira {i}", "answer": "kite", "regex": "k.*e"} for i in range(8)]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "bare.jsonl").write_text(json.dumps({"prompt": "Mira"}))
    (tmp_path / "odd.jsonl").write_text("\n".join(json.dumps(line | {"regex": "("}) for line in lines))
    (tmp_path / "mine.py").write_text("def short(line, said):\n    return -len(said)\n\nlength = 3\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_pattern_that_would_look_for_ever_is_an_error_and_leaves_no_alarm(monkeypatch):
    monkeypatch.setattr("minialign.lab.commands.grpo.LONGEST", 0.2)
    lines = [{"regex": "(a+)+b"}, {"regex": "a+c"}]
    check = has_the_regex(lines)
    with pytest.raises(UserError, match=r"'\(a\+\)\+b' in 'a+' takes more than 0.2 s; write the pattern without"):
        check(lines[0], "a" * 60)
    assert check(lines[1], "a" * 60) == 0 and check(lines[1], "aac") == 1
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0) and signal.getsignal(signal.SIGALRM) == signal.SIG_DFL


@pytest.mark.parametrize("check", ["answer", "regex", "mine:short"])
def test_a_policy_is_optimised_for_what_can_be_checked(d, check, capsys):
    line = f"grpo --policy sft --prompts asked.jsonl --check {check} --fast --out out"
    assert type_in(line, d=d) == 0
    said = capsys.readouterr().out
    assert "from the first to the last updates reward" in said
    assert ("such a reward teaches nothing" in said) == (check != "mine:short")
    assert len(read_jsonl(d / "out" / "metrics.jsonl")) == 3


@pytest.mark.parametrize("line, message", [
    ("--prompts bare.jsonl --check answer --batch 1 --minibatch 4", "--check answer needs a text `answer` in every"),
    ("--prompts odd.jsonl --check regex", "is no regular expression"),
    ("--prompts asked.jsonl --check right", "choose answer, regex, or MODULE:FUNCTION"),
    ("--prompts asked.jsonl --check nowhere:f", "cannot be loaded: ModuleNotFoundError"),
    ("--prompts asked.jsonl --check mine:length", "is no function but 3"),
    ("--prompts bare.jsonl --check mine:short", "prompts"),
])
def test_wrong_input_is_one_line_and_nothing_is_written(d, line, message, capsys):
    assert type_in(f"grpo --policy sft {line} --fast --out wrong", d=d) == 2
    assert message in complaint(capsys) and not (d / "wrong").exists()
