r"""The reward model: one number that says how much people would like an answer.

    P(chosen is preferred) = σ(r(x, y_chosen) − r(x, y_rejected))                Bradley & Terry 1952
    L = −E log σ(r(x, y_chosen) − r(x, y_rejected))                              Stiennon et al. 2020, §3.4

Only differences are learned, so the zero is arbitrary; and the loss saturates: a pair that is clearly right pulls no more. Literally
maximising the gap would grow without end. Details that matter:
    1. It starts from the SFT model, with a head N(0, 1/(D+1)) in place of the vocabulary (Ziegler et al. 2019, released code).
    2. The score is read at the last *real* token, the end token (test_the_score_does_not_depend_on_padding).
    3. log σ is computed as one function; log(σ(x)) is −∞ at x = −200 (test_the_loss_is_finite_for_hopeless_pairs).
    4. One epoch: a second look at the same pairs mostly learns them by heart (Stiennon et al. 2020, App. B.1).
    5. Afterwards the scores are shifted and scaled to mean 0, deviation 1 on answers of the reference, so that beta, the price of KL,
       means the same for every reward model (test_normalised_scores_have_mean_0_and_deviation_1). The head absorbs both numbers.

Read next: ppo.py. Try it:  python -m minialign reward --base RUN --comparisons FILE.jsonl
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minialign.batching import Order, demonstration_row, pad
from minialign.checkpoints import RunFolder
from minialign.errors import UserError
from minialign.heads import LanguageModel, ScalarModel, last_real
from minialign.tokenizer import Tokenizer
from minialign.training import TrainingConfig, train

REWARD = TrainingConfig(steps=150, batch=32, learning_rate=5e-4, weight_decay=0.01)


def bradley_terry_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """(B,) −log σ(r_chosen − r_rejected) from two (B,) scores, nats; log 2 when the model cannot tell."""
    return -F.logsigmoid(chosen - rejected)


def pair_accuracy(chosen: Tensor, rejected: Tensor) -> float:
    """Share of pairs in which the chosen answer scores higher; equal scores count one half."""
    return float(((chosen > rejected).float() + 0.5 * (chosen == rejected).float()).mean())


def scores_at_the_end(model: ScalarModel, tokens: Tensor, mask: Tensor) -> Tensor:
    """(B,) the score at each row's last real token; tokens and mask (B, T), padding on either side."""
    left = bool((~mask[:, 0]).any())  # padding on the right needs no mask: a causal reader never looks at it
    last = model.body(tokens, mask if left else None)[torch.arange(len(tokens)), last_real(mask)]  # (B, D)
    with torch.autocast("cpu", enabled=False):  # scores differ little: bfloat16's three digits would make ties of them
        return model.head(last.float()).squeeze(-1)


@dataclass
class PairBatch:
    """Pairs of answers. P pairs, T tokens."""

    tokens: Tensor  # (2P, T) the chosen ones, then the rejected ones
    mask: Tensor  # (2P, T) true at real tokens
    rows: list[int]  # (P,) which comparisons

    @property
    def count(self) -> int:
        """How many pairs: what the sum of losses is divided by."""
        return len(self.rows)

    @property
    def size(self) -> int:
        """Tokens read."""
        return self.tokens.numel()


class Pairs:
    """Comparisons as training data.

    Args:
        pairs: (ids of the chosen, ids of the rejected answer), each with its prompt, begin and end token.
        batch: pairs a step; seed: of their order.
    """

    def __init__(self, pairs: list[tuple[list[int], list[int]]], batch: int, seed: int):
        self.pairs, self.order = pairs, Order([max(len(c), len(r)) for c, r in pairs], batch, seed)

    def microbatches(self, step: int, parts: int) -> list[PairBatch]:
        """The step's pairs, in `parts` pieces."""
        chosen = self.order(step)
        return [self.batch(chosen[i::parts]) for i in range(min(parts, len(chosen)))]

    def batch(self, names: list[int]) -> PairBatch:
        """The named pairs as one batch."""
        tokens, mask = pad([self.pairs[i][0] for i in names] + [self.pairs[i][1] for i in names])
        return PairBatch(tokens, mask, names)


