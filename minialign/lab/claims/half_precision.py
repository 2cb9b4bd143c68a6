r"""Half precision: half the space for almost nothing, as long as the numbers fit.

The notes' claim, with erratum: float16 and bfloat16 are rounding to smaller floats, not a mapping to integers.
Micikevicius et al. 2018, §3.

The test: toy decoders with their weights stored in 16 bits, and computed in 16 bits altogether; bytes on disk, and the
loss on documents that they never saw. Where float16 overflows and bfloat16 does not is shown on the same decoder with
one feature of each block's inner layer scaled up by a power of two and the weights that read it scaled down by the
same: its float32 outputs stay the same to the last bit, its activations reach beyond 65,504. (A ReLU passes such a
scale through, which makes the change exact.)

    1. half the bytes: the files are 0.49 to 0.53 of float32's          2. stored in 16 bits, either type, the loss moves by less than 0.005 nats
    3. float16 is finer: bfloat16 moves the logits more        4. float16 overflows on large features, bfloat16 does not

2 needs its whole interval over seeds inside, 3 a difference above 0; 4 holds when float16 makes a logit infinite or NaN
and bfloat16 makes none.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minialign.lab.claims.quantized import Subject, subject
from minialign.lab.claims.runner import Bench, Claim, difference, drawn, over_seeds
from minialign.lab.fidelity import fidelity
from minialign.lab.plotting import bars_with_intervals, figure, save_png
from minialign.quant.half import HALVES, compute_half, overflow_report, store_half
from minialign.runs.tensors import tensor_file, tensors_of

CLAIM = Claim(
    "half-precision",
    "Sixteen bits a number halve the space for almost nothing; float16 overflows where bfloat16 does not.",
    "Micikevicius et al. 2018, §3",
)
NOTHING = 0.005  # nats a token
LARGE = 2.0**17  # how much a feature is scaled up


def measure(bench: Bench) -> list[dict[str, Any]]:
    """Store, compute, and overflow."""
    table = []
    for seed in range(bench.seeds):
        made = subject(bench, seed)
        whole = file_size(made.model)
        for name, dtype in HALVES.items():
            stored = store_half(copy.deepcopy(made.model), dtype)
            found = fidelity(made.model, stored, made.rows, batch=32)
            computed = fidelity(made.model, compute_half(copy.deepcopy(made.model), dtype), made.rows[:32], batch=32)
            row = {"type": name, "seed": seed, "bytes": file_size(stored), "bytes of float32": whole, "kl": found.kl,
                   "kl computed": computed.kl}
            row["loss"], row["loss of float32"] = math.log(found.after), math.log(found.before)
            table.append(row | planted(made, dtype))
    return table


def file_size(model: nn.Module) -> int:
    """Bytes of a model's weights as a file."""
    return len(tensor_file(tensors_of(model)))


def with_large_features(model: nn.Module, factor: float = LARGE) -> nn.Module:
    """A copy in which the busiest inner feature of each feed-forward layer is `factor` times as large, and read by
    weights that are as much smaller.

    Args:
        model: a decoder with ReLU, which lets the scale through; factor: a power of two, so that nothing is rounded in
            float32.
    """
    model = copy.deepcopy(model)
    with torch.no_grad():
        for block in model.body.blocks:
            feature = busiest(block.feed_forward)
            block.feed_forward.inner.weight[feature] *= factor
            block.feed_forward.inner.bias[feature] *= factor
            block.feed_forward.output.weight[:, feature] /= factor
    return model


def busiest(feed_forward: nn.Module) -> int:
    """The inner feature with the largest weights: one that is used."""
    return int(feed_forward.inner.weight.norm(dim=1).argmax())


@torch.inference_mode()
def planted(made: Subject, dtype: torch.dtype) -> dict[str, float]:
    """What large features do in 16 bits: the change of float32's logits (none), the share of logits that are lost, and
    the largest value met."""
    large = with_large_features(made.model)
    rows: Tensor = made.rows[:16]
    plain = made.model(rows)
    logits = compute_half(copy.deepcopy(large), dtype)(rows)
    met = overflow_report(large, [rows], dtype)[0]
    lost = float((~torch.isfinite(logits)).float().mean())
    return {"change in float32": float((large(rows) - plain).abs().max()), "lost logits": lost,
            "largest value": met.largest, "layer": met.name}


def judge(table: list[dict[str, Any]]) -> tuple[dict[str, bool], str]:
    """The four statements, and the numbers that decide."""
    def of(name, what):
        return [row[what] for row in table if row["type"] == name]
    shares = [row["bytes"] / row["bytes of float32"] for row in table]
    moved = {name: difference(of(name, "loss"), of(name, "loss of float32")) for name in HALVES}
    coarser = difference(of("bf16", "kl"), of("fp16", "kl"))
    lost = {name: (min(of(name, "lost logits")), max(of(name, "lost logits"))) for name in HALVES}
    checks = {
        "half the bytes": all(0.49 <= share <= 0.53 for share in shares),
        "almost nothing is lost": all(-NOTHING < change.low and change.high < NOTHING for change in moved.values()),
        "float16 is finer": coarser.low > 0,
        "float16 overflows, bfloat16 does not": lost["fp16"][0] > 0 and lost["bf16"][1] == 0,
    }
    said = ", ".join(f"{name} moves the loss by {change.mean:+.5f} [{change.low:+.5f}, {change.high:+.5f}]" for name,
                     change in moved.items())
    largest = max(row["largest value"] for row in table)
    return checks, f"files of {min(shares):.3f} to {max(shares):.3f} of float32's; {said}; with values up to {largest:,.0f} float16 loses {lost['fp16'][0]:.0%} of the logits in the best seed, bfloat16 {lost['bf16'][1]:.0%} in the worst"  # noqa: E501


def draw(table: list[dict[str, Any]], path: Path) -> None:
    """KL from float32, weights stored or everything computed in 16 bits."""
    fig, axes = figure("KL from float32, 10⁻⁶ nats a token", "", 6.4, 3.0)
    def of(name, what):
        return drawn(over_seeds([1e6 * row[what] for row in table if row["type"] == name]))
    names = {"stored": "kl", "computed": "kl computed"}
    bars_with_intervals(axes, {f"{name}, {how}": of(name, what) for name in HALVES for how, what in names.items()},
                        digits=2)
    axes.set_xlim(left=0)
    save_png(fig, path)
