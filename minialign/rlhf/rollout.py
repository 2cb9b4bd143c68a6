r"""Rollouts: the policy answers prompts, and everything that PPO needs to know about the answers is written down once.

For B prompts: the sampled tokens and their log-probabilities under the policy as it was then, those of the frozen reference, the value
of each place, and the reward model's score of the whole answer. Details that matter:
    1. Exactly R tokens are sampled, at the temperature that everything is scored at; no top-k, no top-p, or the policy that is
       improved would not be the one that acted (test_rollout_logprobs_equal_a_full_pass).
    2. What stands after the end token is cut away before anything looks at it (test_what_stands_after_the_end_token_has_no_influence).
    3. Rows are shifted to the left edge first: with all padding on the right, a causal model needs no mask, which is faster.
    4. An answer that never ends is scored lower, in one of the two usual ways (test_both_conventions_for_a_missing_end).

Read next: ppo.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minialign.batching import pad
from minialign.generation import Generated, SamplingConfig, generate
from minialign.heads import LanguageModel, ScalarModel
from minialign.logprobs import token_logprobs
from minialign.rlhf.kl import k3
from minialign.tokenizer import END, Tokenizer


@dataclass
class Rollout:
    """B answers of R tokens, and what was known when they were sampled."""

    tokens: Tensor  # (B, T) prompt and response, padding on the right
    places: Tensor  # (B, R) where in T stands the token that predicts each response token
    response: Tensor  # (B, R) sampled ids; PAD after the end token
    mask: Tensor  # (B, R) true up to and with the end token
    logprobs: Tensor  # (B, R) log π of each token when it was sampled, nats
    reference_logprobs: Tensor  # (B, R) log π_ref, nats
    values: Tensor  # (B, R) V of the state before each token
    scores: Tensor  # (B,) reward model's score, missing ends penalised

    def take(self, rows: Tensor) -> Rollout:
        """The named rows as a smaller rollout."""
        return Rollout(**{name: value[rows] for name, value in vars(self).items()})


def shift_left(generated: Generated) -> tuple[Tensor, Tensor]:
    """Prompt and response side by side with all padding on the right.

    Returns:
        tokens (B, T) with T = longest prompt + R, and places (B, R): the index of the token that predicts response token t.
    """
    lengths = generated.prompt_mask.sum(dim=1)  # (B,)
    prompts = [row[keep] for row, keep in zip(generated.prompt, generated.prompt_mask)]
    tokens, _ = pad([torch.cat([prompt, response]).tolist() for prompt, response in zip(prompts, generated.response)])
    return tokens, lengths[:, None] - 1 + torch.arange(generated.response.shape[1])


def at_places(hidden: Tensor, places: Tensor) -> Tensor:
    """(B, R, D): the vectors of (B, T, D) that predict the response tokens."""
    return hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))


def response_logits(model: LanguageModel, tokens: Tensor, places: Tensor) -> Tensor:
    """(B, R, V) logits that predict the response tokens, and no others."""
    return model.logits(at_places(model.body(tokens), places))


def response_values(model: ScalarModel, tokens: Tensor, places: Tensor) -> Tensor:
    """(B, R) the value function at the places from which each response token is chosen."""
    return model.head(at_places(model.body(tokens), places)).squeeze(-1)


def penalise_missing_end(scores: Tensor, ended: Tensor, convention: str, amount: float) -> Tensor:
    """(B,) scores in which answers that never end count less.

    Args:
        convention: "replace" puts −amount in place of the score (OpenAI's released code); "subtract" takes amount off it (TRL).
    """
    lowered = scores - amount if convention == "subtract" else torch.full_like(scores, -amount)
    return torch.where(ended, scores, lowered)


@torch.no_grad()
def score_answers(reward: ScalarModel, tokens: Tensor, places: Tensor, mask: Tensor) -> Tensor:
    """(B,) reward-model scores, read at the last real token of each response."""
    last = places.gather(1, mask.sum(dim=1, keepdim=True) - 1) + 1  # (B, 1) its own place, one after the one that predicts it
    hidden = reward.body(tokens).gather(1, last[..., None].expand(-1, -1, reward.config.width))  # (B, 1, D)
    return reward.head(hidden).flatten()


@torch.no_grad()
def collect(
    policy: LanguageModel,
    reference: LanguageModel,
    value: ScalarModel,
    reward: ScalarModel,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    generator: torch.Generator,
    missing_end: tuple[str, float] = ("subtract", 1.0),
) -> Rollout:
    """Let the policy answer B prompts (lists of ids that begin with the begin token) and record what PPO needs.

    All models are put in evaluation mode for it: dropout would make the recorded log-probabilities those of another policy.
    """
    for model in (policy, reference, value, reward):
        model.eval()
    generated = generate(policy, prompts, sampling, generator)
    tokens, places = shift_left(generated)
    reference_logits = response_logits(reference, tokens, places)
    mask = generated.mask
    return Rollout(
        tokens=tokens,
        places=places,
        response=generated.response,
        mask=mask,
        logprobs=generated.logprobs,
        reference_logprobs=token_logprobs(reference_logits, generated.response, sampling.temperature) * mask,
        values=response_values(value, tokens, places) * mask,
        scores=penalise_missing_end(score_answers(reward, tokens, places, mask), generated.ended(), *missing_end),
    )


def rollout_metrics(rollout: Rollout, kl: float, beta: float) -> dict[str, float]:
    """What one rollout tells: score, KL by two estimators, lengths, ends."""
    lengths = rollout.mask.sum(dim=1)
    ended = rollout.response.gather(1, lengths[:, None] - 1).squeeze(1) == END
    return {
        "score": float(rollout.scores.mean()),
        "kl": kl,
        "kl_k3": float(k3(rollout.logprobs, rollout.reference_logprobs).sum(dim=1).mean()),
        "length": float(lengths.float().mean()),
        "ended": float(ended.float().mean()),
        "beta": beta,
    }


def show_rollout(rollout: Rollout, tokenizer: Tokenizer, advantages: Tensor, row: int = 0) -> str:
    """One answer as a table: token, log π, log π_ref, their difference, value, advantage; the score in the last line."""
    lines = [f"{'token':<14}{'log π':>9}{'log π_ref':>11}{'k1':>8}{'V':>8}{'Â':>8}"]
    for t in range(int(rollout.mask[row].sum())):
        policy, reference = float(rollout.logprobs[row, t]), float(rollout.reference_logprobs[row, t])
        name = repr(tokenizer.name(rollout.response[row, t]))
        value, advantage = float(rollout.values[row, t]), float(advantages[row, t])
        lines.append(f"{name:<14}{policy:>9.3f}{reference:>11.3f}{policy - reference:>8.3f}{value:>8.3f}{advantage:>8.3f}")
    ended = bool((rollout.response[row] == END).any())
    return "\n".join([*lines, f"score {float(rollout.scores[row]):.3f}, {'ended' if ended else 'cut off'}"])


@torch.no_grad()
def sampled_kl(
    policy: LanguageModel, reference: LanguageModel, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, generator: torch.Generator
) -> Tensor:
    """(N,) for each prompt one answer's log-ratio log π(y|x) − log π_ref(y|x), nats; its mean estimates KL(π ‖ π_ref) (kl.py, k1)."""
    parts = []
    for start in range(0, len(prompts), 64):
        generated = generate(policy, prompts[start : start + 64], sampling, generator)
        tokens, places = shift_left(generated)
        logits = response_logits(reference, tokens, places)
        reference_logprobs = token_logprobs(logits, generated.response, sampling.temperature)
        parts.append(((generated.logprobs - reference_logprobs) * generated.mask).sum(dim=1))
    return torch.cat(parts)
