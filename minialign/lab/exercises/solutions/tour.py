r"""Solutions of notebook 00."""

import math


def untrained_loss():
    """All of the 1000 tokens are about equally likely."""
    return math.log(1000)


def win_share(outcomes):
    """Each prompt counts once."""
    shares = [sum(judges) / len(judges) for judges in outcomes]
    return sum(shares) / len(shares)


def summary():
    """What happened, and how it ended."""
    return ("Anna baked some cake. Anna won the first prize for the cake. Lily was sad. Anna and Lily ate the cake "
            "together.")
