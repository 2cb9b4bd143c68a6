r"""Prompt tuning: a few trained vectors before the text, and the larger the model, the nearer to tuning all of it.

Lester et al. 2021, Fig. 1 and Fig. 3a: 20 vectors and more; behind model tuning by 20 points for small models, level
with it at ten billion parameters.

The test, on the near task, which a frozen model could know: prompts of 1, 4 and 16 vectors at three sizes, and full
fine-tuning of the same models.

    1. longer prompts help: 16 against 1, at the middle size            2. at the largest size 16 vectors are within 0.05 of full fine-tuning
    3. the gap to full fine-tuning closes from the smallest to the largest model

1 and 3 need a difference, seed by seed, whose 95 % interval over seeds is above 0; 2 looks at the upper end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minialign.lab.claims.runner import Bench, Claim, difference, over_seeds
from minialign.lab.claims.tuned import NEAR, accuracy, column, searched
from minialign.lab.plotting import figure, legend, lines_with_intervals, save_png
from minialign.peft.prompt_tuning import PromptConfig

CLAIM = Claim("prompt-tuning", "A few trained vectors before the text suffice, the more so the larger the model.",
              "Lester et al. 2021, Fig. 1 and 3")
SIZES = ("tiny", "middle", "large")
LENGTHS = (1, 4, 16)


def measure(bench: Bench) -> list[dict[str, Any]]:
    """Lengths and sizes."""
    table: list[dict[str, Any]] = []
    for size in ("tiny", "middle") if bench.fast else SIZES:
        table += searched(bench, size, NEAR, "full", length=0)
        for length in LENGTHS:
            table += searched(bench, size, NEAR, "prompt-tuning", PromptConfig(length), length=length)
    return table


def judge(table: list[dict[str, Any]]) -> tuple[dict[str, bool], str]:
    """The three statements, and the numbers that decide. Length 0 is full fine-tuning."""
    sizes = list(dict.fromkeys(row["size"] for row in table))
    def of(size, length):
        return column(table, "accuracy", size=size, length=length)
    longer = difference(of("middle", LENGTHS[-1]), of("middle", LENGTHS[0]))
    gaps = {size: [a - b for a, b in zip(of(size, 0), of(size, LENGTHS[-1]))] for size in sizes}
    last, closing = over_seeds(gaps[sizes[-1]]), difference(gaps[sizes[0]], gaps[sizes[-1]])
    checks = {"longer prompts help": longer.low > 0, "near full fine-tuning at the largest size": last.high < 0.05,
              "the gap closes with size": closing.low > 0}
    said = ", ".join(f"{size} {over_seeds(values)}" for size, values in gaps.items())
    return (checks, f"16 vectors instead of 1: {longer}; behind full fine-tuning by size: {said}; from the smallest to "
                    f"the largest the gap closes by {closing}")


def draw(table: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against size, a curve a length."""
    fig, axes = figure("parameters", "accuracy on the near task", 6.0, 3.8)
    sizes = list(dict.fromkeys(row["size"] for row in table))
    places = [column(table, "parameters", size=size, length=0)[0] for size in sizes]
    names = {0: "full fine-tuning"} | {length: f"{length} vector{'s' * (length > 1)}" for length in LENGTHS}
    def of(size, length):
        return accuracy(table, size=size, length=length)
    lines_with_intervals(axes, places, {name: [of(size, length) for size in sizes] for length, name in names.items()})
    axes.set_xscale("log")
    legend(axes)
    save_png(fig, path)
