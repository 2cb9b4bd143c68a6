r"""The reward model: one number that says how much people would like a completion.

    P(chosen is preferred) = σ(r(x, y_chosen) − r(x, y_rejected))                Bradley & Terry 1952
    L = −E log σ(r(x, y_chosen) − r(x, y_rejected))                              Stiennon et al. 2020, §3.4
    r = mean of m models' scores − c · their standard deviation                  Coste et al. 2024, §3.2

Only differences are learned, so the zero is arbitrary; and the loss saturates: a pair that is clearly right pulls no
more. A policy that climbs one model finds its errors; models that differ in seed or data err differently, so the mean
of an ensemble hides some errors and the standard deviation shows others. Details that matter:
    1. It starts from the SFT model, with a head of its own, N(0, 1/(D+1)) (Ziegler et al. 2019, released code).
    2. The score is read at the last *real* token, the end token (test_the_score_does_not_depend_on_padding), or, where
       that is asked for, the mean of the numbers at all of the completion's tokens: each sentence is then judged where
       it stands, and being long is worth nothing by itself (test_the_mean_of_all_tokens_as_a_score).
    3. log σ is computed as one function; log(σ(x)) is −∞ at x = −200 (test_the_loss_is_finite_for_hopeless_pairs).
    4. The completions to one prompt are one batch element, each read once for all its pairs, whose losses are averaged
       (Ouyang et al. 2022, §3.5; test_k_answers_are_one_element).
    5. Few passes: what is looked at again is mostly learned by heart. Stiennon et al. 2020, App. B.1, take one.
    6. Afterwards the scores are shifted and scaled to mean 0, standard deviation 1 on completions of the reference, so
       that beta, the price of KL, means the same for every reward model (test_normalised_scores_have_mean_0_and_std_1).
       The head absorbs both numbers. Members of an ensemble share the reference completions, or the loudest would
       decide.
    7. A completion that never ends is scored lower, in one of the two usual ways
       (test_both_conventions_for_a_missing_end). A reward model has seen none and may like them: with 1 standard
       deviation taken off the score, a quarter of the toy policy's completions stopped ending within 60 updates.
    DEVIATION: of an ensemble the paper subtracts the variance, here the standard deviation, so that r keeps its unit.
    DEVIATION: the main job takes the mean; Stiennon et al. read at the end. What it changed for a model of .4 M
    parameters is in data/claims/reward-scaling/notes.md.

Read next: reward_checks.py (how far to trust it), ppo.py, dpo.py (without it).
Try it:  python -m minialign reward --base RUN --comparisons FILE.jsonl
"""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minialign.heads import LanguageModel, ScalarModel, evaluating, last_real, read_completions
from minialign.rlhf.ranked import Comparisons, Ranked, RankedBatch
from minialign.runs.devices import device_of, moved
from minialign.runs.errors import UserError
from minialign.runs.run_folder import RunFolder
from minialign.tokenizer import Tokenizer
from minialign.training import TrainingConfig, train

Row = tuple[list[int], list[int]]  # the ids of a prompt and of its completion, with the begin and the end token
REWARD = TrainingConfig(steps=150, batch=32, learning_rate=5e-4, weight_decay=0.01)


def bradley_terry_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """(B,) −log σ(r_chosen − r_rejected) from two (B,) scores, nats; log 2 when the model cannot tell."""
    return -F.logsigmoid(chosen - rejected)


def pair_accuracy(chosen: Tensor, rejected: Tensor) -> float:
    """Share of pairs in which the chosen completion scores higher; equal scores count one half."""
    return float(((chosen > rejected).float() + 0.5 * (chosen == rejected).float()).mean())


def head_at_the_end(model: ScalarModel, hidden: Tensor, mask: Tensor) -> Tensor:
    """(B,) the head's number at the last real token of each row of (B, T, D) vectors; mask (B, T)."""
    last = hidden[torch.arange(len(hidden), device=hidden.device), last_real(mask)]  # (B, D)
    with torch.autocast(hidden.device.type, enabled=False):  # bfloat16's three digits would make ties of scores
        return model.head(last.float()).squeeze(-1)


