r"""Solutions of notebook 10."""

import re
from collections import Counter

import torch
import torch.nn.functional as F


def top_p(logits, p):
    """Keep a token while what is likelier than it has less than p."""
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(dim=-1)
    likelier = probabilities.cumsum(dim=-1) - probabilities
    return torch.empty_like(logits).scatter(-1, order, ordered.masked_fill(likelier >= p, float("-inf")))


def rouge_1(answer, reference):
    """Words in common, each no more often than the reference has it."""
    own, theirs = (Counter(re.findall(r"[a-z0-9]+", text.lower())) for text in (answer, reference))
    matches = sum((own & theirs).values())
    if matches == 0:
        return 0.0
    precision, recall = matches / sum(own.values()), matches / sum(theirs.values())
    return 2 * precision * recall / (precision + recall)


def end_mask(tokens, end):
    """True while no end token came before."""
    ends = (tokens == end).long()
    return ends.cumsum(dim=1) - ends == 0


def dpo_loss(chosen, rejected, chosen_reference, rejected_reference, beta):
    """The reward is beta times the log-ratio."""
    gap = (chosen - chosen_reference) - (rejected - rejected_reference)
    return -F.logsigmoid(beta * gap)


def nine_of_ten():
    """Wilson's interval for 9 of 10."""
    p, n, z = 0.9, 10, 1.96
    return (p + z * z / (2 * n) - z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5) / (1 + z * z / n)
