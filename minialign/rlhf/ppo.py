r"""Proximal policy optimisation with a KL penalty: the policy learns what the reward model likes, and pays for leaving
the reference. In each update the policy answers prompts, each token gets its advantage, and policy and value learn.

    R(x, y) = r(x, y) − β log[π(y|x) / π_ref(y|x)]                                   Ziegler et al. 2019, §2, Eq. 2
    δₜ = rₜ + γ V(sₜ₊₁) − V(sₜ)                                                     Schulman et al. 2016, Eq. 10
    Âₜ = Σ_k (γλ)ᵏ δₜ₊ₖ,   computed backwards as Âₜ = δₜ + γλ Âₜ₊₁                  Schulman et al. 2016, Eq. 16
    L_π = −E min( ρ Â, clip(ρ, 1 − ε, 1 + ε) Â ),    ρ = π(yₜ) / π_rollout(yₜ)      Schulman et al. 2017, Eq. 7
    L_V = ½ E max( (V − G)², (clip(V, V_rollout ± ε) − G)² ),    G = Â + V_rollout  Ziegler et al. 2019, released code

Three policies meet here. The *policy* π learns. The *rollout* policy is π as it was when it sampled; ρ is taken against
it. The *reference* π_ref is the SFT model, frozen for good; the KL penalty is taken against it. λ = 1 waits for the end
(return minus value: unbiased, noisy); λ = 0 trusts the next value (TD error: biased, calm). Details that matter:
    1. Sampling is at the temperature that everything is scored at, without top-k and top-p, or the policy that is
       improved would not be the one that acted (test_rollout_logprobs_equal_a_full_pass).
    2. What stands after the end token is cut away (test_what_stands_after_the_end_token_has_no_influence), and V is 0
       there (test_gae_never_looks_past_the_end).
    3. A prompt is read once for all its completions (test_several_answers_to_a_prompt_are_those_of_several_prompts).
    4. The penalty falls on every token, the score on the last real one (test_the_score_stands_at_the_last_real_token).
    5. Advantages are whitened over the real tokens of the whole batch, never over padding
       (test_whitening_ignores_padding); returns are *raw* advantages plus values (test_returns_are_raw).
    6. No dropout: with learning rate 0 all ratios are 1 (test_ratios_are_1_before_the_first_step).
    7. The value function has a trunk of its own, which starts as the reward model's (Stiennon et al. 2020, §3.4), and a
       head of zeros (Ziegler et al. 2019): a reward head is right at the end of a completion only
       (test_the_value_function_starts_at_0_and_the_reference_never_moves).
    8. Adam with eps 1e-5, learning rate falling to 0 (Huang et al. 2024, details 19 and 21). TensorFlow's Adam adds eps
       elsewhere: its first steps differ by a factor of 1.03 for gradients of 1e-2, 29 for 1e-6.
    DEVIATION: there is no vf_coef: policy and value share no weight, and Adam is blind to a loss's scale.

Metrics, one line an update: `score` mean reward-model score, in its standard deviations on reference completions · `kl`
nats per completion, the sum of k1 (about 0 at first; one negative sample is noise, a mean that stays negative a bug) ·
`kl_k3` the same from k3 · `entropy` nats per token · `clip_fraction` tokens whose ratio was clipped (normal: below 0.2)
· `policy_loss`, `value_loss` · `explained_variance` of the returns by V · `ended` share of completions that end ·
`length` tokens · `beta` · `text_loss` nats per token of the pretraining text, if any is mixed in.

Read next: pretraining_mix.py. Try it:  python -m minialign ppo --policy RUN --reward RUN --prompts FILE
"""

import copy
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minialign.batching import Order
from minialign.generation import SamplingConfig, generate
from minialign.heads import LanguageModel, ScalarModel
from minialign.logprobs import entropy, masked_variance, predicting_vectors, token_logprobs, whiten
from minialign.rlhf.kl import KLPrice, k1, k3, learner_and_reference
from minialign.rlhf.pretraining_mix import PretrainingMix
from minialign.rlhf.reward_model import Ensemble, penalise_missing_end, score_completions
from minialign.runs import processes
from minialign.runs.errors import UserError
from minialign.runs.resumable import ResumableLoop
from minialign.runs.run_folder import RunFolder
from minialign.runs.settings import check_choices, check_ranges
from minialign.runs.tensors import check_finite
from minialign.tokenizer import END
from minialign.training import adamw


