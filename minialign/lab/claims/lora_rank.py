r"""LoRA's rank: what full fine-tuning changes is near low rank, and a LoRA of small rank does as well.

Hu et al. 2021, §7.2 and Table 6: rank 1 to 4 is enough on most tasks; Aghajanyan et al. 2021: fine-tuning has a low
intrinsic dimension. The notes turn the parameter count around (erratum E1): a LoRA of rank r on a matrix of n × m saves
parameters only below r = n m / (n + m).

The test, on the far task: the singular values of W_tuned − W of every matrix of attention after full fine-tuning, and
the accuracy of LoRAs of rank 1 to 64.

    1. the update is near low rank: the first 8 of its singular directions hold at least 80 % of ‖ΔW‖², mean over the
       matrices of attention
    2. rank 4 is within 0.03 of rank 64            3. rank 4 is within 0.03 of full fine-tuning
    4. a LoRA trains less than the matrices that it stands for at every rank below the break-even Σ n m / Σ (n + m), as
       much at it, more above it, as counted

1 needs the lower end, 2 and 3 the upper end of a 95 % interval over seeds. What a random update of the same shapes
would have stands in the table.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minialign.lab.claims.runner import Bench, Claim, difference, over_seeds
from minialign.lab.claims.tuned import FAR, SHAPES, accuracy, base_of, column, searched, tuned
from minialign.lab.plotting import figure, legend, lines_with_intervals, reference_line, save_png
from minialign.peft.lora import LoRAConfig, break_even
from minialign.peft.saving import TENSORS
from minialign.runs.tensors import read_tensors

CLAIM = Claim("lora-rank", "The update of fine-tuning is near low rank, so a LoRA of small rank does as well.",
              "Hu et al. 2021, §7.2")
RANKS = (1, 4, 16, 64)
FIRST, ENERGY = 8, 0.8  # directions, and how much of the update they should hold
TARGETS = ("query", "key", "value", "output", "inner")


def measure(bench: Bench) -> list[dict[str, Any]]:
    """Ranks, and the spectrum of the full update."""
    table = searched(bench, "middle", FAR, "full", way="full")
    for row in table:
        before = dict(base_of(bench, "middle", row["seed"])[0].named_parameters())
        after = read_tensors(tuned(bench, "middle", FAR, "full", row["rate"], row["seed"]) / TENSORS)[0]
        row |= energies({name: tensor - before[name].detach() for name, tensor in after.items() if ".attention." in name
                         and tensor.dim() == 2})
    for rank in RANKS[:2] if bench.fast else RANKS:
        table += searched(bench, "middle", FAR, "lora", LoRAConfig(rank, 2.0 * rank, TARGETS), way="lora", rank=rank)
    return table


def energies(changes: dict[str, Tensor]) -> dict[str, float]:
    """Share of ‖ΔW‖² in the first directions, mean over matrices, of the updates and of random ones of the same
    shapes."""
    chance = torch.Generator().manual_seed(0)
    def share(w):
        return float(torch.linalg.svdvals(w)[:FIRST].square().sum()
                                / w.square().sum().clamp(min=1e-30))
    shares = [share(change) for change in changes.values()]
    random = [share(torch.randn(change.shape, generator=chance)) for change in changes.values()]
    return {"energy": sum(shares) / len(shares), "energy, random": sum(random) / len(random)}


def judge(table: list[dict[str, Any]]) -> tuple[dict[str, bool], str]:
    """The four statements, and the numbers that decide."""
    def of(way, rank=None):
        return column(table, "accuracy", way=way, rank=rank)
    ranks = sorted({row["rank"] for row in table if row["way"] == "lora"})
    energy, random = (over_seeds(column(table, what, way="full"), 0.0, 1.0) for what in ("energy", "energy, random"))
    behind_all, behind_full = difference(of("lora", ranks[-1]), of("lora", 4)), difference(of("full"), of("lora", 4))
    width, layers, _ = SHAPES["middle"]
    # query, key, value, output of attention; inner, output
    shapes = [(width, width)] * 4 * layers + [(width, 4 * width)] * 2 * layers
    matrices, even = sum(n * m for n, m in shapes), sum(n * m for n, m in shapes) / sum(n + m for n, m in shapes)
    trained = {rank: column(table, "trained", way="lora", rank=rank)[0] - (2 * width + 2)
               for rank in ranks}  # without the head
    checks = {
        "the update is near low rank": energy.low >= ENERGY,
        "rank 4 is near the highest rank": behind_all.high < 0.03,
        "rank 4 is near full fine-tuning": behind_full.high < 0.03,
        "it trains less than the matrices below the break-even rank": all(
            (count < matrices, count > matrices) == (rank < even, rank > even) for rank, count in trained.items()
        ),
    }
    why = f"the first {FIRST} of {width} directions hold {energy} of the update (of a random one {random.mean:.3f}); "
    why += f"rank 4 is behind rank {ranks[-1]} by {behind_all}, "
    counted = ", ".join(f"{count:,} at rank {rank}" for rank, count in trained.items())
    why += (f"behind full fine-tuning by {behind_full}; a {width} × {width} matrix breaks even at rank "
            f"{break_even(nn.Linear(width, width)):g}, all of them ")
    return checks, why + f"together at {even:.1f}: in place of {matrices:,} numbers LoRA trains {counted}"


def draw(table: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against rank, with full fine-tuning and the break-even."""
    fig, axes = figure("rank of the LoRA", "accuracy on the far task", 6.0, 3.8)
    ranks = sorted({row["rank"] for row in table if row["way"] == "lora"})
    lines_with_intervals(axes, ranks, {"LoRA": [accuracy(table, way="lora", rank=rank) for rank in ranks]})
    reference_line(axes, over_seeds(column(table, "accuracy", way="full")).mean, "full fine-tuning")
    width = SHAPES["middle"][0]
    reference_line(axes, break_even(nn.Linear(width, width)), "break-even of a square matrix", vertical=True)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranks, [str(rank) for rank in ranks])
    legend(axes)
    save_png(fig, path)