def read_score(model: ScalarModel, hidden: Tensor, mask: Tensor) -> Tensor:
    """(N,) scores of completions from the (N, T, D) vectors of their tokens and mask (N, T): at the end or the mean."""
    if model.read == "end":
        return head_at_the_end(model, hidden, mask)
    with torch.autocast(hidden.device.type, enabled=False):
        numbers = model.head(hidden.float()).squeeze(-1)  # (N, T)
    return (numbers * mask).sum(dim=1) / mask.sum(dim=1)


def score_completions(model: "ScalarModel | Ensemble", prompts: Sequence[Sequence[int]],
                      completions: Sequence[Sequence[int]], of: Sequence[int]) -> Tensor:
    """(N,) scores of completions, lists of ids; `of` (N,) says which prompt each goes on from. Prompts are read once.
    An ensemble, or a check, scores them its own way."""
    if not isinstance(model, ScalarModel):
        return model.score_completions(prompts, completions, of)
    return read_score(model, *read_completions(model.body, prompts, completions, of))


def pair_scores(model: ScalarModel, batch: RankedBatch) -> tuple[Tensor, Tensor]:
    """(P,) scores of the chosen and of the rejected completions; each completion is read once for all its pairs."""
    scores = score_completions(model, batch.prompts, batch.completions, batch.of)  # (N,)
    return scores.index_select(0, batch.chosen), scores.index_select(0, batch.rejected)


def reward_loss(model: ScalarModel, batch: RankedBatch) -> Tensor:
    """Sum over prompts of the mean Bradley-Terry loss of their pairs, Ouyang et al. 2022, §3.5, Eq. 1."""
    return (batch.weights * bradley_terry_loss(*pair_scores(model, batch))).sum()


@torch.no_grad()
def all_pair_scores(model: ScalarModel, data: Comparisons) -> tuple[Tensor, Tensor]:
    """(P,) scores of the chosen and of the rejected completions of all pairs, each pair once."""
    chosen, rejected = zip(*(pair_scores(model, moved(batch, model)) for batch in data.in_order()))
    return torch.cat(chosen), torch.cat(rejected)


def evaluate_pairs(model: ScalarModel, data: Comparisons) -> dict[str, float]:
    """{"validation": mean loss in nats, "accuracy": share of pairs ordered rightly} on all pairs, each counted once."""
    chosen, rejected = all_pair_scores(model, data)
    loss = bradley_terry_loss(chosen, rejected).mean()
    return {"validation": float(loss), "accuracy": pair_accuracy(chosen, rejected)}


def completion_rows(tokenizer: Tokenizer, prompts: Sequence[str], completions: Sequence[str],
                    context: int | None = None) -> list[Row]:
    """Prompts (with the begin token) and completions (with the end token) as ids; of a completion that does not fit
    `context` with its prompt what does is kept, and the end token."""
    rows = []
    for prompt, completion in zip(tokenizer.encode_many(list(prompts)), tokenizer.encode_many(list(completions))):
        prompt = [tokenizer.begin, *prompt][: None if context is None else context - 1]
        room = len(completion) if context is None else max(0, context - len(prompt) - 1)
        rows.append((prompt, [*completion[:room], tokenizer.end]))
    return rows


