"""One whole PPO update from a given rollout leaves the weights that a slow reference leaves, written out token by token
from the papers.

The reference shares nothing with the package but the models' forward pass: advantages are double sums, losses are
Python loops over tokens, gradients come from autograd on one prompt and answer at a time, and Adam is written out.
"""

import copy
import math

import pytest
import torch

from minialign.heads import LanguageModel, ScalarModel
from minialign.rlhf.ppo import Learner, PPOConfig, collect, estimate_advantages, ppo_update
from minialign.transformer import TransformerConfig

SHAPE = TransformerConfig(320, 48, 32, 2, 2, initial_std=0.2)
PROMPTS = [[1, 30, 31, 32], [1, 40], [1, 50, 51, 52, 53, 54], [1, 60, 61]]
CONFIG = PPOConfig(updates=1, prompts=4, completions=2, new_tokens=8, temperature=0.7, epochs=2, minibatch=4,
                   learning_rate=1e-3, value_learning_rate=2e-3, beta=0.3, lam=0.9, missing_end="subtract",
                   missing_end_score=1.0)


def slow_advantages(rollout, beta, lam):
    """For each answer its advantages, whitened over all real tokens of the batch, and its returns: lists of numbers."""
    raw, returns = [], []
    for row in range(len(rollout.scores)):
        n = int(rollout.mask[row].sum())
        penalty = [-beta * float(rollout.logprobs[row, t] - rollout.reference_logprobs[row, t]) for t in range(n)]
        rewards = [penalty[t] + (float(rollout.scores[row]) if t == n - 1 else 0.0) for t in range(n)]
        values = [float(rollout.values[row, t]) for t in range(n)] + [0.0]
        deltas = [rewards[t] + values[t + 1] - values[t] for t in range(n)]
        advantages = [sum(lam**k * deltas[t + k] for k in range(n - t)) for t in range(n)]
        raw.append(advantages)
        returns.append([a + v for a, v in zip(advantages, values)])
    flat = [a for row in raw for a in row]
    mean = sum(flat) / len(flat)
    std = math.sqrt(sum((a - mean) ** 2 for a in flat) / len(flat) + 1e-8)
    return [[(a - mean) / std for a in row] for row in raw], returns


def adam(parameters, gradients, memory, rate, beta1=0.9, beta2=0.999, eps=1e-5):
    """One step of Adam (Kingma & Ba 2015, Alg. 1) after the gradient was cut to length 1."""
    length = math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients))
    shrink = min(1.0, 1.0 / (length + 1e-6))
    memory["t"] += 1
    for i, (p, g) in enumerate(zip(parameters, gradients)):
        g = g * shrink
        memory["m"][i] = beta1 * memory["m"][i] + (1 - beta1) * g
        memory["v"][i] = beta2 * memory["v"][i] + (1 - beta2) * g * g
        m, v = memory["m"][i] / (1 - beta1 ** memory["t"]), memory["v"][i] / (1 - beta2 ** memory["t"])
        p.data -= rate * m / (v.sqrt() + eps)


def slow_update(policy, value, rollout, generator):
    """Both networks after `epochs` passes over the rollout, a prompt with its answers at a time."""
    advantages, returns = slow_advantages(rollout, CONFIG.beta, CONFIG.lam)
    memories = [{"t": 0, "m": [0.0] * 999, "v": [0.0] * 999} for _ in range(2)]
    for _ in range(CONFIG.epochs):
        for chosen in torch.randperm(4, generator=generator).split(2):
            policy_terms, value_terms = [], []
            for row in [p * CONFIG.completions + k for p in chosen.tolist() for k in range(CONFIG.completions)]:
                prompt, n = rollout.prompts[row // CONFIG.completions], int(rollout.mask[row].sum())
                text = torch.tensor([prompt + rollout.completion[row, :n].tolist()])
                logits, values = policy(text)[0], value(text)[0]
                for t in range(n):
                    before = len(prompt) + t - 1  # the place that predicts token t
                    logprob = (logits[before] / CONFIG.temperature).log_softmax(-1)[rollout.completion[row, t]]
                    ratio, advantage = (logprob - rollout.logprobs[row, t]).exp(), advantages[row][t]
                    policy_terms.append(-torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage))
                    v, old, target = values[before], rollout.values[row, t], returns[row][t]
                    clipped = old + (v - old).clamp(-0.2, 0.2)
                    value_terms.append(0.5 * torch.maximum((v - target) ** 2, (clipped - target) ** 2))
            nets = ((policy, policy_terms, memories[0], CONFIG.learning_rate),
                    (value, value_terms, memories[1], CONFIG.value_learning_rate))
            for net, terms, memory, rate in nets:
                parameters = list(net.parameters())
                adam(parameters, torch.autograd.grad(sum(terms) / len(terms), parameters), memory, rate)


@pytest.mark.piece("PPO: the weights after a whole update", "slow reference")
def test_a_whole_update_leaves_the_weights_of_the_slow_reference():
    policy, reference = LanguageModel(SHAPE, 0).eval(), LanguageModel(SHAPE, 1).eval()
    value, reward = (ScalarModel(copy.deepcopy(reference.body), seed=k).eval() for k in (1, 2))
    rollout = collect(policy, reference, value, reward, PROMPTS, CONFIG, torch.Generator().manual_seed(0))
    rollout.mask = torch.arange(8)[None] < torch.tensor([8, 3, 1, 5, 8, 6, 2, 4])[:, None]  # answers of all lengths
    for name in ("logprobs", "reference_logprobs", "values"):
        setattr(rollout, name, getattr(rollout, name) * rollout.mask)
    slow_policy, slow_value = copy.deepcopy(policy), copy.deepcopy(value)
    slow_update(slow_policy, slow_value, rollout, torch.Generator().manual_seed(5))
    learner = Learner(policy, value, CONFIG)
    estimate_advantages(rollout, CONFIG.beta, CONFIG)
    before = torch.nn.utils.parameters_to_vector(policy.parameters()).detach().clone()
    metrics = ppo_update(learner, rollout, torch.Generator().manual_seed(5))
    moved = torch.nn.utils.parameters_to_vector(policy.parameters()).detach() - before
    assert 0 < metrics["clip_fraction"] < 1 and float(moved.abs().max()) > 1e-3
    for fast, slow in ((policy, slow_policy), (value, slow_value)):
        ours, theirs = (torch.nn.utils.parameters_to_vector(net.parameters()) for net in (fast, slow))
        torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=0)
