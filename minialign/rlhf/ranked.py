r"""Comparisons as rows of ids, those of one prompt together: what a reward model and DPO learn from.

K completions to a prompt make up to C(K, 2) pairs; they are one element of a batch, each completion is read once for
all its pairs, and every prompt weighs the same (Ouyang et al. 2022, §3.5; pitfall D35, test_k_answers_are_one_element).
Details that matter:
    1. What does not fit the context is an error, or left out, or cut, and counted
       (test_long_comparisons_are_left_out_on_request_and_counted).
    2. Two completions that are equal once they are cut would teach that equal scores are wrong; they are dropped,
       counted (test_pairs_that_become_equal_when_cut_are_dropped_and_counted).

Read next: reward_model.py, dpo.py.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from minialign.batching import Batches, ExampleBatch
from minialign.runs.errors import UserError
from minialign.runs.files import place_of
from minialign.tokenizer import Tokenizer

TOO_LONG, CUT, EQUAL = "too long for the context", "cut to fit the context", "equal once they are cut"


@dataclass(frozen=True)
class Ranked:
    """The completions to one prompt that were compared, each once, and who won: K completions, up to C(K, 2) pairs."""

    prompt: list[int]  # its ids, the begin token first
    completions: list[list[int]]  # ids of each, with the end token
    pairs: list[tuple[int, int]]  # (the chosen one, the rejected one), places in `completions`


@dataclass
class RankedBatch(ExampleBatch):
    """B prompts, all their N completions and the P pairs of them."""

    prompts: list[list[int]]  # (B,) ids
    completions: list[list[int]]  # (N,) ids
    of: list[int]  # (N,) which of the prompts each goes on from
    chosen: Tensor  # (P,) which completion was preferred
    rejected: Tensor  # (P,) to which
    weights: Tensor  # (P,) one over the pairs of its prompt: every prompt weighs the same
    rows: list[int]  # which prompts

    @property
    def size(self) -> int:
        """Tokens read."""
        return sum(map(len, self.prompts)) + sum(map(len, self.completions))


class Comparisons(Batches):
    """Ranked completions, from `ranked_rows`, as training data: `batch` prompts a step, their order from `seed`."""

    def __init__(self, ranked: list[Ranked], batch: int, seed: int):
        super().__init__([len(r.prompt) + max(map(len, r.completions)) for r in ranked], batch, seed)
        self.ranked = ranked

    def in_order(self, size: int = 32) -> Iterator[RankedBatch]:
        """All prompts in their order, `size` at a time: for looking at each of them once."""
        names = list(range(len(self.ranked)))
        return (self.batch(names[start : start + size]) for start in range(0, len(names), size))

    def batch(self, names: list[int], step: int = 0) -> RankedBatch:
        """The pairs of the named prompts, the same at every step."""
        completions, of, chosen, rejected, weights = [], [], [], [], []
        for place, ranked in enumerate(self.ranked[name] for name in names):
            chosen += [len(completions) + better for better, _ in ranked.pairs]
            rejected += [len(completions) + worse for _, worse in ranked.pairs]
            weights += [1 / len(ranked.pairs)] * len(ranked.pairs)
            of += [place] * len(ranked.completions)
            completions += ranked.completions
        prompts, pairs = [self.ranked[name].prompt for name in names], map(torch.tensor, (chosen, rejected, weights))
        return RankedBatch(prompts, completions, of, *pairs, names)


def ranked_rows(tokenizer: Tokenizer, comparisons: list[dict], context: int, long: str = "stop",
                file: object = None) -> tuple[list[Ranked], Counter[str]]:
    """Comparisons as rows of ids, those of one prompt together (without a prompt each stands for itself); and how many
    were left out or changed, by reason.

    Args:
        context: tokens that prompt and completion may have together.
        long: "stop" with an error when they have more, "skip" them, or "cut" the completion, whose end token stays.
        file: named in the error.
    Raises:
        UserError: a completion that does not fit the context; names file and line.
    """
    columns = (tokenizer.encode_many([c[field] for c in comparisons]) for field in ("prompt", "chosen", "rejected"))
    ranked: dict[object, Ranked] = {}
    left_out: Counter[str] = Counter()
    for number, (comparison, prompt, *completions) in enumerate(zip(comparisons, *columns)):
        prompt, completions = [tokenizer.begin, *prompt], [[*completion, tokenizer.end] for completion in completions]
        longest, room = len(prompt) + max(map(len, completions)), context - len(prompt)
        if longest > context and long == "stop":
            raise UserError(f"{longest} tokens do not fit the model's context of {context}; shorten it, or leave such "
                            f"lines out with --skip-long, or cut their completions with --cut-long", file,
                            place_of(comparison)[1])
        if longest > context and (long == "skip" or room < 2):
            left_out[TOO_LONG] += 1
            continue
        if longest > context:
            left_out[CUT] += 1
            completions = [completion if len(completion) <= room else [*completion[: room - 1], completion[-1]]
                           for completion in completions]
        if completions[0] == completions[1]:
            left_out[EQUAL] += 1
            continue
        group = ranked.setdefault(comparison["prompt"] or number, Ranked(prompt, [], []))
        group.completions.extend(completion for completion in completions if completion not in group.completions)
        group.pairs.append((group.completions.index(completions[0]), group.completions.index(completions[1])))
    return list(ranked.values()), left_out


def count_pairs(ranked: list[Ranked]) -> int:
    """How many comparisons there are."""
    return sum(len(r.pairs) for r in ranked)
