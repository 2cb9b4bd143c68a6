"""`instruct` and `ask` as a newcomer types them: the toy world's tasks, people's own, and what is wrong with their
input."""

import io
import json

import pytest
from typed import complaint, type_in

from minialign.__main__ import run
from minialign.instruct.mixture import MixtureConfig
from minialign.lab.bases.make import BASES
from minialign.lab.commands.ask import split_options
from minialign.lab.demo.instruct import (
    TAUGHT,
    InstructConfig,
    every_instruction,
    held_out_examples,
    questions,
    trained_on,
)
from minialign.runs.errors import UserError
from minialign.runs.files import read_json
from minialign.runs.tensors import digest, read_tensors
from minialign.world.datasets import CLUSTERS, DATASETS, HELD_OUT
from minialign.world.templates import texts

SHAPE = "--vocabulary 300 --context 64 --width 16 --heads 2 --layers 1 --steps 3 --batch 4 --validate-every 3"
TUNE = "--steps 3 --batch 4 --questions 40 --validate-every 3"


@pytest.fixture(scope="module")
def d(tmp_path_factory):
    d = tmp_path_factory.mktemp("own")
    (d / "text.txt").write_text("\n\n".join(f"Mail {i}: you have won {i} kites. Is it spam? yes or no?"
                                            for i in range(60)), encoding="utf-8")
    tasks = [
        {"task": t, "cluster": c, "text": f"Mail {i}", "answer": "yes", "options": ["yes", "no"]}
        for t, c in (("spam", "mail"), ("odd", "number"))
        for i in range(12)
    ]
    (d / "tasks.jsonl").write_text("\n".join(map(json.dumps, tasks)), encoding="utf-8")
    (d / "long.jsonl").write_text("\n".join(map(json.dumps, [*tasks, {**tasks[0], "text": "kite " * 90}])),
                                  encoding="utf-8")
    (d / "true.jsonl").write_text('{"task": "spam", "text": "a", "answer": true}', encoding="utf-8")
    (d / "templates.json").write_text(
        '{"spam": [{"name": "plain", "input": "{text}\\nSpam?"}], "odd": [{"name": "plain", "input": "{text} odd?"}]}',
        encoding="utf-8"
    )
    assert type_in(f"pretrain --text {{d}}/text.txt {SHAPE} --objective span-corruption --out {{d}}/t5", d=d) == 0
    assert type_in(f"pretrain --text {{d}}/text.txt {SHAPE} --out {{d}}/gpt", d=d) == 0
    return d


OWN = "instruct --tasks {d}/tasks.jsonl --templates {d}/templates.json " + TUNE


def test_people_tune_and_examine_a_model_on_tasks_of_their_own_and_then_ask_it(d, capsys):
    assert type_in(OWN + " --base {d}/t5 --hold-out mail --out {d}/own", d=d) == 0
    assert "24 questions can be made" in capsys.readouterr().out
    results = read_json(d / "own" / "2-instructed" / "examination.json")
    assert list(results) == ["spam"] and results["spam"]["side"] == "held out" and results["spam"]["chance"] == 0.5
    before = digest(read_tensors(d / "own" / "2-instructed" / "model.safetensors")[0])
    assert type_in(OWN + " --base {d}/t5 --hold-out mail --out {d}/own", d=d) == 0, "the same command finds it done"
    assert digest(read_tensors(d / "own" / "2-instructed" / "model.safetensors")[0]) == before
    capsys.readouterr()
    assert run(["ask", str(d / "own" / "2-instructed"), "--prompt", "Mail 3\\nSpam?", "--options", "yes, no"]) == 0
    ranked = capsys.readouterr().out.split("\n")
    assert {line.split()[1] for line in ranked[:2]} == {"yes", "no"} and sum(float(line.split("%")[0])
        for line in ranked[:2]) == pytest.approx(100, abs=0.2)


def test_a_task_whose_choices_stand_in_its_templates_is_examined(d, capsys):
    (d / "nli.jsonl").write_text("\n".join(json.dumps({"task": "nli", "text": f"Mail {i}", "label": i % 2})
                                            for i in range(24)), encoding="utf-8")
    (d / "nli.yaml").write_text("templates: {a: {name: follows, answer_choices: Yes ||| No ||| Maybe, metadata: "
                                "{original_task: true}, jinja: '{{text}}? ||| {{answer_choices[label]}}'}}")
    line = OWN.replace("tasks.jsonl", "nli.jsonl").replace("templates.json", "nli.yaml")
    assert type_in(line + " --base {d}/t5 --out {d}/nli", d=d) == 0
    assert "nothing was examined" not in capsys.readouterr().out
    results = read_json(d / "nli" / "2-instructed" / "examination.json")
    assert results["nli"]["chance"] == pytest.approx(1 / 3) and 0 <= results["nli"]["templates"]["follows"] <= 1


