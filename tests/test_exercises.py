"""The exercises: each solution passes, each stub fails, and typical wrong answers get the hint that helps."""

import re

import pytest
from wrong_answers import WRONG

from minialign.lab.exercises import catalogue, check, listing, solution, stub, task
from minialign.lab.exercises.checking import called
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
            wrapped = eval(f"lambda {names}: makes({names})", {"makes": makes})
            assert check(name, answer(name, wrapped)).key == key


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
