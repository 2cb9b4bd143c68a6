"""The mixture: how often each wording comes up, and what stands on which side of the split."""

from collections import Counter

import pytest

from minialign.instruct.mixture import (
    MixtureConfig,
    draw,
    draw_training_and_validation,
    question_ids,
    rates,
    split_by_cluster,
)
from minialign.runs.errors import UserError
from minialign.runs.files import Record
from minialign.tokenizer import train_tokenizer
from minialign.world.datasets import DATASETS, HELD_OUT, PROMPTS, examples
from minialign.world.templates import Question, Template, texts

LONG = "Mira lost the red kite at the mill and looked for it all day with Tom, who found it."


def templates(task, count):
    return [Template(task, f"t{i}", f"{{text}} {i}?") for i in range(count)]


def dataset(task, size, cluster):
    return [{"text": f"{task} {i}", "answer": f"a{i}", "cluster": cluster} for i in range(size)]


def test_the_rate_of_a_template_is_the_capped_size_over_their_number():
    found = rates({"large": 5000, "small": 30}, {"large": templates("large", 8), "small": templates("small", 3)},
                  cap=1000)
    assert found["large", "t0"] == 1000 / 8 and found["small", "t2"] == 10
    assert sum(rate for (task, _), rate in found.items() if task == "large") == pytest.approx(1000)


def test_questions_come_up_at_their_rates():
    """10,000 draws: the share of the small task, 100/600, has a standard deviation of .0037; five of them are .019."""
    datasets = {"large": dataset("large", 900, "a"), "small": dataset("small", 100, "b")}
    drawn = draw(datasets, {"large": templates("large", 8), "small": templates("small", 2)},
                 MixtureConfig(10_000, cap=500))
    share = Counter(question.task for question in drawn)["small"] / len(drawn)
    assert share == pytest.approx(100 / 600, abs=0.019)
    by_template = Counter(q.template for q in drawn if q.task == "large")
    assert len(by_template) == 8 and min(by_template.values()) > 0.85 * max(by_template.values())


def test_the_same_seed_draws_the_same_mixture():
    datasets = {"a": dataset("a", 20, "a")}
    one, two, other = (draw(datasets, {"a": templates("a", 3)}, MixtureConfig(50, seed=seed)) for seed in (1, 1, 2))
    assert one == two != other


def test_fewer_templates_and_no_inverted_ones_on_request():
    found = {"a": [*templates("a", 3), Template("a", "inverted", "{answer}", "{text}", inverted=True)]}

    def drawn(**settings):
        return {q.template for q in draw({"a": dataset("a", 9, "a")}, found, MixtureConfig(300, **settings))}

    assert drawn() == {"t0", "t1", "t2", "inverted"}
    assert drawn(inverted=False) == {"t0", "t1", "t2"}
    assert [drawn(templates=1, seed=seed) for seed in range(6)] != [drawn(templates=1)] * 6
    assert all(len(found) == 2 and "inverted" not in found for found in [drawn(templates=2, seed=9)])


def test_no_cluster_stands_on_both_sides():
    told = set()
    held_out = examples([n for n in DATASETS if DATASETS[n].cluster in HELD_OUT], 12, 1, told)
    train = examples([n for n in DATASETS if DATASETS[n].cluster not in HELD_OUT], 12, 2, told)
    split = split_by_cluster(train | held_out, HELD_OUT)

    def clusters(part):
        return {example["cluster"] for found in part.values() for example in found}

    assert clusters(split.held_out) == set(HELD_OUT) and not clusters(split.train) & set(HELD_OUT)
    assert clusters(split.validation) == clusters(split.train), "a model is chosen on training clusters only"
    for task, kept in split.validation.items():
        learned = {text for e in split.train[task] for text in texts(e)}
        assert kept and not {text for e in kept for text in texts(e)} & learned


def test_a_text_on_both_sides_of_the_split_is_an_error():
    datasets = {"a": [Record({"text": LONG, "answer": "x", "cluster": "one"}, "tasks.jsonl", 3),
                      *dataset("a", 3, "one")]}
    changed = LONG.upper().replace(",", " ;")
    datasets["b"] = [Record({"passage": changed, "answer": "y", "cluster": "two"}, "tasks.jsonl", 9)]
    with pytest.raises(UserError, match="stands in the training task 'a' and in the held-out task 'b'.*") as error:
        split_by_cluster(datasets, ["two"])
    assert "tasks.jsonl" in str(error.value) and "9" in str(error.value)


