r"""LoRA and size: the larger the model, the smaller the share that trains, and the less is lost against full
fine-tuning.

Hu et al. 2021, §1 and Table 4: 0.01 % of GPT-3's parameters, a third of the memory, accuracy on par; the saving grows
with the width, since A and B grow with it and the matrices with its square.

The test: LoRAs of rank 4 on query and value at four sizes of pretrained toy decoders, against full fine-tuning of the
same, on the far task.

    1. the trained share falls with every step in size                   2. so does the share of the optimizer's state
    3. the gap in accuracy to full fine-tuning is narrower at the largest size than at the smallest

3 needs the 95 % interval over seeds of (gap at the smallest − gap at the largest) above 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minialign.lab.claims.runner import Bench, Claim, difference, over_seeds
from minialign.lab.claims.tuned import FAR, SHAPES, accuracy, column, searched
from minialign.lab.plotting import figure, legend, lines_with_intervals, save_png
from minialign.peft.lora import LoRAConfig

CLAIM = Claim("lora-size", "The larger the model, the smaller the share that a LoRA trains and the less it loses.",
              "Hu et al. 2021, Table 4")
WAYS = ("full", "lora")


def measure(bench: Bench) -> list[dict[str, Any]]:
    """Both ways at every size."""
    table: list[dict[str, Any]] = []
    for size in ("tiny", "small") if bench.fast else SHAPES:
        for method in WAYS:
            table += searched(bench, size, FAR, method, LoRAConfig(4, 8.0) if method == "lora" else None)
    return table


def judge(table: list[dict[str, Any]]) -> tuple[dict[str, bool], str]:
    """The three statements, and the numbers that decide."""
    sizes = list(dict.fromkeys(row["size"] for row in table))
    def one(what, size, method="lora"):
        return column(table, what, size=size, method=method)[0]
    shares = [one("trained", size) / one("parameters", size) for size in sizes]
    states = [one("optimizer_bytes", size) / one("optimizer_bytes", size, "full") for size in sizes]
    gaps = {size: [a - b for a, b in zip(*(column(table, "accuracy", size=size, method=m) for m in WAYS))]
            for size in sizes}
    closing = difference(gaps[sizes[0]], gaps[sizes[-1]])
    def falls(values):
        return all(a > b for a, b in zip(values, values[1:]))
    checks = {"the trained share falls": falls(shares), "the optimizer's state falls": falls(states),
              "the gap closes": closing.low > 0}
    said = ", ".join(f"{size} {share:.2%} (gap {over_seeds(gaps[size])})" for size, share in zip(sizes, shares))
    return (checks, f"trained share by size: {said}; optimizer's state {states[0]:.1%} to {states[-1]:.1%} of full; "
                    f"the gap closes by {closing}")


def draw(table: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against size, LoRA and full."""
    fig, axes = figure("parameters", "accuracy on the far task", 6.0, 3.8)
    sizes = list(dict.fromkeys(row["size"] for row in table))
    places = [column(table, "parameters", size=size, method="full")[0] for size in sizes]
    curves = {name: [accuracy(table, size=size, method=name) for size in sizes] for name in WAYS}
    lines_with_intervals(axes, places, {"full fine-tuning": curves["full"], "LoRA, rank 4": curves["lora"]})
    axes.set_xscale("log")
    legend(axes)
    save_png(fig, path)
