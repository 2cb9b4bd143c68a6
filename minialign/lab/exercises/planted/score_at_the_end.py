r"""Where a reward model's score is read, with one bug."""


def score_at_the_end(scores, mask):
    """scores: (B, T), one for every token; mask: (B, T) bool, true at real tokens. Returns (B,) the score at each row's
    last real token."""
    return scores[:, -1]
