r"""The adapter's start: one that is not near the identity at first ruins the model.

Houlsby et al. 2019, §3.6 and Fig. 6: accuracy falls when the standard deviation of the initial weights is above 10⁻²,
since the adapted network no longer behaves like the pretrained one.

The test: adapters in a pretrained decoder that goes on reading the documents of its kind; the loss before any step, and
after some hundred, for an initial std from 10⁻³ to 3.

    1. near the identity (10⁻²) nothing changes at the start: the loss moves by less than 0.01 nats
    2. a large start (1) ruins it: over 0.5 nats
    3. training does not make up for it: at the end the large start is still behind
    4. nor for a smaller one (10⁻¹), which is above Houlsby's border too: at the end it is still behind

1 looks at the whole 95 % interval over seeds, 2 needs one above 0.5, 3 and 4 one above 0.
"""

from __future__ import annotations

from torch import nn

from minialign.heads import evaluating
from minialign.lab.claims import Bench, Claim, Rows, Table, Verdict, column, difference, point
from minialign.lab.claims.feedback import pretrained_only
from minialign.lab.claims.tuned import SHAPES
from minialign.lab.plotting import Figure, figure, legend, lines_with_intervals, reference_line
from minialign.peft.adapters import AdapterConfig, wrap
from minialign.pretrain.causal_lm import encode_documents, mean_loss, next_token_loss, training_rows
from minialign.training import TrainingConfig, adamw, gradient_step
from minialign.world.corpus import written_documents

CLAIM = Claim("adapter-identity", "An adapter has to be near the identity at first; one that is not ruins the model.",
              "Houlsby et al. 2019, §3.6 and Fig. 6")
STARTS = (1e-3, 1e-2, 1e-1, 1.0, 3.0)  # std of the initial weights
NEARLY, MILD, WILD = 1e-2, 1e-1, 1.0


def measure(bench: Bench) -> Rows:
    """Put adapters in with every start, and train them a little."""
    steps, pretrained = (4, 40) if bench.fast else (100, 500)
    for seed in range(bench.seeds):
        for start in STARTS:
            model, tokenizer, _, _ = pretrained_only(bench, SHAPES["middle"], seed, pretrained)
            config = TrainingConfig(steps, 16, 1e-3, seed=seed)
            texts = [document["text"] for document in written_documents(16 * steps + 64, 7_000 + seed)]
            documents = encode_documents(tokenizer, texts)
            data, held_out = (training_rows(part, model.config.context, config, False)
                              for part in (documents[64:], documents[:64]))
            batches = [held_out.batch(list(range(first, first + 16))) for first in range(0, 64, 16)]
            row = {"start": start, "seed": seed, "without adapters": loss_of(model, batches)}
            wrap(model, AdapterConfig(initial_std=start, seed=seed))
            row["at the start"] = loss_of(model, batches)
            optimizer = adamw(model, config.learning_rate, config.weight_decay)
            for step in range(steps):
                parts = data.microbatches(step, 1)
                gradient_step(model, optimizer, parts, next_token_loss, config, sum(part.count for part in parts))
            yield row | {"at the end": loss_of(model, batches)}


def loss_of(model: nn.Module, batches: list) -> float:
    """Nats a token on held-out documents."""
    with evaluating(model):
        return mean_loss(model, batches)


def judge(table: Table) -> Verdict:
    """The four statements, and the numbers that decide."""
    first, last, without = ({start: column(table, what, start=start) for start in STARTS}
                            for what in ("at the start", "at the end", "without adapters"))
    moved = {start: difference(first[start], without[start]) for start in (NEARLY, MILD, WILD)}
    behind = {start: difference(last[start], last[NEARLY]) for start in (MILD, WILD)}
    checks = {
        "near the identity nothing changes": -0.01 < moved[NEARLY].low and moved[NEARLY].high < 0.01,
        "a large start ruins it": moved[WILD].low > 0.5,
        "training does not make up for it": behind[WILD].low > 0,
        "nor for a smaller one": behind[MILD].low > 0,
    }
    said = ", ".join(f"{start:g}: {change}" for start, change in moved.items())
    gaps = ", ".join(f"{start:g}: {gap}" for start, gap in behind.items())
    return checks, (f"nats a token before any step, by deviation of the start, {said}; after training they are behind "
                    f"the first by {gaps}")


def draw(table: Table) -> Figure:
    """Loss at the start and at the end against the initial std."""
    fig, axes = figure("deviation of the adapters' initial weights", "loss, nats a token", 6.0, 3.8)
    lines_with_intervals(axes, STARTS, {what: [point(table, what, start=start) for start in STARTS]
                                        for what in ("at the start", "at the end")})
    reference_line(axes, sum(row["without adapters"] for row in table) / len(table), "without adapters")
    axes.set_xscale("log")
    axes.set_yscale("log")
    legend(axes)
    return fig
