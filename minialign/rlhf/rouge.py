r"""ROUGE: how many of a reference's words, pairs of words, and words in order, a completion has. A poor judge, and for
long the only cheap one.

    ROUGE-n   matches = Σ_g min(count of g in completion, in reference),  g: runs of n words       Lin 2004, §2, Eq. 1
    ROUGE-L   matches = length of the longest common subsequence of the two                    Lin 2004, §3, Eqs. 2-4
    recall = matches / those of the reference,  precision = matches / those of the completion,  F = 2 P R / (P + R)

It counts words: "Mira lost the kite" and "Mira found the kite" share three of four, a good paraphrase shares none.
Optimising ROUGE gives worse summaries than optimising what people say (Stiennon et al. 2020, §4.4). Details:
    1. A match counts no more often than it stands in the reference (test_repeating_a_word_wins_nothing).
    2. Words are runs of a-z and 0-9 in lower case, as in the `rouge-score` package without its stemmer.
    3. Text without words matches nothing: all three numbers are 0 (test_empty_texts_score_0).

Read next: ranked.py. See also: evaluation.py.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Rouge:
    """One completion's score against one reference, each number in [0, 1]."""

    precision: float
    recall: float
    f: float


def words(text: str) -> list[str]:
    """The words that ROUGE compares."""
    return re.findall("[a-z0-9]+", text.lower())


def share(matches: int, completion: int, reference: int) -> Rouge:
    """Precision, recall and F from the number of matches and of what could match in the completion and in the
    reference."""
    precision, recall = matches / completion if completion else 0.0, matches / reference if reference else 0.0
    return Rouge(precision, recall, 2 * precision * recall / (precision + recall) if matches else 0.0)


def rouge_n(completion: str, reference: str, n: int) -> Rouge:
    """ROUGE-n of a completion, n >= 1: runs of n words, each counted no more often than the reference has it."""
    own, theirs = (Counter(zip(*(found[i:] for i in range(n)))) for found in (words(completion), words(reference)))
    return share((own & theirs).total(), own.total(), theirs.total())


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest sequence that both contain in this order, gaps allowed; time len(a) · len(b)."""
    best = [0] * (len(b) + 1)  # best[j]: of what was read of a, and the first j of b
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, 1):
            diagonal, best[j] = best[j], diagonal + 1 if x == y else max(best[j], best[j - 1])
    return best[-1]


def rouge_l(completion: str, reference: str) -> Rouge:
    """ROUGE-L of a completion: the longest common subsequence of both texts' words."""
    own, theirs = words(completion), words(reference)
    return share(longest_common_subsequence(own, theirs), len(own), len(theirs))


def rouge(completion: str, reference: str) -> dict[str, Rouge]:
    """{"rouge1", "rouge2", "rougeL"} of a completion."""
    return {"rouge1": rouge_n(completion, reference, 1), "rouge2": rouge_n(completion, reference, 2),
            "rougeL": rouge_l(completion, reference)}
