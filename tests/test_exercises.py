"""The exercises: each solution passes, each stub fails, and typical wrong answers get the hint that helps."""

import math
import re
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from right_answers import RIGHT
from wrong_answers import WRONG

from minialign.lab.exercises import catalogue, check, listing, solution, stub, task
from minialign.lab.exercises.checking import called
from minialign.lab.exercises.comparison import apart
from minialign.runs.errors import UserError

EXERCISES = catalogue.exercises()
each = pytest.mark.parametrize("name", EXERCISES)


def answer(name, solution):
    """A function that solves an exercise, or the number or text that it returns."""
    return solution if EXERCISES[name].wanted == "a function" else solution()


def edited(name, old, new):
    """The solution with a piece of its source replaced, as a reader might have written it."""
    source = catalogue.source(EXERCISES[name])
    assert old in source, (name, old)
    found = dict(EXERCISES[name].solution.__globals__)
    exec(compile(source.replace(old, new), "<answer>", "exec"), found)
    return answer(name, found[name])


@each
def test_the_solution_is_right(name):
    verdict = check(name, answer(name, EXERCISES[name].solution))
    assert verdict, verdict
    assert "right." in repr(verdict)


@each
def test_the_stub_is_not_yet_an_answer(name):
    found = {}
    exec(stub(name), found)
    verdict = check(name, found[EXERCISES[name].variable])
    assert not verdict
    mend = EXERCISES[name].kind == "mend"
    assert (verdict.key in EXERCISES[name].mistakes) if mend else verdict.key == "empty", verdict


@pytest.mark.parametrize("name", [name for name, one in EXERCISES.items() if one.kind == "mend"])
def test_a_planted_bug_is_told_when_a_hint_is_asked_for(name):
    found = {}
    exec(stub(name), found)
    shown, told = (check(name, found[name], hint=hint) for hint in (False, True))
    why = catalogue.words(EXERCISES[name])[shown.key]
    assert shown.key == told.key and told.text.startswith(why) and told.text.removeprefix(why) in shown.text
    assert why not in shown.text and f"check({name}, hint=True)" in shown.text and "In: " in shown.text


@each
def test_typical_wrong_answers_get_the_right_hint(name):
    assert len({key for key, _ in WRONG[name]}) >= 3
    for key, wrong in WRONG[name]:
        verdict = check(name, edited(name, *wrong) if isinstance(wrong, tuple) else wrong)
        assert not verdict and verdict.key == key, (key, verdict)
        assert verdict.place in repr(verdict) and (EXERCISES[name].kind != "write" or "In: " in verdict.text
                                                   or key == "in_place"), verdict


def test_there_are_wrong_answers_for_known_exercises_only():
    assert set(WRONG) == set(EXERCISES)


@each
def test_no_mistake_is_right_or_taken_for_another(name):
    exercise = EXERCISES[name]
    names = ", ".join(exercise.arguments)
    for key, ways in exercise.mistakes.items():
        for makes in ways if isinstance(ways, tuple) else (ways,):
            said = eval(f"lambda {names}: makes({names})", {"makes": makes})
            assert check(name, makes if exercise.kind == "predict" else answer(name, said)).key == key


@pytest.mark.parametrize("notebook", catalogue.CHAPTERS)
def test_every_mistake_has_words_and_the_words_a_mistake(notebook):
    chapter, _ = catalogue.CHAPTERS[notebook]
    words, found = catalogue.words_of(chapter), {e.name: e for e in catalogue.of_notebook(notebook)}
    assert list(words) == list(found)
    for name, exercise in found.items():
        assert set(words[name]) == {"task", "right", *exercise.mistakes}
        assert all(len(text) > 20 for text in words[name].values())
        assert exercise.chapter == chapter


@each
def test_the_task_shows_what_to_do_and_where_to_begin(name):
    assert f"check('{name}', " in task(name) and str(stub(name)) in task(name) and repr(task(name)) == str(task(name))
    assert f"def {name}" in solution(name)
    assert EXERCISES[name].place.startswith("minialign/")


def test_every_notebook_ends_with_three_exercises_at_least():
    for notebook, (_, title) in catalogue.CHAPTERS.items():
        assert len(catalogue.of_notebook(notebook)) >= 3
        assert title in listing() and title in listing(notebook)
    assert len(EXERCISES) >= 36
    assert len(listing().splitlines()) == len(EXERCISES) + len(catalogue.CHAPTERS)
    table = listing()._repr_markdown_().splitlines()
    assert len(table) == len(EXERCISES) + 2
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 5 for line in table), "four columns, whatever a task says"


