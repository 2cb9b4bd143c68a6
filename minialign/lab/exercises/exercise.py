r"""What an exercise is: a task, a place to begin, the project's own answer, and the mistakes that people make, each
with its hint.

    write       the reader writes a function; it is compared with the project's own on a few small examples
    mend        the same, but the reader begins with a function that has one bug (planted/)
    predict     the reader gives a number before anything runs; the real thing is run to compare
    beat        there is no one right answer: the reader's is measured, and must do better than a baseline

A mistake is told by what it makes of the examples: if an answer comes out as the mistake would, that mistake was made.
So an exercise holds for each typical one a function that makes it, and a hint for whoever did.

Read next: texts.py, checking.py, then any chapter, such as quantization.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

KINDS = {"write": "write it", "mend": "find the planted bug", "predict": "predict before you run",
         "beat": "beat the baseline"}


class Wrong(Exception):
    """What a judge raises: the reader's answer is not right, and why.

    Args:
        key: short name of the mistake.
        says: the hint.
    """

    def __init__(self, key: str, says: str):
        super().__init__(says)
        self.key, self.says = key, says


@dataclass(frozen=True)
class Exercise:
    """One exercise; what fields mean for each kind is said above. Its words stand in texts/, see texts.py."""

    name: str  # of the exercise, and of the function that the reader writes
    notebook: int  # which notebook it ends
    kind: str  # write | mend | predict | beat
    heading: str  # of the notes
    look: Callable[..., Any]  # where the project does it: a function or a class
    stub: str = ""  # source to begin with; for kind = mend it is read from planted/
    # the right result, from the same arguments; None where there is a judge
    reference: Callable[..., Any] | None = None
    # the examples: tuples of arguments, the one that is easiest to follow first
    cases: Callable[[], Sequence[tuple]] = lambda: [()]
    # short name -> what one gets who makes it (or the ways to make it)
    mistakes: dict[str, Callable[..., Any] | tuple] = field(default_factory=dict)
    # for kind = beat: measures the answer, says how good it is, or raises Wrong
    judge: Callable[[Any], str] | None = None
    tolerance: float = 1e-4  # most that a result may be off, relative (absolute below 1); a prediction: relative
    why_tolerance: str = ""  # a prediction: why so much
    unit: str = ""  # of a prediction
    # a property of a result that must agree too, in words, where numbers within the tolerance hide it
    also: Callable[[Any], str] | None = None
    gradient: bool = False  # also compare the gradient of the result's sum with respect to the first argument

    @property
    def place(self) -> str:
        """Where to read on: file and function of the project, heading of the notes."""
        file = self.look.__module__.replace(".", "/") + ".py"
        return f"{file}, {self.look.__qualname__}; in the notes: {self.heading}"
