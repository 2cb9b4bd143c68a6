r"""Checking an answer: run it on the examples, compare, and find out which mistake it is.

    check("absmax", absmax)  ->  right, or a hint with numbers: what went in, what was expected, what came out, and why

An answer that comes out wrong is held against the exercise's mistakes: the first one that gives the same on every
example is named. An exception becomes a hint too, with the line of the reader's own that raised it. Details that
matter:
    1. Answers get copies of the arguments, and must leave them as they are
       (test_changing_an_argument_in_place_is_told).
    2. Whatever a reader's function raises comes back as a hint
       (test_an_exception_is_told_with_the_readers_line_and_no_traceback).
    3. A number for a function, or a function for a number, is told apart from a wrong answer
       (test_the_wrong_kind_of_answer_is_told).
    4. A planted bug is shown by its numbers alone, until the reader asks for a hint
       (test_a_planted_bug_is_told_when_a_hint_is_asked_for).
    5. What is right in another form (float64, numpy, another type of integer) is right
       (test_the_solution_is_right_in_any_form). A wrong type or shape is said before any number
       (test_a_wrong_type_or_shape_is_said_first).
"""

import copy
import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minialign.lab.exercises import comparison
from minialign.lab.exercises.calling import Raised, called
from minialign.lab.exercises.catalogue import find, words
from minialign.lab.exercises.comparison import apart, difference, kind_difference, show, value_difference
from minialign.lab.exercises.exercise import Exercise, Wrong


@dataclass(frozen=True)
class Verdict:
    """What `check` found; true when the answer is right. Shown by itself as the last line of a notebook's cell."""

    name: str
    passed: bool
    key: str  # "right", or the short name of the mistake
    text: str  # what was found, or the hint
    place: str  # where to read on

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        said = f"{self.name}: {'right' if self.passed else 'not yet'}. {self.text}"
        return said if self.passed else f"{said}\n  Read on: {self.place}"

    def _repr_markdown_(self) -> str:
        """For notebooks."""
        body = re.sub("\n *", "\n>\n> ", self.text)
        said = f"> `{self.name}`: **{'right' if self.passed else 'not yet'}.** {body}"
        return said if self.passed else f"{said}\n>\n> *Read on:* {self.place}"


def check(exercise: str | Callable[..., Any], answer: Any = ..., hint: bool = False) -> Verdict:
    """Try an answer to an exercise and say what is wrong with it, if anything.

        check("absmax", my_absmax)      a function, for "write it" and "find the planted bug"
        check(absmax)                   the same, when the function has the exercise's name
        check("half_step", 0.02)        a number, for "predict before you run"
        check(pool, hint=True)          also what kind of bug it is, for "find the planted bug"

    What there is: `listing()`. What to do: `task("absmax")`. Nothing is printed and nothing raised: the verdict is
    returned, and a notebook shows it.

    Args:
        exercise: its name, or a function of that name.
        answer: the reader's function, number or text.
        hint: whether a planted bug that is still there is told; without it only what it does is.
    Returns:
        A Verdict: true when the answer is right; otherwise its text is a hint, with the example on which the answer
        went wrong.
    Raises:
        UserError: there is no exercise of that name; the message names the nearest.
    """
    if callable(exercise):
        exercise, answer = getattr(exercise, "__name__", type(exercise).__name__), exercise
    task = find(exercise)
    try:
        if answer is None or answer is ...:
            raise Wrong("empty", f"There is no answer yet: give {task.wanted} as check({task.name!r}, ...).")
        examine = {"predict": _check_number, "beat": _check_by_judge}.get(task.kind, _check_function)
        key, text = "right", f"{examine(task, answer)} {words(task)['right']}"
    except Wrong as wrong:
        key, text = wrong.key, wrong.says
        if task.kind == "mend" and key in task.mistakes and not hint:
            text = (f"The bug is still there, or another.{text.removeprefix(words(task)[key])}\n  For a hint: "
                    f"`check({task.name}, hint=True)`.")
    return Verdict(task.name, key == "right", key, text, task.place)


