r"""LoRA's rank: what full fine-tuning changes is near low rank, and a LoRA of small rank does as well.

Hu et al. 2021, §7.2 and Table 6: rank 1 to 4 is enough on most tasks; Aghajanyan et al. 2021: fine-tuning has a low
intrinsic dimension. The notes turn the parameter count around (erratum E1): a LoRA of rank r on a matrix of n × m saves
parameters only below r = n m / (n + m).

The test, on the farther task and from the shipped decoder (tuned.py says what is taken for granted; the far task, on
which it was made before, is solved by everything that moves something): the singular values of W_tuned − W of every
matrix of attention after full fine-tuning (those of a random update stand in the table), and the accuracy of LoRAs of
rank 1 to 64.

    1. the first 8 singular directions hold at least 80 % of ‖ΔW‖², mean over the matrices of attention
    2. rank 4 is within 0.03 of rank 64        3. rank 4 is within 0.03 of full fine-tuning
    4. a LoRA trains less than the matrices that it stands for at every rank below the break-even Σ n m / Σ (n + m), as
       much at it, more above it, as counted

1 needs the lower end, 2 and 3 the upper end of a 95 % interval over seeds.
"""

from statistics import mean

import torch
from torch import Tensor, nn

from minialign.lab.claims import Bench, Claim, Rows, Table, Verdict, column, difference, distinct, over_seeds
from minialign.lab.claims.shipped import TARGETS
from minialign.lab.claims.tuned import FARTHER, accuracies, accuracy, base_of, searched, solved, tuned
from minialign.lab.plotting import Figure, figure, finish, lines_with_intervals, reference_line
from minialign.peft.lora import LoRAConfig, break_even
from minialign.peft.saving import TENSORS
from minialign.runs.tensors import read_tensors

CLAIM = Claim("lora-rank", "The update of fine-tuning is near low rank, so a LoRA of small rank does as well.",
              "Hu et al. 2021, §7.2")
RANKS = (1, 4, 16, 64)
FIRST, ENERGY = 8, 0.8  # directions, and how much of the update they should hold


def measure(bench: Bench) -> Rows:
    """Ranks, and the spectrum of the full update."""
    model, _ = base_of("middle")
    before, shape = dict(model.named_parameters()), {"width": model.config.width, "layers": model.config.layers}
    rows = searched(bench, "middle", FARTHER, "full", way="full", **shape)
    yield from solved(rows)
    for row in rows:
        after = read_tensors(tuned(bench, "middle", FARTHER, "full", row["rate"], row["seed"]) / TENSORS)[0]
        matrices = [name for name, tensor in after.items() if ".attention." in name and tensor.dim() == 2]
        yield row | energies([after[name] - before[name].detach() for name in matrices])
    for rank in RANKS[:2] if bench.fast else RANKS:
        config = LoRAConfig(rank, 2.0 * rank, TARGETS)
        yield from searched(bench, "middle", FARTHER, "lora", config, way="lora", rank=rank)


def energies(changes: list[Tensor]) -> dict[str, float]:
    """Share of ‖ΔW‖² in the first singular directions, mean over matrices, of the updates and of random ones of the
    same shapes."""
    generator = torch.Generator().manual_seed(0)
    random = [torch.randn(change.shape, generator=generator) for change in changes]
    return {name: mean(float(torch.linalg.svdvals(x)[:FIRST].square().sum() / x.square().sum().clamp(min=1e-30))
                       for x in matrices) for name, matrices in (("energy", changes), ("energy, random", random))}


def judge(table: Table) -> Verdict:
    """The four statements, and the numbers that decide."""
    ranks, fourth = sorted(distinct(table, "rank", way="lora")), accuracies(table, way="lora", rank=4)
    held, random = (over_seeds(column(table, what, way="full"), 0.0, 1.0) for what in ("energy", "energy, random"))
    behind_all = difference(accuracies(table, way="lora", rank=ranks[-1]), fourth)
    behind_full = difference(accuracies(table, way="full"), fourth)
    width, layers = (column(table, what, way="full")[0] for what in ("width", "layers"))
    # query, key, value, output of attention; inner, output
    shapes = [(width, width)] * 4 * layers + [(width, 4 * width)] * 2 * layers
    whole = sum(n * m for n, m in shapes)
    even, head = whole / sum(n + m for n, m in shapes), 2 * width + 2
    trained = {rank: column(table, "trained", way="lora", rank=rank)[0] - head for rank in ranks}
    checks = {
        "the update is near low rank": held.low >= ENERGY,
        "rank 4 is near the highest rank": behind_all.high < 0.03,
        "rank 4 is near full fine-tuning": behind_full.high < 0.03,
        "it trains less than the matrices below the break-even rank": all(
            (count < whole, count > whole) == (rank < even, rank > even) for rank, count in trained.items()
        ),
    }
    counted = ", ".join(f"{count:,} at rank {rank}" for rank, count in trained.items())
    return checks, (
        f"the first {FIRST} of {width} directions hold {held} of the update (of a random one {random.mean:.3f}); rank "
        f"4 is behind rank {ranks[-1]} by {behind_all}, behind full fine-tuning by {behind_full}; a {width} × {width} "
        f"matrix breaks even at rank {break_even(nn.Linear(width, width)):g}, all of them together at {even:.1f}: in "
        f"place of {whole:,} numbers LoRA trains {counted}"
    )


def draw(table: Table) -> Figure:
    """Accuracy against rank, with full fine-tuning and the break-even."""
    _, axes = figure("rank of the LoRA", "accuracy on the farther task", 6.0, 3.8)
    ranks = sorted(distinct(table, "rank", way="lora"))
    lines_with_intervals(axes, ranks, {"LoRA": [accuracy(table, way="lora", rank=rank) for rank in ranks]})
    reference_line(axes, over_seeds(accuracies(table, way="full")).mean, "full fine-tuning")
    width = column(table, "width", way="full")[0]
    reference_line(axes, break_even(nn.Linear(width, width)), "break-even of a square matrix", vertical=True)
    return finish(axes, doublings=ranks)