@pytest.mark.parametrize(
    "datasets, held_out, message",
    [
        ({"a": dataset("a", 3, "one")}, ["two"], "there is no cluster 'two' to hold out; known are one"),
        ({"a": dataset("a", 3, "one")}, ["one"], "every cluster is held out"),
        ({"a": dataset("a", 3, "one") + dataset("a", 3, "two"), "b": dataset("b", 3, "one")}, ["two"],
         "'a' stands in a training and in a held-out"),
        ({"a": dataset("a", 1, "one")}, [], "has no more examples than the 1 kept for validation"),
    ],
)
def test_a_split_that_cannot_be_made_says_why(datasets, held_out, message):
    with pytest.raises(UserError, match=message):
        split_by_cluster(datasets, held_out)


def test_a_share_that_leaves_nothing_to_learn_from_is_told_as_it_is():
    with pytest.raises(UserError, match="has no more examples than the 4 kept for validation"):
        split_by_cluster({"a": dataset("a", 4, "one")}, [], validation=0.9)


def test_a_task_without_templates_or_examples_is_an_error():
    with pytest.raises(UserError, match="no template for the task 'a'; there are some for b"):
        draw({"a": dataset("a", 2, "x")}, {"b": templates("b", 1)}, MixtureConfig(1))
    with pytest.raises(UserError, match="the task 'a' has no examples"):
        draw({"a": []}, {"a": templates("a", 1)}, MixtureConfig(1))
    with pytest.raises(UserError, match="f.jsonl, line 4: .*needs the field 'text'"):
        draw({"a": [Record({"answer": "x"}, "f.jsonl", 4)]}, {"a": templates("a", 1)}, MixtureConfig(1))


def test_targets_are_tokens_as_in_running_text_and_long_ones_are_refused_or_counted():
    tokenizer = train_tokenizer([LONG] * 20, 320)
    questions = [Question("Who lost it?", "Mira"), Question(LONG * 3, "Tom")]
    ((prompt, target),), skipped = question_ids(tokenizer, questions, 40, skip_long=True)
    assert skipped == 1 and prompt[0] == tokenizer.begin and tokenizer.decode(target) == " Mira"
    assert prompt[-1] == tokenizer.end  # of an encoder-decoder; FLAN's decoder goes on from the prompt
    assert question_ids(tokenizer, questions[:1], 40, kind="decoder")[0] == [(prompt[:-1], target)]
    with pytest.raises(UserError, match="has .* tokens.*context is 40; shorten it, or leave such questions out"):
        question_ids(tokenizer, questions, 40)


def test_the_built_in_templates_cover_the_built_in_datasets():
    assert set(DATASETS) == set(PROMPTS)


def test_so_many_different_instructions_and_no_more():
    datasets = {name: dataset(name, 9, name) for name in "abc"}
    found = {name: templates(name, 4) for name in "abc"}

    def drawn(**settings):
        return {(q.task, q.template) for q in draw(datasets, found, MixtureConfig(2000, **settings))}

    assert len(drawn(manners=True)) > 100 and len(drawn(manners=True, instructions=30)) == 30
    few = drawn(manners=True, instructions=2)
    assert len(few) == 2 == len({task for task, _ in few}) and few == drawn(manners=True, instructions=2)
    assert drawn(manners=True, instructions=2, seed=5) != few


def test_a_model_is_chosen_on_questions_in_the_instructions_that_it_learns():
    found = {name: templates(name, 6) for name in "ab"}
    split = split_by_cluster({name: dataset(name, 40, "c") for name in "ab"}, ())
    for settings in ({"templates": 2}, {"manners": True, "instructions": 5}):
        learned, valid = ({(q.task, q.template) for q in part} for part in draw_training_and_validation(
            split, found, MixtureConfig(900, **settings)))
        assert valid <= learned and len(learned) in (4, 5)