@pytest.mark.parametrize("style, base", [("t5", "t5"), ("flan", "gpt")])
def test_every_style_trains_on_own_tasks_without_a_held_out_cluster(d, style, base):
    assert type_in(OWN + f" --style {style} --base {{d}}/{base} --mean-logprob --out {{d}}/own-{style}", d=d) == 0
    results = read_json(d / f"own-{style}" / "2-instructed" / "examination.json")
    assert set(results) == {"spam", "odd"} and results["odd"]["side"].startswith("trained")


def test_questions_are_asked_one_after_the_other_until_an_empty_line(d, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Mail 3 spam? ?? yes, no\nMail 4 spam?\n\nnever read\n"))
    assert run(["ask", str(d / "t5"), "--new-tokens", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 3


@pytest.mark.parametrize(
    "line, message",
    [
        ("instruct --tasks {d}/tasks.jsonl", "--tasks and --templates belong together"),
        ("instruct --hold-out magic --fast", "no cluster 'magic' to hold out; known are questions"),
        ("instruct --fast --out {d}/x0 " + " ".join(f"--hold-out {name}" for name in TAUGHT),
         "every cluster that is trained on is held out; leave one of questions, yes-no"),
        (OWN + " --base {d}/gpt --out {d}/x1", "holds a decoder, and --style t0 needs an encoder-decoder"),
        (OWN + " --base {d}/t5 --style flan --out {d}/x2",
         "holds an encoder-decoder, and --style flan needs a decoder"),
        (OWN + " --base {d}/t5 --hold-out spam --out {d}/x3", "no cluster 'spam' to hold out; known are mail, number"),
        (OWN + " --base {d}/t5 --batch 400 --out {d}/x4", "there are 40 questions to learn from, fewer than one batch "
                                                          "of 400"),
        (OWN + " --base {d}/nowhere --out {d}/x5", "no such run folder"),
        (OWN.replace("tasks.jsonl", "long.jsonl") + " --questions 2000 --base {d}/t5 --out {d}/x6",
         "context is 64; shorten it, or leave such questions out"),
        (OWN.replace("tasks.jsonl", "true.jsonl") + " --base {d}/t5 --out {d}/x7",
         "true.jsonl, line 1: field 'answer' is true, and template spam/plain"),
        ("ask {d}/t5 --prompt x --options yes", "are not two or more different answers"),
        ("ask {d}/nowhere --prompt x", "no such run folder"),
    ],
)
def test_wrong_input_is_one_clear_line(d, capsys, line, message):
    assert type_in(line, d=d) == 2
    assert message in complaint(capsys)


def test_long_questions_are_left_out_and_counted_on_request(d, capsys):
    line = OWN.replace("tasks.jsonl", "long.jsonl") + " --questions 2000 --base {d}/t5 --skip-long --out {d}/skipped"
    assert type_in(line, d=d) == 0
    assert "questions do not fit the context and are left out" in capsys.readouterr().out


def test_a_held_out_question_that_does_not_fit_is_found_before_anything_is_trained(d, capsys):
    line = OWN.replace("tasks.jsonl", "long.jsonl") + " --base {d}/t5 --hold-out mail --out {d}/late"
    assert type_in(line, d=d) == 2
    assert "the model's context is 64; shorten it, or leave such questions out" in complaint(capsys)
    assert not list((d / "late").rglob("*.safetensors"))
    assert type_in(line + " --skip-long", d=d) == 0
    said = capsys.readouterr().out
    assert "of the examples to be examined 1 do not fit the context and are left out" in said and "spam" in said


def test_where_every_example_is_left_out_none_is_said_to_lack_options(d, capsys):
    long = [{"task": "odd", "cluster": "number", "text": "kite " * 90, "answer": "yes", "options": ["yes", "no"]}]
    (d / "none.jsonl").write_text("\n".join([*(d / "tasks.jsonl").read_text(encoding="utf-8").splitlines()[:12],
                                             *map(json.dumps, long)]), encoding="utf-8")
    line = OWN.replace("tasks.jsonl", "none.jsonl") + " --base {d}/gpt --style flan --hold-out number --skip-long"
    assert type_in(line + " --out {d}/none", d=d) == 0
    assert "no example is left that has options to rank, so nothing was examined" in capsys.readouterr().out


QUICK = "--fast --steps 2 --batch 8 --wordings-per-task 2"


@pytest.mark.parametrize("style, name", [("flan", "decoder-0.1m"), ("t0", "encoder-decoder-0.4m"),
                                         ("t5", "encoder-decoder-0.4m")])
def test_the_toy_worlds_tasks_are_learned_from_a_base_that_reads(d, style, name, capsys):
    out, base = d / f"toy-{style}", f"--base {BASES / name}" if style == "flan" else ""
    assert type_in(f"instruct {QUICK} --style {style} {base} --out {out}", d=d) == 0
    said = capsys.readouterr().out
    assert "instructions of 28 tasks; the clusters inference, completion, coreference, format are held out" in said
    assert f"{read_json(out / '2-instructed' / 'config.json')['instructions']:,} instructions" in said
    results = read_json(out / "2-instructed" / "examination.json")
    assert {"check", "ending", "pronoun", "twice"} <= set(results)
    assert all(0 <= r["median"] <= 1 and r["side"] == "held out" for r in results.values())
    assert (out / "1-lm-adaptation").exists() == (style != "flan")


def test_a_fixed_set_of_examples_is_an_option(d):
    line = f"instruct {QUICK} --style flan --base {BASES / 'decoder-0.1m'} --fixed 3 --turns 1 --reread 0"
    assert type_in(f"{line} --hold-out words --out {d}/fixed", d=d) == 0
    assert set(read_json(d / "fixed" / "2-instructed" / "examination.json")) <= set(CLUSTERS["words"])


def test_other_tasks_or_another_base_are_another_run(d, capsys):
    line = f"instruct {QUICK} --style flan --turns 1 --reread 0 --out {d}/one"
    assert type_in(f"{line} --base {BASES / 'decoder-0.1m'} --hold-out words", d=d) == 0
    for other in ("topic", "lists"):  # trained on otherwise, and not
        assert type_in(f"{line} --base {BASES / 'decoder-0.1m'} --hold-out {other}", d=d) == 2
        assert "another run" in complaint(capsys)
    assert type_in(f"{line} --base {BASES / 'decoder-0.4m'} --hold-out words", d=d) == 2
    assert "another run" in complaint(capsys)


@pytest.mark.parametrize("held_out", [HELD_OUT, ("words", "topic")])
def test_held_out_examples_share_no_passage_with_what_is_learned(held_out):
    asked = held_out_examples(100, held_out)
    told = set().union(*(texts(example) for found in asked.values() for example in found))
    assert {DATASETS[task].cluster for task in asked} == set(held_out) and len(told) > 150
    few = trained_on(MixtureConfig(templates=1), held_out=held_out)
    for fixed in (0, 3):
        learned, valid = questions(InstructConfig(fixed=fixed), "decoder", few, 0, held_out)
        if fixed:
            assert {q.task for q in learned} & set(asked) == set() and len(valid) > 60
        else:
            assert learned.held_out == told and learned.turns == 6 and len(valid) == 256


def test_instructions_are_those_of_the_mixture_and_never_unseen_ones():
    unseen = {(task, each.name) for task, found in every_instruction()[1].items() for each in found}
    every, plain = trained_on(MixtureConfig(manners=True)), trained_on(MixtureConfig())
    few = trained_on(MixtureConfig(manners=True, instructions=100))
    for found in (every, plain, few):
        assert not {(task, each.name) for task, made in found.items() for each in made} & unseen
    assert sum(map(len, few.values())) == 100 < 20 * sum(map(len, plain.values())) < sum(map(len, every.values())) * 20
    assert not any(each.manner or each.name != each.asked_as for made in plain.values() for each in made)
    assert set(trained_on(MixtureConfig(), ("words",))) == set(CLUSTERS["words"])
    lettered = trained_on(MixtureConfig(manners=True, letters=True))
    assert any(each.letters for made in lettered.values() for each in made)
    assert not any(each.letters for made in every.values() for each in made) and set(lettered) == set(every)


@pytest.mark.parametrize("text, found", [("", []), ("yes, no", ["yes", "no"]),
                                         ("Mira, who ran | Tom", ["Mira, who ran", "Tom"])])
def test_options_are_parted_at_commas_or_bars(text, found):
    assert split_options(text) == found


@pytest.mark.parametrize("text", ["yes", "yes,", "a||b", "yes, yes"])
def test_options_that_are_none_are_refused(text):
    with pytest.raises(UserError, match="two or more different answers"):
        split_options(text)
