"""Instructions as a product of task, wording and manner: enough of them, all in order, split once."""

import json

import pytest

from minialign.runs.errors import UserError
from minialign.world.datasets import DATASETS, PROMPTS, examples
from minialign.world.manners import (
    MANNERS,
    flipped,
    instructions,
    load_manners,
    split_instructions,
    with_manners,
)
from minialign.world.templates import TABLES, Template, lint


@pytest.fixture(scope="module")
def made():
    return examples(DATASETS, 60, seed=4)


@pytest.fixture(scope="module")
def every(made):
    return instructions(PROMPTS, {task: found[0] for task, found in made.items()})


def test_there_are_thousands_of_different_instructions(every):
    assert set(every) == set(PROMPTS)
    inputs = {(template.input, template.target, template.letters) for found in every.values() for template in found}
    assert len(inputs) > 5000
    for task, found in every.items():
        assert len({template.name for template in found}) == len(found)
        assert found[: len(PROMPTS[task])] == PROMPTS[task]


@pytest.mark.parametrize("task", DATASETS)
def test_every_product_is_in_order(task, every, made):
    few = made[task]
    assert [problem for template in every[task] for problem in lint(template, few)] == []


def test_half_of_a_task_comes_in_its_templates_as_they_are(every):
    for task, found in every.items():
        plain = sum(template.share for template in found[: len(PROMPTS[task])])
        if len(found) > len(PROMPTS[task]):
            assert sum(template.share for template in found) == pytest.approx(2 * plain)


def test_a_manner_names_the_words_for_yes_and_no_and_they_are_the_options(made):
    template = Template("yes_no", "plain", "{story}\n{question}")
    example = {"story": "Mira ran.", "question": "Did Mira run?", "answer": "no", "options": ["yes", "no"]}
    (found,) = [t for t in with_manners(template, example) if t.name == "plain, yes_no 7"]
    question = found.pose(example)
    assert question.options == tuple(MANNERS["yes_no"][7][2].values()) and question.target == question.options[1]
    assert all(word in question.prompt for word in question.options)
    assert question.prompt.startswith("Mira ran.\nDid Mira run?\n")


def test_letters_stand_before_the_options_and_are_the_answers():
    template = Template("who", "plain", "{story}\n{question}")
    example = {"story": "Mira ran.", "question": "Who ran?", "answer": "Mira", "options": ["Tom", "Mira", "Ben"]}
    found = [t for t in with_manners(template, example) if "letters 1" in t.name]
    assert len(found) == 4  # passage first or last, the manner before or behind
    question = found[0].pose(example)
    assert "A: Tom, B: Mira or C: Ben" in question.prompt and question.target == "B"
    assert question.options == ("A", "B", "C")


def test_an_answer_in_a_sentence_has_its_options_in_the_sentence():
    template = Template("who", "plain", "{story}\n{question}")
    example = {"story": "Mira ran.", "question": "Who ran?", "answer": "Mira", "options": ["Tom", "Mira"]}
    (found,) = [t for t in with_manners(template, example) if t.name == "plain, sentence 1"]
    assert found.pose(example).options == ("It is Tom", "It is Mira") and found.pose(example).right == 1


@pytest.mark.parametrize("template", [
    Template("a", "b", "{story}\n{question} yes or no?"), Template("a", "b", "{story} {options}?"),
    Template("a", "b", "{story}\n{answer}", "{question}", inverted=True),
    Template("a", "b", "{story}\n{question}", words={"yes": "right", "no": "wrong"})])
def test_a_template_that_says_how_to_answer_goes_with_no_manner(template):
    assert with_manners(template, {"answer": "yes", "options": ["yes", "no"]}) == []


def test_nothing_stands_between_a_text_to_go_on_with_and_its_answer():
    template = Template("a", "b", "{story}\n{question} The answer is", style="cloze")
    found = with_manners(template, {"answer": "yes", "options": ["yes", "no"]})
    assert found and all(each.input.endswith("The answer is") for each in found) and flipped(template) is None


def test_the_split_is_made_once_and_hides_wordings_and_manners(every):
    seen, kept = split_instructions(every)
    assert (seen, kept) == split_instructions(every)
    for task, found in every.items():
        assert sorted(t.name for t in seen[task] + kept[task]) == sorted(t.name for t in found)
        plain = {template.name for template in PROMPTS[task] if not template.inverted}
        hidden = plain & {template.name for template in kept[task]}
        assert 1 <= len(hidden) <= 2 and len(plain) - len(hidden) >= 4
        assert not {t.asked_as for t in seen[task]} & hidden
    manners = [{t.manner for found in side.values() for t in found} - {""} for side in (seen, kept)]
    assert manners[1] - manners[0] and manners[0]


@pytest.mark.parametrize("change, message", [
    ({"yes_no": {"words": [["up", "up"]], "say": []}}, "both 'up'"),
    ({"sentence": [["Say", "it is"]]}, "must have one"),
    ({"letters": 5}, "cannot be read"), ({"yes_no": {"words": [["up"]], "say": []}}, "cannot be read")])
def test_bad_manners_are_named_with_their_fault(change, message, tmp_path):
    table = json.loads((TABLES / "manners.json").read_text(encoding="utf-8")) | change
    (tmp_path / "manners.json").write_text(json.dumps(table), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load_manners(tmp_path / "manners.json")


def test_a_line_more_is_some_instructions_more(tmp_path, made, every):
    table = json.loads((TABLES / "manners.json").read_text(encoding="utf-8"))
    table["short"].append("In few words.")
    (tmp_path / "manners.json").write_text(json.dumps(table), encoding="utf-8")
    longer = load_manners(tmp_path / "manners.json")
    more = instructions(PROMPTS, {task: found[0] for task, found in made.items()}, longer)
    assert sum(map(len, more.values())) > sum(map(len, every.values())) + 300


def test_more_options_than_letters_are_not_asked_for_by_letter():
    example = {"text": "A.", "answer": "t11", "options": [f"t{i}" for i in range(12)]}
    assert not [made for made in with_manners(Template("topic", "plain", "{text}\nWhich?"), example) if made.letters]
    example["options"] = example["options"][2:]
    assert [made for made in with_manners(Template("topic", "plain", "{text}\nWhich?"), example) if made.letters]
