r"""Group-relative policy optimisation: PPO without a value function, for rewards that can be checked. The policy
answers each prompt several times; an answer's advantage is by how much it beats the others of its group.

    Âᵢ = (rᵢ − mean r) / std r          r of the G answers to one prompt         Shao et al. 2024, §4.1.2
    L  = −E (1/G) Σᵢ (1/|yᵢ|) Σₜ [ min( ρ Âᵢ, clip(ρ, 1 − ε, 1 + ε) Âᵢ ) − β k3 ]      Shao et al. 2024, Eq. 3 and 4

Beside ppo.py: no value function, no reward model, no λ; one advantage for all tokens of an answer; the KL stands in the
loss, where its gradient is taken, and not in the reward. A reward that can be checked (one right answer, a format, a
sum) cannot be flattered as a reward model can. Options, each an answer to a fault of the equations above:

    scale="none"       no division by the std, which makes very easy and very hard prompts count most
    average="budget"   every token counts the same: 1/|yᵢ| makes long wrong answers cheap   both Liu et al. 2025, §3
    average="tokens"   the mean over all tokens of the step, for the same reason            Yu et al. 2025, §3.3
    clip_high          a larger ε upwards lets unlikely tokens grow                         Yu et al. 2025, §3.1
    drop_even          groups whose answers are all as good teach nothing and are left out  Yu et al. 2025, §3.2
    refresh            the reference becomes the policy every so many updates               Shao et al. 2024, Alg. 1

Details that matter:
    1. A group without variance has advantage 0, and not 0/0 (test_a_group_of_equal_rewards_teaches_nothing).
    2. The std is that of a sample, and 1e-4 is added to it, as TRL does (tests/parity/test_grpo.py).
    3. In the first step on a rollout all ratios are 1 and nothing is clipped; the gradient is still the policy's
       (test_ratios_are_1_in_the_first_step).
    4. Minibatches hold whole groups, so that a prompt is read once for all its answers.
    DEVIATION: dropped groups are not replaced by others; the step is smaller (Yu et al. sample until it is full).

Metrics, one line an update: `reward` mean · `pass_1`, `pass_8` share of prompts solved by one answer, by one of eight
(of G, where G is less) · `spread` mean std within groups · `even_groups` share of groups that teach nothing (near 1:
too easy or too hard) · `kl`, `kl_k3` nats per answer · `entropy` nats per token · `clip_fraction` · `policy_loss` ·
`ended` · `length` tokens.

Read next: dpo.py. Try it:  python -m minialign grpo --policy RUN --prompts FILE --check answer
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minialign.batching import Order
from minialign.generation import SamplingConfig, generate
from minialign.heads import LanguageModel
from minialign.logprobs import entropy, token_logprobs
from minialign.rlhf.kl import k1, k3, learner_and_reference
from minialign.rlhf.ppo import Rollout, step
from minialign.runs import processes
from minialign.runs.errors import UserError
from minialign.runs.files import place_of
from minialign.runs.resumable import ResumableLoop
from minialign.runs.run_folder import RunFolder
from minialign.runs.settings import check_ranges
from minialign.tokenizer import Tokenizer
from minialign.training import adamw

Check = Callable[[dict, str], float]  # (example with its "prompt", what was said) -> reward, 1.0 for right


@dataclass(frozen=True)
class GRPOConfig:
    """How the policy is optimised."""

    updates: int = 60  # rollouts, each followed by `epochs` passes over it
    prompts: int = 16  # prompts a rollout
    completions: int = 8  # G, answers to each of them
    new_tokens: int = 24  # R, tokens of an answer at most
    temperature: float = 1.0  # of sampling, and of every log-probability
    epochs: int = 1  # passes over one rollout
    minibatch: int = 64  # answers an optimizer step, whole groups
    learning_rate: float = 2e-4  # falling to 0
    beta: float = 0.04  # price of one nat of KL, in the loss
    clip: float = 0.2  # ε downwards, and upwards where clip_high is 0
    clip_high: float = 0.0  # ε upwards
    scale: str = "group"  # what advantages are divided by: group (its std) | none
    average: str = "answer"  # what the loss is a mean over: answer (1/|y| each) | tokens | budget (R each)
    drop_even: bool = False  # leave out groups whose answers are all as good
    refresh: int = 0  # updates after which the reference becomes the policy; 0: never
    seed: int = 0  # of prompts, samples and minibatches

    def __post_init__(self):
        counts = ("updates", "prompts", "new_tokens", "epochs", "minibatch")
        check_ranges(self, dict.fromkeys(counts, (1, math.inf)) | {"completions": (2, math.inf), "beta": (0, 1e6),
                     "refresh": (0, math.inf), "learning_rate": (0, 1), "temperature": (1e-6, 100), "clip": (1e-6, 1e6),
                     "clip_high": (0, 1e6)})
        for name, choices in (("scale", ("group", "none")), ("average", ("answer", "tokens", "budget"))):
            if getattr(self, name) not in choices:
                raise UserError(f"{name} is {getattr(self, name)!r}; choose {' or '.join(choices)}")
        if self.minibatch > self.prompts * self.completions or self.minibatch % self.completions:
            raise UserError(f"a minibatch of {self.minibatch} is no number of whole groups of a rollout of "
                            f"{self.prompts} prompts with {self.completions} answers; change --minibatch")


@torch.no_grad()
def collect(policy: LanguageModel, reference: LanguageModel, tokenizer: Tokenizer, examples: Sequence[dict],
            prompts: Sequence[Sequence[int]], check: Check, config: GRPOConfig, generator: torch.Generator) -> Rollout:
    """Let the policy answer B prompts (ids, the begin token first) G times each, and check every answer."""
    for model in (policy, reference):
        model.eval()  # dropout would make the recorded log-probabilities those of another policy
    sampling = SamplingConfig(config.new_tokens, config.temperature)
    prompts, examples = processes.own_part(prompts), processes.own_part(examples)  # several processes ask some each
    said = generate(policy, prompts, sampling, generator, completions=config.completions,
                    part=processes.join_processes())
    rollout = Rollout([list(prompt) for prompt in prompts], said.completion, said.mask, said.logprobs)
    logits = reference.logits(rollout.vectors(reference.body))  # (N, R, V)
    rollout.reference_logprobs = token_logprobs(logits, said.completion, config.temperature) * said.mask
    texts = [tokenizer.decode(ids) for ids in rollout.completion_ids()[0]]
    asked = [example for example in examples for _ in range(config.completions)]
    rollout.scores = torch.tensor([checked(check, example, text) for example, text in zip(asked, texts)],
                                  device=said.mask.device)  # (N,)
    return processes.gathered(rollout)


def checked(check: Check, example: dict, text: str) -> float:
    """The reward of an answer. Raises UserError where the checker fails or gives anything but a finite number."""
    try:
        reward = check(example, text.strip())
        number = float(reward)
    except Exception as error:  # a reader's own function may fail in any way
        raise UserError(f"the checker failed on the answer {text[:60]!r}: {error!r}", *place_of(example)) from None
    if not abs(number) < 1e18:  # a std squares it
        raise UserError(f"the checker gave {reward!r} for the answer {text[:60]!r}; it must give a number below 1e18",
                        *place_of(example))
    return number


def group_advantages(rewards: Tensor, scale: str = "group") -> Tensor:
    """(B, G) by how much each answer beats its group, in the group's standard deviations or as it is.

    Args:
        rewards: (B, G) of the G answers to each of B prompts.
    """
    rewards = rewards - rewards[:, :1]  # or the mean of equal ones would round to another number
    above = rewards - rewards.mean(dim=1, keepdim=True)
    return above / (rewards.std(dim=1, keepdim=True) + 1e-4) if scale == "group" else above


def token_losses(logprobs: Tensor, rollout_logprobs: Tensor, reference_logprobs: Tensor, advantages: Tensor,
                 config: GRPOConfig) -> tuple[Tensor, Tensor]:
    """(n, R) what stands in the brackets of Eq. 3 for each token, as a loss; and whether its ratio was clipped.

    Args:
        logprobs: (n, R) log π now; rollout_logprobs: (n, R) when sampled; reference_logprobs: (n, R) log π_ref.
        advantages: (n,) of each answer.
    """
    ratio, wanted = (logprobs - rollout_logprobs).exp(), advantages[:, None]
    clipped = ratio.clamp(1 - config.clip, 1 + (config.clip_high or config.clip))
    losses = torch.maximum(-wanted * ratio, -wanted * clipped)  # the loss of the smaller gain
    return losses + config.beta * k3(logprobs, reference_logprobs), -wanted * clipped > -wanted * ratio


def mean_loss(losses: Tensor, mask: Tensor, config: GRPOConfig) -> Tensor:
    """The mean of token losses (n, R) over the real tokens `mask` (n, R) that the configuration asks for."""
    summed = (losses * mask).sum(dim=1)  # (n,)
    if config.average == "answer":
        return (summed / mask.sum(dim=1)).mean()
    return summed.sum() / (mask.sum() if config.average == "tokens" else config.new_tokens * len(mask))


def grpo_update(policy: LanguageModel, optimizer: torch.optim.Optimizer, rollout: Rollout, config: GRPOConfig,
                generator: torch.Generator) -> dict[str, float]:
    """Improve the policy on a rollout, in random minibatches of whole groups; returns the metrics."""
    rewards = rollout.scores.view(len(rollout.prompts), -1)  # (B, G)
    rollout.advantages = group_advantages(rewards, config.scale).flatten()
    uneven = rewards.amax(dim=1) > rewards.amin(dim=1)  # (B,)
    groups = uneven.nonzero().flatten() if config.drop_even else torch.arange(len(rewards), device=rewards.device)
    sums, steps = Counter(), 0
    for _ in range(config.epochs):
        order = groups[torch.randperm(len(groups), generator=generator).to(groups.device)]
        for chosen in order.split(config.minibatch // config.completions) if len(groups) else ():
            part = rollout.take(processes.own_share(chosen))
            real = part.mask  # (n, R)
            logits = policy.logits(part.vectors(policy.body)[real])  # (M, V) the M real tokens in one line
            said = token_logprobs(logits, part.completion[real], config.temperature)
            logprobs = torch.zeros(real.shape, device=real.device).masked_scatter(real, said)
            losses, clipped = token_losses(logprobs, part.logprobs * real, part.reference_logprobs * real,
                                           part.advantages, config)
            counted = int(real.sum()) if config.average == "tokens" else len(real)
            loss = processes.weight_of_share(counted) * mean_loss(losses, real, config)
            step(optimizer, loss)
            clips, unsure = clipped[real].float(), entropy(logits.detach(), config.temperature)  # (M,) each
            sums.update(policy_loss=loss.item(), clip_fraction=processes.mean_of_all(clips).item(),
                        entropy=processes.mean_of_all(unsure).item())
            steps += 1
    return processes.averaged({name: sums[name] / max(1, steps) for name in ("policy_loss", "clip_fraction",
                                                                            "entropy")})


def pass_at_k(rewards: Tensor, k: int) -> float:
    """Share of prompts that one of k answers solves, without bias from n ≥ k answers of which c are right:
    1 − C(n − c, k) / C(n, k) (Chen et al. 2021, Eq. 1).

    Args:
        rewards: (B, n); an answer is right where its reward is at least 1.
    """
    n = rewards.shape[1]
    right = (rewards >= 1).sum(dim=1).tolist()
    return sum(1 - math.comb(n - c, k) / math.comb(n, k) for c in right) / len(right)


def rollout_metrics(rollout: Rollout, end: int) -> dict[str, float]:
    """What one rollout tells; `end`: id of the end token."""
    rewards = rollout.scores.view(len(rollout.prompts), -1)
    lengths = rollout.mask.sum(dim=1)
    ended = rollout.completion.gather(1, lengths[:, None] - 1).squeeze(1) == end
    ratios = k1(rollout.logprobs, rollout.reference_logprobs).sum(dim=1)  # (N,)
    numbers = {"reward": rewards, "spread": rewards.std(dim=1), "kl": ratios, "length": lengths.float(),
               "even_groups": (rewards.amax(dim=1) == rewards.amin(dim=1)).float(), "ended": ended.float(),
               "kl_k3": k3(rollout.logprobs, rollout.reference_logprobs).sum(dim=1)}
    found = {name: float(each.mean()) for name, each in numbers.items()}
    return found | {"pass_1": pass_at_k(rewards, 1), "pass_8": pass_at_k(rewards, min(8, rewards.shape[1]))}


def train_grpo(policy: LanguageModel, tokenizer: Tokenizer, examples: list[dict], prompts: list[list[int]],
               check: Check, config: GRPOConfig, run: RunFolder,
               label: str = "GRPO") -> tuple[LanguageModel, dict[str, float]]:
    """Optimise a copy of a policy for what a checker says. Returns the copy and the metrics of the last update.

    Args:
        policy: the SFT model, also the reference; where only a part of it may train, only that part does.
        examples: what is asked, with whatever the checker needs; prompts: their ids, the begin token first.
        check: rewards an answer; config: how; run: where metrics, checkpoints and the finished policy go.
    Raises:
        UserError: fewer prompts than a rollout, a checker that fails, or a loss that is not finite. Stopped: after
            Ctrl-C, all saved.
    """
    policy, reference = learner_and_reference(policy)
    optimizer = adamw(policy, config.learning_rate, 0.0, beta2=0.999, eps=1e-5)
    generator, order = torch.Generator().manual_seed(config.seed), Order(len(prompts), config.prompts, config.seed)
    with ResumableLoop(run, {"policy": policy, "reference": reference}, {"policy": optimizer}, {"rollout": generator},
                       {"last": {}}) as loop:
        for update in loop.steps(config.updates, label, "update"):
            asked = order(update)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * (1 - update / config.updates)
            rollout = collect(policy, reference, tokenizer, [examples[i] for i in asked], [prompts[i] for i in asked],
                              check, config, generator)
            with loop.kept_on_error("failed-rollout.safetensors", vars(rollout)):
                metrics = rollout_metrics(rollout, tokenizer.end)
                metrics |= grpo_update(policy, optimizer, rollout, config, generator)
            if config.refresh and (update + 1) % config.refresh == 0:
                reference.load_state_dict(policy.state_dict())
            loop.state["last"] = metrics
            loop.done(metrics, f"reward {metrics['reward']:.2f}, KL {metrics['kl']:.1f} nats")
        run.finish(policy.eval(), **loop.state["last"])
    return policy, loop.state["last"]
