r"""Solutions of notebook 03."""


def option_score(logits, option):
    """The chain rule: the sum of the tokens' log-probabilities."""
    logprobs = logits.log_softmax(dim=-1)
    return logprobs.gather(1, option[:, None]).sum()


def mixing_rates(sizes, templates, cap):
    """Capped first, then shared out among the wordings."""
    return {task: min(sizes[task], cap) / templates[task] for task in sizes}


def hold_out(cluster_of, held_out):
    """Whole clusters."""
    train = [task for task in cluster_of if cluster_of[task] not in held_out]
    return sorted(train), sorted(task for task in cluster_of if cluster_of[task] in held_out)


def template():
    """The question stands right before the answer, and nothing else is said."""
    return "{text}\nQuestion: {question}\nAnswer:"