def _check_number(task: Exercise, answer: Any) -> str:
    """Compare a prediction with what running it gives."""
    number = comparison.number_in(answer)
    if number is None or not math.isfinite(number):
        raise Wrong("kind", f"This exercise asks for a number, and {show(answer)[:60]} is none: predict first, run "
                            f"later.")
    number = answer if type(answer) is int else number  # shown as it was written
    truth, said = float(task.reference()), f"You said {show(number)} {task.unit}".rstrip()
    if abs(number - truth) <= abs(truth) * task.tolerance:
        why = f" ({task.why_tolerance})" if task.why_tolerance else ""
        return f"{said}, the run gave {show(truth)}{why}."
    side, other = ("high", "less") if number > truth else ("low", "more")
    ratio = number / truth if truth else 0.0
    if ratio > 0:
        times = f"{max(ratio, 1 / ratio):.3g}"
        far = f"yours is {times} times as large" if ratio > 1 else f"{times} times as much"
        other = f"a little {other}" if times == "1" else f"{other}: {far}"
    for key, wrong in task.mistakes.items():
        if abs(number - wrong) <= max(1e-9, abs(wrong) * min(task.tolerance, 0.02) + 1e-6):
            raise Wrong(key, f"{said}; the run gave {other}. {words(task)[key]}")
    raise Wrong(side, f"{said}; the run gave {other}. Write the sum down and try again.")


def _check_by_judge(task: Exercise, answer: Any) -> str:
    """Let the exercise's judge measure an answer."""
    if task.wanted == "a function":
        _check_signature(task, answer)
        return task.judge(lambda *arguments: _call(task, answer, arguments))
    if not isinstance(answer, str):
        raise Wrong("kind", f"This exercise asks for a text, and {show(answer)[:60]} is none.")
    if not answer.strip():
        raise Wrong("empty", "The text is empty: write one.")
    return task.judge(answer)


def _call(task: Exercise, function: Callable, arguments: tuple) -> Any:
    """The result of the reader's function; what it raises, and None, become hints."""
    found = called(function, copy.deepcopy(arguments))
    if isinstance(found, Raised):
        raise Wrong("error", found.says)
    if found is None:
        raise Wrong("empty", _nothing(task))
    return found


def _check_function(task: Exercise, answer: Any) -> str:
    """Compare a function with the project's own on every example."""
    _check_signature(task, answer)
    cases, got, numpy = list(task.cases()), [], False
    expected = [_result(task, task.reference or task.look, copy.deepcopy(case)) for case in cases]
    for case in cases:
        kept = copy.deepcopy(case)
        made = _result(task, answer, kept)
        numpy = numpy or comparison.holds_numpy(made)
        got.append(comparison.in_torch(made))
        if isinstance(got[-1], Raised):
            break
        _check_unchanged(case, kept)
    if isinstance(got[-1], Raised):  # if an earlier example shows what is wrong, that tells more
        failed = got.pop()
        if not any(_apart(task, e, g) for e, g in zip(expected, got)):
            raise Wrong("error", f"{failed.says}\n  In: {_arguments(task, cases[len(got)])}")
    if all(value is None for value in (g[0] if task.gradient else g for g in got)):
        raise Wrong("empty", _nothing(task))
    found = [_apart(task, e, g) for e, g in zip(expected, got)]
    if not any(found):
        hint = " (It is an array of numpy's; the project's own is a tensor: torch.from_numpy makes one.)" * numpy
        return (f"The same as {task.look.__module__}.{task.look.__qualname__} on {len(cases)} "
                f"example{'s' * (len(cases) > 1)}.{hint}")
    kinds = [_kind(task, e, g) for e, g in zip(expected, got)]
    found = kinds if any(kinds) else found  # numbers of a wrong type or shape say nothing yet
    first = next(i for i, text in enumerate(found) if text)
    numbers = _example(task, cases[first], expected[first], got[first])
    numbers += "\n  (An array of numpy's has no gradient: stay with torch's tensors.)" * (numpy and task.gradient)
    for key, ways in task.mistakes.items():
        for way in ways if isinstance(ways, tuple) else (ways,):
            made = [_result(task, way, copy.deepcopy(case)) for case in cases[: len(got)]]
            if not any(_apart(task, m, g) for m, g in zip(made, got)):
                raise Wrong(key, f"{words(task)[key]}{numbers}\n  So {found[first]}.")
    if any(kinds):
        raise Wrong("different", f"{found[first][0].upper()}{found[first][1:]}. Mend this first, then the "
                                 f"numbers.{numbers}")
    raise Wrong("different", f"Not one of the usual mistakes: follow this example by hand.{numbers}\n  So "
                             f"{found[first]}.")