@torch.no_grad()
def score_rows(model: "ScalarModel | Ensemble", rows: Sequence[Row], batch: int = 64) -> Tensor:
    """(N,) scores of rows: the ids of a prompt and those of its completion."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + len(rows[i][1]))
    scores = torch.zeros(len(rows), device=device_of(model))
    with evaluating(model):
        for names in (order[start : start + batch] for start in range(0, len(order), batch)):
            prompts, completions = zip(*(rows[i] for i in names))
            scores[names] = score_completions(model, prompts, completions, range(len(names)))
    return scores


def penalise_missing_end(scores: Tensor, ended: Tensor, convention: str, amount: float) -> Tensor:
    """(N,) scores in which completions that never end count less: "replace" puts −amount in place of the score
    (OpenAI's released code), "subtract" takes amount off it (TRL)."""
    lowered = scores - amount if convention == "subtract" else torch.full_like(scores, -amount)
    return torch.where(ended, scores, lowered)


def normalise(model: ScalarModel, rows: Sequence[Row]) -> dict[str, float]:
    """Shift and scale the head so that these rows (completions of the reference) score with mean 0, standard deviation
    1; returns what both were before. Raises UserError when all rows score the same."""
    scores = score_rows(model, rows)
    mean, std = float(scores.mean()), float(scores.std(correction=0))
    if not std > 1e-5 * max(1.0, abs(mean)):  # below it there is nothing but rounding
        raise UserError(f"the reward model gives all {len(rows)} reference completions the same score, {mean:.3g}; it "
                        f"has learned nothing to optimise")
    with torch.no_grad():
        model.head.weight /= std
        model.head.bias.sub_(mean).div_(std)
    return {"reference_mean": mean, "reference_deviation": std}


def train_reward_model(base: LanguageModel, ranked: list[Ranked], valid: list[Ranked],
                       reference_rows: Sequence[Row], config: TrainingConfig, run: RunFolder,
                       read: str = "end") -> tuple[ScalarModel, dict[str, float]]:
    """Learn to score completions from comparisons. Returns the model, and its accuracy and loss on `valid`.

    Args:
        base: the SFT model; it is copied, not changed.
        ranked, valid: from `ranked_rows`; they share no prompt.
        reference_rows: completions of the reference, on which scores are normalised.
        read: where the score is read, at the "end" or as the "mean" of all tokens.
    """
    model = ScalarModel(copy.deepcopy(base.body), seed=config.seed, read=read)
    data, held_out = Comparisons(ranked, config.batch, config.seed), Comparisons(valid, 1, seed=0)
    return model, train(model, data, reward_loss, config, run, lambda model: evaluate_pairs(model, held_out),
                        "reward model", lambda model: normalise(model, reference_rows))


def together(scores: Sequence[Tensor], caution: float = 0.0) -> Tensor:
    """(...) the mean of m models' scores (...), less `caution` standard deviations of their disagreement."""
    every = torch.stack([*scores])
    return every.mean(dim=0) - caution * every.std(dim=0, correction=0) if caution else every.mean(dim=0)


class Ensemble(nn.Module):
    """Reward models, one at least, that score as one (test_an_ensemble_scores_like_its_members_together).

    `caution` is c, the standard deviations of their disagreement that a score loses, at least 0
    (test_a_cautious_ensemble_distrusts_what_its_models_disagree_on). Raises UserError for no members, a negative
    caution, or members that read contexts of different lengths.
    """

    def __init__(self, members: Sequence[ScalarModel], caution: float = 0.0):
        super().__init__()
        if not members or not 0 <= caution < 1e6:
            raise UserError(f"{len(members)} reward models (at least 1) with a caution of {caution} (at least 0) make "
                            f"no ensemble")
        contexts = {member.config.context for member in members}
        if len(contexts) > 1:
            raise UserError(f"the reward models read contexts of {str(sorted(contexts))[1:-1]} tokens; use one context")
        self.members, self.caution, self.config = nn.ModuleList(members), caution, members[0].config

    @property
    def body(self) -> nn.Module:
        """The first member's: what a value function begins as."""
        return self.members[0].body

    def score_completions(self, *which: Sequence) -> Tensor:
        """(N,) the ensemble's scores, of what `score_completions` is asked about."""
        return together([score_completions(member, *which) for member in self.members], self.caution)
