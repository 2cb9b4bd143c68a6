"""What the claims on fine-tuning judge, on tables that are made up, and what they take for granted."""

import hashlib

import pytest

from minialign.lab.claims import Bench, controls, lora_size, prompt_tuning, transfer_distance, tuned
from minialign.lab.claims.lora_size import METHODS, REAL_MODEL
from minialign.lab.claims.tuned import FAR, FARTHER, NEAR, REAL, SIZES, SOLVED, first_ones_team, one_team, solved
from minialign.peft.methods import OF_THE_NOTES
from minialign.runs.files import read_json

ALIKE = (-0.002, 0.0, 0.002)  # what seeds add


def row(accuracy, seed, **columns):
    return {"size": "middle", "seed": seed, "accuracy": accuracy + ALIKE[seed % len(ALIKE)], **columns}


def transfer(frozen_near=0.96, frozen_far=0.75, efficient=0.97, frozen_farther=0.6, little=0.8, more=0.97):
    found = {"full": (0.99, 0.99, 0.99), "feature-based": (frozen_near, frozen_far, frozen_farther),
             transfer_distance.ONE_ANSWER: (0.6, 0.64, 0.52)}
    found |= {method: (efficient, efficient, little) for method in transfer_distance.LITTLE}
    found |= {method: (efficient, efficient, more) for method in transfer_distance.MORE}
    return [row(found[method][place], seed, task=name, method=method) for place, name in enumerate((NEAR, FAR, FARTHER))
            for method in (transfer_distance.ONE_ANSWER, *OF_THE_NOTES) for seed in range(3)]


def failed(judge, table):
    return [name for name, held in judge(table)[0].items() if not held]


@pytest.mark.parametrize("changes, said", [
    ({}, []),
    ({"frozen_near": 0.93}, ["near: frozen features suffice"]),
    ({"frozen_far": 0.9}, ["far: everything has to move"]),
    ({"frozen_near": 0.74}, ["near: frozen features suffice", "the gap is wider far away"]),
    ({"efficient": 0.75}, ["efficient methods beat frozen features far away"]),
    ({"frozen_farther": 0.9}, ["farther: everything has to move"]),
    ({"more": 0.93}, ["farther: LoRA and adapters suffice"]),
    ({"little": 0.96}, ["farther: BitFit and prompt tuning do not"]),
])
def test_each_statement_on_distance_can_fail(changes, said):
    assert failed(transfer_distance.judge, transfer(**changes)) == said
    assert transfer_distance.judge(transfer(**changes))[1].endswith(
        "the commonest answer alone: near 0.60, far 0.64, farther 0.52")


def prompted(one=(0.7, 0.96, 0.97), sixteen=(0.9, 0.98, 0.99), seen=None, seeds=6):
    """Accuracies by size of one vector (in the first three seeds those of `seen`) and of sixteen."""
    found = {0: (0.995,) * 3, 16: sixteen}
    return [row((found | {1: seen if seen and seed < 3 else one})[length][place], seed, size=size, length=length)
            for place, size in enumerate(SIZES) for length in (0, 1, 16) for seed in range(seeds)]


@pytest.mark.parametrize("changes, said", [
    ({}, []),
    ({"sixteen": (0.9, 0.96, 0.99)}, ["longer prompts help"]),
    ({"sixteen": (0.8, 0.98, 0.93)}, ["near full fine-tuning at the largest size"]),
    ({"sixteen": (0.99, 0.98, 0.99)}, ["the gap closes with size"]),
    ({"one": (0.9, 0.96, 0.97)}, ["longer prompts help the smallest"]),
    ({"one": (0.7, 0.96, 0.7)}, ["the gap of one vector closes with size"]),
    ({"one": (0.9, 0.96, 0.9), "seen": (0.5, 0.96, 0.97)},
     ["longer prompts help the smallest", "the gap of one vector closes with size"]),
    ({"seen": (0.9, 0.96, 0.9)}, []),
    ({"seeds": 3}, []),
])
def test_each_statement_on_prompts_can_fail_and_the_last_two_look_at_new_seeds_alone(changes, said):
    assert failed(prompt_tuning.judge, prompted(**changes)) == said


def test_whose_team_and_whether_it_is_one():
    rosa, max_ = (int(hashlib.sha256(name.encode()).hexdigest()[:2], 16) % 2 for name in ("Rosa", "Max"))
    made = {"story": "Rosa saw Max. Max saw Rosa.", "answer": "Rosa", "options": ["Max", "Rosa"]}
    assert first_ones_team(made) == rosa and one_team(made) == (rosa == max_)
    third = made | {"options": ["Tom", "Max", "Rosa"], "story": made["story"] + " Tom came."}
    assert one_team(third) == one_team(made), "the first two of three"


def by_size(gaps=(0.1, 0.05, 0.0), real=400):
    trained, table = (30, 20, 10), []
    for size, gap, some in zip(SIZES, gaps, trained):
        for method in METHODS:
            table += [row(0.99 - gap * (method == "lora"), seed, task=FAR, method=method, parameters=1000,
                          trained=some if method == "lora" else 1000, optimizer_bytes=8 * some) | {"size": size}
                      for seed in range(3)]
            table[-3:] = [each | {"optimizer_bytes": 8000} if method == "full" else each for each in table[-3:]]
    counted = {"size": REAL_MODEL, "seed": 0, "parameters": 100_000}
    return table + [counted | {"method": "full", "trained": 100_000, "optimizer_bytes": 800_000},
                    counted | {"method": "lora", "trained": real, "optimizer_bytes": 8 * real}]


def test_a_real_model_counts_where_shares_are_counted_and_nowhere_else():
    assert failed(lora_size.judge, by_size()) == []
    assert failed(lora_size.judge, by_size(real=2000)) == ["the trained share falls", "the optimizer's state falls"]
    assert failed(lora_size.judge, by_size(gaps=(0.0, 0.05, 0.1))) == ["the gap closes"]
    assert "SmolLM2 0.40%;" in lora_size.judge(by_size())[1]


def test_full_fine_tuning_has_to_solve_what_is_compared():
    table = transfer() + [row(0.5, 0, task=REAL, method="full")]
    found = controls(solved(table))
    assert [control["name"] for control in found] == [
        f"full fine-tuning of decoder-0.4m solves the {name} task" for name in (NEAR, FAR, FARTHER)]
    assert all(control["passed"] and control["threshold"] == SOLVED for control in found)
    assert not controls(solved([row(0.94, seed, task=FAR, method="full") for seed in range(3)]))[0]["passed"]


def test_a_tuning_ends_when_looks_bring_nothing_that_a_second_decimal_shows(tmp_path, monkeypatch):
    losses = iter([0.7, 0.504, 0.502, 0.497, *[0.1] * 20])  # the third and the fourth look are lower, and both .50
    monkeypatch.setattr(tuned, "examine_classes", lambda model, data: {"validation": next(losses), "accuracy": 0.5})
    for name, value in {"STEPS": 9, "EVERY": 1, "LOOKS": 2}.items():
        monkeypatch.setattr(tuned, name, value)
    monkeypatch.setattr(tuned, "parts", lambda *_: [[("Rosa saw Max.", 1), ("Max saw Rosa.", 0)]] * 3)
    found = read_json(tuned.tuned(Bench(tmp_path, tmp_path), "small", NEAR, "bitfit", 1.0, 0) / tuned.FOUND)
    assert (found["steps"], found["validation"]) == (4, 0.5)