def _example(task: Exercise, case: tuple, expected: Any, got: Any) -> str:
    """An example that went wrong, line by line; results that look alike as far as they are shown are left out."""
    shown = apart(expected, got, 6, _with_gradient if task.gradient else show)
    both = f"\n  Expected: {shown[0]}\n  Yours: {shown[1]}" if shown[0] != shown[1] else ""
    return f"\n  In: {_arguments(task, case)}{both}"


def _with_gradient(result: tuple, digits: int) -> str:
    return f"{show(result[0], digits)}, with gradient {show(result[1], digits)}"


def _kind(task: Exercise, expected: Any, got: Any) -> str:
    """In what type, shape or count two results differ; a gradient always has those of its argument."""
    return kind_difference(expected[0], got[0]) if task.gradient else kind_difference(expected, got)


def _apart(task: Exercise, expected: Any, got: Any) -> str:
    """In what two results differ, as far as the exercise looks at it."""
    if found := _kind(task, expected, got):
        return found
    if task.gradient:
        return (value_difference(expected[0], got[0], task.tolerance)
                or value_difference(expected[1], got[1], task.tolerance, "its gradient"))
    seen = task.seen or (lambda result: result)
    return value_difference(seen(expected), seen(got), task.tolerance)


def _check_signature(task: Exercise, answer: Any) -> None:
    """Raises Wrong unless the answer can be called as the exercise's function is."""
    wanted = f"{task.name}({', '.join(task.arguments)})"
    if not callable(answer):
        raise Wrong("kind", f"This exercise asks for a function {wanted}, and {show(answer)[:60]} is none.")
    try:
        inspect.signature(answer).bind(*task.arguments)
    except TypeError:
        raise Wrong("arguments", f"It is called as {wanted}; yours takes {inspect.signature(answer)}.") from None
    except ValueError:
        pass  # a function of C does not tell what it takes


def _nothing(task: Exercise) -> str:
    return (f"{task.name} returned nothing. Write its body (task({task.name!r}) says what it should do), and do not "
            f"forget the return.")


def _result(task: Exercise, function: Callable, arguments: tuple) -> Any:
    """What a function makes of an example; for exercises on gradients (value, gradient)."""
    if not task.gradient:
        return called(function, arguments)
    first = arguments[0].requires_grad_(True)
    value = called(function, arguments)
    if isinstance(value, Raised) or value is None:
        return value if isinstance(value, Raised) else (None, None)
    if not isinstance(value, Tensor):
        return value, torch.zeros_like(first)
    gradient = called(_gradient_of_sum, (value, first))  # a reader's own graph may raise, too
    first.requires_grad_(False)
    return gradient if isinstance(gradient, Raised) else (value.detach(), gradient)


def _gradient_of_sum(value: Tensor, first: Tensor) -> Tensor:
    gradient = torch.autograd.grad(value.sum(), first, allow_unused=True)[0] if value.requires_grad else None
    return torch.zeros_like(first) if gradient is None else gradient


def _check_unchanged(before: tuple, after: tuple) -> None:
    """Raises Wrong for an argument that is not what it was."""
    for place, old, new in zip(("first", "second", "third", "fourth", "fifth", "sixth"), before, after):
        if isinstance(old, Tensor | list | dict) and difference(old, new, 0.0):
            raise Wrong("in_place", f"It changed its {place} argument, which the caller still needs: {show(old)} "
                                    f"became {show(new)}. Work on a copy.")


def _arguments(task: Exercise, case: tuple) -> str:
    return ", ".join(f"{name} = {show(value)}" for name, value in zip(task.arguments, case))

