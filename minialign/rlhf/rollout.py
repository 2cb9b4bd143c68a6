r"""Rollouts: the policy answers prompts, and everything that PPO needs to know about the answers is written down once.

For B prompts, K answers to each, N = B K: the sampled tokens and their log-probabilities under the policy as it was
then, those of the frozen reference, the value of each place, and the reward model's score of the whole answer. Details
that matter:
    1. Exactly R tokens are sampled, at the temperature that everything is scored at; no top-k, no top-p, or the policy
       that is improved would not be the one that acted (test_rollout_logprobs_equal_a_full_pass).
    2. What stands after the end token is cut away before anything looks at it
       (test_what_stands_after_the_end_token_has_no_influence).
    3. A prompt is read once for all its answers, here and in every pass of PPO: all of it but its last token, which is
       the first one that predicts something (test_several_answers_to_a_prompt_are_those_of_several_prompts).
    4. An answer that never ends is scored lower, in one of the two usual ways
       (test_both_conventions_for_a_missing_end). A reward model has seen none and may like them: with 1 deviation taken
       off its score, a quarter of the toy policy's answers stopped ending within 60 updates.

Read next: ppo.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minialign.generation import SamplingConfig, generate
from minialign.heads import LanguageModel, ScalarModel, read_answers
from minialign.logprobs import token_logprobs
from minialign.rlhf.ensemble import Ensemble
from minialign.rlhf.kl import k3
from minialign.rlhf.reward_model import head_at_the_end
from minialign.tokenizer import END, Tokenizer


@dataclass
class Rollout:
    """N answers of at most R tokens, K to each of B prompts, and what was known when they were sampled."""

    prompts: list[list[int]]  # (B,) ids
    response: Tensor  # (N, R) sampled ids; PAD after the end token; the K answers of a prompt stand together
    mask: Tensor  # (N, R) true up to and with the end token
    logprobs: Tensor  # (N, R) log π of each token when it was sampled, nats
    reference_logprobs: Tensor  # (N, R) log π_ref, nats
    values: Tensor  # (N, R) V of the state before each token
    scores: Tensor  # (N,) reward model's score, missing ends penalised

    @property
    def answers(self) -> int:
        """K."""
        return len(self.scores) // len(self.prompts)

    def rows(self, prompts: Tensor) -> Tensor:
        """The rows of the named prompts' answers."""
        return (prompts[:, None] * self.answers + torch.arange(self.answers)).flatten()

    def take(self, prompts: Tensor) -> Rollout:
        """The named prompts with their answers as a smaller rollout, no longer than its longest answer."""
        rows = self.rows(prompts)
        longest = int(self.mask[rows].sum(dim=1).max())
        parts = {name: getattr(self, name)[rows, :longest] for name in ("response", "mask", "logprobs",
            "reference_logprobs", "values")}
        return Rollout(prompts=[self.prompts[i] for i in prompts.tolist()], scores=self.scores[rows], **parts)


def answer_vectors(body: nn.Module, prompts: Sequence[Sequence[int]], response: Tensor, mask: Tensor) -> Tensor:
    """(N, R, D): the vectors of a decoder's stack from which each response token is predicted.

    Args:
        body: a decoder's stack.
        prompts: B lists of ids, one id each at least.
        response: (N, R) ids, N / B answers to each prompt; mask: (N, R) true at real ones.
    """
    of = torch.arange(len(prompts)).repeat_interleave(len(response) // len(prompts))
    read = [[prompts[p][-1], *row[keep].tolist()[:-1]] for p, row, keep in zip(of.tolist(), response, mask)]
    hidden, _ = read_answers(body, [prompt[:-1] for prompt in prompts], read, of)  # (N, longest, D)
    return nn.functional.pad(hidden, (0, 0, 0, response.shape[1] - hidden.shape[1]))


def penalise_missing_end(scores: Tensor, ended: Tensor, convention: str, amount: float) -> Tensor:
    """(B,) scores in which answers that never end count less.

    Args:
        convention: "replace" puts −amount in place of the score (OpenAI's released code); "subtract" takes amount off
            it (TRL).
    """
    lowered = scores - amount if convention == "subtract" else torch.full_like(scores, -amount)
    return torch.where(ended, scores, lowered)


@torch.no_grad()
def score_answers(reward: ScalarModel | Ensemble, prompts: Sequence[Sequence[int]], response: Tensor,
                  mask: Tensor) -> Tensor:
    """(N,) reward-model scores, read at the last real token of each response (N, R)."""
    if isinstance(reward, Ensemble):
        return reward.together(lambda member: score_answers(member, prompts, response, mask))
    of = torch.arange(len(prompts)).repeat_interleave(len(response) // len(prompts))
    answers = [row[keep].tolist() for row, keep in zip(response, mask)]
    return head_at_the_end(reward, *read_answers(reward.body, prompts, answers, of))


@torch.no_grad()
def collect(
    policy: LanguageModel,
    reference: LanguageModel,
    value: ScalarModel,
    reward: ScalarModel | Ensemble,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    generator: torch.Generator,
    missing_end: tuple[str, float] = ("subtract", 1.0),
    answers: int = 1,
) -> Rollout:
    """Let the policy answer B prompts (lists of ids that begin with the begin token), K times each, and record what PPO
    needs.

    All models are put in evaluation mode for it: dropout would make the recorded log-probabilities those of another
    policy.
    """
    for model in (policy, reference, value, reward):
        model.eval()
    generated = generate(policy, prompts, sampling, generator, answers=answers)
    response, mask = generated.response, generated.mask
    reference_logits = reference.logits(answer_vectors(reference.body, prompts, response, mask))
    return Rollout(
        prompts=[list(prompt) for prompt in prompts],
        response=response,
        mask=mask,
        logprobs=generated.logprobs,
        reference_logprobs=token_logprobs(reference_logits, response, sampling.temperature) * mask,
        values=value.head(answer_vectors(value.body, prompts, response, mask)).squeeze(-1) * mask,
        scores=penalise_missing_end(score_answers(reward, prompts, response, mask), generated.ended(), *missing_end),
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
    """One answer as a table: token, log π, log π_ref, their difference, value, advantage; the score in the last
    line."""
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
    policy: LanguageModel, reference: LanguageModel, prompts: Sequence[Sequence[int]], sampling: SamplingConfig,
    generator: torch.Generator
) -> Tensor:
    """(N,) for each prompt one answer's log-ratio log π(y|x) − log π_ref(y|x), nats; its mean estimates KL(π ‖ π_ref)
    (kl.py, k1)."""
    parts = []
    for start in range(0, len(prompts), 64):
        part = prompts[start : start + 64]
        generated = generate(policy, part, sampling, generator)
        logits = reference.logits(answer_vectors(reference.body, part, generated.response, generated.mask))
        reference_logprobs = token_logprobs(logits, generated.response, sampling.temperature)
        parts.append(((generated.logprobs - reference_logprobs) * generated.mask).sum(dim=1))
    return torch.cat(parts)
