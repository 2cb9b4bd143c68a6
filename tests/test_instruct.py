"""T5, T0 and FLAN: what differs between them, what is taught, and how they are examined."""

import json
import random

import pytest
import torch

from minialign.batching import IGNORE
from minialign.heads import LanguageModel
from minialign.instruct.flan import question_rows
from minialign.instruct.mixture import MixtureConfig, Split, draw_training_and_validation, question_ids
from minialign.instruct.t0 import tune_on_questions
from minialign.instruct.t5 import prefix_templates
from minialign.instruct.zero_shot import TaskResult, ask, examine, examined, examples_that_fit, few_shot, posed
from minialign.lab.interchange.promptsource import read_promptsource
from minialign.pretrain.causal_lm import LabelledRows
from minialign.pretrain.span_corruption import TextToTextRows
from minialign.runs.errors import UserError
from minialign.runs.run_folder import RunFolder
from minialign.tokenizer import BEGIN, END, train_tokenizer
from minialign.training import TrainingConfig
from minialign.transformer import TransformerConfig
from minialign.world.datasets import PROMPTS, examples
from minialign.world.templates import Question, Template, Unfit

TINY = TrainingConfig(steps=2, batch=4, learning_rate=1e-3, validate_every=2, checkpoint_every=2)


@pytest.fixture(scope="module")
def split():
    train = examples(["who", "yes_no", "kind_of"], 30, seed=0)
    return Split(train, examples(list(train), 4, seed=1), {})


@pytest.fixture(scope="module")
def tokenizer(split):
    texts = [t.pose(e).prompt for name, found in split.train.items() for t in PROMPTS[name] for e in found]
    return train_tokenizer(texts, 400)


def model(kind, tokenizer, context=260):
    return LanguageModel(TransformerConfig(tokenizer.size, context, 16, 1, 2, kind=kind, initial_std=0.25), seed=0)


def test_t5_asks_each_task_in_one_way(split):
    templates = prefix_templates(split.train)
    assert all(len(found) == 1 for found in templates.values())
    assert templates["who"][0].input == "who story: {story} question: {question}"
    questions, _ = draw_training_and_validation(split, templates, MixtureConfig(200))
    assert all(q.prompt.startswith(f"{q.task} ") and q.template == "prefix" for q in questions)


def test_a_task_that_has_only_options_reads_those():
    (template,) = prefix_templates({"odd": [{"answer": "a", "options": ["a", "b"], "cluster": "c"}]})["odd"]
    assert template.pose({"answer": "a", "options": ["a", "b"]}).prompt == "odd options: a or b"


def test_t5_and_t0_differ_in_nothing_but_the_words(split, tokenizer, tmp_path):
    """T0's questions come in every wording and T5's in one; everything else is one function, and the same twice."""
    questions, valid = draw_training_and_validation(split, PROMPTS, MixtureConfig(200))
    assert {q.template for q in questions if q.task == "who"} == {t.name for t in PROMPTS["who"]}
    prefixed, _ = draw_training_and_validation(split, prefix_templates(split.train), MixtureConfig(200))
    assert {q.template for q in prefixed} == {"prefix"} and {q.task for q in prefixed} == {q.task for q in questions}
    trained = []
    for name, asked in (("t0", questions), ("t5", prefixed), ("t0 again", questions)):
        trained.append(model("encoder-decoder", tokenizer))
        result = tune_on_questions(trained[-1], tokenizer, asked, valid, TINY, RunFolder(tmp_path / name))
        assert result["skipped"] == 0 and result["validation"] > 0
    for one, two in zip(trained[0].parameters(), trained[2].parameters()):
        assert torch.equal(one, two)


def test_validation_questions_are_of_training_tasks_and_of_other_examples(split):
    questions, valid = draw_training_and_validation(split, PROMPTS, MixtureConfig(100))
    stories = {e["story"] for found in split.train.values() for e in found if "story" in e}
    assert {q.task for q in valid} <= set(split.train)
    assert not any(story in q.prompt for q in valid for story in stories)


