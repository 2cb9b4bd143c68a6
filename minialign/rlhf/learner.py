r"""What PPO changes, one step of it, and what is kept for a look when a step cannot be made.

Read next: ppo.py (the algorithm), pretraining_mix.py (what may be learned beside it).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from minialign.heads import LanguageModel, ScalarModel
from minialign.rlhf.kl import KLPrice, k1
from minialign.rlhf.pretraining_mix import PretrainingMix
from minialign.rlhf.rollout import Rollout
from minialign.runs.errors import UserError
from minialign.runs.files import write_atomic
from minialign.runs.tensors import tensor_file
from minialign.training import adamw

if TYPE_CHECKING:
    from minialign.rlhf.ppo import PPOConfig

FAILED = "failed-rollout.safetensors"


@dataclass
class Learner:
    """The policy, the value function, their optimizers, the price of KL, and the text that is learned beside the
    reward, if any."""

    policy: LanguageModel
    value: ScalarModel
    policy_optimizer: torch.optim.Optimizer
    value_optimizer: torch.optim.Optimizer
    price: KLPrice
    mix: PretrainingMix | None = None

    @classmethod
    def start(cls, policy: LanguageModel, value: ScalarModel, config: PPOConfig,
              mix: PretrainingMix | None = None) -> Learner:
        """A learner whose policy and value function are taken over as they are."""
        optimizers = (adamw(m, rate, 0.0, beta2=0.999, eps=1e-5) for m, rate in ((policy, config.learning_rate),
            (value, config.value_learning_rate)))
        return cls(policy, value, *optimizers, KLPrice(config.beta, config.target_kl, config.horizon), mix)


def learning_copy(policy: nn.Module) -> nn.Module:
    """A copy that learns: all of it, or, where some of it is frozen and some is not (a LoRA on a frozen model), what is
    free."""
    policy = copy.deepcopy(policy)
    free = [p.requires_grad for p in policy.parameters()]
    return policy if any(free) and not all(free) else policy.requires_grad_(True)


def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step of an optimizer, the gradient clipped to length 1. Raises UserError before the weights change when it is
    not finite."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    if not (math.isfinite(loss.item()) and math.isfinite(norm)):
        raise UserError(f"the loss is {loss.item()} and its gradient {float(norm)}; try a smaller --learning-rate or a "
                        f"larger --beta")
    optimizer.step()


def check_finite(rollout: Rollout) -> None:
    """Raise UserError when a score or a log-ratio of a rollout is not a finite number; names the first answer that has
    one."""
    ratios = (k1(rollout.logprobs, rollout.reference_logprobs) * rollout.mask).sum(dim=1)
    for name, numbers in (("score", rollout.scores), ("KL", ratios)):
        strange = (~numbers.isfinite()).nonzero().flatten().tolist()
        if strange:
            raise UserError(f"the {name} of answer {strange[0]} is {float(numbers[strange[0]])} ({len(strange)} of "
                            f"{len(numbers)} answers)")


def keep_for_a_look(rollout: Rollout, folder: Path) -> Path:
    """Write a rollout that could not be learned from to the run folder; returns the file."""
    names = ("response", "mask", "logprobs", "reference_logprobs", "values", "scores")
    path = Path(folder) / FAILED
    write_atomic(path, tensor_file({name: getattr(rollout, name) for name in names}, prompts=rollout.prompts))
    return path
