r"""Rounding afterwards or training for it: post-training quantization is easy; training with the rounding in the loop
is better.

The notes' claim; Jacob et al. 2018, §3, and Esser et al. 2020, Table 1, measure it. A fair comparison gives both the
same training: here the float model learns for as many more steps as the rounded one, on the same batches, at the same
learning rate, before it is rounded.

The test: toy decoders continue on their corpus for some hundred steps, in float and then quantized (PTQ), or with
rounding in the forward pass (QAT), with scales measured on the weights or learned (LSQ); weights at 8, 4, 3 and 2 bits
with a scale for each row, activations at 8. The number is the loss on documents that nobody trained on.

    1. at 8 bits nothing is lost by either: PTQ and QAT within 0.01 nats of float        2. at 4 bits QAT is better        3. at 3        4. at 2

2 to 4 need a difference, seed by seed, whose 95 % interval over seeds is above 0. QAT is the version with measured
scales; the learned ones are shown, with the first seed only.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

from torch import nn

from minialign.lab.claims.quantized import Subject, cost, subject
from minialign.lab.claims.runner import Bench, Claim, difference, drawn, over_seeds
from minialign.lab.fidelity import fidelity
from minialign.lab.plotting import figure, legend, lines_with_intervals, reference_line, save_png
from minialign.pretrain.causal_lm import PackedText, next_token_loss
from minialign.quant.qat import convert, prepare
from minialign.quant.scheme import SchemeConfig
from minialign.training import TrainingConfig, adamw, gradient_step, learning_rate_at

CLAIM = Claim(
    "ptq-qat", "Quantizing a trained model is easy; training it with the rounding in the loop loses less.",
    "Jacob et al. 2018, §3; Esser et al. 2020"
)
BITS = (8, 4, 3, 2)
NOTHING = 0.01  # nats a token that nobody would notice
PTQ, QAT, LSQ = "PTQ", "QAT", "QAT, learned scales"


def measure(bench: Bench) -> list[dict[str, Any]]:
    """Train on, rounded and not, and compare."""
    steps, bits_tried = (4, (8, 2)) if bench.fast else (200, BITS)
    table = []
    for seed in range(bench.seeds):
        made = subject(bench, seed)
        config = TrainingConfig(steps=steps, batch=32, learning_rate=5e-4, seed=seed)
        float_model = trained(copy.deepcopy(made.model), made, config)
        loss = loss_of(float_model, made)
        for bits in bits_tried:
            scheme = SchemeConfig(bits=bits)
            table.append({"method": PTQ, "bits": bits, "seed": seed, "float": loss,
                          "loss": math.log(cost(float_model, scheme, made.rows).after)})
            for method, learned in ((QAT, False), (LSQ, True))[: 2 if seed == 0 else 1]:
                rounded = convert(trained(prepare(copy.deepcopy(made.model), scheme, learned_step=learned), made,
                                          config))
                table.append({"method": method, "bits": bits, "seed": seed, "float": loss,
                              "loss": loss_of(rounded, made)})
        bench.say(f"  seed {seed}: " + ", ".join(f"{row['method']} {row['bits']} bits {row['loss']:.3f}"
                                                 for row in table if row["seed"] == seed))
    return table


def loss_of(model: nn.Module, made: Subject) -> float:
    """Nats a token on documents that nobody trained on."""
    return math.log(fidelity(model, model, made.rows, batch=32).before)


def trained(model: nn.Module, made: Subject, config: TrainingConfig) -> nn.Module:
    """The model after some more steps on the beginnings of its training texts; for every method the same batches."""
    rows = made.beginnings(made.texts[: config.steps * config.batch])
    data, optimizer = PackedText(rows, config.batch, config.seed), adamw(model, config.learning_rate,
        config.weight_decay, config.beta2)
    model.train()
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, config)
        batches = data.microbatches(step, 1)
        gradient_step(model, optimizer, batches, next_token_loss, config, sum(batch.count for batch in batches))
    return model.eval()


def judge(table: list[dict[str, Any]]) -> tuple[dict[str, bool], str]:
    """The four statements, and the numbers that decide."""
    def losses(method, bits, what="loss"):
        return [row[what] for row in table if (row["method"], row["bits"])
                                                    == (method, bits)]
    bits_tried = [bits for bits in BITS if losses(PTQ, bits)]
    lost = {method: difference(losses(method, 8), losses(method, 8, "float")) for method in (PTQ, QAT)}
    gains = {bits: difference(losses(PTQ, bits), losses(QAT, bits)) for bits in bits_tried if bits < 8}
    checks = {"at 8 bits nothing is lost by either": all(loss.high < NOTHING for loss in lost.values())}
    checks |= {f"at {bits} bits QAT is better": gain.low > 0 for bits, gain in gains.items()}
    costs = {bits: difference(losses(PTQ, bits), losses(PTQ, bits, "float")).mean for bits in bits_tried}
    said = "; ".join(f"at {bits} bits QAT saves {gain} of the {costs[bits]:.3f} lost" for bits, gain in gains.items())
    return checks, f"nats a token: 8 bits cost {lost[PTQ]} afterwards and {lost[QAT]} in training; {said}"


def draw(table: list[dict[str, Any]], path: Path) -> None:
    """Loss against bits for all three, and the float model's."""
    fig, axes = figure("bits of a weight", "loss, nats a token", 6.0, 3.8)
    def losses(method, bits):
        return [row["loss"] for row in table if (row["method"], row["bits"])
                                       == (method, bits)]
    bits_tried = [bits for bits in BITS if losses(PTQ, bits)]
    places = list(range(len(bits_tried)))
    lines_with_intervals(axes, places, {method: [drawn(over_seeds(losses(method, bits))) for bits in bits_tried]
                                        for method in (PTQ, QAT, LSQ)})
    reference_line(axes, sum(row["float"] for row in table) / len(table), "float")
    axes.set_xticks(places, [str(bits) for bits in bits_tried])
    legend(axes)
    save_png(fig, path)
