r"""Rounding afterwards or training for it: post-training quantization is easy; training with the rounding in the loop
is better.

Jacob et al. 2018, §3, and Esser et al. 2020, Table 1. A fair comparison gives both the same training: the float model
learns for as many more steps as the rounded one, on the same batches, at the same rate, before it is rounded.

The test: the shipped decoder goes on reading for some hundred steps, in float and then quantized (PTQ), or with
rounding in the forward pass (QAT), with scales measured on the weights or learned (LSQ; shown, with the first seed
only); weights at 8, 4, 3 and 2 bits with a scale for each row, activations at 8. The number is the loss on documents
that nobody trained on.

    1. at 8 bits nothing is lost by either: PTQ and QAT within 0.01 nats of float
    2. at 4 bits, 3. at 3, 4. at 2 QAT is better: a difference, seed by seed, whose 95 % interval is above 0
"""

import copy
import math

from torch import nn

from minialign.lab.claims import Bench, Claim, Rows, Table, Verdict, column, difference, distinct, over_seeds, point
from minialign.lab.claims.quantized import Subject, as_its_card, cost, subject, train_on
from minialign.lab.fidelity import fidelity
from minialign.lab.plotting import Figure, figure, finish, lines_with_intervals, reference_line
from minialign.quant.qat import convert, prepare
from minialign.quant.scheme import SchemeConfig
from minialign.training import TrainingConfig

CLAIM = Claim("ptq-qat", "Quantizing a trained model is easy; training it with the rounding in the loop loses less.",
              "Jacob et al. 2018, §3; Esser et al. 2020")
BITS = (8, 4, 3, 2)
NOTHING = 0.01  # nats a token that nobody would notice
PTQ, QAT, LSQ = "PTQ", "QAT", "QAT, learned scales"


def measure(bench: Bench) -> Rows:
    """Train on, rounded and not, and compare."""
    for seed in range(bench.seeds):
        yield as_its_card(seed)
        made = subject(bench, seed)
        config = TrainingConfig(steps=4 if bench.fast else 200, batch=32, learning_rate=5e-4, seed=seed)
        float_model = train_on(copy.deepcopy(made.model), made, config)
        float_loss = loss_of(float_model, made)
        for bits in (8, 2) if bench.fast else BITS:
            scheme = SchemeConfig(bits=bits)
            losses = {PTQ: math.log(cost(float_model, scheme, made.rows).after)}
            for method in (QAT, LSQ) if seed == 0 else (QAT,):
                prepared = prepare(copy.deepcopy(made.model), scheme, learned_step=method == LSQ)
                losses[method] = loss_of(convert(train_on(prepared, made, config)), made)
            bench.say(f"  seed {seed}, {bits} bits: " + ", ".join(f"{way} {loss:.3f}" for way, loss in losses.items()))
            for method, loss in losses.items():
                yield {"method": method, "bits": bits, "seed": seed, "float": float_loss, "loss": loss}


def loss_of(model: nn.Module, made: Subject) -> float:
    """Nats a token on documents that nobody trained on."""
    return math.log(fidelity(model, model, made.rows, batch=32).before)


def lost(table: Table, method: str, bits: int) -> list[float]:
    """By how much a method's loss is above the float model's, seed by seed."""
    return [row["loss"] - row["float"] for row in table if (row["method"], row["bits"]) == (method, bits)]


def judge(table: Table) -> Verdict:
    """The four statements, and the numbers that decide."""
    at_8 = {method: over_seeds(lost(table, method, 8)) for method in (PTQ, QAT)}
    fewer = [bits for bits in distinct(table, "bits") if bits < 8]
    gains = {bits: difference(*(column(table, "loss", method=method, bits=bits) for method in (PTQ, QAT)))
             for bits in fewer}
    checks = {"at 8 bits nothing is lost by either": all(loss.high < NOTHING for loss in at_8.values())}
    checks |= {f"at {bits} bits QAT is better": gain.low > 0 for bits, gain in gains.items()}
    costs = {bits: sum(lost(table, PTQ, bits)) / len(lost(table, PTQ, bits)) for bits in fewer}
    said = "; ".join(f"at {bits} bits QAT saves {gain} of the {costs[bits]:.3f} lost" for bits, gain in gains.items())
    return checks, f"nats a token: 8 bits cost {at_8[PTQ]} afterwards and {at_8[QAT]} in training; {said}"


def draw(table: Table) -> Figure:
    """Loss against bits for all three, and the float model's."""
    _, axes = figure("bits of a weight", "loss, nats a token", 6.0, 3.8)
    tried = distinct(table, "bits")
    curves = {method: [point(table, "loss", method=method, bits=bits) for bits in tried] for method in (PTQ, QAT, LSQ)}
    lines_with_intervals(axes, range(len(tried)), curves)
    reference_line(axes, sum(row["float"] for row in table) / len(table), "float")
    return finish(axes, [str(bits) for bits in tried])
