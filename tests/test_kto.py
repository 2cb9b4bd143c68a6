"""KTO: its loss, its point of reference, its files, and that a policy learns what is liked."""

import dataclasses
import json
import math

import pytest
import torch
from conftest import TINY
from typed import complaint, type_in

from minialign.heads import LanguageModel, describe_model
from minialign.lab.commands import kto as kto_command
from minialign.rlhf.dpo import DPO
from minialign.rlhf.kto import (
    Judged,
    JudgedAnswers,
    KTOConfig,
    kto_losses,
    logratios,
    read_judged_answers,
    reference_point,
    train_kto,
)
from minialign.runs.errors import UserError
from minialign.runs.run_folder import RunFolder
from minialign.tokenizer import train_tokenizer

QUICK = dataclasses.replace(DPO, steps=30, batch=8, learning_rate=1e-2, validate_every=10)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["Mira lost the kite. Tom found it. yes no"] * 4, 300)


@pytest.fixture
def policy(tokenizer):
    return LanguageModel(dataclasses.replace(TINY, vocabulary=tokenizer.size), 0).eval()


def judged(tokenizer, count=24):
    yes, no = ([*tokenizer.encode(f" {word}"), tokenizer.end] for word in ("yes", "no"))
    return [Judged([tokenizer.begin, 10 + i], yes if i % 3 else no, i % 3 > 0) for i in range(count)]


def test_the_loss_is_that_of_the_paper():
    ratios, liked = torch.tensor([2.0, 2.0, -1.0]), torch.tensor([True, False, False])
    found = kto_losses(ratios, liked, torch.tensor(0.5), KTOConfig(0.4, 1.2, 0.7))
    sigmoid = [1 / (1 + 2.718281828459045 ** -x) for x in (0.4 * 1.5, -0.4 * 1.5, 0.4 * 1.5)]
    assert found.tolist() == pytest.approx([1.2 * (1 - sigmoid[0]), 0.7 * (1 - sigmoid[1]), 0.7 * (1 - sigmoid[2])])


def test_the_point_of_reference_has_no_gradient_and_is_not_negative(policy, tokenizer):
    reference, answers = LanguageModel(policy.config, 1), JudgedAnswers(judged(tokenizer), 6, 0)
    batches = [answers.batch(list(range(start, start + 6))) for start in (0, 6, 12)]
    found = [[reference_point(a, b, batch) for batch in batches] for a, b in ((policy, reference), (reference, policy))]
    for (one, other), batch in zip(zip(*found), batches):
        mean = logratios(policy, reference, batch.prompts, batch.others).mean().item()
        assert one.item() == pytest.approx(max(0, mean), abs=1e-5)
        assert other.item() == pytest.approx(max(0, -mean), abs=1e-5) and not one.requires_grad
        assert batch.others[0] == batch.completions[1] and batch.others[-1] == batch.completions[0]


def test_a_batch_of_one_is_refused(tokenizer):
    with pytest.raises(UserError, match="no neighbour"):
        JudgedAnswers(judged(tokenizer), 1, 0)
    assert JudgedAnswers(judged(tokenizer), 2, 0).order.steps_in_epoch == 12


def test_answers_are_counted_by_what_is_read_and_all_are_looked_at_in_order(policy, tokenizer):
    short, long = ([*tokenizer.encode(text), tokenizer.end] for text in (" yes", " Mira lost the kite. Tom found it."))
    answers = [Judged([tokenizer.begin] * (1 + i % 3), long if i % 2 else short, i % 2 > 0) for i in range(7)]
    data = JudgedAnswers(answers, 3, 0)
    assert data.order.lengths.tolist() == [len(a.prompt) + len(a.completion) for a in answers]
    batches = data.in_order(3)
    assert [row for batch in batches for row in batch.rows] == list(range(7))
    others = [other for batch in batches for other in batch.others]
    assert others == [answers[(i + 1) % 7].completion for i in range(7)]
    first = batches[0]
    assert first.size == 2 * (1 + 2 + 3) + 2 * len(short) + len(long) + len(short) + 2 * len(long)


