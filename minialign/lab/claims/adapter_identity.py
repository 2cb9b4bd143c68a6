r"""The adapter's start: one that is not near the identity at first ruins the model.

Houlsby et al. 2019, §3.6 and Fig. 6: accuracy falls when the standard deviation of the initial weights is above 10⁻²,
since the adapted network no longer behaves like the pretrained one.

The test: adapters in the shipped decoder, which goes on reading dirty documents, a part of what it has read; the loss
before any step, and after a hundred, for an initial std from 10⁻³ to 3. Taken for granted, fixed before anything is
run: the base answers .95 of the questions that it was pretrained on, so there is something to ruin.

    1. near the identity (10⁻²) nothing changes at the start: the loss moves by less than 0.01 nats
    2. a large start (1) ruins it: over 0.5 nats
    3. training does not make up for it: at the end the large start is still behind
    4. nor for a smaller one (10⁻¹), which is above Houlsby's border too: at the end it is still behind

1 looks at the whole 95 % interval over seeds, 2 needs one above 0.5, 3 and 4 one above 0.
"""

from torch import nn

from minialign.heads import evaluating
from minialign.lab.claims import Bench, Claim, Rows, Table, Verdict, column, control, difference, point
from minialign.lab.claims.instructed import READS, own_words
from minialign.lab.claims.tuned import SIZES, base_of
from minialign.lab.plotting import Figure, figure, finish, lines_with_intervals, reference_line
from minialign.peft.adapters import AdapterConfig, wrap
from minialign.pretrain.causal_lm import encode_documents, mean_loss, next_token_loss, training_rows
from minialign.training import TrainingConfig, adamw, gradient_step
from minialign.world import corpus

CLAIM = Claim("adapter-identity", "An adapter has to be near the identity at first; one that is not ruins the model.",
              "Houlsby et al. 2019, §3.6 and Fig. 6")
STARTS = (1e-3, 1e-2, 1e-1, 1.0, 3.0)  # std of the initial weights
NEARLY, MILD, WILD = 1e-2, 1e-1, 1.0


def measure(bench: Bench) -> Rows:
    """Put adapters in with every start, and train them a little."""
    steps, base = 4 if bench.fast else 100, SIZES["middle"]
    for seed in range(bench.seeds):
        yield control(f"{base} reads", own_words(base, 6 if bench.fast else 100), READS, seed)
        for start in STARTS:
            model, tokenizer = base_of("middle")
            config = TrainingConfig(steps, 16, 1e-3, seed=seed)
            texts = [document["text"] for document in corpus.documents(16 * steps + 64, 7_000 + seed)]
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
    _, axes = figure("deviation of the adapters' initial weights", "loss, nats a token", 6.0, 3.8)
    lines_with_intervals(axes, STARTS, {what: [point(table, what, start=start) for start in STARTS]
                                        for what in ("at the start", "at the end")})
    reference_line(axes, sum(row["without adapters"] for row in table) / len(table), "without adapters")
    return finish(axes, xscale="log", yscale="log")
