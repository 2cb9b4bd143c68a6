r"""The perplexity of several batches, with one bug."""

import math


def perplexity(losses, counts):
    """losses: for each batch the sum of -log p over its labels, nats; counts: how many labels it has. Returns the
    perplexity of all labels."""
    return sum(math.exp(loss / count) for loss, count in zip(losses, counts)) / len(losses)
