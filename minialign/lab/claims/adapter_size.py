r"""Adapter size: near full fine-tuning at a fraction of the parameters, and better than tuning only the top layers.

Houlsby et al. 2019, Fig. 1 and Fig. 3: adapters of a few per cent of BERT's parameters are within half a point of full
fine-tuning, and at equally many trained parameters far above tuning the top k layers.

The test, on the farther task and from the shipped decoder (tuned.py says what is taken for granted; the far task, on
which it was made before, is solved by everything that moves something): adapters of bottleneck 1 to 64, the top one to
three blocks tuned in full, and all of it.

    1. the widest adapters come within 0.03 of full fine-tuning
    2. so do adapters of at most 10 % of the parameters
    3. adapters of bottleneck 16 beat the top block, which has more parameters

1 and 2 look at the whole 95 % interval over seeds of the difference, 3 needs an interval above 0.
"""

from minialign.lab.claims import Bench, Claim, Rows, Table, Verdict, column, difference, distinct, over_seeds
from minialign.lab.claims.tuned import FARTHER, accuracies, accuracy, base_of, searched, solved, top_layers
from minialign.lab.plotting import Figure, figure, finish, lines_with_intervals, reference_line
from minialign.peft.adapters import AdapterConfig

CLAIM = Claim("adapter-size",
              "Adapters come near full fine-tuning at a fraction of the parameters, ahead of tuning the top layers.",
              "Houlsby et al. 2019, Fig. 3")
WIDTHS = (1, 4, 16, 64)
SMALL = 0.10  # share of the model's parameters


def measure(bench: Bench) -> Rows:
    """Adapters by width, top blocks by number, all of it."""
    rows = searched(bench, "middle", FARTHER, "full", way="full")
    yield from [*rows, *solved(rows)]
    for width in WIDTHS[1:3] if bench.fast else WIDTHS:
        config = AdapterConfig(bottleneck=width)
        yield from searched(bench, "middle", FARTHER, "adapters", config, way="adapters", width=width)
    for count in range(1, 2 if bench.fast else base_of("middle")[0].config.layers + 1):
        wrap = top_layers(count)
        yield from searched(bench, "middle", FARTHER, f"top {count}", wrap=wrap, way="top layers", width=count)


def trained(table: Table, way: str, width: int) -> int:
    """Parameters that train."""
    return column(table, "trained", way=way, width=width)[0]


def judge(table: Table) -> Verdict:
    """The three statements, and the numbers that decide."""
    widths, full = sorted(distinct(table, "width", way="adapters")), accuracies(table, way="full")
    share = {width: trained(table, "adapters", width) / table[0]["parameters"] for width in widths}
    behind = {width: difference(full, accuracies(table, way="adapters", width=width)) for width in widths}
    ahead = difference(accuracies(table, way="adapters", width=16), accuracies(table, way="top layers", width=1))
    fewer = trained(table, "adapters", 16) < trained(table, "top layers", 1)
    checks = {
        "the widest come close": behind[widths[-1]].high < 0.03,
        "small ones come close": any(behind[width].high < 0.03 for width in widths if share[width] <= SMALL),
        "better than the top layer": ahead.low > 0 and fewer,
    }
    said = ", ".join(f"{width} ({share[width]:.1%}) {gap}" for width, gap in behind.items())
    return checks, f"behind full fine-tuning by bottleneck: {said}; bottleneck 16 against the top block {ahead}"


def draw(table: Table) -> Figure:
    """Accuracy against trained parameters: adapters, top layers, all."""
    _, axes = figure("trained parameters", "accuracy on the farther task", 6.0, 3.8)
    for number, way in enumerate(("adapters", "top layers")):
        widths = sorted(distinct(table, "width", way=way))
        curve = {way: [accuracy(table, way=way, width=width) for width in widths]}
        lines_with_intervals(axes, [trained(table, way, width) for width in widths], curve, number)
    reference_line(axes, over_seeds(accuracies(table, way="full")).mean, "full fine-tuning")
    return finish(axes, xscale="log")
