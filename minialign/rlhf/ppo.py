r"""Proximal policy optimisation with a KL penalty: the policy learns what the reward model likes, and pays for leaving
the reference.

    R(x, y) = r(x, y) − β log[π(y|x) / π_ref(y|x)]                                      Ziegler et al. 2019, §2.2, Eq. 2
    L_π = −E min( ρ Â, clip(ρ, 1 − ε, 1 + ε) Â ),    ρ = π(yₜ) / π_rollout(yₜ)           Schulman et al. 2017, Eq. 7
    L_V = ½ E max( (V − G)², (clip(V, V_rollout ± ε) − G)² )                          Ziegler et al. 2019, released code

Three policies meet here; they are easily confused. The *policy* π learns. The *rollout* policy is π as it was when it
sampled; ρ is taken against it. The *reference* π_ref is the SFT model, frozen for good; the KL penalty is taken against
it. Details that matter:
    1. The penalty falls on every token, the score on the last real one (test_the_score_stands_at_the_last_real_token).
    2. No dropout, one temperature everywhere: with learning rate 0 all ratios are 1
       (test_ratios_are_1_before_the_first_step).
    3. Advantages are whitened over the real tokens of the whole batch, never over padding
       (test_whitening_ignores_padding).
    4. The policy loss is the mean over the real tokens of a minibatch.
    5. The value function has a trunk of its own, which starts as the reward model's (Stiennon et al. 2020, §3.4), and a
       head of zeros (Ziegler et al. 2019): a reward head is right at the end of an answer only, and elsewhere worse
       than 0 (test_the_value_function_starts_at_0_and_the_reference_never_moves).
    6. Adam with eps 1e-5, learning rate falling to 0 (Huang et al. 2024, details 19 and 21). TensorFlow's Adam adds eps
       elsewhere, which makes first steps differ where gradients are tiny: by a factor of 1.03 at 1e-2, 3.8 at 1e-4, 29
       at 1e-6.
    DEVIATION: there is no vf_coef: policy and value share no weight, and Adam is blind to a loss's scale.

Metrics, one line an update: `score` mean reward-model score, in its deviations on reference answers · `kl` nats per
answer, the sum of k1 that the penalty is made of (about 0 at first; one negative sample is noise, a mean that stays
negative a bug) · `kl_k3` the same from k3 · `entropy` nats per token · `clip_fraction` tokens whose ratio was clipped
(normal: below 0.2) · `value_loss` · `explained_variance` of the returns by V · `ended` share of answers that end ·
`length` tokens · `beta` · `text_loss` nats per token of the pretraining text, if any is mixed in.

Read next: pretraining_mix.py, hacking.py, best_of_n.py (the rival without training).
Try it:  python -m minialign ppo --policy RUN --reward RUN --prompts FILE
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from minialign.batching import Order
from minialign.generation import SamplingConfig
from minialign.heads import LanguageModel, ScalarModel
from minialign.logprobs import entropy, masked_variance, token_logprobs, whiten
from minialign.rlhf.ensemble import Ensemble
from minialign.rlhf.gae import advantages_and_returns
from minialign.rlhf.kl import k1
from minialign.rlhf.learner import Learner, check_finite, keep_for_a_look, learning_copy, step
from minialign.rlhf.pretraining_mix import PretrainingMix
from minialign.rlhf.rollout import Rollout, answer_vectors, collect, rollout_metrics
from minialign.runs.errors import UserError
from minialign.runs.run_folder import RunFolder
from minialign.runs.settings import check_ranges
from minialign.training import Stopped, interruptible


@dataclass(frozen=True)
class PPOConfig:
    """How the policy is optimised."""

    updates: int = 60  # rollouts, each followed by `epochs` passes over it
    prompts: int = 64  # prompts a rollout
    answers: int = 1  # answers to each of them; a prompt is read once for all its answers
    new_tokens: int = 40  # R, tokens of a response at most
    temperature: float = 1.0  # of sampling, and of every log-probability
    epochs: int = 2  # passes over one rollout
    minibatch: int = 32  # answers an optimizer step
    learning_rate: float = 3e-4  # of the policy, falling to 0
    value_learning_rate: float = 3e-4  # of the value function, falling to 0
    beta: float = 0.1  # price of one nat of KL, in deviations of the score
    target_kl: float = 0.0  # nats per answer that beta is steered to; 0 keeps beta fixed
    horizon: int = 10_000  # answers in which beta may change by a fifth, when it is steered
    gamma: float = 1.0  # discount from one token to the next
    lam: float = 0.95  # λ of the advantage estimate
    clip: float = 0.2  # ε of the policy's ratio and of the value
    # scale each rollout's rewards to deviation 1 (Ziegler et al. 2019 did, Stiennon et al. 2020 did not)
    whiten_rewards: bool = False
    missing_end: str = "replace"  # how an answer without an end is scored: subtract | replace
    missing_end_score: float = 3.0  # by how much less, or minus what, in deviations of the score
    value_warmup: int = 0  # first updates in which the value function learns alone
    seed: int = 0  # of prompts, samples and minibatches

    def __post_init__(self):
        counts = dict.fromkeys(("updates", "prompts", "answers", "new_tokens", "epochs", "minibatch", "horizon"),
                               (1, math.inf))
        shares = dict.fromkeys(("learning_rate", "value_learning_rate", "gamma", "lam"), (0, 1))
        others = {"temperature": (1e-6, 100), "clip": (1e-6, 1e6), **dict.fromkeys(("beta", "target_kl",
            "missing_end_score", "value_warmup"), (0, 1e6))}
        check_ranges(self, counts | shares | others)
        if self.missing_end not in ("subtract", "replace"):
            raise UserError(f"missing_end is {self.missing_end!r}; choose subtract or replace")
        if self.minibatch > self.prompts * self.answers or self.minibatch % self.answers:
            rollout = f"a rollout of {self.prompts} prompts with {self.answers} answers"
            raise UserError(f"a minibatch of {self.minibatch} is no number of whole prompts of {rollout}; change "
                            f"--minibatch")


def penalised_rewards(scores: Tensor, policy_logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor,
                      beta: float) -> Tensor:
    r"""Reward of each response token: the KL penalty everywhere, the score at the last real token.

    R(x, y) = r(x, y) − β log[π(y|x) / π_ref(y|x)]                      Ziegler et al. 2019, §2.2, Eq. 2

    Args:
        scores: (B,) reward-model scores, in units of their deviation on reference answers.
        policy_logprobs, reference_logprobs: (B, R) log-probabilities of the sampled tokens, nats.
        mask: (B, R) true for real response tokens, the end token included.
        beta: price of one nat of KL, in units of `scores`.
    Returns:
        (B, R) rewards; zero outside `mask`.
    """
    rewards = -beta * k1(policy_logprobs, reference_logprobs)  # (B, R)   may be positive for one sample
    last = mask.sum(dim=1, keepdim=True) - 1  # (B, 1)   index of the last real token
    return rewards.scatter_add(1, last, scores[:, None]).masked_fill(~mask, 0.0)  # (B, R)


def policy_loss(logprobs: Tensor, rollout_logprobs: Tensor, advantages: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Clipped surrogate of each token, Schulman et al. 2017, Eq. 7, as a loss (so the *larger* of the two counts).

    Args:
        logprobs: (...) log π now; rollout_logprobs: (...) when sampled; advantages: (...) Â.
        clip: ε.
    Returns:
        (...) losses, and whether each ratio was clipped away from where it wanted to go.
    """
    ratio = (logprobs - rollout_logprobs).exp()
    plain, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(plain, clipped), clipped > plain


