r"""All exercises, by notebook: what there is, what to do, where to begin, and how it can be solved.

The words stand in markdown files that are pleasant to read and to edit, texts/quantization.md and its siblings:

    ## absmax           the task
    ### right           what is said when the answer is right: what to take along
    ### levels_128      the hint for whoever made this mistake

Every mistake has its hint and every hint its mistake (test_every_mistake_has_words_and_the_words_a_mistake).
"""

import difflib
import importlib
import inspect
import re
from functools import lru_cache
from pathlib import Path

from minialign.lab.exercises.exercise import KINDS, Exercise
from minialign.runs.errors import UserError

TEXTS = Path(__file__).parent / "texts"
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
    11: ("after", "after the notes"),
}


class Text(str):
    """A text that a terminal shows as it is and a notebook as markdown; `markdown`, where that is another text."""

    markdown = ""

    def __repr__(self) -> str:
        return str(self)

    def _repr_markdown_(self) -> str:
        """For notebooks."""
        return self.markdown or str(self)


@lru_cache(maxsize=64)
def words_of(chapter: str) -> dict[str, dict[str, str]]:
    """Exercise -> {"task", "right", mistake ...} -> its words, of one chapter's file; a paragraph is one line."""
    found: dict[str, dict[str, str]] = {}
    for section in re.split(r"^## ", (TEXTS / f"{chapter}.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        name, *parts = re.split(r"^### ", section, flags=re.MULTILINE)
        name, _, task = name.partition("\n")
        said = {"task": task} | {key: text for key, _, text in (part.partition("\n") for part in parts)}
        found[name.strip()] = {key.strip(): "\n\n".join(" ".join(paragraph.split())
                                                        for paragraph in text.strip().split("\n\n"))
                               for key, text in said.items()}
    return found


def words(exercise: Exercise) -> dict[str, str]:
    """What is said about an exercise: {"task", "right", mistake ...}."""
    return words_of(exercise.chapter)[exercise.name]


def of_notebook(notebook: int) -> tuple[Exercise, ...]:
    """The exercises that end a notebook, in their order. Raises UserError when there is no such notebook."""
    if notebook not in CHAPTERS:
        raise UserError(f"there is no notebook {notebook}; they are numbered 0 to {max(CHAPTERS)}")
    chapter = importlib.import_module(f"minialign.lab.exercises.{CHAPTERS[notebook][0]}")
    return tuple(value for value in vars(chapter).values() if isinstance(value, Exercise))


def exercises() -> dict[str, Exercise]:
    """Name -> exercise, of all notebooks."""
    return {exercise.name: exercise for notebook in CHAPTERS for exercise in of_notebook(notebook)}


def find(name: str) -> Exercise:
    """The exercise of a name. Raises UserError that names the nearest ones when there is none."""
    known = exercises()
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
        raise UserError(f"there is no exercise {name!r}" + (f"; did you mean {', '.join(near)}?" if near
                                                            else "; print(listing()) shows all")
                        + ". Give the exercise's name first where the answer has another: check('absmax', mine)")
    return known[name]


def stub(name: str) -> Text:
    """Where to begin: the source of an empty function (a prediction: of a line to fill in), or of the function that has
    the bug."""
    return Text(find(name).beginning)


def task(name: str) -> Text:
    """What an exercise asks for, as markdown, and where to begin. Raises UserError when there is no such exercise."""
    exercise = find(name)
    head = f"**{name}** ({KINDS[exercise.kind]}). {words(exercise)['task']}"
    return Text(f"{head}\n\n```python\n{exercise.beginning}check({name!r}, {exercise.variable})\n```")


def source(exercise: Exercise) -> str:
    """The function that solves an exercise, without its decorator."""
    written = inspect.getsource(exercise.solution)
    return written[written.index("\ndef ") + 1 :]


def solution(name: str) -> Text:
    """The source of one way to solve an exercise. Try first."""
    return Text(f"```python\n{source(find(name))}```")


def listing(notebook: int | None = None) -> Text:
    """A table of the exercises: of one notebook, or of all; in fixed columns for a terminal.

    Raises:
        UserError: there is no such notebook.
    """
    lines, table = [], ["| notebook | exercise | kind | task |", "| --- | --- | --- | --- |"]
    for number in CHAPTERS if notebook is None else [notebook]:
        group = of_notebook(number)
        lines.append(f"{number:02d} {CHAPTERS[number][1]}")
        for exercise in group:
            kind, task = KINDS[exercise.kind], first_sentence(exercise)
            lines.append(f"    {exercise.name:24} {kind:24} {task}")
            escaped = re.sub(r"([|*_])", r"\\\1", task)
            table.append(f"| {number:02d} | `{exercise.name}` | {kind} | {escaped} |")
    found = Text("\n".join(lines))
    found.markdown = "\n".join(table)
    return found


def first_sentence(exercise: Exercise) -> str:
    """How the task begins, in at most 100 characters."""
    first = words(exercise)["task"].replace("`", "").split(". ")[0].rstrip(".") + "."
    return first if len(first) <= 100 else first[:97].rsplit(" ", 1)[0] + " ..."
