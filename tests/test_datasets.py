"""The datasets of instruction tuning: enough of them, answers that are right, templates that are in order."""

import json
import random
import re

import pytest

from minialign.runs.errors import UserError
from minialign.world import editing, reading
from minialign.world.datasets import CLUSTERS, DATASETS, HELD_OUT, PROMPTS, examples, show_datasets
from minialign.world.judging import without_colours
from minialign.world.parse import parse
from minialign.world.stories import write_scene
from minialign.world.tasks import TASKS
from minialign.world.templates import Template, lint, listed, load_templates, texts
from minialign.world.wordings import PRONOUNS, RUDE_WORDS, matches

MANY = 300  # some faults of a template show in one example of 200


@pytest.fixture(scope="module")
def made():
    return examples(DATASETS, MANY, seed=0)


def test_there_are_enough_datasets_clusters_and_templates():
    assert len(DATASETS) >= 24 and len(CLUSTERS) >= 8
    assert set(HELD_OUT) <= set(CLUSTERS) and set(PROMPTS) == set(DATASETS)
    for name in DATASETS:
        styles = [t.style for t in PROMPTS[name]]
        assert len(styles) >= 6 and "cloze" in styles, name
        assert styles.count("question") >= 2 and styles.count("instruction") >= 2, name


def test_clusters_whose_tasks_can_be_inverted_have_an_inverted_template():
    inverted = {DATASETS[name].cluster for name in DATASETS for t in PROMPTS[name] if t.inverted}
    assert inverted >= {"questions", "yes-no", "order", "finding", "sentiment", "topic", "paraphrase", "summaries",
                        "asking", "rewriting"}
    assert not inverted & set(HELD_OUT)


@pytest.mark.parametrize("name", DATASETS)
def test_every_template_is_in_order(name, made):
    assert [problem for template in PROMPTS[name] for problem in lint(template, made[name])] == []


@pytest.mark.parametrize("name", DATASETS)
def test_the_answer_is_one_of_different_options_and_no_option_always_wins(name, made):
    chosen = [e for e in made[name] if "options" in e]
    for example in chosen:
        assert example["answer"] in example["options"] and len(set(example["options"])) == len(example["options"])
    if chosen:
        answers = [e["answer"] for e in chosen]
        places = [e["options"].index(e["answer"]) for e in chosen]
        same_options = all(set(e["options"]) == set(chosen[0]["options"]) for e in chosen)
        often = max(map(answers.count, answers)) if same_options else max(map(places.count,
            places)) if name not in ("find_sentence", "last_sentence") else 0
        assert often <= 0.72 * len(chosen), "guessing one answer, or one place, would do"


