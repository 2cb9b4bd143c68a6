r"""How far the policy has moved from the reference: the KL divergence, three estimates of it, and its price.

    KL(π ‖ π_ref) = E_{y∼π} [ log π(y) − log π_ref(y) ]        in nats; never negative, 0 only when both are equal

One sample's log-ratio is an estimate of it and may well be negative: that is noise. A *mean* over many samples that
stays negative is a bug. With ρ = π_ref(y) / π(y) and y drawn from π (Schulman 2020, "Approximating KL divergence"):

    k1 = −log ρ                      unbiased, noisy, any sign                    what the reward is penalised with
    k2 = ½ (log ρ)²                  biased, never negative
    k3 = (ρ − 1) − log ρ             unbiased, never negative, less noisy         what is nice to watch

The direction matters: samples come from π, the model that moves; the reference is the frozen SFT model, never the
policy of the last rollout. Details that matter:
    1. E[k1] = E[k3] = KL, checked by enumerating a vocabulary (test_k1_and_k3_average_to_the_exact_kl).
    2. The adaptive price compares the KL summed over a sequence with its target, error clipped to ±0.2
       (test_adaptive_beta_follows_its_rule).
    3. What is frozen in a policy stays frozen while the rest learns
       (test_of_a_policy_with_a_lora_only_the_lora_is_optimised, test_dpo_trains_only_the_lora_of_a_policy_with_one).

Read next: ppo.py (where the price is paid).
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minialign.generation import SamplingConfig, generate
from minialign.heads import LanguageModel, evaluating
from minialign.logprobs import predicting_vectors, token_logprobs
from minialign.runs.errors import UserError


def k1(policy_logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """(...) log π − log π_ref of tokens drawn from π, nats; unbiased, any sign."""
    return policy_logprobs - reference_logprobs


def k2(policy_logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """(...) half the squared log-ratio, nats; biased, never negative."""
    return 0.5 * (policy_logprobs - reference_logprobs) ** 2


def k3(policy_logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """(...) ρ − 1 − log ρ with ρ = π_ref / π, nats; unbiased, never negative."""
    log_rho = reference_logprobs - policy_logprobs
    return log_rho.expm1() - log_rho


def exact_kl(policy_logits: Tensor, reference_logits: Tensor) -> Tensor:
    """(...) Σ_v π(v) (log π(v) − log π_ref(v)) of distributions in logits (..., V), nats."""
    policy, reference = policy_logits.log_softmax(dim=-1), reference_logits.log_softmax(dim=-1)
    return (policy.exp() * (policy - reference)).sum(dim=-1)


@dataclass
class KLPrice:
    r"""Beta, the price of one nat of KL: fixed, or steered towards a target.

    β ← β (1 + clip(KL / target − 1, ±0.2) · n / horizon)                   Ziegler et al. 2019, §2.2
    """

    beta: float  # the price now
    target: float = 0.0  # KL per sequence to steer to, nats; 0 keeps beta as it is
    horizon: int = 10_000  # episodes in which beta may change by a fifth

    def update(self, sequence_kl: float, episodes: int) -> None:
        """Move beta after `episodes` sequences whose mean summed KL was `sequence_kl` nats."""
        if self.target:
            error = max(-0.2, min(0.2, sequence_kl / self.target - 1))
            self.beta *= 1 + error * episodes / self.horizon


def learner_and_reference(policy: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Two copies of a policy: one that learns, all of it or what is free where some of it is frozen; and the reference,
    frozen for good."""
    learner, reference = copy.deepcopy(policy), copy.deepcopy(policy)
    partly_frozen = len({p.requires_grad for p in policy.parameters()}) == 2
    return learner if partly_frozen else learner.requires_grad_(True), reference.eval().requires_grad_(False)


@torch.no_grad()
def sampled_kl(policy: LanguageModel, reference: LanguageModel, prompts: Sequence[Sequence[int]],
               sampling: SamplingConfig, generator: torch.Generator) -> Tensor:
    """(N,) for each prompt one completion's log π(y|x) − log π_ref(y|x), nats (k1); its mean estimates KL(π ‖
    π_ref). Raises UserError for sampling that is greedy or cut off (top-k, top-p): then it estimates nothing."""
    if sampling.temperature == 0 or sampling.top_k or sampling.top_p < 1:
        raise UserError("a KL divergence is estimated from plain samples; use a temperature above 0, without top-k and "
                        "top-p")
    parts = []
    for start in range(0, len(prompts), 64):
        part = prompts[start : start + 64]
        said = generate(policy, part, sampling, generator)
        with evaluating(reference):
            vectors, _ = predicting_vectors(reference.body, part, said.ids(), range(len(part)))
        reference_logprobs = token_logprobs(reference.logits(vectors), said.completion, sampling.temperature)
        parts.append((k1(said.logprobs, reference_logprobs) * said.mask).sum(dim=1))
    return torch.cat(parts)
