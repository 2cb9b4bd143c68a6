"""The claims on instruction tuning: what is measured with every seed, and what with the first one only."""

from types import SimpleNamespace

import pytest
import torch

from minialign.instruct.zero_shot import TaskResult
from minialign.lab.claims import flan_clusters, t0_templates
from minialign.lab.claims.runner import Bench
from minialign.lab.demo.instruct import TAUGHT
from minialign.world.datasets import DATASETS, HELD_OUT

TASK = next(name for name, dataset in DATASETS.items() if dataset.cluster in HELD_OUT)


@pytest.fixture
def rows(monkeypatch, tmp_path):
    """Returns (a claim's module) -> the rows that it would measure with three seeds, without a model."""

    def measured(module):
        model = SimpleNamespace(parameters=lambda: [torch.zeros(5)])
        result = TaskResult(TASK, {"one": 0.5, "other": 0.7}, 0.5)
        for name, value in {"tuned": (model, None), "load_base": (model, None, {}), "examined": {TASK: result},
                            "on_trained_tasks": {TASK: result}, "taken_for_granted": []}.items():
            monkeypatch.setattr(module, name, lambda *_, _value=value, **__: _value, raising=False)
        return list(module.measure(Bench(tmp_path, tmp_path, seeds=3, say=lambda text: None)))

    return measured


@pytest.mark.parametrize(
    "module, field, once",
    [(flan_clusters, "clusters", set(flan_clusters.COUNTS) - set(flan_clusters.JUDGED)),
     (t0_templates, "wordings", {t0_templates.ONCE, t0_templates.UNADAPTED, t0_templates.BY_MEAN,
                                 t0_templates.MANNERS})],
)
def test_what_no_statement_is_about_is_measured_once_and_said_to_be(rows, module, field, once):
    table = rows(module)
    values = {row[field] for row in table if field in row}
    seeds = {value: {row["seed"] for row in table if row.get(field) == value} for value in values}
    assert {value for value, found in seeds.items() if found == {0}} == once
    assert all(len(found) == 3 for value, found in seeds.items() if value not in once)
    checks, why = module.judge(table)
    assert len(checks) == 2 and "one seed" in why
    assert module.draw(table)


def test_clusters_are_drawn_anew_for_each_seed_among_those_that_are_taught(rows):
    which = {row["which"] for row in rows(flan_clusters) if row.get("clusters") == 2}
    assert len(which) > 1 and all(set(pair.split()) < set(TAUGHT) for pair in which)
