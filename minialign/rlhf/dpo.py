r"""Direct preference optimisation: learn from comparisons without a reward model and without sampling; the policy is
the reward model.

    r̂(x, y) = β log[π(y|x) / π_ref(y|x)]                              Rafailov et al. 2023, §4, Eq. 5 (without β log Z)
    L = −E log σ(r̂(x, y_chosen) − r̂(x, y_rejected))                                    Rafailov et al. 2023, §4, Eq. 7
    L_c = (1 − ε) L + ε L with the two answers exchanged                                 Mitchell 2023, conservative DPO

The policy that maximises E[r] − β KL(π ‖ π_ref), PPO's objective, is π*(y|x) = π_ref(y|x) exp(r(x, y)/β) / Z(x). Solved
for r and put into the reward model's loss (Bradley & Terry), Z falls out, and what is left is a loss on the policy
itself. β is PPO's price of KL.

Why do the chosen answers grow less likely? That puzzles everybody, and is no bug: the loss sees the *gap* of two
log-ratios, and a gap also opens when both fall and the rejected one falls faster. They must fall: over answers that
π_ref wrote, the mean of log(π/π_ref) is −KL(π_ref ‖ π) ≤ 0, so with Δ the mean gap, chosen ones move by Δ/2 − KL and
rejected ones by −Δ/2 − KL. The chosen rise only while half the gap is more than the KL
(test_the_chosen_rise_by_half_the_gap_less_the_kl). What both lose goes to answers that nobody compared, good or bad:
nothing in the data says which, and that is how DPO is over-optimised. Watch `chosen`: a few nats are normal; tens mean
that β or the learning rate is wrong.
Details that matter:
    1. At the start both are the same model, and no dropout tells them apart: every gap is 0 and the loss log 2
       (test_before_the_first_step_the_loss_is_log_2).
    2. Log-probabilities are *sums* over an answer's tokens, its end token included, never means
       (test_answer_logprobs_obey_the_chain_rule).
    3. The reference never moves, so its log-probabilities are computed once
       (test_the_reference_is_read_once_and_never_moves).
    4. The pairs of a prompt are one element, as in the reward model: each answer is read once and every prompt weighs
       the same.
    5. `imitation` adds the chosen answers' own loss, per token, which holds them up (Pang et al. 2024, §3, Eq. 2; 0 is
       plain DPO).

Metrics beside those of training.py, on held-out pairs: `validation` the loss, nats · `accuracy` share of pairs with a
positive gap (½ for none) · `chosen`, `rejected` mean log(π/π_ref) of those answers, nats · `gap` mean of r̂(chosen) −
r̂(rejected), in units of the reward.

Read next: ppo.py, which samples. Try it:  python -m minialign dpo --policy RUN --comparisons FILE.jsonl
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minialign.heads import LanguageModel, evaluating, read_answers
from minialign.logprobs import token_logprobs
from minialign.rlhf.ranked import Comparisons, Ranked, RankedBatch
from minialign.rlhf.reward_model import pair_accuracy
from minialign.runs.run_folder import RunFolder
from minialign.runs.settings import check_ranges
from minialign.training import TrainingConfig, train

DPO = TrainingConfig(steps=150, batch=32, learning_rate=3e-4, warmup=0.1, weight_decay=0.0, validate_every=25)


@dataclass(frozen=True)
class DPOConfig:
    """How a policy learns from comparisons."""

    beta: float = 0.1  # price of one nat of KL, in units of the reward; larger stays closer to the reference
    label_smoothing: float = 0.0  # share of choices that are taken to be mistakes, below one half
    imitation: float = 0.0  # weight of the chosen answers' own loss per token; 0 is plain DPO

    def __post_init__(self):
        check_ranges(self, {"beta": (1e-6, 1e6), "label_smoothing": (0, 0.499), "imitation": (0, 1e6)})


def dpo_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    r"""(P,) loss of each pair, nats: −(1 − ε) log σ(βΔ) − ε log σ(−βΔ), Rafailov et al. 2023, Eq. 7; ε as in Mitchell
    2023.

    Args:
        chosen_logratios, rejected_logratios: (P,) log π(y|x) − log π_ref(y|x), nats, summed over the answer.
        beta: price of one nat.
        label_smoothing: ε.
    """
    gap = beta * (chosen_logratios - rejected_logratios)  # (P,) r̂(x, y_chosen) − r̂(x, y_rejected)
    return -(1 - label_smoothing) * F.logsigmoid(gap) - label_smoothing * F.logsigmoid(-gap)


def answer_logprobs(model: LanguageModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]],
                    of: Sequence[int]) -> Tensor:
    """(N,) log π(answer | prompt), nats: the sum over its tokens, the end token included; every prompt is read once.

    Args:
        prompts: B lists of ids, at least one each; answers: N lists of ids; of: (N,) which prompt each of them answers.
    """
    # each place predicts the next token of the answer
    read = [[prompts[p][-1], *answer[:-1]] for p, answer in zip(of, answers)]
    hidden, real = read_answers(model.body, [prompt[:-1] for prompt in prompts], read, of)  # (N, T, D), (N, T)
    said = torch.tensor([token for answer in answers for token in answer])  # (M,) all answers in one line
    logprobs = token_logprobs(model.logits(hidden[real]), said)  # (M,)
    return torch.zeros(real.shape).masked_scatter(real, logprobs).sum(dim=1)


class ReferenceLogprobs:
    """What the frozen reference thinks of each compared answer, computed once.

    Args:
        reference: the policy as it was at the start.
        ranked: the answers.
    """

    @torch.no_grad()
    def __init__(self, reference: LanguageModel, ranked: list[Ranked]):
        self.each: list[Tensor] = []  # for each prompt (K,) of its answers
        for start in range(0, len(ranked), 32):
            part = ranked[start : start + 32]
            of = [place for place, r in enumerate(part) for _ in r.answers]
            found = answer_logprobs(reference, [r.prompt for r in part], [answer for r in part for answer in r.answers],
                                    of)
            self.each += found.split([len(r.answers) for r in part])

    def of(self, batch: RankedBatch) -> Tensor:
        """(N,) log π_ref of the batch's answers, nats."""
        return torch.cat([self.each[row] for row in batch.rows])