def value_loss(values: Tensor, rollout_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """(...) half the squared error of each value, the worse of it and of the value clipped to within ε of the
    rollout's."""
    clipped = rollout_values + (values - rollout_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)


def ppo_update(learner: Learner, rollout: Rollout, config: PPOConfig, generator: torch.Generator) -> dict[str, float]:
    """Improve policy and value function on one rollout, `epochs` times over, in random minibatches. Returns the
    metrics."""
    rewards = penalised_rewards(rollout.scores, rollout.logprobs, rollout.reference_logprobs, rollout.mask,
                                learner.price.beta)
    if config.whiten_rewards:
        rewards = whiten(rewards, rollout.mask, shift_mean=False)
    advantages, returns = advantages_and_returns(rewards, rollout.values, rollout.mask, config.gamma, config.lam)
    whitened = whiten(advantages, rollout.mask)
    sums = {"policy_loss": 0.0, "value_loss": 0.0, "clip_fraction": 0.0, "entropy": 0.0}
    steps = 0
    for _ in range(config.epochs):
        for chosen in torch.randperm(len(rollout.prompts),
                                     generator=generator).split(config.minibatch // config.answers):
            part, rows = rollout.take(chosen), rollout.rows(chosen)
            real = part.mask  # (n, R); from here on the M real tokens stand in one line
            hidden = answer_vectors(learner.policy.body, part.prompts, part.response, real)
            logits = learner.policy.logits(hidden[real])  # (M, V)
            logprobs = token_logprobs(logits, part.response[real], config.temperature)
            losses, clipped = policy_loss(logprobs, part.logprobs[real], whitened[rows, : real.shape[1]][real],
                                          config.clip)
            text = learner.mix.loss(learner.policy, generator) if learner.mix else None
            step(learner.policy_optimizer, losses.mean() if text is None else losses.mean()
                 + learner.mix.config.mix_weight * text)
            values = learner.value.head(answer_vectors(learner.value.body, part.prompts, part.response,
                                                       real)[real]).squeeze(-1)
            losses_of_values = value_loss(values, part.values[real], returns[rows, : real.shape[1]][real], config.clip)
            step(learner.value_optimizer, losses_of_values.mean())
            with torch.no_grad():
                sums["policy_loss"] += float(losses.mean())
                sums["value_loss"] += float(losses_of_values.mean())
                sums["clip_fraction"] += float(clipped.float().mean())
                sums["entropy"] += float(entropy(logits, config.temperature).mean())
                if text is not None:
                    sums["text_loss"] = sums.get("text_loss", 0.0) + float(text)
            steps += 1
    unexplained = float(masked_variance(returns - rollout.values, rollout.mask)
                        / masked_variance(returns, rollout.mask).clamp(min=1e-8))
    return {name: total / steps for name, total in sums.items()} | {"explained_variance": 1 - unexplained}


def one_update(
    learner: Learner, reference: LanguageModel, reward: ScalarModel | Ensemble, prompts: list[list[int]],
    config: PPOConfig, run: RunFolder, done: int,
    generator: torch.Generator,
) -> tuple[Rollout, dict[str, float]]:  # fmt: skip
    """Answer some prompts and learn from the answers. Returns the rollout, and the metrics of `ppo_update`.

    Args:
        reference: the frozen policy that the KL is measured from; reward, config, run: as in `train_ppo`.
        prompts: those of this update; done: how many updates were made before.
    Raises:
        UserError: a score, a KL or a loss that is not finite; the rollout is left in the run folder.
    """
    learning = float(done >= config.value_warmup)
    for optimizer, rate in ((learner.policy_optimizer, config.learning_rate * learning),
                            (learner.value_optimizer, config.value_learning_rate)):
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = rate * (1 - done / config.updates)
    sampling, penalty = SamplingConfig(config.new_tokens, config.temperature), (config.missing_end,
        config.missing_end_score)
    rollout = collect(learner.policy, reference, learner.value, reward, prompts, sampling, generator, penalty,
                      config.answers)
    try:
        check_finite(rollout)
        return rollout, ppo_update(learner, rollout, config, generator)
    except UserError as error:
        raise UserError(f"update {done + 1}: {error}; the batch is in {keep_for_a_look(rollout, run.path)}",
                        run.path) from None


def train_ppo(
    policy: LanguageModel,
    reward: ScalarModel | Ensemble,
    prompts: list[list[int]],
    config: PPOConfig,
    run: RunFolder,
    label: str = "PPO",
    watch: Callable[[Rollout, list[int]], dict[str, float]] | None = None,
    mix: PretrainingMix | None = None,
) -> tuple[LanguageModel, dict[str, float]]:
    """Optimise a copy of a policy against a reward model, with the policy itself as the frozen reference.

    Args:
        policy: the SFT model; it becomes the reference and is not changed. Where only a part of it may train, such as a
            LoRA, only that part does.
        reward: a normalised reward model, or several as one.
        prompts: lists of ids that begin with the begin token.
        config: how; run: where metrics, checkpoints and the finished policy go.
        label: name of the progress bar.
        watch: sees each rollout and which prompts it answered; what it returns is logged and has no influence.
        mix: text that is learned beside the reward, PPO-ptx; None for plain PPO.
    Returns:
        The optimised policy, and the metrics of the last update.
    Raises:
        UserError: fewer prompts than a rollout, prompt and answer that do not fit the context, or a score, a KL or a
            loss that is not finite: the rollout is left in the run folder, and the last checkpoint as it was. Stopped:
            after Ctrl-C, all saved.
    """
    reference = copy.deepcopy(policy).eval().requires_grad_(False)
    value = ScalarModel(copy.deepcopy(reward.body), head_std=0.0)
    learner = Learner.start(learning_copy(policy), value.requires_grad_(True), config, mix)
    generator = torch.Generator().manual_seed(config.seed)
    # by chance alone: rollouts sorted by length would not be comparable
    order = Order(len(prompts), config.prompts, config.seed)
    modules = {"policy": learner.policy, "value": learner.value}
    optimizers = {"policy": learner.policy_optimizer, "value": learner.value_optimizer}
    state = run.load_checkpoint(modules, optimizers, {"rollout": generator}) or {"step": 0, "beta": config.beta,
        "last": {}}
    learner.price.beta = state["beta"]
    run.forget_after(state["step"])
    stop = False
    bar = tqdm(total=config.updates, initial=state["step"], desc=label, unit="update", disable=None)
    with interruptible() as interrupted, bar:
        while state["step"] < config.updates:
            names = order(state["step"])
            rollout, metrics = one_update(learner, reference, reward, [prompts[i] for i in names], config, run,
                                          state["step"], generator)
            kl = float(k1(rollout.logprobs, rollout.reference_logprobs).sum(dim=1).mean())
            learner.price.update(kl, config.prompts * config.answers)
            state["step"] += 1
            seen = watch(rollout, [i for i in names for _ in range(config.answers)]) if watch else {}
            state["last"] = rollout_metrics(rollout, kl, state["beta"]) | metrics | seen
            state["beta"] = learner.price.beta
            run.log({"step": state["step"], **state["last"]})
            last = state["step"] == config.updates
            stop = interrupted()  # asked once: a Ctrl-C that falls after this line waits for the next update
            if not last:  # an update takes so much longer than a checkpoint that none is worth losing
                run.save_checkpoint(modules, optimizers, {"rollout": generator}, state)
            bar.set_postfix_str(f"score {state['last']['score']:+.2f}, KL {kl:.1f} nats", refresh=False)
            bar.update()
            if stop and not last:
                raise Stopped(f"stopped at update {state['step']} of {config.updates}, saved in {run.path}; the same "
                              f"command goes on from there")
    learner.policy.eval()
    run.finish(learner.policy, **state["last"])
    if stop:
        raise Stopped(f"stopped after the last update, finished in {run.path}; the same command goes on from there")
    return learner.policy, state["last"]