@dataclass(frozen=True)
class PPOConfig:
    """How the policy is optimised."""

    updates: int = 60  # rollouts, each followed by `epochs` passes over it
    prompts: int = 64  # prompts a rollout
    completions: int = 1  # completions to each of them; a prompt is read once for all its completions
    new_tokens: int = 40  # R, tokens of a completion at most
    temperature: float = 1.0  # of sampling, and of every log-probability
    epochs: int = 2  # passes over one rollout
    minibatch: int = 32  # completions an optimizer step
    learning_rate: float = 3e-4  # of the policy, falling to 0
    value_learning_rate: float = 3e-4  # of the value function, falling to 0
    beta: float = 0.1  # price of one nat of KL, in standard deviations of the score
    target_kl: float = 0.0  # nats per completion that beta is steered to; 0 keeps beta fixed
    horizon: int = 10_000  # completions in which beta may change by a fifth, when it is steered; a rollout's at least
    gamma: float = 1.0  # discount from one token to the next
    lam: float = 0.95  # λ of the advantage estimate
    clip: float = 0.2  # ε of the policy's ratio and of the value
    whiten_rewards: bool = False  # scale a rollout's rewards to std 1 (Ziegler et al. 2019; not Stiennon et al. 2020)
    missing_end: str = "replace"  # how a completion without an end is scored: subtract | replace
    missing_end_score: float = 3.0  # by how much less, or minus what, in standard deviations of the score
    value_warmup: int = 0  # first updates in which the value function learns alone
    seed: int = 0  # of prompts, samples and minibatches

    def __post_init__(self):
        counts = ("updates", "prompts", "completions", "new_tokens", "epochs", "minibatch", "horizon")
        amounts = ("beta", "target_kl", "missing_end_score", "value_warmup")
        shares = ("learning_rate", "value_learning_rate", "gamma", "lam")
        check_ranges(self, dict.fromkeys(counts, (1, math.inf)) | dict.fromkeys(amounts, (0, 1e6))
                     | dict.fromkeys(shares, (0, 1)) | {"temperature": (1e-6, 100), "clip": (1e-6, 1e6)}
                     | ({"horizon": (self.prompts * self.completions, math.inf)} if self.target_kl else {}))
        check_choices(self, {"missing_end": ("subtract", "replace")})
        if self.target_kl and not self.beta:
            raise UserError("beta is 0, and steering it to target_kl multiplies it; give a --beta above 0")
        if self.minibatch > self.prompts * self.completions or self.minibatch % self.completions:
            raise UserError(f"a minibatch of {self.minibatch} is no number of whole prompts of a rollout of "
                            f"{self.prompts} prompts with {self.completions} completions; change --minibatch")


