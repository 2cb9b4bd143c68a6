"""The claim on distillation: its verdict is computed from the table."""

from types import SimpleNamespace

import pytest

from minialign.lab.claims import distillation
from minialign.lab.claims.distillation import COMPARED, MANY, RECIPE, REMOVED, draw, judge
from minialign.lab.claims.distilled import ABLATIONS, MAIN, SIZES, without
from minialign.lab.claims.runner import Bench


def table(soft=2.0, task=0.9, own=0.3, known=0.04, recipe=1.85):
    """Three seeds in which labels give a loss of 2.5, the recipes 1.85, the teacher 1.8."""
    rows = []
    for seed in range(3):
        for family in MAIN:
            ways = [(way, size) for way in MAIN[family] for size in SIZES if size == "two layers" or way in COMPARED]
            ways += [("teacher", "teacher")]
            ways += [(way, "two layers") for way in ABLATIONS[family]]
            for way, size in ways:
                loss = {"labels": 2.5, "best word": 2.4, "soft targets": soft, RECIPE[family]: recipe,
                        "teacher": 1.8}.get(way, 2.2)
                row = {"family": family, "size": size, "way": way, "seed": seed, "loss": loss + 0.01 * seed}
                row |= {"near": task if way != "labels" else 0.8, "far": 0.7}
                rows.append(row | ({"own texts": own if way == "on-policy" else 0.5} if family == "decoder" else {}))
        rows += [{"family": "decoder", "size": MANY, "way": way, "seed": seed, "loss": 1.9 + 0.01 * seed}
                 for way in ("labels", "soft targets")]
        for way, value in (("teacher", 0.1), ("soft targets", known), ("labels", 0.001)):
            rows.append({"family": "decoder", "size": REMOVED, "way": way, "seed": seed,
                         "known": value + 0.0001 * seed})
    return rows


def test_all_nine_statements_hold_for_a_table_that_shows_them():
    checks, why = judge(table())
    assert len(checks) == 9 and all(checks.values())
    assert "soft targets are 0.500 [0.500, 0.500] nats ahead of labels (decoder, two layers)" in why


@pytest.mark.parametrize(
    "changed, broken",
    [
        ({"soft": 2.5}, ["soft targets beat labels", "soft targets beat the teacher's likeliest word"]),
        ({"task": 0.8}, ["TinyBERT and MiniLM know the tasks better than labels"]),
        ({"recipe": 1.95}, ["they come close to the teacher"]),
        ({"recipe": 2.16}, ["the recipes close more than half of the gap", "they come close to the teacher"]),
        ({"own": 0.5}, ["on-policy brings own texts closer"]),
        ({"known": 0.02}, ["soft targets know a word that was taken away"]),
    ],
)
def test_each_statement_fails_on_a_table_that_does_not_show_it(changed, broken):
    checks, _ = judge(table(**changed))
    assert [name for name, holds in checks.items() if not holds] == broken


def test_the_first_seed_makes_everything_and_the_others_all_that_is_judged(monkeypatch, tmp_path):
    def examine(bench, student, seed, tasks=True):
        return {"loss": 1.0, "tasks": tasks}

    def name(row):
        return tuple(row[key] for key in ("family", "size", "way", "seed"))

    monkeypatch.setattr(distillation, "load_teacher", lambda *_: SimpleNamespace(folder="teacher", examine=examine))
    monkeypatch.setattr(distillation, "student", lambda *_: None)
    for rows in ("removed", "with_many", "taken_for_granted"):
        monkeypatch.setattr(distillation, rows, lambda *_: [])
    monkeypatch.setattr(distillation, "warmest", lambda *_: (2.0, {}))
    rows = distillation.measure(Bench(tmp_path, tmp_path, seeds=3, say=lambda text: None))
    made = {name(row): row["tasks"] for row in rows if row["way"] != "temperature"}
    apart = (REMOVED, MANY)
    first = {name(row) for row in table() if row["seed"] == 0 and row["size"] not in apart}
    assert {key for key in made if key[3] == 0} == first and len(made) < len(table()) - 9
    assert all(made["encoder", "two layers", way, seed] for way in MAIN["encoder"] for seed in range(3))
    needed = [row for row in table() if row["size"] in apart or name(row) in made]
    needed = [row if made.get(name(row), True) else {key: row[key] for key in row if key not in ("near", "far")}
              for row in needed]
    assert judge(needed) == judge(table())


def test_an_ablation_takes_one_part_away():
    for family, name in RECIPE.items():
        full = MAIN[family][name]
        for part in ("soft", "hard", "cosine"):
            changed = without(name, full, part)[f"{name} − {part}"]
            assert ABLATIONS[family].get(f"{name} − {part}", changed) == changed
            assert getattr(changed.config, part) == 0 < getattr(full.config, part)
            assert changed.start and changed.recipe is full.recipe
        assert not without(name, full, "start")[f"{name} − start"].start


def test_four_figures_are_drawn():
    assert set(draw(table())) == {"figure", "encoders", "removed-words", "few-and-many"}
