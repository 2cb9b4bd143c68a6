r"""Clusters: the more kinds of task a model is tuned on, the better it does on kinds that it never saw.

Wei et al. 2021 (FLAN), Fig. 6: accuracy on three held-out clusters rises with the number of clusters in the mixture,
and had not levelled off at seven. Their Fig. 7 says that tuning *harmed* unseen tasks in models of 8 billion parameters
and below.

The test: a decoder that reads is tuned by `instruct/flan.py` on 1, 2, 4 or all 8 clusters that it is taught
(`TAUGHT`: those that it learns at all in the time), drawn anew for each seed, with the same number of questions and
steps as T0; accuracy is that of the held-out clusters in every wording.

    1. all clusters that are taught are better than two
    2. tuning on them is better than no tuning at all (which Wei et al. would not expect at this size)

Each needs a difference, seed by seed, whose 95 % interval over seeds is above 0. Beside it, with the first seed only
and judged by nobody: 1, 4 and all 15 training clusters; as many examples in 10, 30, 100, 300 and 1,000 different
instructions (between some hundred and a thousand Zhang et al. 2024, arXiv 2402.10891, saw generalisation begin at
once); and what tuning does to decoders of several sizes.

"All" were all training clusters while models began from nothing. data/claims/flan-clusters/notes.md says what speaks
against calling eight of fifteen all.
"""

import dataclasses
import random
from typing import Any

from minialign.instruct.mixture import MixtureConfig
from minialign.lab.bases.make import BASES, load_base
from minialign.lab.claims import Bench, Claim, Rows, Table, Verdict, column, difference, distinct, over_seeds
from minialign.lab.claims.instructed import examined, overalls, rows_of, settings, taken_for_granted, tuned
from minialign.lab.demo.instruct import STYLES, TAUGHT, InstructConfig
from minialign.lab.plotting import Figure, figure, finish, lines_beside_one_seed, reference_line
from minialign.world.datasets import CLUSTERS, HELD_OUT

CLAIM = Claim("flan-clusters", "The more kinds of task a model is tuned on, the better it does on kinds it never saw.",
              "Wei et al. 2021, Fig. 6 and 7")
NOT_TAUGHT = tuple(name for name in CLUSTERS if name not in HELD_OUT + TAUGHT)
COUNTS = (1, 2, 4, len(TAUGHT), len(TAUGHT + NOT_TAUGHT))  # clusters tuned on; 0 in the table: as it was pretrained
JUDGED = (2, len(TAUGHT))  # the others with the first seed only
INSTRUCTIONS = (10, 30, 100, 300, 1000)  # different ones, of all clusters that are taught
SIZES = ("decoder-0.1m", "decoder-0.4m", "decoder-1.3m", "decoder-2m")
FLAN = 1e-3  # learning rate: twice T0's, and less rereading; what a decoder reads survives it (the control)
PLAIN, EVERY = MixtureConfig(), MixtureConfig(manners=True)


def measure(bench: Bench) -> Rows:
    """Tune on few and on many clusters, in few and in many instructions, small and large models."""
    config = settings(bench, FLAN, 6)
    base = BASES / STYLES["flan"]
    as_pretrained = examined(*load_base(base)[:2], config)
    for seed in range(bench.seeds):
        order = [*random.Random(f"clusters {seed}").sample(TAUGHT, len(TAUGHT)), *NOT_TAUGHT]
        yield from rows_of(as_pretrained, clusters=0, seed=seed, which="")
        for count in JUDGED if seed or bench.fast else COUNTS:
            clusters = tuple(order[:count])
            model = tuned(bench, config, "flan", PLAIN, seed, clusters)
            if count == len(TAUGHT):
                yield from taken_for_granted(bench, base.name, *model, PLAIN, seed)
            yield from rows_of(examined(*model, config), clusters=count, seed=seed, which=" ".join(clusters))
    for count in INSTRUCTIONS[::4] if bench.fast else INSTRUCTIONS:
        model = tuned(bench, config, "flan", dataclasses.replace(EVERY, instructions=count), 0)
        yield from rows_of(examined(*model, config), instructions=count, seed=0)
    yield from by_size(bench, config)


def by_size(bench: Bench, config: InstructConfig) -> Rows:
    """Decoders of several sizes before and after tuning, with the first seed."""
    for name in SIZES[:1] if bench.fast else SIZES:
        base = BASES / name
        both = {"untuned": load_base(base)[:2], "tuned": tuned(bench, config, "flan", PLAIN, 0, base=base)}
        for state, model in both.items():
            parameters = sum(p.numel() for p in model[0].parameters())
            yield from rows_of(examined(*model, config), base=name, state=state, parameters=parameters, seed=0)


def curve(table: Table, what: str) -> dict[int, list[float]]:
    """Number of clusters or of instructions -> accuracy on the held-out clusters, a number a seed."""
    return {count: overalls(table, **{what: count}) for count in sorted(distinct(table, what))}


def judge(table: Table) -> Verdict:
    """The two statements, and the numbers that decide."""
    clusters, few = curve(table, "clusters"), curve(table, "instructions")
    every = len(TAUGHT)
    more, tuning = difference(clusters[every], clusters[2]), difference(clusters[every], clusters[0])
    checks = {"more clusters help": more.low > 0, "tuning helps": tuning.low > 0}
    return checks, (f"held-out accuracy by clusters tuned on: {means(clusters)}; from 2 to {every} it rises by {more}, "
                    f"from none by {tuning}; by instructions: {means(few)}; tuned minus untuned by parameters (one "
                    f"seed): " + ", ".join(f"{size / 1e6:.1f} million {gain:+.3f}" for size, gain in gains(table)))


def means(curve: dict[int, list[float]]) -> str:
    """A curve in words."""
    return ", ".join(f"{count:,}: {sum(found) / len(found):.3f}{' (one seed)' * (len(found) == 1)}"
                     for count, found in curve.items())


def gains(table: Table) -> list[tuple[int, float]]:
    """(parameters, tuned minus untuned) of each size."""
    found = []
    for name in distinct(table, "base"):
        before, after = (overalls(table, base=name, state=state)[0] for state in ("untuned", "tuned"))
        found.append((column(table, "parameters", base=name)[0], after - before))
    return found


def draw(table: Table) -> dict[str, Figure]:
    """Held-out accuracy against the number of clusters, and of instructions, and what tuning does to each size."""
    figures = {}
    for name, what, words in (("figure", "clusters", "clusters tuned on"),
                              ("instructions", "instructions", "different instructions, equal examples")):
        _, axes = figure(words, "accuracy on held-out clusters", 5.6, 3.6)
        found: dict[Any, list[float]] = curve(table, what)
        label = "decoder, tuned (FLAN)" + ", one seed" * all(len(values) == 1 for values in found.values())
        lines_beside_one_seed(axes, range(len(found)), {label: [over_seeds(values) for values in found.values()]})
        reference_line(axes, over_seeds(overalls(table, clusters=0)).mean, "as pretrained")
        figures[name] = finish(axes, [f"{count:,}" for count in found])
    _, axes = figure("million parameters", "held-out accuracy, tuned − untuned", 5.6, 3.6)
    sizes, differences = zip(*gains(table))
    lines_beside_one_seed(axes, range(len(sizes)), {"FLAN, one seed": differences})
    reference_line(axes, 0.0, "no change")
    return figures | {"sizes": finish(axes, [f"{size / 1e6:.1f}" for size in sizes])}