@dataclass
class Rollout:
    """N completions of at most R tokens, K to each of B prompts, and what is known about them (None: not yet)."""

    prompts: list[list[int]]  # (B,) ids
    completion: Tensor  # (N, R) sampled ids; PAD after the end token; the K completions of a prompt stand together
    mask: Tensor  # (N, R) true up to and with the end token
    logprobs: Tensor  # (N, R) log π of each token when it was sampled, nats
    reference_logprobs: Tensor | None = None  # (N, R) log π_ref, nats
    values: Tensor | None = None  # (N, R) V of the state before each token
    scores: Tensor | None = None  # (N,) reward model's score, missing ends penalised
    advantages: Tensor | None = None  # (N, R) Â, whitened
    returns: Tensor | None = None  # (N, R) G

    def completion_ids(self) -> tuple[list[list[int]], list[int]]:
        """N completions as lists of ids, and (N,) which prompt each of them goes on from."""
        of = torch.arange(len(self.prompts)).repeat_interleave(len(self.completion) // len(self.prompts))
        return [row[keep].tolist() for row, keep in zip(self.completion, self.mask)], of.tolist()

    def vectors(self, body: nn.Module) -> Tensor:
        """(N, R, D): the vectors of a decoder's stack from which each completion token is predicted."""
        return predicting_vectors(body, self.prompts, *self.completion_ids())[0]

    def take(self, prompts: Tensor) -> "Rollout":
        """The named prompts with their completions as a smaller rollout, no longer than its longest completion."""
        K = len(self.completion) // len(self.prompts)
        rows = (prompts[:, None] * K + torch.arange(K, device=prompts.device)).flatten().to(self.mask.device)
        longest = int(self.mask[rows].sum(dim=1).max())
        parts = {name: x[rows] for name, x in vars(self).items() if isinstance(x, Tensor)}
        parts = {name: x[:, :longest] if x.dim() == 2 else x for name, x in parts.items()}
        return Rollout([self.prompts[i] for i in prompts.tolist()], **parts)


@torch.no_grad()
def collect(policy: LanguageModel, reference: LanguageModel, value: ScalarModel, reward: ScalarModel | Ensemble,
            prompts: Sequence[Sequence[int]], config: PPOConfig, generator: torch.Generator) -> Rollout:
    """Let the policy answer B prompts (ids, the begin token first), and record what PPO needs. All models are put in
    evaluation mode: dropout would make the recorded log-probabilities those of another policy."""
    for model in (policy, reference, value, reward):
        model.eval()
    sampling = SamplingConfig(config.new_tokens, config.temperature)
    prompts, place = processes.own_part(prompts), processes.join_processes()  # several processes answer some each
    said = generate(policy, prompts, sampling, generator, completions=config.completions, part=place)
    rollout = Rollout([list(prompt) for prompt in prompts], said.completion, said.mask, said.logprobs)
    logits = reference.logits(rollout.vectors(reference.body))  # (N, R, V)
    rollout.reference_logprobs = token_logprobs(logits, said.completion, config.temperature) * said.mask
    rollout.values = value.head(rollout.vectors(value.body)).squeeze(-1) * said.mask
    scores = score_completions(reward, rollout.prompts, *rollout.completion_ids())
    rollout.scores = penalise_missing_end(scores, said.ended(), config.missing_end, config.missing_end_score)
    return processes.gathered(rollout)


def penalised_rewards(scores: Tensor, policy_logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor,
                      beta: float) -> Tensor:
    """(N, R) reward of each token (Ziegler et al. 2019, §2, Eq. 2): the KL penalty, and the score on the last one.

    Args:
        scores: (N,) reward-model scores, in units of their standard deviation on reference completions.
        policy_logprobs, reference_logprobs: (N, R) log-probabilities of the sampled tokens, nats.
        mask: (N, R) true for real completion tokens, the end token included; elsewhere rewards are 0.
        beta: price of one nat of KL, in units of `scores`.
    """
    rewards = -beta * k1(policy_logprobs, reference_logprobs)  # (N, R) of any sign
    last = mask.sum(dim=1, keepdim=True) - 1  # (N, 1)   index of the last real token
    return rewards.scatter_add(1, last, scores[:, None]).masked_fill(~mask, 0.0)  # (N, R)


def advantages_and_returns(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0,
                           lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation: by how much was each token better than expected? (N, R) each, 0 outside `mask`.

    Args:
        rewards: (N, R) of each token; values: (N, R) expected return before each token is said.
        mask: (N, R) true for real tokens, which stand first in each row; gamma: discount; lam: λ.
    """
    rewards, values = rewards.masked_fill(~mask, 0.0), values.masked_fill(~mask, 0.0)
    advantages, following = torch.zeros_like(values), torch.zeros_like(values[:, 0])  # (N,) that of the next token
    for t in reversed(range(rewards.shape[1])):
        next_value = values[:, t + 1] if t + 1 < rewards.shape[1] else 0.0
        delta = rewards[:, t] + gamma * next_value - values[:, t]  # Eq. 10
        following = delta + gamma * lam * following  # Eq. 16
        advantages[:, t] = following
    advantages = advantages.masked_fill(~mask, 0.0)
    return advantages, advantages + values


def estimate_advantages(rollout: Rollout, beta: float, config: PPOConfig) -> None:
    """Write the whitened advantages and the raw returns of each token into a rollout."""
    mask = rollout.mask
    rewards = penalised_rewards(rollout.scores, rollout.logprobs, rollout.reference_logprobs, mask, beta)
    if config.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False)
    advantages, rollout.returns = advantages_and_returns(rewards, rollout.values, mask, config.gamma, config.lam)
    rollout.advantages = whiten(advantages, mask)


def policy_loss(logprobs: Tensor, rollout_logprobs: Tensor, advantages: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """(...) clipped surrogate of each token, Schulman et al. 2017, Eq. 7, as a loss (so the *larger* of two counts);
    and whether its ratio was clipped away from where it wanted to go.

    Args:
        logprobs: (...) log π now; rollout_logprobs: (...) when sampled; advantages: (...) Â; clip: ε.
    """
    ratio = (logprobs - rollout_logprobs).exp()
    plain, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(plain, clipped), clipped > plain


def value_loss(values: Tensor, rollout_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """(...) half the squared error of V, the worse of it and of V clipped to within ε of the rollout's."""
    clipped = rollout_values + (values - rollout_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)


class Learner:
    """What PPO changes, taken over as it is, with its optimizers; and the text that is learned beside the reward."""

    def __init__(self, policy: LanguageModel, value: ScalarModel, config: PPOConfig, mix: PretrainingMix | None = None):
        self.policy, self.value, self.config, self.mix = policy, value, config, mix
        self.optimizers = {"policy": adamw(policy, config.learning_rate, 0.0, beta2=0.999, eps=1e-5),
                           "value": adamw(value, config.value_learning_rate, 0.0, beta2=0.999, eps=1e-5)}

    def set_learning_rates(self, update: int) -> None:
        """Both fall to 0; the policy's is 0 while the value function learns alone."""
        left, learns = 1 - update / self.config.updates, float(update >= self.config.value_warmup)
        for group in self.optimizers["policy"].param_groups:
            group["lr"] = self.config.learning_rate * learns * left
        for group in self.optimizers["value"].param_groups:
            group["lr"] = self.config.value_learning_rate * left


def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step, the gradient clipped to length 1. Raises UserError before the weights change when it is not finite."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    processes.average_gradients(optimizer)
    norm = nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    if not (math.isfinite(loss.item()) and math.isfinite(norm)):
        raise UserError(f"the loss is {loss.item()} and its gradient {float(norm)}; try a smaller --learning-rate or a "
                        f"larger --beta")
    optimizer.step()


def ppo_update(learner: Learner, rollout: Rollout, generator: torch.Generator) -> dict[str, float]:
    """Improve policy and value function on a rollout with advantages, in random minibatches; returns the metrics."""
    config, sums, steps = learner.config, Counter(), 0
    for _ in range(config.epochs):
        order = torch.randperm(len(rollout.prompts), generator=generator)
        for chosen in order.split(config.minibatch // config.completions):
            part = rollout.take(processes.own_share(chosen))
            real = part.mask  # (n, R); from here on the M real tokens stand in one line
            logits = learner.policy.logits(part.vectors(learner.policy.body)[real])  # (M, V)
            logprobs = token_logprobs(logits, part.completion[real], config.temperature)
            losses, clipped = policy_loss(logprobs, part.logprobs[real], part.advantages[real], config.clip)
            text = learner.mix.loss(learner.policy, generator) if learner.mix else None
            loss = processes.mean_of_all(losses)
            step(learner.optimizers["policy"], loss if text is None else loss + learner.mix.config.mix_weight * text)
            values = learner.value.head(part.vectors(learner.value.body)[real]).squeeze(-1)  # (M,)
            error = processes.mean_of_all(value_loss(values, part.values[real], part.returns[real], config.clip))
            step(learner.optimizers["value"], error)
            told = {"policy_loss": loss, "value_loss": error, "clip_fraction": processes.mean_of_all(clipped.float()),
                    "entropy": processes.mean_of_all(entropy(logits.detach(), config.temperature))}
            sums.update({name: x.item() for name, x in (told | ({"text_loss": text} if learner.mix else {})).items()})
            steps += 1
    left, whole = (masked_variance(x, rollout.mask) for x in (rollout.returns - rollout.values, rollout.returns))
    explained = 1 - float(left / whole.clamp(min=1e-8))
    return processes.averaged({name: total / steps for name, total in sums.items()}) | {"explained_variance": explained}


def rollout_metrics(rollout: Rollout, beta: float, end: int = END) -> dict[str, float]:
    """What one rollout tells; `end`: the end token's id. Raises UserError when a score or a log-ratio is not finite."""
    ratios = k1(rollout.logprobs, rollout.reference_logprobs).sum(dim=1)  # (N,)
    check_finite(score=rollout.scores, KL=ratios)
    lengths = rollout.mask.sum(dim=1)
    ended = rollout.completion.gather(1, lengths[:, None] - 1).squeeze(1) == end
    numbers = {"score": rollout.scores, "kl": ratios, "length": lengths.float(), "ended": ended.float(),
               "kl_k3": k3(rollout.logprobs, rollout.reference_logprobs).sum(dim=1)}
    return {name: float(each.mean()) for name, each in numbers.items()} | {"beta": beta}


def train_ppo(policy: LanguageModel, reward: ScalarModel | Ensemble, prompts: list[list[int]], config: PPOConfig,
              run: RunFolder, label: str = "PPO", watch: Callable[..., dict[str, float]] | None = None,
              mix: PretrainingMix | None = None) -> tuple[LanguageModel, dict[str, float]]:
    """Optimise a copy of a policy against a reward model; the reference is the policy. Returns the copy and the metrics
    of the last update.

    Args:
        policy: the SFT model. Where only a part of it may train, such as a LoRA, only that part does.
        reward: a normalised reward model, or several as one; prompts: lists of ids, the begin token first.
        config: how; run: where metrics, checkpoints and the finished policy go; label: name of the progress bar.
        watch: sees each rollout, which prompts it answered, and the policy afterwards; it only adds to the log.
        mix: text that is learned beside the reward, PPO-ptx; None for plain PPO.
    Raises:
        UserError: fewer prompts than a rollout, a completion that does not fit the context, or a score, KL or loss that
            is not finite: the rollout is left in the run folder. Stopped: after Ctrl-C, all saved.
    """
    policy, reference = learner_and_reference(policy)
    value = ScalarModel(copy.deepcopy(reward.body), head_std=0.0).requires_grad_(True)
    learner, generator = Learner(policy, value, config, mix), torch.Generator().manual_seed(config.seed)
    order = Order(len(prompts), config.prompts, config.seed)  # by chance alone: rollouts sorted by length would differ
    with ResumableLoop(run, {"policy": policy, "value": value}, learner.optimizers, {"rollout": generator},
                       {"beta": config.beta, "last": {}}) as loop:
        price = KLPrice(loop.state["beta"], config.target_kl, config.horizon)
        for update in loop.steps(config.updates, label, "update"):
            asked = order(update)
            learner.set_learning_rates(update)
            rollout = collect(policy, reference, value, reward, [prompts[i] for i in asked], config, generator)
            with loop.kept_on_error("failed-rollout.safetensors", vars(rollout)):
                metrics = rollout_metrics(rollout, price.beta, policy.special.end)
                estimate_advantages(rollout, price.beta, config)
                metrics |= ppo_update(learner, rollout, generator)
            price.update(metrics["kl"], len(rollout.scores))
            metrics |= watch(rollout, [i for i in asked for _ in range(config.completions)], policy) if watch else {}
            loop.state.update(beta=price.beta, last=metrics)
            loop.done(metrics, f"score {metrics['score']:+.2f}, KL {metrics['kl']:.1f} nats")
        run.finish(policy.eval(), **loop.state["last"])
    return policy, loop.state["last"]
