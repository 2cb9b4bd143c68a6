r"""People prefer feedback: the model tuned on it wins more comparisons than the instruction-tuned one, and even than
the references.

Stiennon et al. 2020, Fig. 1: at every size summaries of the model tuned on human feedback are preferred over supervised
ones, and at 1.3 billion parameters over the references written by people (61 % of comparisons).

The test: the main job at three sizes. The judges are annotators whose choices no training used; each compares a model's
summary with the reference of the same story, in random order, ties one half. A win rate stands beside what is left of
it at equal length, since longer summaries win by length.

    1. at every size feedback wins more than instruction tuning            2. and that more than pretraining alone
    3. the same as 1 at equal length                   4. at the largest size feedback beats the references (above 50 %)

1 to 3 need a difference, seed by seed, whose 95 % interval over seeds is above 0, at every size; 4 an interval above
0.5. Each seed's win rate has an interval over its stories, too, Student's as it is and a bootstrap at equal length
(rlhf/equal_length.py); they are in the table.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minialign.lab.claims.feedback import SIZES, aligned
from minialign.lab.claims.runner import Bench, Claim, difference, drawn, over_seeds
from minialign.lab.plotting import figure, legend, lines_with_intervals, reference_line, save_png

CLAIM = Claim("people-prefer-rlhf",
    "People prefer the model tuned on feedback, even over references written by people.",
    "Stiennon et al. 2020, Fig. 1")
MODELS = {"pretrained": "pretrained", "sft": "instruction-tuned", "rlhf": "RLHF"}


def measure(bench: Bench) -> list[dict[str, Any]]:
    """Run the main job at every size and collect the win rates."""
    table: list[dict[str, Any]] = []
    for size in ("middle",) if bench.fast else SIZES:
        for seed in range(bench.seeds):
            found, models, _ = aligned(bench, size, seed)
            for model in MODELS:
                stage = found["stages"][model]
                row = {"size": size, "parameters": sum(p.numel() for p in models["rlhf"].parameters()), "model": model,
                       "seed": seed}
                row |= {"won": stage["win_rate"]["mean"], "low": stage["win_rate"]["low"],
                        "high": stage["win_rate"]["high"]}
                equal = {f"at equal length{end}": stage["win_rate_at_equal_length"][key] for end,
                         key in (("", "mean"), (", low", "low"), (", high", "high"))}
                table.append(row | equal | {"gold": stage["gold"]["mean"], "kl": found["kl"]})
    return table


def judge(table: list[dict[str, Any]]) -> tuple[dict[str, bool], str]:
    """The four statements, and the numbers that decide."""
    sizes = list(dict.fromkeys(row["size"] for row in table))
    def of(size, model, what="won"):
        return [row[what] for row in table if (row["size"], row["model"])
                                              == (size, model)]
    def gain(first, second, what="won"):
        return [difference(of(size, first, what), of(size, second, what))
                                                  for size in sizes]
    best = over_seeds(of(sizes[-1], "rlhf"), 0.0, 1.0)
    checks = {
        "feedback wins more than instruction tuning": all(g.low > 0 for g in gain("rlhf", "sft")),
        "instruction tuning wins more than pretraining": all(g.low > 0 for g in gain("sft", "pretrained")),
        "also at equal length": all(g.low > 0 for g in gain("rlhf", "sft", "at equal length")),
        "feedback beats the references": best.low > 0.5,
    }
    said = "; ".join(f"{size}: " + ", ".join(f"{name} {over_seeds(of(size, model)).mean:.3f}" for model,
                                             name in MODELS.items()) for size in sizes)
    def by_size(*what):
        return ", ".join(map(str, gain(*what)))
    why = (f"won against the references, {said}; feedback over instruction tuning {by_size('rlhf', 'sft')}, at equal "
           f"length ")
    why += (f"{by_size('rlhf', 'sft', 'at equal length')}; instruction tuning over pretraining "
            f"{by_size('sft', 'pretrained')}")
    return checks, f"{why}; largest against the references {best}"


def draw(table: list[dict[str, Any]], path: Path) -> None:
    """Win rate against the references, by size, a curve for each kind of training."""
    fig, axes = figure("parameters", "preferred to the reference, share", 6.0, 3.8)
    sizes = list(dict.fromkeys(row["size"] for row in table))
    parameters = [next(row["parameters"] for row in table if row["size"] == size) for size in sizes]
    def of(size, model):
        return drawn(over_seeds([r["won"] for r in table if (r["size"], r["model"])
                                                   == (size, model)]))
    lines_with_intervals(axes, parameters, {name: [of(size, model) for size in sizes] for model,
                                            name in MODELS.items()})
    reference_line(axes, 0.5, "the references")
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    legend(axes)
    save_png(fig, path)
