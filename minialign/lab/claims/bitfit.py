r"""BitFit: training the biases alone comes close to training everything, and so does a subset of them.

Ben Zaken et al. 2022, Table 1 and Table 3: all biases (0.09 % of BERT) within a point or two of full fine-tuning; the
biases of the query and of the feed-forward's first layer nearly as good.

The test: full fine-tuning, all biases, the paper's subset, and the head alone, on the near and the far task.

    1. near: all biases are within 0.05 of full fine-tuning                2. far: the same
    3. far: biases are better than the head alone               4. the subset is within 0.03 of all biases on both tasks

1, 2 and 4 look at the whole 95 % interval over seeds of the difference, 3 needs an interval above 0. In a model of this
width biases and norms are a larger share than in BERT; the share is in the table.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minialign.lab.claims.runner import Bench, Claim, difference
from minialign.lab.claims.tuned import FAR, NEAR, accuracy, column, searched
from minialign.lab.plotting import bars_with_intervals, figure, save_png
from minialign.peft.bitfit import BitFitConfig

CLAIM = Claim("bitfit", "Training the biases alone comes close to training everything.",
              "Ben Zaken et al. 2022, Table 1 and 3")
WAYS = {"full": "full", "all biases": "bitfit", "query and inner biases": "bitfit", "head alone": "feature-based"}


def measure(bench: Bench) -> list[dict[str, Any]]:
    """The four ways on both tasks."""
    table: list[dict[str, Any]] = []
    for name in (NEAR, FAR):
        for way, method in WAYS.items():
            table += searched(bench, "middle", name, method, BitFitConfig(subset=True) if way.startswith("query")
                              else None, way=way)
    return table


def judge(table: list[dict[str, Any]]) -> tuple[dict[str, bool], str]:
    """The four statements, and the numbers that decide."""
    def of(name, way):
        return column(table, "accuracy", task=name, way=way)
    behind = {name: difference(of(name, "full"), of(name, "all biases")) for name in (NEAR, FAR)}
    head = difference(of(FAR, "all biases"), of(FAR, "head alone"))
    subset = {name: difference(of(name, "all biases"), of(name, "query and inner biases")) for name in (NEAR, FAR)}
    checks = {f"{name}: biases come close": gap.high < 0.05 for name, gap in behind.items()}
    checks |= {"far: better than the head alone": head.low > 0, "the subset comes close to all":
               all(gap.high < 0.03 for gap in subset.values())}
    share = column(table, "trained", way="all biases")[0] / column(table, "parameters", way="all biases")[0]
    why = (f"with {share:.2%} of the parameters biases are behind full fine-tuning by {behind[NEAR]} (near) and "
           f"{behind[FAR]} (far), ")
    why += f"ahead of the head by {head} (far)"
    return checks, f"{why}; the subset is behind all biases by {subset[NEAR]} and {subset[FAR]}"


def draw(table: list[dict[str, Any]], path: Path) -> None:
    """Accuracy of each way, both tasks."""
    fig, axes = figure("accuracy on unseen texts", "", 6.6, 4.0)
    def of(name, way):
        return accuracy(table, task=name, way=way)
    bars_with_intervals(axes, {f"{name}: {way}": of(name, way) for name in (NEAR, FAR) for way in WAYS})
    axes.set_xlim(0, 1)
    save_png(fig, path)
