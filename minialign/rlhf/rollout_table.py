r"""A rollout for people: one completion as a table, a token a line. Read next: best_of_n.py."""

from minialign.rlhf.ppo import Rollout
from minialign.tokenizer import END, Tokenizer


def show_rollout(rollout: Rollout, tokenizer: Tokenizer, row: int = 0) -> str:
    """One completion of a rollout with advantages: token, log π, log π_ref, their difference, value, advantage; the
    score in the last line."""
    lines = [f"{'token':<14}{'log π':>9}{'log π_ref':>11}{'k1':>8}{'V':>8}{'Â':>8}"]
    columns = (rollout.logprobs, rollout.reference_logprobs, rollout.values, rollout.advantages)
    for t in range(int(rollout.mask[row].sum())):
        name = repr(tokenizer.name(rollout.completion[row, t]))
        policy, reference, value, advantage = (float(column[row, t]) for column in columns)
        ratio = policy - reference
        lines.append(f"{name:<14}{policy:>9.3f}{reference:>11.3f}{ratio:>8.3f}{value:>8.3f}{advantage:>8.3f}")
    end = "ended" if bool((rollout.completion[row] == END).any()) else "cut off"
    return "\n".join([*lines, f"score {float(rollout.scores[row]):.3f}, {end}"])
