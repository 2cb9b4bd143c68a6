"""Tasks and templates: every answer is right, every template can be filled."""

import random
from collections import Counter

import pytest

from minialign.runs.errors import UserError
from minialign.world.gold import judge, score
from minialign.world.parse import parse
from minialign.world.stories import Story, write_story
from minialign.world.tasks import TASKS, demonstrations, exchange_detail, reference_summary, swap
from minialign.world.templates import TEMPLATES, Template, load_templates, render
from minialign.world.wordings import matches, say


@pytest.fixture(scope="module")
def examples():
    rng = random.Random(0)
    stories = [write_story(rng) for _ in range(200)]
    return {name: [example for story in stories for example in task.examples(story, rng)]
            for name, task in TASKS.items()}


def test_every_task_has_examples_and_at_least_four_templates(examples):
    assert set(TEMPLATES) == set(TASKS)
    for name in TASKS:
        assert len(examples[name]) >= 100 and len(TEMPLATES[name]) >= 4, name
        assert len({t.name for t in TEMPLATES[name]}) == len(TEMPLATES[name])


def test_every_template_fills_from_its_task_without_stray_braces(examples):
    for name, templates in TEMPLATES.items():
        for template in templates:
            prompt, completion = render(template, examples[name][0])
            assert not set("{}") & set(prompt + completion)
            assert completion.startswith(" ") and completion == completion.rstrip() and not prompt.endswith(" ")


def test_no_template_shows_its_target_in_its_input():
    for templates in TEMPLATES.values():
        for template in templates:
            wanted = {"summary", "answer"} & set(template.fields)
            assert wanted and not any("{" + field + "}" in template.input for field in wanted), template


def test_a_missing_field_is_an_error_that_names_template_and_field():
    with pytest.raises(UserError, match="who/odd needs the field 'mood'"):
        render(Template("who", "odd", "{mood}", " {answer}"), {"answer": "Tom"})


def test_a_stray_brace_in_a_template_file_is_an_error_that_names_it(tmp_path):
    file = tmp_path / "templates.json"
    file.write_text('{"who": [{"name": "odd", "input": "{story", "target": "x"}]}')
    with pytest.raises(UserError, match="who/odd has a stray brace"):
        load_templates(file)


def test_a_task_that_stands_in_a_template_file_twice_is_an_error_that_names_it(tmp_path):
    (tmp_path / "t.json").write_text('{"spam": [{"name": "a", "input": "{text}"}], "spam": [{"name": "b", "input": '
                                     '"{text}?"}]}', encoding="utf-8")
    with pytest.raises(UserError, match="'spam' stands in one object twice"):
        load_templates(tmp_path / "t.json")


def test_the_right_answer_is_among_different_options(examples):
    for name in ("who", "where", "what", "feeling", "yes_no"):
        for example in examples[name]:
            options = example["options"]
            assert options.count(example["answer"]) == 1 and len(set(options)) == len(options) >= 2


def test_yes_and_no_are_about_equally_often_right(examples):
    counts = Counter(example["answer"] for example in examples["yes_no"])
    assert set(counts) == {"yes", "no"} and 0.4 < counts["yes"] / sum(counts.values()) < 0.65


def test_the_place_of_the_right_answer_says_nothing(examples):
    first = [e["options"][0] == e["answer"] for e in examples["who"] if len(e["options"]) == 4]
    assert 0.2 < sum(first) / len(first) < 0.3


def test_answers_stand_in_the_story_except_feelings_and_yes_or_no(examples):
    for name in ("who", "where", "what"):
        for example in examples[name]:
            assert example["answer"] in example["story"], example


def test_a_swapped_event_is_false_and_differs_in_one_field():
    rng = random.Random(1)
    tried = 0
    for _ in range(200):
        story = write_story(rng)
        for event in story.events:
            for field in event.to_dict():
                swapped = swap(event, field, story, rng) if field != "kind" and event.kind != "weather" else None
                if swapped:
                    changed = [f for f in set(event.to_dict()) | set(swapped.to_dict())
                               if getattr(event, f) != getattr(swapped, f)]
                    assert changed == [field] and not any(matches(swapped, fact) for fact in story.events)
                    tried += 1
    assert tried > 2000


def test_swapping_an_entity_makes_a_summary_dishonest():
    rng = random.Random(2)
    for _ in range(200):
        story = write_story(rng)
        event = next(e for e in story.events if e.who)
        swapped = swap(event, "who", story, rng)
        text = say(swapped, rng, "summary")
        if parse(text)[0].event.to_dict() == swapped.to_dict():
            assert score(story, text).honest < 1


def test_demonstrations_are_the_same_for_a_seed_and_keep_the_share_of_summaries():
    made = demonstrations(600, seed=4)
    assert made == demonstrations(600, seed=4) != demonstrations(600, seed=5)
    share = sum(record["task"] == "summary" for record in made) / 600
    assert abs(share - 0.75) < 4 * (0.75 * 0.25 / 600) ** 0.5
    assert {record["task"] for record in made} == set(TASKS) - {"check"}
    checked = demonstrations(400, 3, summary_share=0.6, check_share=0.3)
    assert 0.2 < sum(record["task"] == "check" for record in checked) / 400 < 0.4


def test_a_demonstrated_summary_is_honest_about_the_story_that_it_carries():
    for record in demonstrations(100, seed=6, summary_share=1.0):
        story = Story.from_dict(record["story"])
        assert story.text in record["prompt"] and score(story, record["completion"]).honest == 1
        assert record["completion"][0] == " " and record["completion"][-1] == "."


def test_a_statement_to_check_is_true_exactly_when_the_answer_is_yes(examples):
    from minialign.world.gold import score

    rng = random.Random(5)
    answers = []
    for _ in range(150):
        story = write_story(rng)
        for example in TASKS["check"].examples(story, rng):
            assert score(story, example["statement"]).honest == float(example["answer"] == "yes"), (story.text, example)
            answers.append(example["answer"])
    assert 0.35 < answers.count("no") / len(answers) < 0.6


def test_one_exchanged_detail_makes_a_true_summary_false_and_keeps_all_other_words():
    rng = random.Random(0)
    for _ in range(200):
        story = write_story(rng)
        summary = reference_summary(story, rng)
        other = exchange_detail(story, summary, rng)
        assert score(story, summary).honest == 1 > score(story, other).honest
        assert len(judge(story, other)) == len(judge(story, summary))
        assert sum(j.verdict == "false" for j in judge(story, other)) == 1
        assert sum(a != b for a, b in zip(summary.split(), other.split())) <= 3