def test_validation_is_a_mean_over_answers_and_a_batch_is_their_sum(policy, tokenizer, tmp_path, monkeypatch):
    seen, step = {}, {}

    def stop(learner, data, loss, training, run, validate, label):
        with torch.no_grad():
            for name, weight in learner.named_parameters():
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))), alpha=0.05)
            batch = data.batch([0, 1, 2, 3])
            step["found"] = float(loss(learner, batch))
            reference = policy
            ratios = logratios(learner, reference, batch.prompts, batch.completions)
            kl = reference_point(learner, reference, batch)
            step["expected"] = float(sum(kto_losses(ratios, batch.liked, kl, KTOConfig(0.3))))
            seen["found"] = validate(learner)
            (whole,) = JudgedAnswers(judged(tokenizer, 8), 8, 0).in_order(8)
            ratios = logratios(learner, reference, whole.prompts, whole.completions)
            kl = logratios(learner, reference, whole.prompts, whole.others).mean().clamp(min=0)
            mean = float(sum(kto_losses(ratios, whole.liked, kl, KTOConfig(0.3))) / 8)
            kinds = [[float(r) for r, liked in zip(ratios, whole.liked.tolist()) if liked == kind]
                     for kind in (True, False)]
            seen["expected"] = {"validation": mean, "kl": float(kl)} | {
                name: sum(each) / len(each) for name, each in zip(("liked", "other"), kinds)}
        return {}

    monkeypatch.setattr("minialign.rlhf.kto.train", stop)
    run = RunFolder(tmp_path)
    train_kto(policy, judged(tokenizer), judged(tokenizer, 8), KTOConfig(0.3), dataclasses.replace(QUICK, batch=4), run)
    assert step["found"] == pytest.approx(step["expected"], abs=1e-4) and step["expected"] > 1
    assert {name: seen["found"][name] for name in seen["expected"]} == pytest.approx(seen["expected"], abs=1e-4)


def test_weights_balance_the_two_kinds():
    found = KTOConfig(0.1, 0.0, 1.5).balanced(30, 10)
    assert found.liked_weight * 30 == pytest.approx(found.other_weight * 10) and found.other_weight == 1.5
    assert KTOConfig().balanced(30, 10) == KTOConfig()


def test_a_policy_learns_what_is_liked(policy, tokenizer, tmp_path):
    run = RunFolder(tmp_path)
    run.begin({**describe_model(policy), "stage": "kto"}, tokenizer)
    before = [p.clone() for p in policy.parameters()]
    learner, last = train_kto(policy, judged(tokenizer), judged(tokenizer, 9), KTOConfig(), QUICK, run)
    first = run.metrics()[9]
    assert last["liked"] > 1 > 0 > last["other"] and last["validation"] < first["validation"]
    assert last["accuracy"] == 1 and all(torch.equal(a, b) for a, b in zip(before, policy.parameters()))


@pytest.fixture
def d(policy, tokenizer, tmp_path):
    run = RunFolder(tmp_path / "sft")
    run.begin({**describe_model(policy), "stage": "sft"}, tokenizer)
    run.finish(policy)
    lines = [{"prompt": f"Mira {i}", "completion": "yes" if i % 2 else "no", "liked": i % 2 == 1} for i in range(60)]
    wrong = {"number": {"liked": 1}, "empty": {"completion": ""}, "one": {"liked": True},
             "long": {"completion": "kite " * 200}}
    for name, change in ({"good": {}} | wrong).items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(line | change) for line in lines))
    return tmp_path


