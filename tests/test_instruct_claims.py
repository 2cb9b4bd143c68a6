"""The claims on instruction tuning: what is measured with every seed, and what with the first one only."""

from types import SimpleNamespace

import pytest

from minialign.instruct.zero_shot import TaskResult
from minialign.lab.claims import flan_clusters, t0_templates
from minialign.lab.claims.runner import Bench
from minialign.world.datasets import DATASETS, HELD_OUT

TASK = next(name for name, dataset in DATASETS.items() if dataset.cluster in HELD_OUT)


@pytest.fixture
def rows(monkeypatch, tmp_path):
    """Returns (a claim's module) -> the rows that it would measure with three seeds, without a model."""

    def measured(module):
        for name in ("toy_gpt", "toy_t5", "load_model"):
            monkeypatch.setattr(module, name, lambda *_: (None, None), raising=False)
        monkeypatch.setattr(module, "tuned", lambda *_: (None, None))
        monkeypatch.setattr(module, "split_for", lambda *_: SimpleNamespace(held_out={}))
        result = TaskResult(TASK, {"one": 0.5, "other": 0.7}, 0.5)
        monkeypatch.setattr(module, "examine", lambda *_, **__: {TASK: result})
        return list(module.measure(Bench(tmp_path, tmp_path, seeds=3, say=lambda text: None)))

    return measured


@pytest.mark.parametrize(
    "module, field, once",
    [(flan_clusters, "clusters", {flan_clusters.ONCE}),
     (t0_templates, "wordings", {t0_templates.ONCE, t0_templates.UNADAPTED, t0_templates.BY_MEAN})],
)
def test_what_no_statement_is_about_is_measured_once_and_said_to_be(rows, module, field, once):
    table = rows(module)
    seeds = {value: {row["seed"] for row in table if row[field] == value} for value in {row[field] for row in table}}
    assert {value for value, found in seeds.items() if found == {0}} == once
    assert all(len(found) == 3 for value, found in seeds.items() if value not in once)
    checks, why = module.judge(table)
    assert len(checks) == 2 and why.count("(one seed)") == len(once)
    assert module.draw(table).axes
