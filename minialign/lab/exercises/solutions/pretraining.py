r"""Solutions of notebook 02."""

import math


def label_shift(row, prompt):
    """Label t is token t + 1; those that lie in the prompt are not taught."""
    tokens, labels = row[:-1], row[1:]
    return tokens, [-100] * (prompt - 1) + labels[prompt - 1 :]


def mean_loss(logits, labels):
    """Over all labels of the batch, whatever row they stand in."""
    taught = labels != -100
    logprobs = logits[taught].log_softmax(dim=-1)
    return -logprobs.gather(1, labels[taught][:, None]).mean()


def span_corruption(ids, spans, sentinels):
    """A sentinel in place of each span, and each span behind its sentinel."""
    inputs, targets, place = [], [], 0
    for sentinel, (start, end) in zip(sentinels, spans):
        inputs += [*ids[place:start], sentinel]
        targets += [sentinel, *ids[start:end]]
        place = end
    return inputs + ids[place:], targets


def perplexity(losses, counts):
    """The exponential of the mean over all labels."""
    return math.exp(sum(losses) / sum(counts))


def decoder_writes():
    """15 tokens, 5 sentinels, the end."""
    return 15 + 5 + 1