def test_the_two_kinds_are_weighed_by_how_many_there_are(policy, tokenizer, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(KTOConfig, "balanced", lambda self, liked, others: seen.append((liked, others)) or self)
    run = RunFolder(tmp_path)
    run.begin({**describe_model(policy), "stage": "kto"}, tokenizer)
    settings = dataclasses.replace(QUICK, steps=1, validate_every=1)
    train_kto(policy, judged(tokenizer), judged(tokenizer, 9), KTOConfig(liked_weight=0.0), settings, run)
    assert seen == [(16, 8)]


def test_what_just_fits_the_context_is_read(d, tokenizer):
    found = read_judged_answers(d / "good.jsonl", tokenizer, 48)
    needed = max(len(each.prompt) + len(each.completion) for each in found)
    assert read_judged_answers(d / "good.jsonl", tokenizer, needed) == found
    with pytest.raises(UserError, match=f"context of {needed - 1}"):
        read_judged_answers(d / "good.jsonl", tokenizer, needed - 1)


def test_people_give_thumbs(d, capsys):
    line = "kto --policy {d}/sft --judged {d}/good.jsonl --fast --batch 8 --liked-weight 0 --out {d}/out"
    assert type_in(line, d=d) == 0
    said = capsys.readouterr().out
    assert "55 answers to learn from, 5 held out" in said and "liked +" in said


def test_all_answers_to_a_prompt_are_on_one_side(d, monkeypatch):
    lines = [json.loads(line) for line in (d / "good.jsonl").read_text().splitlines()]
    twice = [line | {"completion": word, "liked": word == "yes"} for line in lines for word in ("yes", "no")]
    (d / "twice.jsonl").write_text("\n".join(map(json.dumps, twice)))
    seen = {}
    monkeypatch.setattr(kto_command, "train_kto", lambda model, learned, valid, *rest: seen.update(
        learned={str(each.prompt) for each in learned}, valid={str(each.prompt) for each in valid}) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        kto_command.command.main(["--policy", str(d / "sft"), "--judged", str(d / "twice.jsonl"), "--out",
                                  str(d / "o"), "--fast", "--batch", "8"], standalone_mode=False)
    assert len(seen["valid"]) >= 2 and not seen["valid"] & seen["learned"]


@pytest.mark.parametrize("name, message", [
    ("number", "line 1: liked is 1; it must be true or false"), ("empty", "completion"),
    ("one", "both kinds are needed"), ("long", "do not fit the model's context")])
def test_wrong_input_is_one_line_and_nothing_is_written(d, name, message, capsys):
    assert type_in(f"kto --policy {{d}}/sft --judged {{d}}/{name}.jsonl --fast --out {{d}}/wrong", d=d) == 2
    assert message in complaint(capsys) and not (d / "wrong").exists()


def test_the_file_gives_answers_with_their_begin_and_end(d, tokenizer):
    found = read_judged_answers(d / "good.jsonl", tokenizer, 48)
    assert found[1] == Judged([tokenizer.begin, *tokenizer.encode("Mira 1")],
                              [*tokenizer.encode("yes"), tokenizer.end], True)


def test_neighbours_are_those_of_the_whole_batch_however_it_is_split(tokenizer):
    data = JudgedAnswers(judged(tokenizer, 12), 6, 0)
    (whole,) = data.microbatches(0, 1)
    for parts in (2, 3, 6):
        found = data.microbatches(0, parts)
        assert [row for i in range(parts) for row in found[i].rows] == [row for i in range(parts)
                                                                       for row in whole.rows[i::parts]]
        assert all(part.others == whole.others[i::parts] for i, part in enumerate(found))


def test_all_held_out_answers_are_looked_at(policy, tokenizer, tmp_path):
    held_out = judged(tokenizer, 9)  # no multiple of the batch, and the last one alone is not liked
    held_out = [dataclasses.replace(each, liked=i < 8) for i, each in enumerate(held_out)]
    assert [row for batch in JudgedAnswers(held_out, 8, 0).in_order(8) for row in batch.rows] == list(range(9))
    run = RunFolder(tmp_path)
    run.begin({**describe_model(policy), "stage": "kto"}, tokenizer)
    settings = dataclasses.replace(QUICK, steps=1, validate_every=1)
    assert math.isfinite(train_kto(policy, judged(tokenizer), held_out, KTOConfig(), settings, run)[1]["other"])
