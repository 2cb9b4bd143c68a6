r"""Which tokens of an answer are real, with one bug."""


def end_mask(tokens, end):
    """tokens: (B, R) ids; end: the end token's id, with which short answers are filled up too. Returns (B, R) bool,
    true up to and with the first end."""
    return tokens != end
