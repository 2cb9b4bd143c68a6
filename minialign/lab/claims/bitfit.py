r"""BitFit: training the biases alone comes close to training everything, and so does a subset of them.

Ben Zaken et al. 2022, Table 1 and Table 3: all biases (0.09 % of BERT) within a point or two of full fine-tuning; the
biases of the query and of the feed-forward's first layer nearly as good.

The test: full fine-tuning, all biases, the paper's subset, and the head alone, on the near, the far and the farther
task, from the shipped decoder (tuned.py says what is taken for granted).

    1. near: all biases are within 0.05 of full fine-tuning
    2. far: the same
    3. far: biases are better than the head alone
    4. the subset is within 0.03 of all biases on the near and on the far task
    5. farther: all biases are within 0.05 of full fine-tuning

1, 2, 4 and 5 look at the whole 95 % interval over seeds of the difference, 3 needs an interval above 0. The fifth was
added when `transfer-distance` had shown on that task what it will find: where it fails, it has to be asked. In a model
of this width biases and norms are a larger share than in BERT; the share is in the table.
"""

from minialign.lab.claims import Bench, Claim, Rows, Table, Verdict, column, difference
from minialign.lab.claims.tuned import FAR, FARTHER, NEAR, accuracies, accuracy, searched, solved
from minialign.lab.plotting import Figure, bars_with_intervals, figure
from minialign.peft.bitfit import BitFitConfig

CLAIM = Claim("bitfit", "Training the biases alone comes close to training everything.",
              "Ben Zaken et al. 2022, Table 1 and 3")
WAYS = {"full": "full", "all biases": "bitfit", "query and inner biases": "bitfit", "head alone": "feature-based"}


def measure(bench: Bench) -> Rows:
    """The four ways on the three tasks."""
    for name in (NEAR, FAR, FARTHER):
        for way, method in WAYS.items():
            config = BitFitConfig(subset=True) if way == "query and inner biases" else None
            rows = searched(bench, "middle", name, method, config, way=way)
            yield from [*rows, *solved(rows)]


def judge(table: Table) -> Verdict:
    """The five statements, and the numbers that decide."""
    behind, subset, ahead = {}, {}, {}
    for name in (NEAR, FAR, FARTHER):
        full, biases, part, head = (accuracies(table, task=name, way=way) for way in WAYS)
        behind[name], subset[name] = difference(full, biases), difference(biases, part)
        ahead[name] = difference(biases, head)
    checks = {f"{name}: biases come close": gap.high < 0.05 for name, gap in behind.items()}
    checks["far: better than the head alone"] = ahead[FAR].low > 0
    checks["the subset comes close to all"] = all(subset[name].high < 0.03 for name in (NEAR, FAR))
    share = column(table, "trained", way="all biases")[0] / column(table, "parameters", way="all biases")[0]
    return checks, (f"with {share:.2%} of the parameters biases are behind full fine-tuning by {behind[NEAR]} "
                    f"(near), {behind[FAR]} (far) and {behind[FARTHER]} (farther), ahead of the head by {ahead[FAR]} "
                    f"(far) and {ahead[FARTHER]} (farther); the subset is behind all biases by {subset[NEAR]}, "
                    f"{subset[FAR]} and {subset[FARTHER]}")


def draw(table: Table) -> Figure:
    """Accuracy of each way on each task."""
    fig, axes = figure("accuracy on unseen texts", "", 6.6, 5.2)
    bars_with_intervals(axes, {f"{name}: {way}": accuracy(table, task=name, way=way)
                               for name in (NEAR, FAR, FARTHER) for way in WAYS})
    axes.set_xlim(0, 1)
    return fig