@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
def test_the_end_token_is_taught_and_no_prompt_token_is(kind, split, tokenizer):
    questions = [Question("Who lost it?", "Mira"), Question("Is it so? Did Tom find the kite at the mill?", "yes")]
    if kind == "decoder":
        rows, _ = question_rows(tokenizer, questions, 60)
        batch = LabelledRows(rows, 2, 0).batch([0, 1])
    else:
        pairs, _ = question_ids(tokenizer, questions, 60)
        batch = TextToTextRows(pairs, 2, 0).batch([0, 1])
        assert batch.inputs[0, 0] == BEGIN and batch.tokens[0, 0] == BEGIN
    for row, question in zip(batch.labels, questions):
        taught = row[row != IGNORE].tolist()
        assert taught[-1] == END and tokenizer.decode(taught[:-1]) == " " + question.target


def test_flan_refuses_or_counts_what_does_not_fit(tokenizer):
    questions = [Question("Who lost it? " * 4, "Mira and Tom and Ben"), Question("Who?", "Tom")]
    fitting, skipped = question_rows(tokenizer, questions, 30, skip_long=True)
    assert len(fitting) == 1 and skipped == 1
    with pytest.raises(UserError, match="--skip-long"):
        question_rows(tokenizer, questions, 30)


def test_flan_trains_a_decoder(split, tokenizer, tmp_path):
    questions, valid = draw_training_and_validation(split, PROMPTS, MixtureConfig(100))
    result = tune_on_questions(model("decoder", tokenizer), tokenizer, questions, valid, TINY, RunFolder(tmp_path))
    assert result["steps"] == 2 and result["skipped"] == 0


@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
def test_a_model_that_was_taught_a_task_answers_it(kind, tokenizer, tmp_path):
    """Smoke: sixty steps on four words, then the accuracy is perfect in the trained wording."""
    words = [
        {"word": w, "answer": a, "options": ["animal", "food"], "cluster": "words"}
        for w, a in (("hen", "animal"), ("duck", "animal"), ("pie", "food"), ("soup", "food"))
    ]
    templates = {"kind": [Template("kind", "plain", "What is {word}?", answer_in_input=False)]}
    questions = [templates["kind"][0].pose(e) for e in words] * 8
    taught = model(kind, tokenizer, 40)
    sixty = TrainingConfig(steps=60, batch=16, learning_rate=1e-2)
    tune_on_questions(taught, tokenizer, questions, questions, sixty, RunFolder(tmp_path / kind))
    result = examine(taught, tokenizer, {"kind": words}, templates)["kind"]
    assert result.accuracies == {"plain": 1.0} and result.chance == 0.5 and result.spread == 0


def test_inverted_templates_and_tasks_without_options_are_not_ranked(split, tokenizer):
    kept = examined(PROMPTS["who"])
    assert all(t.asks_for_the_answer for t in kept) and len(kept) == len(PROMPTS["who"]) - 1
    plain = model("encoder-decoder", tokenizer)
    assert examine(plain, tokenizer, {"ask_for": [{"story": "x", "reply": "y", "answer": "z"}]}, PROMPTS) == {}


def test_a_few_shot_prompt_shows_solved_questions_first(split, tokenizer):
    shown = [Question("Is hen an animal?", "yes"), Question("Is pie an animal?", "no")]
    asked = Question("Is duck an animal?", "yes", ("yes", "no"))
    assert few_shot(asked, shown) == "Is hen an animal? yes\n\nIs pie an animal? no\n\nIs duck an animal?"
    plain = model("decoder", tokenizer)
    assert len(ask(plain, tokenizer, [asked, asked], [shown, shown])) == 2
    results = examine(plain, tokenizer, {"kind_of": split.train["kind_of"][:6]}, PROMPTS, shots=2)
    assert results["kind_of"].chance == 0.2 and len(results["kind_of"].accuracies) == len(PROMPTS["kind_of"])
    assert examine(plain, tokenizer, {"kind_of": split.train["kind_of"][:6]}, PROMPTS,
                   mean_logprob=True)["kind_of"].accuracies


def test_median_spread_and_quartiles_over_templates():
    result = TaskResult("t", {"a": 0.2, "b": 0.5, "c": 0.6, "d": 0.9}, 0.5)
    assert result.median == 0.55 and result.spread == pytest.approx(0.7)
    assert result.quartile_range == pytest.approx(0.25)
    assert TaskResult("t", {"a": 0.2}, 0.5).quartile_range == 0


