r"""Kahneman-Tversky optimisation: learn from single answers that somebody liked or did not, without comparisons.

    r = log[π(y|x) / π_ref(y|x)],   z = max(0, mean of r over answers to *other* prompts), without gradient
    L = E [ λ_D (1 − σ(β (r − z)))  for a liked answer,  λ_U (1 − σ(β (z − r)))  for another ]
                                                                            Ethayarajh et al. 2024, §4.1, Eq. 8

Thumbs are easier to come by than comparisons. Their loss is a value function of people's, as Kahneman and Tversky found
it: gains and losses are felt against a point of reference, z, and the more there is of either the less a little more
of it counts. z estimates KL(π ‖ π_ref) by pairing each prompt with its neighbour's answer in the batch, which may be
another one to the same prompt where a prompt comes twice (TRL does no other). Details that matter:
    1. z carries no gradient and is never negative (test_the_point_of_reference_has_no_gradient_and_is_not_negative).
    2. A batch needs two answers, or there is no neighbour (test_a_batch_of_one_is_refused). In parts, as with
       `accumulation`, neighbours and z are still the batch's
       (test_parts_of_a_batch_have_the_point_of_reference_of_the_whole).
    3. λ_D n_D should be 1 to 4/3 times λ_U n_U, where one kind is rarer (§4.2, Eq. 9); `balanced` weights do that
       (test_weights_balance_the_two_kinds).
    4. Log-probabilities are sums over a completion's tokens, its end token included, as in dpo.py.

Metrics beside those of training.py, on held-out answers: `validation` the loss · `liked`, `other` mean r of either
kind, nats · `kl` z, nats · `accuracy` share of answers on the right side of z.

Read next: equal_length.py. Try it:  python -m minialign kto --policy RUN --judged FILE.jsonl
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from minialign.batching import Batches, ExampleBatch
from minialign.heads import LanguageModel
from minialign.rlhf.dpo import total_logprobs
from minialign.rlhf.kl import learner_and_reference
from minialign.runs.errors import UserError
from minialign.runs.files import place_of, read_jsonl
from minialign.runs.run_folder import RunFolder
from minialign.runs.settings import check_ranges
from minialign.tokenizer import Tokenizer
from minialign.training import TrainingConfig, train


@dataclass(frozen=True)
class KTOConfig:
    """How a policy learns from liked and other answers."""

    beta: float = 0.1  # how soon gains and losses are felt, a nat
    liked_weight: float = 1.0  # λ_D; 0: what balances the two kinds
    other_weight: float = 1.0  # λ_U

    def __post_init__(self):
        check_ranges(self, {"beta": (1e-6, 1e6), "liked_weight": (0, 1e6), "other_weight": (1e-6, 1e6)})

    def balanced(self, liked: int, other: int) -> "KTOConfig":
        """The same with λ_D n_D = λ_U n_U where λ_D is 0."""
        return self if self.liked_weight else KTOConfig(self.beta, self.other_weight * other / max(1, liked),
                                                        self.other_weight)


@dataclass(frozen=True)
class Judged:
    """One answer to a prompt, and whether it was liked."""

    prompt: list[int]  # its ids, the begin token first
    completion: list[int]  # its ids, with the end token
    liked: bool


@dataclass
class JudgedBatch(ExampleBatch):
    """B answers; the answer of the next prompt stands in `others`."""

    prompts: list[list[int]]  # (B,) ids
    completions: list[list[int]]  # (B,) ids
    others: list[list[int]]  # (B,) ids
    liked: Tensor  # (B,) bool
    rows: list[int]  # which answers
    whole: list["JudgedBatch"] = field(default_factory=list)  # the batch that this is a part of, in one piece
    point: list[Tensor] = field(default_factory=list)  # its point of reference, found once for all parts

    @property
    def size(self) -> int:
        """Tokens read."""
        return 2 * sum(map(len, self.prompts)) + sum(map(len, self.completions)) + sum(map(len, self.others))


class JudgedAnswers(Batches):
    """Judged answers as training data. Raises UserError for a batch of one."""

    def __init__(self, judged: list[Judged], batch: int, seed: int):
        if min(batch, len(judged)) < 2:
            raise UserError("a batch of one answer has no neighbour whose answer could be its point of reference; use "
                            "--batch 2 or more")
        super().__init__([len(each.prompt) + len(each.completion) for each in judged], batch, seed)
        self.judged = judged

    def batch(self, names: list[int], step: int = 0, after: list[int] | None = None) -> JudgedBatch:
        """The named answers, the same at every step; beside each the answer of the name that comes `after` it."""
        found = [self.judged[name] for name in names]
        others = [self.judged[name].completion for name in after or [*names[1:], names[0]]]
        return JudgedBatch([each.prompt for each in found], [each.completion for each in found], others,
                           torch.tensor([each.liked for each in found]), names)

    def microbatches(self, step: int, parts: int) -> list[JudgedBatch]:
        """The batch of a step in pieces; neighbours are those of the whole batch."""
        names = self.order(step)
        after = [*names[1:], names[0]]
        found = [self.batch(names[i::parts], step, after[i::parts]) for i in range(min(parts, len(names)))]
        whole, point = [self.batch(names, step)], []
        for part in found:
            part.whole, part.point = whole, point
        return found

    def in_order(self, batch: int) -> list[JudgedBatch]:
        """All answers, each once, so many at a time."""
        names = list(range(len(self.judged)))
        return [self.batch(names[i : i + batch], 0, [*names[1:], 0][i : i + batch])
                for i in range(0, len(names), batch)]


def read_judged_answers(path: Path, tokenizer: Tokenizer, context: int) -> list[Judged]:
    """{"prompt", "completion", "liked"} of each line.

    Raises:
        UserError: `liked` is not true or false, an empty completion, or one that does not fit the context.
    """
    records = read_jsonl(path, ("prompt", "completion"))
    prompts, completions = (tokenizer.encode_many([r[field] for r in records]) for field in ("prompt", "completion"))
    found = []
    for record, prompt, completion in zip(records, prompts, completions):
        line = place_of(record)[1]
        if not isinstance(record.get("liked"), bool):
            raise UserError(f"liked is {record.get('liked')!r}; it must be true or false", path, line)
        if not completion or len(prompt) + len(completion) + 2 > context:
            what = "is empty" if not completion else f"and its prompt do not fit the model's context of {context}"
            raise UserError(f"the completion {what}", path, line)
        found.append(Judged([tokenizer.begin, *prompt], [*completion, tokenizer.end], record["liked"]))
    if len({each.liked for each in found}) < 2:
        raise UserError("there are liked answers only, or none; both kinds are needed", path)
    return found


def kto_losses(logratios: Tensor, liked: Tensor, kl: Tensor, config: KTOConfig) -> Tensor:
    """(B,) loss of each answer, Ethayarajh et al. 2024, Eq. 8.

    Args:
        logratios: (B,) log π(y|x) − log π_ref(y|x), nats, summed over the completion; liked: (B,) bool.
        kl: () z, nats.
    """
    sign = torch.where(liked, 1.0, -1.0)
    weight = torch.where(liked, config.liked_weight, config.other_weight)
    return weight * (1 - torch.sigmoid(config.beta * sign * (logratios - kl)))


def logratios(policy: LanguageModel, reference: LanguageModel, prompts: list[list[int]],
              completions: list[list[int]]) -> Tensor:
    """(B,) log π(y|x) − log π_ref(y|x), nats, without dropout; each answer has its own prompt."""
    of = range(len(prompts))
    with torch.no_grad():
        known = total_logprobs(reference, prompts, completions, of)
    return total_logprobs(policy, prompts, completions, of) - known


@torch.no_grad()
def reference_point(policy: LanguageModel, reference: LanguageModel, batch: JudgedBatch) -> Tensor:
    """() z: the mean log-ratio of answers to other prompts, nats, at least 0; of a part that of its batch."""
    if not batch.whole:
        return neighbours_logratios(policy, reference, batch).mean().clamp(min=0)
    if not batch.point:
        batch.point.append(neighbours_logratios(policy, reference, batch.whole[0]).mean().clamp(min=0))
    return batch.point[0]


def neighbours_logratios(policy: LanguageModel, reference: LanguageModel, batch: JudgedBatch) -> Tensor:
    """(B,) log-ratios of the neighbours' answers to each prompt, nats; of an answer that does not fit the context
    behind this prompt what does."""
    context = policy.config.context
    others = [other[: context - len(prompt)] for prompt, other in zip(batch.prompts, batch.others)]
    return logratios(policy, reference, batch.prompts, others)


def train_kto(policy: LanguageModel, judged: list[Judged], valid: list[Judged], config: KTOConfig,
              training: TrainingConfig, run: RunFolder, label: str = "KTO") -> tuple[LanguageModel, dict[str, float]]:
    """Optimise a copy of a policy on judged answers, with the policy itself as the frozen reference. Returns the copy
    and the last metrics on `valid`.

    Args:
        policy: the SFT model. Where only a part of it may train, such as a LoRA, only that part does.
        judged, valid: from `read_judged_answers`; config, training: how; run: where everything goes.
    Raises:
        UserError: a loss that is not finite; the last checkpoint is kept. Stopped: after Ctrl-C, all saved.
    """
    learner, reference = learner_and_reference(policy)
    liked = sum(each.liked for each in judged)
    config = config.balanced(liked, len(judged) - liked)
    data = JudgedAnswers(judged, training.batch, training.seed)
    checks = JudgedAnswers(valid, min(training.batch, len(valid)), 0).in_order(training.batch)

    def loss(model: LanguageModel, batch: JudgedBatch) -> Tensor:
        ratios = logratios(model, reference, batch.prompts, batch.completions)
        return kto_losses(ratios, batch.liked, reference_point(model, reference, batch), config).sum()

    @torch.no_grad()
    def validate(model: LanguageModel) -> dict[str, float]:
        ratios = torch.cat([logratios(model, reference, b.prompts, b.completions) for b in checks])
        kinds = torch.cat([b.liked for b in checks]).to(ratios.device)
        kl = torch.cat([neighbours_logratios(model, reference, b) for b in checks]).mean().clamp(min=0)
        return {"validation": float(kto_losses(ratios, kinds, kl, config).mean()), "kl": float(kl),
                "liked": float(ratios[kinds].mean()), "other": float(ratios[~kinds].mean()),
                "accuracy": float(((ratios > kl) == kinds).float().mean())}

    return learner, train(learner, data, loss, training, run, validate, label)