# the checker itself


def test_an_exception_is_told_with_the_readers_line_and_no_traceback():
    def absmax(x):
        return x.nothing_of_the_kind()

    verdict = check(absmax)
    assert verdict.key == "error" and "AttributeError" in verdict.text
    assert "return x.nothing_of_the_kind()" in verdict.text
    assert "Traceback" not in verdict.text and "checking.py" not in verdict.text


def test_the_line_told_is_the_readers_even_when_the_project_raised():
    source = ("def absmax(x):\n    from minialign.quant.mappings import MappingConfig\n    return "
              "MappingConfig(bits=99)\n")
    found = {}
    exec(compile(source, "<cell>", "exec"), found)
    assert "UserError in line 3" in check("absmax", found["absmax"]).text


def test_changing_an_argument_in_place_is_told():
    verdict = check("absmax", lambda x: (x.zero_(), x.sum())[:2])
    assert verdict.key == "in_place" and "0.5" in verdict.text


def test_the_wrong_kind_of_answer_is_told():
    assert check("absmax", 3.0).key == "kind"
    assert check("half_step", lambda: 0.025).key == "kind"
    assert check("absmax", lambda: None).key == "arguments"
    assert check("absmax", None).key == check("half_step").key == "empty"


def test_an_answer_that_fits_no_mistake_still_shows_the_numbers():
    verdict = check("absmax", lambda x: (x.to(dtype=x.dtype), x.sum()))
    assert verdict.key == "different" and "Expected: " in verdict.text and "Yours: " in verdict.text
    assert "int8" in verdict.text


def test_an_unknown_exercise_names_the_nearest():
    with pytest.raises(UserError, match="did you mean absmax"):
        check("absmaxx", 1)
    with pytest.raises(UserError, match="no notebook 99"):
        listing(99)