def test_an_examination_leaves_out_what_a_template_s_conditions_leave_out_only_when_asked_to():
    class Picky:
        def pose(self, example):
            if example == 0:
                raise Unfit("not for this one")
            return example

    assert posed(Picky(), [0, 1, 2], True) == [1, 2]
    with pytest.raises(Unfit):
        posed(Picky(), [0, 1, 2], False)


def test_what_can_be_answered_comes_from_the_template_or_the_example_and_chance_with_it(split, tokenizer, tmp_path):
    """Two choices of a template's own in one wording, four in the other; two options of two of three examples."""
    plain = model("decoder", tokenizer)
    text = json.dumps({"templates": {name: {"name": name, "jinja": name + " {{story}} ||| {{answer_choices[label]}}",
                                            "answer_choices": choices, "metadata": {"original_task": original}}
                                     for name, choices, original in (("two", "no ||| yes", True),
                                                                     ("four", "a ||| b ||| c ||| d", True),
                                                                     ("inverted", "no ||| yes", False))}})
    (tmp_path / "templates.yaml").write_text(text)
    templates, _ = read_promptsource(tmp_path / "templates.yaml", "told")
    lines = [{"story": f"Tom {i} ran.", "label": i % 2} for i in range(5)]
    found = examine(plain, tokenizer, {"told": lines}, {"told": templates})["told"]
    assert set(found.accuracies) == {"two", "four"} and found.chance == (1 / 2 + 1 / 4) / 2
    for template in templates[:2]:
        questions = [template.pose(line) for line in lines]
        assert found.accuracies[template.name] == sum(ask(plain, tokenizer, questions)) / 5
    own = [{"story": "x", "answer": "a", "options": ["a", "b"]}] * 2 + [{"story": "x", "answer": "a"}]
    free = examine(plain, tokenizer, {"own": own}, {"own": [Template("own", "n", "{story}")]})["own"]
    assert free.chance == 0.5 and free.accuracies["n"] in (0, 1)


def test_solved_examples_leave_just_room_for_the_longest_option_and_its_ends(split, tokenizer, monkeypatch):
    """begin token + prompt + longest option + end token: one token less of context, and one example less is shown."""
    shown = []

    def answer(model, tokenizer, questions, found, mean_logprob):
        shown.append(found)
        return [True] * len(questions)

    monkeypatch.setattr("minialign.instruct.zero_shot.ask", answer)
    few = [{"story": "Mira lost it.", "question": "Who?", "answer": "Mira", "options": ["Mira", "Tom Tom"]}] * 3
    template = Template("who", "plain", "{story}\n{question}")
    prompt = few_shot(template.pose(few[0]), [template.pose(few[1])])
    needed = len(tokenizer.encode(prompt)) + len(tokenizer.encode(" Tom Tom")) + 2
    for context, count in ((needed, 1), (needed - 1, 0), (needed + 1, 1)):
        examine(model("decoder", tokenizer, context), tokenizer, {"who": few}, {"who": [template]}, shots=1)
        assert [len(each) for each in shown[-1]] == [count] * 3


def test_a_task_of_few_examples_is_examined_with_as_many_as_there_are(tokenizer):
    few = [{"story": f"{name} lost it.", "question": "Who?", "answer": name, "options": ["Mira", "Tom"]}
           for name in ("Mira", "Tom")]
    template = Template("who", "plain", "{story}\n{question}")
    for given in (few, few[:1]):
        found = examine(model("decoder", tokenizer, 200), tokenizer, {"who": given}, {"who": [template]}, shots=2)
        assert set(found) == {"who"}, "a task that is not in the result was left out without a word"


def test_as_many_solved_examples_are_shown_as_fit():
    posed = [Question(f"{i} " * (30 if i == 3 else 3), "yes", ("yes", "no")) for i in range(5)]
    for room, count in ((400, 4), (20, 3), (8, 1), (4, 0)):  # the long one does not fit beside two others
        shown = examples_that_fit(posed[0], posed[1:], 4, random.Random(0), lambda text, room=room:
                                  len(text.split()) <= room)
        assert len(shown) == count and len(few_shot(posed[0], shown).split()) <= room
    shown = examples_that_fit(posed[0], posed[1:], 2, random.Random(0), lambda text: True)
    assert len(shown) == 2 and shown == random.Random(0).sample(posed[1:], 2)
