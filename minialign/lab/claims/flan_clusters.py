r"""Clusters: the more kinds of task a model is tuned on, the better it does on kinds that it never saw.

Wei et al. 2021 (FLAN), Fig. 6: accuracy on three held-out clusters rises with the number of clusters in the mixture,
and had not levelled off at seven. Their Fig. 7 says that tuning *harmed* unseen tasks in models of 8 billion parameters
and below.

The test: a decoder of the toy T5's size reads the corpus, then is tuned by `instruct/flan.py` on 2, 5 or all
training clusters, in an order that is drawn anew for each seed, with the same number of questions and steps; accuracy
is that of the held-out clusters in every wording. (5, which no statement is about, with the first seed only.)

    1. all clusters are better than two
    2. tuning on all of them is better than no tuning at all (which Wei et al. would not expect at this size)

Each needs a difference, seed by seed, whose 95 % interval over seeds is above 0.
"""

from __future__ import annotations

import random

from minialign.heads import load_model
from minialign.instruct.zero_shot import examine
from minialign.lab.claims import Bench, Claim, Rows, Table, Verdict, difference, distinct, drawn, over_seeds
from minialign.lab.claims.instructed import mixture, overalls, rows_of, small, split_for, toy, toy_gpt, tuned
from minialign.lab.plotting import Figure, figure, legend, lines_beside_one_seed
from minialign.world.datasets import CLUSTERS, HELD_OUT, PROMPTS

CLAIM = Claim("flan-clusters", "The more kinds of task a model is tuned on, the better it does on kinds it never saw.",
              "Wei et al. 2021, Fig. 6 and 7")
TRAINED = tuple(name for name in CLUSTERS if name not in HELD_OUT)
COUNTS = (0, 2, 5, len(TRAINED))  # clusters tuned on; 0 is the model as it was pretrained
ONCE = 5  # with the first seed only


def measure(bench: Bench) -> Rows:
    """Tune on few and on many clusters and compare the held-out ones."""
    config = small(toy(bench))
    for seed in range(bench.seeds):
        base, how = toy_gpt(bench, config, seed), mixture(config, seed)
        order = random.Random(f"clusters {seed}").sample(TRAINED, len(TRAINED))
        for count in COUNTS:
            if count == ONCE and seed > 0:
                continue
            split = split_for(config, seed, tuple(order[:count]) if count else None)
            model, tokenizer = tuned(bench, config, base, split, "flan", how, seed) if count else load_model(base)
            results = examine(model, tokenizer, split.held_out, PROMPTS)
            yield from rows_of(results, clusters=count, seed=seed, which=" ".join(order[:count]))


def counts(table: Table) -> list[int]:
    """How many clusters models were tuned on."""
    return sorted(distinct(table, "clusters"))


def judge(table: Table) -> Verdict:
    """The two statements, and the numbers that decide."""
    scores = {count: overalls(table, clusters=count) for count in counts(table)}
    every = max(scores)
    more, tuning = difference(scores[every], scores[2]), difference(scores[every], scores[0])
    checks = {"more clusters help": more.low > 0, "tuning helps": tuning.low > 0}
    means = ", ".join(f"{count}: {sum(found) / len(found):.3f}{' (one seed)' * (len(found) == 1)}"
                      for count, found in scores.items())
    return checks, (f"held-out accuracy by clusters tuned on: {means}; from 2 to {every} it rises by {more}, from "
                    f"none by {tuning}")


def draw(table: Table) -> Figure:
    """Held-out accuracy against the number of clusters."""
    fig, axes = figure("clusters tuned on", "accuracy on held-out clusters", 5.6, 3.6)
    points = [drawn(over_seeds(overalls(table, clusters=count))) for count in counts(table)]
    lines_beside_one_seed(axes, counts(table), {"decoder, tuned (FLAN)": points})
    axes.set_xticks(counts(table), [str(count) for count in counts(table)])
    legend(axes)
    return fig
