r"""Direct preference optimisation: learn from comparisons without a reward model and without sampling; the policy is
the reward model.

    r̂(x, y) = β log[π(y|x) / π_ref(y|x)]                             Rafailov et al. 2023, §4, Eq. 5 (without β log Z)
    L = −E log σ(r̂(x, y_chosen) − r̂(x, y_rejected))                                 Rafailov et al. 2023, §4, Eq. 7
    L_c = (1 − ε) L + ε L with the two completions exchanged                             Mitchell 2023, conservative DPO
    L_IPO = E( h − 1/(2β) )²,  h = the gap of log(π/π_ref), each a mean over tokens      Azar et al. 2024, Eq. 17 (β: τ)

The first loss never has enough: where people always agree, the best gap is infinite, whatever β. IPO wants the gap to
be 1/(2β) and no more.

The policy that maximises E[r] − β KL(π ‖ π_ref), PPO's objective, is π*(y|x) = π_ref(y|x) exp(r(x, y)/β) / Z(x).
Solved for r and put into the reward model's loss, Z falls out, and what is left is a loss on the policy itself.

Why do the chosen completions grow less likely? That is no bug: the loss sees the *gap* of two log-ratios, and a gap
also opens when both fall and the rejected one falls faster. They must fall: over completions that π_ref wrote, the mean
of log(π/π_ref) is −KL(π_ref ‖ π) ≤ 0, so with Δ the mean gap, chosen ones move by Δ/2 − KL and rejected ones by −Δ/2 −
KL (test_the_chosen_rise_by_half_the_gap_less_the_kl). What both lose goes to completions that nobody compared, good or
bad: that is how DPO is over-optimised. Watch `chosen`: a few nats are normal; tens mean that β or the learning rate is
wrong. Details that matter:
    1. At the start both are the same model, and no dropout tells them apart: every gap is 0 and the loss log 2
       (test_before_the_first_step_the_loss_is_log_2).
    2. Log-probabilities are *sums* over a completion's tokens, its end token included, never means
       (test_answer_logprobs_obey_the_chain_rule).
    3. The reference is read once and never moves (test_the_reference_is_read_once_and_never_moves).
    4. The pairs of a prompt are one element, as in the reward model: every prompt weighs the same.
    5. `imitation` adds the chosen completions' own loss, per token, which holds them up (Pang et al. 2024, §2, Eq. 1).

Metrics beside those of training.py, on held-out pairs: `validation` the loss without imitation, nats · `accuracy`
share of pairs with a positive gap (½ for none) · `chosen`, `rejected` mean log(π/π_ref) of those completions, nats ·
`gap` mean of the difference r̂(chosen) − r̂(rejected), in units of the reward (all three of sums, for IPO too).

Read next: kto.py. See also: ppo.py, which samples.
Try it:  python -m minialign dpo --policy RUN --comparisons FILE.jsonl
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minialign.heads import LanguageModel, evaluating
from minialign.logprobs import completion_logprobs
from minialign.rlhf.kl import learner_and_reference
from minialign.rlhf.ranked import Comparisons, Ranked, RankedBatch
from minialign.rlhf.reward_model import pair_accuracy
from minialign.runs.devices import device_of, in_half, moved
from minialign.runs.errors import UserError
from minialign.runs.run_folder import RunFolder
from minialign.runs.settings import check_choices, check_ranges
from minialign.training import TrainingConfig, train

DPO = TrainingConfig(steps=150, batch=32, learning_rate=3e-4, warmup=0.1, weight_decay=0.0, validate_every=25)


@dataclass(frozen=True)
class DPOConfig:
    """How a policy learns from comparisons."""

    beta: float = 0.1  # price of one nat of KL, in units of the reward; larger stays closer to the reference
    label_smoothing: float = 0.0  # share of choices that are taken to be mistakes, below one half
    imitation: float = 0.0  # weight of the chosen completions' own loss per token; 0 is plain DPO
    loss: str = "sigmoid"  # sigmoid (DPO) | ipo

    def __post_init__(self):
        check_ranges(self, {"beta": (1e-6, 1e6), "label_smoothing": (0, 0.499), "imitation": (0, 1e6)})
        check_choices(self, {"loss": ("sigmoid", "ipo")})
        if self.loss == "ipo" and self.label_smoothing:
            raise UserError("label_smoothing belongs to the loss sigmoid; IPO has a bounded gap instead")


def dpo_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    r"""(P,) loss of each pair, nats: −(1 − ε) log σ(βΔ) − ε log σ(−βΔ), Rafailov et al. 2023, Eq. 7; Mitchell 2023.

    Args:
        chosen_logratios, rejected_logratios: (P,) log π(y|x) − log π_ref(y|x), nats, summed over the completion.
        beta: price of one nat; label_smoothing: ε.
    """
    gap = beta * (chosen_logratios - rejected_logratios)  # (P,) r̂(x, y_chosen) − r̂(x, y_rejected)
    return -(1 - label_smoothing) * F.logsigmoid(gap) - label_smoothing * F.logsigmoid(-gap)


def ipo_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, beta: float) -> Tensor:
    r"""(P,) squared distance of each pair's gap from 1/(2β), nats², Azar et al. 2024, Eq. 17.

    Args:
        chosen_logratios, rejected_logratios: (P,) log π(y|x) − log π_ref(y|x), nats a token: the mean over the
            completion, as the authors advised TRL to take it; the paper's own examples have no tokens.
    """
    return (chosen_logratios - rejected_logratios - 1 / (2 * beta)) ** 2


def pair_losses(ratios: Tensor, batch: RankedBatch, config: DPOConfig) -> Tensor:
    """(P,) loss of each pair of a batch by the configuration; `ratios`: (N,) log π − log π_ref, summed, nats."""
    if config.loss == "ipo":
        ratios = ratios / ratios.new_tensor([len(completion) for completion in batch.completions])
        return ipo_loss(ratios.index_select(0, batch.chosen), ratios.index_select(0, batch.rejected), config.beta)
    chosen, rejected = ratios.index_select(0, batch.chosen), ratios.index_select(0, batch.rejected)
    return dpo_loss(chosen, rejected, config.beta, config.label_smoothing)


def total_logprobs(model: LanguageModel, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]],
                   of: Sequence[int]) -> Tensor:
    """(N,) log π(completion | prompt), nats, the end token included; without dropout. `of` (N,) says which prompt each
    goes on from."""
    with evaluating(model):
        return completion_logprobs(model, prompts, completions, of)[0].sum(dim=1)


def batch_logprobs(model: LanguageModel, batch: RankedBatch) -> Tensor:
    """(N,) the same of a batch's completions."""
    return total_logprobs(model, batch.prompts, batch.completions, batch.of)


