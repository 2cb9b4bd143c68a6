r"""Adapter size: near full fine-tuning at a fraction of the parameters, and better than tuning only the top layers.

Houlsby et al. 2019, Fig. 1 and Fig. 3: adapters of a few per cent of BERT's parameters are within half a point of full
fine-tuning, and at equally many trained parameters far above tuning the top k layers.

The test, on the far task: adapters of bottleneck 1 to 64, the top one to three blocks tuned in full, and all of it.

    1. the widest adapters come within 0.03 of full fine-tuning      2. so do adapters of at most 10 % of the parameters
    3. adapters of bottleneck 16 beat the top block, which has more parameters

1 and 2 look at the whole 95 % interval over seeds of the difference, 3 needs an interval above 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minialign.lab.claims.runner import Bench, Claim, difference, over_seeds
from minialign.lab.claims.tuned import FAR, SHAPES, accuracy, column, searched, top_layers
from minialign.lab.plotting import figure, legend, lines_with_intervals, reference_line, save_png
from minialign.peft.adapters import AdapterConfig

CLAIM = Claim(
    "adapter-size", "Adapters come near full fine-tuning at a fraction of the parameters, ahead of tuning the top "
                    "layers.", "Houlsby et al. 2019, Fig. 3"
)
WIDTHS = (1, 4, 16, 64)
SMALL = 0.10  # share of the model's parameters


def measure(bench: Bench) -> list[dict[str, Any]]:
    """Adapters by width, top blocks by number, all of it."""
    table = searched(bench, "middle", FAR, "full", way="full")
    for width in WIDTHS[1:3] if bench.fast else WIDTHS:
        table += searched(bench, "middle", FAR, "adapters", AdapterConfig(bottleneck=width), way="adapters",
                          width=width)
    for count in range(1, 2 if bench.fast else SHAPES["middle"][1] + 1):
        table += searched(bench, "middle", FAR, f"top {count}", wrap=top_layers(count), way="top layers", width=count)
    return table


def judge(table: list[dict[str, Any]]) -> tuple[dict[str, bool], str]:
    """The three statements, and the numbers that decide."""
    def of(way, width=None):
        return column(table, "accuracy", way=way, width=width)
    widths = sorted({row["width"] for row in table if row["way"] == "adapters"})
    share = {width: column(table, "trained", way="adapters", width=width)[0] / table[0]["parameters"]
             for width in widths}
    behind = {width: difference(of("full"), of("adapters", width)) for width in widths}
    ahead = difference(of("adapters", 16), of("top layers", 1))
    fewer = column(table, "trained", way="adapters", width=16)[0] < column(table, "trained", way="top layers",
        width=1)[0]
    checks = {
        "the widest come close": behind[widths[-1]].high < 0.03,
        "small ones come close": any(behind[width].high < 0.03 for width in widths if share[width] <= SMALL),
        "better than the top layer": ahead.low > 0 and fewer,
    }
    said = ", ".join(f"{width} ({share[width]:.1%}) {gap}" for width, gap in behind.items())
    return checks, f"behind full fine-tuning by bottleneck: {said}; bottleneck 16 against the top block {ahead}"


def draw(table: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against trained parameters: adapters, top layers, all."""
    fig, axes = figure("trained parameters", "accuracy on the far task", 6.0, 3.8)
    for number, way in enumerate(("adapters", "top layers")):
        widths = sorted({row["width"] for row in table if row["way"] == way})
        places = [column(table, "trained", way=way, width=width)[0] for width in widths]
        lines_with_intervals(axes, places, {way: [accuracy(table, way=way, width=width) for width in widths]}, number)
    reference_line(axes, over_seeds(column(table, "accuracy", way="full")).mean, "full fine-tuning")
    axes.set_xscale("log")
    legend(axes)
    save_png(fig, path)