def test_the_doubled_name_stands_among_all_ways_to_fill_two_places_with_two_names(made):
    """With doubled names alone to choose from, "who?" would do, which is trained."""
    for example in made["twice"]:
        right = example["answer"][: len(example["answer"]) // 2]
        doubled = [o for o in example["options"] if o[: len(o) // 2] == o[len(o) // 2 + 1 :]]
        assert example["answer"] == f"{right} {right}" and len(example["options"]) == 4 and len(doubled) == 2


def said_in(story, statement):
    """Whether a passage's text, read back, says what a statement says; colours aside, which the passage names once
    only."""
    facts = [s.event for s in parse(story) if s.event]
    return any(matches(without_colours(parse(statement)[0].event), fact) for fact in facts)


def test_what_follows_is_said_and_what_contradicts_is_not(made):
    for example in made["check"] + made["follows"]:
        if example["answer"] == "yes":
            assert said_in(example["story"], example["statement"]), example
        else:
            assert not said_in(example["story"], example["statement"]), example
    for example in made["contradicts"]:
        assert said_in(example["story"], example["statement"]) == (example["answer"] == "no"), example


def test_the_right_summary_is_said_and_the_other_is_not(made):
    for example in made["right_summary"]:
        assert [said_in(example["story"], option) for option in example["options"]].count(True) == 1
        assert said_in(example["story"], example["answer"])


def test_a_pronoun_means_the_person_of_its_gender(made):
    for example in made["pronoun"]:
        assert PRONOUNS[example["answer"]] == example["pronoun"].lower()
        assert [PRONOUNS[option] for option in example["options"]].count(example["pronoun"].lower()) == 1
    for example in made["pronoun_means"]:
        assert (PRONOUNS[example["person"]] == example["pronoun"].lower()) == (example["answer"] == "yes")
    for example in made["without_pronoun"]:
        assert PRONOUNS[example["answer"].split()[0]] == example["sentence"].split()[0].lower()


def test_counting_and_order_agree_with_the_text(made):
    numbers = ["one", "two", "three", "four"]
    for example in made["count_sentences"]:
        assert numbers[example["story"].count(".") - 1] == example["answer"]
    for example in made["count_people"]:
        named = {name for name in PRONOUNS if name in example["story"]}
        assert numbers.index(example["answer"]) + 1 == len(named), example
    for example in made["person_named_first"]:
        assert min(example["options"], key=example["story"].find) == example["answer"]
    for example in made["named_person"]:
        assert (example["person"] in example["story"]) == (example["answer"] == "yes")
    for example in made["find_sentence"]:
        assert example["word"] in example["answer"] and sum(example["word"] in option.lower()
                                                            for option in example["options"]) >= 1


def test_polite_answers_have_no_rude_word(made):
    for example in made["polite"]:
        assert not any(word in example["answer"].lower().split()
                       for word in RUDE_WORDS) and any(word in example["sentence"].lower() for word in RUDE_WORDS)


def test_two_sentences_that_say_the_same_are_read_as_one_event(made):
    for example in made["same_meaning"]:
        first, second = (parse(example[key])[0].event for key in ("first", "second"))
        assert (matches(first, second) or matches(second, first)) == (example["answer"] == "yes"), example


def test_the_same_seed_gives_the_same_examples_and_a_used_passage_is_not_used_again():
    told = set()
    first = examples(["who", "check"], 30, seed=4, told=told)
    assert first == examples(["who", "check"], 30, seed=4)
    again = examples(["who", "check"], 30, seed=4, told=told)
    used = [text for part in (first, again) for name in part for e in part[name] for text in texts(e)]
    assert len(used) == len(set(used))


def test_an_unknown_dataset_is_an_error_that_lists_the_known():
    with pytest.raises(UserError, match="'whom'; known are who"):
        examples(["whom"], 1, seed=0)


def test_a_scene_has_as_many_events_as_asked_for():
    rng = random.Random(0)
    scenes = [write_scene(rng, 2, 3) for _ in range(50)]
    assert {len(scene.events) for scene in scenes} == {2, 3} and all(scene.people and scene.text.endswith(".")
        for scene in scenes)


def test_the_tour_shows_every_dataset():
    shown = show_datasets()
    assert all(f": {name}, " in shown for name in DATASETS)


def test_options_are_listed_for_people():
    assert listed(["red", "blue", "green"]) == "red, blue or green" and listed(["no"]) == "no"
    example = {"options": ["A came.", "B came."], "answer": "A came."}
    for text in ("{options}\nWhich?", "Which? {options}", "Which?\n{options}"):
        prompt = Template("t", "n", text).pose(example).prompt
        assert prompt.replace("Which?",
                              "").strip() == "- A came.\n- B came." and " \n" not in prompt and "\n\n" not in prompt


@pytest.mark.parametrize(
    "template, example, problem",
    [
        (Template("t", "n", "{story} {person}?"), {"story": "x", "answer": "y"}, "have no field person"),
        (Template("t", "n", "Hypothesis: {story}n\nTrue?"), {"story": "It rained.", "answer": "yes"},
         "a lost line break"),
        (Template("t", "n", "{story} "), {"story": "It rained.", "answer": "yes"}, "a blank at the end"),
        (Template("t", "n", "{story}?"), {"story": "It was Mira.", "answer": "Mira"}, "the target stands in the input"),
        (Template("t", "n", "{story}?", answer_in_input=True), {"story": "It rained.", "answer": "yes"},
         "never stands there"),
        (Template("t", "n", "{answer}?", "{story}"), {"story": "It rained.", "answer": "yes"}, "inverted is False"),
        (Template("t", "n", "{story}?"), {"story": "It {rained}.", "answer": "yes"}, "a brace is left"),
        (Template("t", "n", "{story}?"), {"story": "It rained.", "answer": ""}, "is empty"),
    ],
)
def test_lint_finds_what_is_wrong(template, example, problem):
    assert any(problem in found for found in lint(template, [example]))


@pytest.mark.parametrize(
    "table, message",
    [
        ("[]", "there are no templates"),
        ('{"a": []}', "a has no templates"),
        ('{"a": "b"}', "shares the templates of 'b'"),
        ('{"a": [{"name": "x"}]}', 'needs "name" and "input"'),
        ('{"a": [{"name": "x", "input": "{q", "target": "y"}]}', "stray brace"),
        ('{"a": [{"name": "x", "input": 3}]}', "it must be a str"),
        ('{"a": [{"name": "x", "input": "i", "style": "poem"}]}', "choose one of question"),
        ('{"a": [{"name": "x", "input": "i"}, {"name": "x", "input": "j"}]}', "two templates with the name 'x'"),
        ("{", "cannot be read as JSON"),
    ],
)
def test_a_bad_file_of_templates_is_named_with_its_fault(tmp_path, table, message):
    path = tmp_path / "templates.json"
    path.write_text(table, encoding="utf-8")
    with pytest.raises(UserError, match=message) as error:
        load_templates(path)
    assert "templates.json" in str(error.value)


def test_a_line_added_to_the_file_is_a_template_more(tmp_path):
    path = tmp_path / "templates.json"
    path.write_text(json.dumps({"a": [{"name": "x", "input": "{q}?"}], "b": "a"}), encoding="utf-8")
    loaded = load_templates(path)
    assert [t.task for t in loaded["b"]] == ["b"] and loaded["a"][0].input == loaded["b"][0].input


@pytest.mark.parametrize("options, message", [(["no"], "not among its options"),
                                              (["yes", "yes"], "name one answer twice"), ([], "none")])
def test_options_that_do_not_fit_the_answer_are_an_error(options, message):
    with pytest.raises(UserError, match=message):
        Template("t", "n", "{q}?").pose({"q": "x", "answer": "yes", "options": options})


def test_things_are_listed_as_they_are_named():
    rng, seen = random.Random(1), 0
    for _ in range(1500):
        story = write_scene(rng)
        for each in editing.list_things(story, rng):
            at = [re.search(rf"\b{noun}\b", story.text).start() for noun in each["answer"].split(", ")]
            assert at == sorted(at), each
            seen += 1
    assert seen > 100


def test_a_question_without_an_answer_is_none_of_the_passages_own():
    rng, seen = random.Random(2), 0
    for _ in range(1500):
        story = write_scene(rng)
        for each in reading.answerable(story, rng):
            own = {asked["question"] for field in ("who", "where", "what")
                   for asked in TASKS[field].examples(story, rng)}
            assert each["answer"] == "yes" or each["question"] not in own
            seen += each["answer"] == "no"
    assert seen > 100