def test_ctrl_c_is_not_swallowed():
    def stop(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        called(stop, (1,))


def test_a_verdict_shows_in_notebooks_and_is_true_or_false():
    good, bad = check("half_step", 0.025), check("half_step", 0.05)
    assert bool(good) and not bad and "**right.**" in good._repr_markdown_() and "*Read on:*" in bad._repr_markdown_()


# right in another form, wrong in kind

FUNCTIONS = [name for name, exercise in EXERCISES.items() if exercise.wanted == "a function"]
COMPARED = [name for name in FUNCTIONS if EXERCISES[name].judge is None]


def changed(value, change):
    """A result with every tensor in it changed."""
    if isinstance(value, tuple | list):
        return type(value)(changed(part, change) for part in value)
    if isinstance(value, dict):
        return {key: changed(part, change) for key, part in value.items()}
    return change(value) if isinstance(value, torch.Tensor) else value


def wide(tensor):
    return tensor.double() if tensor.dtype is torch.float32 else tensor


def integers(dtype):
    return lambda tensor: tensor.to(dtype) if tensor.dtype in (torch.int32, torch.int64) else tensor


def positional(name, function):
    """A function whose arguments have other names than the exercise's."""
    names = ", ".join(f"other_{i}" for i in range(len(EXERCISES[name].arguments)))
    return eval(f"lambda {names}: function({names})", {"function": function})


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_solution_is_right_in_any_form(name):
    solve, gradient = EXERCISES[name].solution, EXERCISES[name].gradient
    forms = {
        "float64": lambda *given: solve(*changed(given, wide)),
        "int32": lambda *given: changed(solve(*given), integers(torch.int32)),
        "int64": lambda *given: changed(solve(*given), integers(torch.int64)),
        "int32 in": lambda *given: solve(*changed(given, integers(torch.int32))),
        "numpy": lambda *given: changed(solve(*given), lambda tensor: tensor.detach().numpy()),
        "numpy float64": lambda *given: changed(solve(*changed(given, wide)), lambda tensor: tensor.detach().numpy()),
    }
    for form, function in forms.items():
        verdict = check(name, positional(name, function))
        if form.startswith("numpy") and gradient:
            assert not verdict and "numpy's has no gradient" in verdict.text
            continue
        assert verdict, (form, verdict)
        tensors = []
        if form == "numpy" and EXERCISES[name].judge is None:
            changed(solve(*EXERCISES[name].cases()[0]), tensors.append)
            assert ("torch.from_numpy" in verdict.text) == bool(tensors), verdict


@pytest.mark.parametrize("name", [name for name, exercise in EXERCISES.items() if exercise.kind == "predict"])
def test_a_prediction_is_a_number_of_any_library(name):
    number = EXERCISES[name].solution()
    for form in (float, np.float32, np.float64, np.array, torch.tensor, Fraction, Decimal):
        assert check(name, form(number)), form
    assert check(name, np.array([number])) and check(name, torch.tensor([[number]]))
    for none in (str(number), True, math.nan, math.inf, [number], None.__class__, 1j):
        assert check(name, none).key == "kind", none


@each
def test_other_right_answers_are_accepted(name):
    assert name in RIGHT or EXERCISES[name].judge or EXERCISES[name].kind == "predict"
    for old, new in RIGHT.get(name, ()):
        verdict = check(name, edited(name, old, new))
        assert verdict, (new, verdict)


@pytest.mark.parametrize("name", COMPARED)
def test_a_wrong_type_or_shape_is_said_first(name):
    solve = EXERCISES[name].solution
    wrong = {
        "a word": lambda *given: "a word",
        "one more": lambda *given: (solve(*given), 1, 2, 3),
        "a function": lambda *given: solve,
        "a dimension more": lambda *given: changed(solve(*given), lambda tensor: tensor[None, None]),
        "half": lambda *given: changed(solve(*given), lambda tensor: tensor.half() if tensor.dtype is torch.float32
                                       else tensor),
        "complex": lambda *given: changed(solve(*given), lambda tensor: tensor.to(torch.complex64)),
    }
    for kind, function in wrong.items():
        verdict = check(name, positional(name, function))
        if verdict:  # it has no tensor, or only such as a number may stand for
            assert kind not in ("a word", "one more", "a function") and check(name, solve)
            continue
        assert "by hand" not in verdict.text, (kind, verdict)
        if verdict.key == "different":
            assert re.match(r"\w.* should (be|have) .+; yours (is|has) .+\. Mend this first", verdict.text), verdict
            shown = re.findall(r"\n  (?:Expected|Yours): (.*)", verdict.text)
            assert not shown or shown[0] != shown[1], (kind, verdict)


@pytest.mark.parametrize("name", COMPARED)
@pytest.mark.parametrize("off", [1.0004, 1.001, 1.02])
def test_numbers_that_differ_are_shown_with_the_digit_that_differs(name, off):
    def nearly(value):
        if isinstance(value, tuple | list):
            return type(value)(map(nearly, value))
        if isinstance(value, dict):
            return {key: nearly(part) for key, part in value.items()}
        return value * off if isinstance(value, float) or (isinstance(value, torch.Tensor)
                                                           and value.is_floating_point()) else value
    verdict = check(name, positional(name, lambda *given: nearly(EXERCISES[name].solution(*given))))
    if not verdict:
        right, yours = re.search(r"should be (\S+); yours is (\S+)\.(?:\n|$)", verdict.text).groups()
        assert right != yours, verdict
        shown = re.findall(r"\n  (?:Expected|Yours): (.*)", verdict.text)
        assert not shown or shown[0] != shown[1], verdict


def test_a_prediction_that_is_far_off_is_told_by_how_much():
    assert "the run gave more: 1.5 times as much" in check("stored_bytes", 700_416).text
    assert "the run gave less: yours is 2 times as large" in check("stored_bytes", 2 * (2**20 + 2048)).text
    assert "the run gave a little more. Write" in check("stored_bytes", 2**20 + 2047).text
    assert "the run gave more. Write" in check("stored_bytes", -5).text


def test_digits_are_added_until_two_numbers_look_different():
    assert apart(-1.28501, -1.28502) == ("-1.28501", "-1.28502") and apart(0.5, 0.25) == ("0.5", "0.25")
    assert apart(torch.tensor([1.0, -1.28501]), torch.tensor([1.0, -1.28502]))[1] == "[1, -1.28502]"
    assert apart(0.1, 0.1) == ("0.1", "0.1") and apart(0.729, 0.731, least=2) == ("0.729", "0.731")


def test_the_scale_of_zeros_is_any_that_is_above_0():
    def absmax(scale):
        def answer(x):
            q, s = EXERCISES["absmax"].solution(x)
            return q, s if x.any() else scale
        return check("absmax", answer)
    assert all(map(absmax, (1.0, 1, torch.tensor(3e-9), np.float32(7))))
    for scale in (0.0, -1.0, math.nan, math.inf):
        verdict = absmax(torch.tensor(scale))
        assert not verdict and "should be 'a scale above 0'; yours is 'a scale of 0" in verdict.text, verdict


def test_a_function_of_another_name_is_asked_for_its_exercise():
    def my_absmax(x):
        return x

    with pytest.raises(UserError, match=r"did you mean absmax\?.*check\('absmax', mine\)"):
        check(my_absmax)
