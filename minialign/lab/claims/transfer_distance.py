r"""Transfer distance: frozen features suffice where the task is near to what was pretrained; far from it everything has
to move.

The notes' rule for choosing a way to transfer; Peters, Ruder & Smith 2019, Table 2, and Yosinski et al. 2014 for its
vision version.

The test: a pretrained toy decoder and every method of the chapter on a near and on a far task (tuned.py says which),
and on real ratings.

    1. near: frozen features are within 0.05 of full fine-tuning        2. far: full fine-tuning is at least 0.10 better
    3. the gap between the two is wider on the far task                     4. every parameter-efficient method beats frozen features on the far task

1 looks at the whole 95 % interval over seeds of the difference; 2, 3 and 4 need intervals above 0.10, above 0 and above
0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minialign.lab.claims.runner import Bench, Claim, difference
from minialign.lab.claims.tuned import FAR, NEAR, REAL, accuracy, column, searched
from minialign.lab.plotting import figure, legend, save_png, whiskers
from minialign.peft.methods import METHODS

CLAIM = Claim(
    "transfer-distance", "Frozen features suit tasks near to the pretraining; far from it, the whole model has to be "
                         "tuned.", "Peters et al. 2019, Table 2"
)
FULL, FEATURES = "full", "feature-based"


def measure(bench: Bench) -> list[dict[str, Any]]:
    """Every method on every task."""
    table: list[dict[str, Any]] = []
    for name in (NEAR, FAR) if bench.fast else (NEAR, FAR, REAL):
        for method in METHODS:
            table += searched(bench, "middle", name, method)
    return table


def judge(table: list[dict[str, Any]]) -> tuple[dict[str, bool], str]:
    """The four statements, and the numbers that decide."""
    def of(name, method):
        return column(table, "accuracy", task=name, method=method)
    gaps = {name: difference(of(name, FULL), of(name, FEATURES)) for name in (NEAR, FAR)}
    gap_values = {name: [a - b for a, b in zip(of(name, FULL), of(name, FEATURES))] for name in (NEAR, FAR)}
    wider = difference(gap_values[FAR], gap_values[NEAR])
    others = {method: difference(of(FAR, method), of(FAR, FEATURES)) for method in METHODS
              if method not in (FULL, FEATURES)}
    checks = {
        "near: frozen features suffice": gaps[NEAR].high < 0.05,
        "far: everything has to move": gaps[FAR].low > 0.10,
        "the gap is wider far away": wider.low > 0,
        "efficient methods beat frozen features far away": all(gain.low > 0 for gain in others.values()),
    }
    real = f"; on real ratings {difference(of(REAL, FULL), of(REAL, FEATURES))}" if of(REAL, FULL) else ""
    said = ", ".join(f"{method} {gain.mean:+.3f}" for method, gain in others.items())
    return checks, f"full minus frozen: near {gaps[NEAR]}, far {gaps[FAR]}{real}; far, against frozen features: {said}"


def draw(table: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against trained parameters, a marker a task, a place a method."""
    fig, axes = figure("trained parameters", "accuracy on unseen texts", 6.6, 4.0)
    methods = sorted({row["method"] for row in table}, key=lambda method: column(table, "trained", method=method)[0])
    for number, name in enumerate(dict.fromkeys(row["task"] for row in table)):
        values = [accuracy(table, task=name, method=method) for method in methods]
        whiskers(axes, number, [column(table, "trained", method=method)[0] * (0.94 + 0.06 * number)
                                for method in methods], values, name)
    axes.set_xscale("log")
    low, high = axes.get_ylim()
    bottom = low - 0.35 * (high - low)  # room for the methods' names below the points
    axes.set_ylim(bottom, high)
    for method in methods:
        x = column(table, "trained", method=method)[0]
        axes.annotate(method, (x, bottom), xytext=(0, 4), textcoords="offset points", rotation=90, fontsize=8,
                      ha="center", va="bottom", alpha=0.8)
    legend(axes)
    save_png(fig, path)
