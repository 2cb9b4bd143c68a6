r"""All exercises, by notebook: what there is, what to do, where to begin, and how it can be solved."""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import itertools
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minialign.lab.exercises.exercise import KINDS, Exercise
from minialign.lab.exercises.texts import words_of
from minialign.runs.errors import UserError

PLANTED = Path(__file__).parent / "planted"
CHAPTERS = {  # notebook -> (file of its exercises, its title)
    0: ("tour", "start here"),
    1: ("transformer", "the transformer by hand"),
    2: ("pretraining", "pretraining"),
    3: ("instructions", "instruction tuning"),
    4: ("feedback", "human feedback and reward models"),
    5: ("ppo", "PPO, the KL term, over-optimisation"),
    6: ("finetuning", "fine-tuning and its cheap relatives"),
    7: ("quantization", "quantization"),
    8: ("eight_bits", "LLM.int8() and half precision"),
    9: ("distillation", "distillation"),
    10: ("together", "all together"),
}


class Text(str):
    """A text that a notebook shows as markdown and a terminal as it is."""

    def __repr__(self) -> str:
        return str(self)

    def _repr_markdown_(self) -> str:
        """For notebooks."""
        return str(self)


def words(exercise: Exercise) -> dict[str, str]:
    """What is said about an exercise: {"task", "right", mistake ...}."""
    return words_of(CHAPTERS[exercise.notebook][0])[exercise.name]


def of_notebook(notebook: int) -> tuple[Exercise, ...]:
    """The exercises that end a notebook, in their order. Raises UserError when there is no such notebook."""
    if notebook not in CHAPTERS:
        raise UserError(f"there is no notebook {notebook}; they are numbered 0 to {max(CHAPTERS)}")
    return importlib.import_module(f"minialign.lab.exercises.{CHAPTERS[notebook][0]}").EXERCISES


def exercises() -> dict[str, Exercise]:
    """Name -> exercise, of all notebooks."""
    return {exercise.name: exercise for notebook in CHAPTERS for exercise in of_notebook(notebook)}


def find(name: str) -> Exercise:
    """The exercise of a name. Raises UserError that names the nearest ones when there is none."""
    known = exercises()
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
        raise UserError(f"there is no exercise {name!r}" + (f"; did you mean {', '.join(near)}?" if near
                                                            else "; print(listing()) shows all"))
    return known[name]


def stub_of(exercise: Exercise) -> str:
    """Source to begin with: an empty function, or for a planted bug the function with the bug."""
    if exercise.kind != "mend":
        return textwrap.dedent(exercise.stub).strip() + "\n"
    source = (PLANTED / f"{exercise.name}.py").read_text(encoding="utf-8")
    docstring = ast.parse(source).body[0]
    return "\n".join(source.splitlines()[docstring.end_lineno :]).strip() + "\n"


def stub(name: str) -> Text:
    """Where to begin: the source of an empty function (a prediction: of a line to fill in), or of the function that has
    the bug."""
    return Text(stub_of(find(name)))


def task(name: str) -> Text:
    """What an exercise asks for, as markdown, and where to begin. Raises UserError when there is no such exercise."""
    exercise = find(name)
    head = f"**{exercise.name}** ({KINDS[exercise.kind]}). {words(exercise)['task']}"
    return Text(f"{head}\n\n```python\n{stub_of(exercise)}check({exercise.name!r}, {_answer(exercise)})\n```")


def _answer(exercise: Exercise) -> str:
    """What stands for the answer in a call of check."""
    tree = ast.parse(stub_of(exercise))
    last = tree.body[-1]
    return last.name if isinstance(last, ast.FunctionDef) else ast.unparse(last.targets[0])


def solved(exercise: Exercise) -> Callable[..., Any]:
    """The function that solves an exercise; a prediction's or a text's takes nothing and returns it."""
    return getattr(importlib.import_module(f"minialign.lab.exercises.solutions.{CHAPTERS[exercise.notebook][0]}"),
                   exercise.name)


def solution(name: str) -> Text:
    """The source of one way to solve an exercise. Try first."""
    return Text(f"```python\n{inspect.getsource(solved(find(name)))}```")


def listing(notebook: int | None = None) -> Text:
    """A table of the exercises: of one notebook, or of all.

    Raises:
        UserError: there is no such notebook.
    """
    rows = [(number, exercise) for number in ([notebook] if notebook is not None else CHAPTERS)
            for exercise in of_notebook(number)]
    lines = []
    for number, group in itertools.groupby(rows, key=lambda row: row[0]):
        lines.append(f"{number:02d} {CHAPTERS[number][1]}")
        lines += [f"    {exercise.name:24} {KINDS[exercise.kind]:24} {_first_sentence(exercise)}" for _,
                  exercise in group]
    return Listing("\n".join(lines), [exercise for _, exercise in rows])


class Listing(Text):
    """Exercises in fixed columns for a terminal, and as a table for a notebook."""

    def __new__(cls, text: str, shown: list[Exercise]):
        listing = super().__new__(cls, text)
        listing.shown = shown
        return listing

    def _repr_markdown_(self) -> str:
        """For notebooks."""
        lines = ["| notebook | exercise | kind | task |", "| --- | --- | --- | --- |"]
        for exercise in self.shown:
            task = _first_sentence(exercise).replace("|", "\\|").replace("*", "\\*").replace("_", "\\_")
            lines.append(f"| {exercise.notebook:02d} | `{exercise.name}` | {KINDS[exercise.kind]} | {task} |")
        return "\n".join(lines)


def _first_sentence(exercise: Exercise) -> str:
    text = words(exercise)["task"].replace("`", "")
    first = text.split(". ")[0].rstrip(".") + "."
    return first if len(first) <= 100 else first[:97].rsplit(" ", 1)[0] + " ..."
