r"""LoRA and size: the larger the model, the smaller the share that trains, and the less is lost against full
fine-tuning.

Hu et al. 2021, §1 and Table 4: 0.01 % of GPT-3's parameters, a third of the memory, accuracy on par; the saving grows
with the width, since A and B grow with it and the matrices with its square.

The test: LoRAs of rank 4 on query and value of the shipped decoders, against full fine-tuning of the same, on the
farther task (tuned.py says what is taken for granted; on the far one, on which it was made before, there is no gap at
any size).

    1. the trained share falls with every step in size, SmolLM2 (135 million) the last one, of which it is counted
    2. so does the share of the optimizer's state
    3. the gap in accuracy to full fine-tuning is narrower at the largest size than at the smallest

3 needs the 95 % interval over seeds of (gap at the smallest − gap at the largest) above 0.
"""

from minialign.lab.claims import Bench, Claim, Rows, Table, Verdict, column, difference, distinct, minus, over_seeds
from minialign.lab.claims.shipped import real_model
from minialign.lab.claims.tuned import FARTHER, SIZES, accuracies, accuracy, searched, solved
from minialign.lab.plotting import Figure, figure, finish, lines_with_intervals
from minialign.peft.lora import LoRAConfig, wrap
from minialign.peft.trainable import counts

CLAIM = Claim("lora-size", "The larger the model, the smaller the share that a LoRA trains and the less it loses.",
              "Hu et al. 2021, Table 4")
REAL_MODEL = "SmolLM2"
METHODS = {"full": "full fine-tuning", "lora": "LoRA, rank 4"}  # as the figure names them


def measure(bench: Bench) -> Rows:
    """Both ways at every size."""
    for size in list(SIZES)[: 2 if bench.fast else None]:
        for method in METHODS:
            rows = searched(bench, size, FARTHER, method, LoRAConfig(4, 8.0) if method == "lora" else None)
            yield from [*rows, *solved(rows)]
    for model, _ in real_model(bench):  # nothing of it is trained: AdamW's two numbers for each that would be
        whole = counts(model)[1]
        some, both = counts(wrap(model, LoRAConfig(4, 8.0)))
        for method, trained in (("full", whole), ("lora", some)):
            yield {"size": REAL_MODEL, "seed": 0, "parameters": both, "method": method, "trained": trained,
                   "optimizer_bytes": 8 * trained}


def shares(table: Table, what: str, whole: str, method: str) -> list[float]:
    """What a LoRA needs over what there is, a number a size."""
    return [column(table, what, size=size, method="lora")[0] / column(table, whole, size=size, method=method)[0]
            for size in distinct(table, "size")]


def judge(table: Table) -> Verdict:
    """The three statements, and the numbers that decide."""
    trained = shares(table, "trained", "parameters", "lora")
    states = shares(table, "optimizer_bytes", "optimizer_bytes", "full")
    gaps = {size: minus(*(accuracies(table, size=size, method=method) for method in METHODS))
            for size in distinct(table, "size") if size != REAL_MODEL}
    smallest, *_, largest = gaps.values()
    closing = difference(smallest, largest)
    checks = {"the trained share falls": all(a > b for a, b in zip(trained, trained[1:])),
              "the optimizer's state falls": all(a > b for a, b in zip(states, states[1:])),
              "the gap closes": closing.low > 0}
    said = ", ".join(f"{size} {share:.2%}" + (f" (gap {over_seeds(gaps[size])})" if size in gaps else "")
                     for size, share in zip(distinct(table, "size"), trained))
    return checks, (f"trained share by size: {said}; optimizer's state {states[0]:.1%} to {states[-1]:.1%} of full; "
                    f"the gap closes by {closing}")


def draw(table: Table) -> Figure:
    """Accuracy against size, LoRA and full."""
    _, axes = figure("parameters", "accuracy on the farther task", 6.0, 3.8)
    sizes = [size for size in distinct(table, "size") if size != REAL_MODEL]
    places = [column(table, "parameters", size=size, method="full")[0] for size in sizes]
    lines_with_intervals(axes, places, {name: [accuracy(table, size=size, method=method) for size in sizes]
                                        for method, name in METHODS.items()})
    return finish(axes, xscale="log")
