r"""Best of n: sample n completions, keep the one that the reward model likes best. No training; n times the work a
completion.

    KL(best of n ‖ π_ref) = log n − (n − 1) / n      nats per completion                   Stiennon et al. 2020, App. G

The formula is an upper bound when two completions can tie. Best of n is the yardstick for PPO: an optimised policy
should beat it at the same KL, or say that it does not.

Read next: grpo.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minialign.evaluation import Interval, mean_interval
from minialign.generation import SamplingConfig, continue_texts
from minialign.heads import LanguageModel, ScalarModel
from minialign.rlhf.reward_model import Ensemble, completion_rows, score_rows
from minialign.runs.errors import UserError
from minialign.tokenizer import Tokenizer


def best_of_n_kl(n: int) -> float:
    """KL of the best of n from the policy that was sampled, nats: log n − (n − 1)/n."""
    if n < 1:
        raise UserError(f"n is {n}; it must be at least 1")
    return math.log(n) - (n - 1) / n


def sample_and_score(policy: LanguageModel, reward: ScalarModel | Ensemble, tokenizer: Tokenizer,
                     prompts: Sequence[str], n: int, sampling: SamplingConfig,
                     generator: torch.Generator) -> tuple[list[list[str]], Tensor]:
    """n completions to each of P prompts, P lists of n texts; and their scores (P, n)."""
    repeated = [prompt for prompt in prompts for _ in range(n)]
    completions = continue_texts(policy, tokenizer, repeated, sampling, generator)
    scores = score_rows(reward, completion_rows(tokenizer, repeated, completions,
                                                reward.config.context)).view(len(prompts), n)
    return [completions[i * n : (i + 1) * n] for i in range(len(prompts))], scores


def best_of(completions: list[list[str]], scores: Tensor, n: int) -> tuple[list[str], Tensor]:
    """The best of the first n completions to each prompt, and (P,) its score: one sampling serves every smaller n."""
    best = scores[:, :n].argmax(dim=1, keepdim=True)  # (P, 1)
    return [row[i] for row, (i,) in zip(completions, best.tolist())], scores.gather(1, best).squeeze(1)


@dataclass(frozen=True)
class Beside:
    """A policy and its rival on the same prompts."""

    policy: Interval  # mean score of the policy's completions
    rival: Interval  # mean score of the best of n completions of the reference
    kl: float  # of the rival from the reference, nats, at most


def beside_best_of_n(policy: LanguageModel, reference: LanguageModel, reward: ScalarModel | Ensemble,
                     tokenizer: Tokenizer, prompts: Sequence[str], n: int, sampling: SamplingConfig,
                     seed: int) -> Beside:
    """What the reward model says of a policy and of the best of n completions of its reference, with intervals over
    prompts (two at least). The same model scores both: this says who found more of what it likes, not what that is
    worth."""
    scores = [sample_and_score(model, reward, tokenizer, prompts, count, sampling,
                               torch.Generator().manual_seed(seed + place))[1].amax(dim=1).tolist()
              for place, (model, count) in enumerate(((policy, 1), (reference, n)))]
    return Beside(*map(mean_interval, scores), best_of_n_kl(n))