@torch.no_grad()
def reference_logprobs(reference: LanguageModel, data: Comparisons) -> list[Tensor]:
    """For each prompt (K,) log π_ref of its completions, nats: computed once, since the reference never moves."""
    found = torch.cat([batch_logprobs(reference, batch) for batch in data.in_order()])
    return list(found.split([len(ranked.completions) for ranked in data.ranked]))


def logratios(policy: LanguageModel, batch: RankedBatch, known: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(N,) log π of the batch's completions, and (N,) log π − log π_ref, nats; `known` is from `reference_logprobs`."""
    logprobs = batch_logprobs(policy, batch)
    return logprobs, logprobs - torch.cat([known[row] for row in batch.rows])


def batch_loss(policy: LanguageModel, batch: RankedBatch, known: list[Tensor], config: DPOConfig) -> Tensor:
    """Sum over prompts of the mean loss of their pairs, nats."""
    logprobs, ratios = logratios(policy, batch, known)
    losses = pair_losses(ratios, batch, config)  # (P,)
    if config.imitation:
        a_token = logprobs / logprobs.new_tensor([len(completion) for completion in batch.completions])
        losses = losses - config.imitation * a_token.index_select(0, batch.chosen)  # Pang et al. 2024, Eq. 1
    return (batch.weights * losses).sum()


@torch.no_grad()
def evaluate_dpo(policy: LanguageModel, data: Comparisons, known: list[Tensor], config: DPOConfig) -> dict[str, float]:
    """The metrics on all pairs, each counted once."""
    both, losses = [], []
    for batch in data.in_order():
        batch = moved(batch, policy)
        _, ratios = logratios(policy, batch, known)
        both.append(torch.stack([ratios[batch.chosen], ratios[batch.rejected]]))
        losses.append(pair_losses(ratios, batch, config))
    (chosen, rejected), losses = torch.cat(both, dim=1), torch.cat(losses)  # (P,) each
    return {"validation": float(losses.mean()), "accuracy": pair_accuracy(chosen, rejected),
            "chosen": float(chosen.mean()), "rejected": float(rejected.mean()),
            "gap": config.beta * float((chosen - rejected).mean())}


def train_dpo(policy: LanguageModel, ranked: list[Ranked], valid: list[Ranked], config: DPOConfig,
              training: TrainingConfig, run: RunFolder, label: str = "DPO") -> tuple[LanguageModel, dict[str, float]]:
    """Optimise a copy of a policy on comparisons, with the policy itself as the frozen reference. Returns the copy and
    the last metrics on `valid`.

    Args:
        policy: the SFT model. Where only a part of it may train, such as a LoRA, only that part does.
        ranked, valid: from `ranked_rows`; they share no prompt.
        config, training: how; run: where metrics, checkpoints and the finished policy go; label: of the progress bar.
    Raises:
        UserError: a loss that is not finite; the last checkpoint is kept. Stopped: after Ctrl-C, all saved.
    """
    learner, reference = learner_and_reference(policy)
    data, held_out = Comparisons(ranked, training.batch, training.seed), Comparisons(valid, 1, seed=0)
    with in_half(device_of(policy), training.bf16):  # as the policy's own will be
        known = reference_logprobs(reference, data)
    known_of_valid = reference_logprobs(reference, held_out)

    def loss(model: LanguageModel, batch: RankedBatch) -> Tensor:
        return batch_loss(model, batch, known, config)

    def validate(model: LanguageModel) -> dict[str, float]:
        return evaluate_dpo(model, held_out, known_of_valid, config)

    return learner, train(learner, data, loss, training, run, validate, label)
