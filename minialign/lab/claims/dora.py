r"""DoRA: lengths and directions of a weight's rows, tuned apart, do better than a LoRA of the same rank.

Liu et al. 2024 (DoRA), Table 1 and Fig. 3: better than LoRA at every rank, most at small ones; and §3.2, Fig. 2: full
fine-tuning changes lengths and directions with a negative correlation, a LoRA with a positive one, DoRA like full
fine-tuning.

The test, the shipped decoder tuned on one task of the mixture ("do they say the same?", 300 steps of 16) at ranks 1, 4
and 16 of the same layers, each way's rate searched; loss on unseen questions, nats a token of the answer. For each of
the tuned matrices the mean change of its rows' lengths |Δm| and directions 1 − cos, and their correlation over the
matrices, as the paper's figure has it (there also over layers and steps).

    1. at rank 1 DoRA's loss is below LoRA's
    2. at rank 4 as well
    3. a LoRA couples lengths and directions more than full fine-tuning does: its correlation is higher
    4. DoRA couples them less than a LoRA does

Each needs a difference, seed by seed, whose 95 % interval is above 0. Taken for granted: full fine-tuning, its own rate
searched, has at least 0.02 nats less than rank 1 of LoRA, or there is nothing to gain.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minialign.lab.claims import Bench, Claim, Rows, Table, Verdict, column, control, difference, distinct, over_seeds
from minialign.lab.claims.shipped import TARGETS, Wrap, base, searched, tuned
from minialign.lab.plotting import Figure, figure, finish, reference_line, whiskers
from minialign.peft.lora import LoRAConfig, lora_layers
from minialign.peft.methods import METHODS
from minialign.peft.saving import TENSORS, load
from minialign.runs.tensors import read_tensors

CLAIM = Claim("dora", "Lengths and directions of weights tuned apart (DoRA) do better than a LoRA of the same rank.",
              "Liu et al. 2024, Table 1 and Fig. 2")
RANKS = (1, 4, 16)
WAYS = ("lora", "dora")
TASK = "same_meaning"
NEEDED = 0.02  # nats a token that full fine-tuning must be ahead of the smallest LoRA


def measure(bench: Bench) -> Rows:
    """Full fine-tuning, and both ways at every rank."""
    full = measured(bench, "full", "full", METHODS["full"].wrap, way="full")
    yield from full
    for rank in RANKS[:1] if bench.fast else RANKS:
        config = LoRAConfig(rank, 2.0 * rank, TARGETS)
        for way in WAYS:
            rows = measured(bench, way, [way, rank], partial(METHODS[way].wrap, config=config), way=way, rank=rank)
            yield from rows
            if rank == RANKS[0] and way == "lora":
                yield from (control("full fine-tuning is ahead of the smallest LoRA, nats",
                                    behind["loss"] - ahead["loss"], NEEDED, ahead["seed"])
                            for ahead, behind in zip(full, rows))


def measured(bench: Bench, method: str, what: Any, wrap: Wrap, **columns: Any) -> Table:
    """Rows of one way, each with its loss and its coupling."""
    return [row | coupling(method, tuned(bench, method, what, row["rate"], row["seed"], wrap, TASK))
            for row in searched(bench, method, what, wrap, TASK, **columns)]


def coupling(way: str, folder: Path) -> dict[str, float]:
    """How the changes of lengths and directions go together in one tuned model: their correlation over its matrices,
    and the mean change of each."""
    before, _ = base()
    if way == "full":
        after = read_tensors(folder / TENSORS)[0]
        pairs = [(module.weight, after[f"{name}.weight"]) for name, module in before.named_modules()
                 if name.split(".")[-1] in TARGETS]
    else:
        changed = load(base()[0], folder)
        pairs = [(layer.weight() if way == "dora" else layer.base.weight, layer.update)
                 for layer in lora_layers(changed).values()]
        pairs = [(weight, weight + update) for weight, update in pairs]
    moved = torch.tensor([changes(first.detach(), last.detach()) for first, last in pairs])  # (matrices, 2)
    return {"coupling": float(torch.corrcoef(moved.T)[0, 1]), "lengths": float(moved[:, 0].mean()),
            "directions": float(moved[:, 1].mean())}


def changes(first: Tensor, last: Tensor) -> tuple[float, float]:
    """Mean change of the lengths of a matrix's rows, and of their directions, 1 − cos (Liu et al. 2024, Eq. 3, 4)."""
    cosine = torch.cosine_similarity(first, last, dim=1)
    return float((last.norm(dim=1) - first.norm(dim=1)).abs().mean()), float((1 - cosine).mean())


def judge(table: Table) -> Verdict:
    """The four statements, and the numbers that decide."""
    loss = {(way, rank): column(table, "loss", way=way, rank=rank) for way in WAYS for rank in distinct(table, "rank")}
    gains = {rank: difference(loss["lora", rank], loss["dora", rank]) for rank in distinct(table, "rank")}
    first = min(gains)
    full, lora, dora = (column(table, "coupling", way=way, **({} if way == "full" else {"rank": max(gains)}))
                        for way in ("full", *WAYS))
    checks = {
        "better at rank 1": gains[first].low > 0,
        "better at rank 4": gains[4].low > 0 if 4 in gains else False,
        "a LoRA couples lengths and directions more than full fine-tuning": difference(lora, full).low > 0,
        "DoRA couples them less than a LoRA": difference(lora, dora).low > 0,
    }
    said = "; ".join(f"rank {rank}: {gain}" for rank, gain in gains.items())
    means = {name: over_seeds(values) for name, values in (("full", full), ("LoRA", lora), ("DoRA", dora))}
    return checks, (f"nats a token that DoRA is ahead of LoRA, {said}; correlation of changed lengths and directions "
                    f"at rank {max(gains)}: " + ", ".join(f"{name} {value}" for name, value in means.items()))


def draw(table: Table) -> Figure:
    """Loss against rank, and full fine-tuning."""
    _, axes = figure("rank", "loss on unseen questions, nats a token", 5.6, 3.6)
    ranks = sorted(distinct(table, "rank"))
    for number, (name, way) in enumerate((("LoRA", "lora"), ("DoRA", "dora"))):
        loss = [over_seeds(column(table, "loss", way=way, rank=rank), 0.0) for rank in ranks]
        whiskers(axes, number, [rank * 1.06 ** (2 * number - 1) for rank in ranks], loss, name)
    reference_line(axes, over_seeds(column(table, "loss", way="full")).mean, "full fine-tuning")
    return finish(axes, doublings=ranks)
