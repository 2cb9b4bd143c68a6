r"""What an exercise is: a task, a place to begin, one way to solve it, and the mistakes that people make, each with its
hint.

    write       the reader writes a function; it is compared with the project's own on a few small examples
    mend        the same, but the reader begins with a function that has one bug
    predict     the reader gives a number before anything runs; the real thing is run to compare
    beat        there is no one right answer: the reader's is measured, and must do better than a baseline

An exercise is written as a decorator on the function that solves it; a prediction's or a text's takes nothing and
returns it. A mistake is told by what it makes of the examples: if an answer comes out as the mistake would, that
mistake was made. So an exercise holds for each typical one a function that makes it, and a hint for whoever did.

Read next: catalogue.py, checking.py, then any chapter, such as quantization.py.
"""

import inspect
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

KINDS = {"write": "write it", "mend": "find the planted bug", "predict": "predict before you run",
         "beat": "beat the baseline"}
LIBRARIES = {"math": "import math", "torch": "import torch", "F": "import torch.nn.functional as F"}


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
    """One exercise; what fields mean for each kind is said above. Its words stand in texts/, see catalogue.py."""

    kind: str  # write | mend | predict | beat
    heading: str  # of the notes
    look: Callable[..., Any]  # where the project does it: a function or a class
    solution: Callable[..., Any]  # one way to solve it; its name is the exercise's
    stub: str = ""  # docstring of the function that the reader begins with; predict: what number is meant
    bug: str = ""  # mend: the body of that function, with its one bug
    reference: Callable[..., Any] | None = None  # the right result, from the same arguments; None: `look` gives it
    # the examples: tuples of arguments, the one that is easiest to follow first
    cases: Callable[[], Sequence[tuple]] = lambda: [()]
    # short name -> what one gets who makes it (or the ways to make it); a prediction: the number
    mistakes: dict[str, Callable[..., Any] | tuple | float] = field(default_factory=dict)
    # for kind = beat: measures the answer, says how good it is, or raises Wrong
    judge: Callable[[Any], str] | None = None
    tolerance: float = 1e-4  # most that a result may be off, relative (absolute below 1); a prediction: relative
    why_tolerance: str = ""  # a prediction: why so much
    unit: str = ""  # of a prediction
    # what of a result must agree, where not all need: several answers are right, or the tolerance hides a wrong one
    seen: Callable[[Any], Any] | None = None
    gradient: bool = False  # also compare the gradient of the result's sum with respect to the first argument

    @property
    def name(self) -> str:
        """Of the exercise, and of the function that the reader writes."""
        return self.solution.__name__

    @property
    def chapter(self) -> str:
        """The file that it stands in, and its words."""
        return self.solution.__module__.rpartition(".")[2]

    @property
    def place(self) -> str:
        """Where to read on: file and function of the project, and the heading of the notes, or the notebook."""
        file = self.look.__module__.replace(".", "/") + ".py"
        where = "in notebook 11" if self.chapter == "after" else f"in the notes: {self.heading}"
        return f"{file}, {self.look.__qualname__}; {where}"

    @property
    def arguments(self) -> list[str]:
        """Names of what the reader's function takes."""
        return list(inspect.signature(self.solution).parameters)

    @property
    def wanted(self) -> str:
        """What kind of thing answers it."""
        return "a number" if self.kind == "predict" else "a function" if self.arguments else "a text"

    @property
    def variable(self) -> str:
        """What the reader calls the answer."""
        return "prediction" if self.kind == "predict" else self.name

    @property
    def beginning(self) -> str:
        """Source to begin with."""
        if self.wanted == "a function":
            head, inside = f"def {self.name}({', '.join(self.arguments)}):", f'"""{self.stub}"""'
            if self.kind == "mend":
                needed = "".join(f"{line}\n" for name, line in LIBRARIES.items() if f"{name}." in self.bug)
                head = f"{needed}\n\n{head}" if needed else head
                inside = textwrap.fill(inside, 108) + "\n" + textwrap.dedent(self.bug).strip()
            return f"{head}\n{textwrap.indent(inside, '    ')}\n"
        return f"prediction = ...  # {self.stub}\n" if self.kind == "predict" else f'{self.name} = ""\n'


def normal(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Examples: a tensor of each shape, of numbers from N(0, 1) that are the same whenever they are drawn."""
    chance = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=chance) for shape in shapes]


def exercise(kind: str, heading: str, look: Callable[..., Any], **fields: Any) -> Callable[[Callable], Exercise]:
    """A decorator that makes an exercise of the function that solves it. The arguments: see Exercise."""
    return lambda solution: Exercise(kind, heading, look, solution, **fields)