def logratios(policy: LanguageModel, batch: RankedBatch, reference: ReferenceLogprobs) -> tuple[Tensor, Tensor]:
    """(N,) log π of the batch's answers, and (N,) log π − log π_ref, nats; without dropout, as the reference was
    read."""
    with evaluating(policy):
        logprobs = answer_logprobs(policy, batch.prompts, batch.answers, batch.of)
    return logprobs, logprobs - reference.of(batch)


def batch_loss(policy: LanguageModel, batch: RankedBatch, reference: ReferenceLogprobs, config: DPOConfig) -> Tensor:
    """Sum over prompts of the mean loss of their pairs, nats."""
    logprobs, ratios = logratios(policy, batch, reference)
    losses = dpo_loss(ratios.index_select(0, batch.chosen), ratios.index_select(0, batch.rejected), config.beta,
                      config.label_smoothing)  # (P,)
    if config.imitation:
        lengths = torch.tensor([len(answer) for answer in batch.answers])
        # Pang et al. 2024, Eq. 2
        losses = losses - config.imitation * (logprobs / lengths).index_select(0, batch.chosen)
    return (batch.weights * losses).sum()


@torch.no_grad()
def evaluate_dpo(policy: LanguageModel, data: Comparisons, reference: ReferenceLogprobs, config: DPOConfig) -> dict[str,
        float]:
    """The metrics on all pairs, each counted once."""
    both = []
    for start in range(0, len(data.ranked), 32):
        batch = data.batch(list(range(start, min(start + 32, len(data.ranked)))))
        _, ratios = logratios(policy, batch, reference)
        both.append(torch.stack([ratios[batch.chosen], ratios[batch.rejected]]))
    chosen, rejected = torch.cat(both, dim=1)  # (P,) each
    return {
        "validation": float(dpo_loss(chosen, rejected, config.beta, config.label_smoothing).mean()),
        "accuracy": pair_accuracy(chosen, rejected),
        "chosen": float(chosen.mean()),
        "rejected": float(rejected.mean()),
        "gap": config.beta * float((chosen - rejected).mean()),
    }


def train_dpo(
    policy: LanguageModel, ranked: list[Ranked], valid: list[Ranked], config: DPOConfig, training: TrainingConfig,
    run: RunFolder, label: str = "DPO"
) -> tuple[LanguageModel, dict[str, float]]:
    """Optimise a copy of a policy on comparisons, with the policy itself as the frozen reference.

    Args:
        policy: the SFT model; it becomes the reference and is not changed.
        ranked, valid: from `ranked_rows`; they share no prompt.
        config, training: how; run: where metrics, checkpoints and the finished policy go.
        label: name of the progress bar.
    Returns:
        The optimised policy, and the last metrics on `valid`.
    Raises:
        UserError: a loss that is not finite; the last checkpoint is kept. Stopped: after Ctrl-C, all saved.
    """
    reference = copy.deepcopy(policy).eval().requires_grad_(False)
    learner = copy.deepcopy(policy).requires_grad_(True)
    data, held_out = Comparisons(ranked, training.batch, training.seed), Comparisons(valid, 1, seed=0)
    known, known_of_valid = ReferenceLogprobs(reference, ranked), ReferenceLogprobs(reference, valid)
    def loss(model, batch):
        return batch_loss(model, batch, known, config)
    def validate(model):
        return evaluate_dpo(model, held_out, known_of_valid, config)
    return learner, train(learner, data, loss, training, run, validate, label)