def pair_rows(
    tokenizer: Tokenizer, comparisons: list[dict], context: int, skip_long: bool = False, file: object = None
) -> tuple[list[tuple[list[int], list[int]]], int]:
    """Comparisons as pairs of rows of ids, and how many were left out as too long. Raises UserError for a long one otherwise."""
    prompts, chosen, rejected = (tokenizer.encode_many([c[field] for c in comparisons]) for field in ("prompt", "chosen", "rejected"))
    pairs, skipped = [], 0
    for comparison, p, c, r in zip(comparisons, prompts, chosen, rejected):
        rows = demonstration_row(tokenizer, p, c)[0], demonstration_row(tokenizer, p, r)[0]
        longest = max(map(len, rows))
        if longest > context and not skip_long:
            raise UserError(
                f"{longest} tokens do not fit the model's context of {context}; shorten it, or leave such lines out with --skip-long",
                file,
                comparison.get("line"),
            )
        if longest > context:
            skipped += 1
        else:
            pairs.append(rows)
    return pairs, skipped


def pair_scores(model: ScalarModel, batch: PairBatch) -> tuple[Tensor, Tensor]:
    """(P,) scores of the chosen and of the rejected answers, in one pass."""
    return scores_at_the_end(model, batch.tokens, batch.mask).chunk(2)


def reward_loss(model: ScalarModel, batch: PairBatch) -> Tensor:
    """Sum of the Bradley-Terry losses of a batch."""
    return bradley_terry_loss(*pair_scores(model, batch)).sum()


@torch.no_grad()
def evaluate_pairs(model: ScalarModel, data: Pairs) -> dict[str, float]:
    """{"validation": mean loss in nats, "accuracy": share of pairs ordered rightly} on all pairs."""
    scores = [pair_scores(model, data.batch(list(range(i, min(i + 64, len(data.pairs)))))) for i in range(0, len(data.pairs), 64)]
    chosen, rejected = (torch.cat([s[side] for s in scores]) for side in (0, 1))
    return {"validation": float(bradley_terry_loss(chosen, rejected).mean()), "accuracy": pair_accuracy(chosen, rejected)}


@torch.no_grad()
def score_rows(model: ScalarModel, rows: Sequence[Sequence[int]], batch: int = 64) -> Tensor:
    """(N,) scores of rows of ids (begin token, prompt, answer, end token)."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    scores = torch.zeros(len(rows))
    for start in range(0, len(order), batch):
        names = order[start : start + batch]
        scores[names] = scores_at_the_end(model, *pad([rows[i] for i in names]))
    return scores


def answer_rows(tokenizer: Tokenizer, prompts: Sequence[str], answers: Sequence[str]) -> list[list[int]]:
    """Prompts with their answers as rows that a reward model reads."""
    return [demonstration_row(tokenizer, p, a)[0] for p, a in zip(tokenizer.encode_many(list(prompts)), tokenizer.encode_many(list(answers)))]


def normalise(model: ScalarModel, rows: Sequence[Sequence[int]]) -> dict[str, float]:
    """Shift and scale the head so that these rows (answers of the reference) score with mean 0 and deviation 1.

    Returns:
        "reference_mean" and "reference_deviation": what they were before.
    Raises:
        UserError: all rows score the same, so there is no deviation to scale by.
    """
    scores = score_rows(model, rows)
    mean, deviation = float(scores.mean()), float(scores.std(correction=0))
    if not deviation > 1e-8:
        raise UserError(f"the reward model gives all {len(rows)} reference answers the same score, {mean:.3g}; it has learned nothing to optimise")
    with torch.no_grad():
        model.head.weight /= deviation
        model.head.bias.sub_(mean).div_(deviation)
    return {"reference_mean": mean, "reference_deviation": deviation}


def train_reward_model(
    base: LanguageModel,
    pairs: list[tuple[list[int], list[int]]],
    valid: list[tuple[list[int], list[int]]],
    reference_rows: Sequence[Sequence[int]],
    config: TrainingConfig,
    run: RunFolder,
) -> tuple[ScalarModel, dict[str, float]]:
    """Learn to score answers from comparisons.

    Args:
        base: the SFT model; it is copied, not changed.
        pairs, valid: from `pair_rows`; `valid` shares no prompt with `pairs`.
        reference_rows: answers of the reference, on which scores are normalised.
        config: how; run: where.
    Returns:
        The model, and its accuracy and loss on `valid`.
    """
    model = ScalarModel(copy.deepcopy(base.body), seed=config.seed)
    held_out = Pairs(valid, 1, seed=0)
    data, validate = Pairs(pairs, config.batch, config.seed), lambda trained: evaluate_pairs(trained, held_out)
    return model, train(model, data, reward_loss, config, run, validate, "reward model", lambda trained: normalise(trained, reference_rows))
