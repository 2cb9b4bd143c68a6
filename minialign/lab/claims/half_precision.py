r"""Half precision: half the space for almost nothing, as long as the numbers fit.

The notes' claim, with erratum: float16 and bfloat16 are rounding to smaller floats, not a mapping to integers.
Micikevicius et al. 2018, §3.

The test: the shipped decoder, which comes in 16 bits, after some steps in float32, so that its weights are such as no
smaller type holds; then stored in 16 bits, and computed in 16 bits altogether; bytes on disk, and the loss on unseen
documents. For the overflow one feature of each block's inner layer is scaled up by a power of two and
the weights that read it down by the same: a ReLU passes the scale through, so the float32 outputs stay the same to the
last bit, while activations reach beyond 65,504.

    1. half the bytes: the files are 0.49 to 0.53 of float32's
    2. stored in 16 bits, either type, the loss moves by less than 0.005 nats
    3. float16 is finer: bfloat16 moves the logits more
    4. float16 overflows on large features (a logit is infinite or NaN), bfloat16 does not

2 needs its whole 95 % interval over seeds inside, 3 a difference above 0.
"""

import copy
import math

import torch
from torch import nn

from minialign.lab.claims import Bench, Claim, Rows, Table, Verdict, column, difference, over_seeds
from minialign.lab.claims.quantized import Subject, as_its_card, subject, train_on
from minialign.lab.fidelity import fidelity
from minialign.lab.plotting import Figure, bars_with_intervals, figure
from minialign.quant.half import HALVES, compute_half, overflow_report, store_half
from minialign.runs.tensors import tensor_file, tensors_of
from minialign.training import TrainingConfig

CLAIM = Claim("half-precision",
              "Sixteen bits a number halve the space for almost nothing; float16 overflows where bfloat16 does not.",
              "Micikevicius et al. 2018, §3")
NOTHING = 0.005  # nats a token
LARGE = 2.0**17  # how much a feature is scaled up: a power of two, so that nothing is rounded in float32


def measure(bench: Bench) -> Rows:
    """Store, compute, and overflow."""
    for seed in range(bench.seeds):
        yield as_its_card(seed)
        made = subject(bench, seed)
        train_on(made.model, made, TrainingConfig(4 if bench.fast else 50, 32, 3e-4, seed=seed))
        for name, dtype in HALVES.items():
            stored, computed = (half(copy.deepcopy(made.model), dtype) for half in (store_half, compute_half))
            found = fidelity(made.model, stored, made.rows, batch=32)
            row = {"type": name, "seed": seed, "bytes": file_size(stored), "bytes of float32": file_size(made.model)}
            row |= {"kl": found.kl, "kl computed": fidelity(made.model, computed, made.rows[:32], batch=32).kl}
            row |= {"loss": math.log(found.after), "loss of float32": math.log(found.before)}
            yield row | overflow(made, dtype)


def file_size(model: nn.Module) -> int:
    """Bytes of a model's weights as a file."""
    return len(tensor_file(tensors_of(model)))


def with_large_features(model: nn.Module) -> nn.Module:
    """A copy of a decoder with ReLU, which lets the scale through, in which the busiest inner feature of each
    feed-forward layer is LARGE times as large, and read by weights that are as much smaller."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for block in model.body.blocks:
            inner, output = block.feed_forward.inner, block.feed_forward.output
            feature = int(inner.weight.norm(dim=1).argmax())  # the one with the largest weights: it is used
            inner.weight[feature] *= LARGE
            inner.bias[feature] *= LARGE
            output.weight[:, feature] /= LARGE
    return model


@torch.inference_mode()
def overflow(made: Subject, dtype: torch.dtype) -> dict[str, float]:
    """What large features do in 16 bits: the change of float32's logits (none), the share of logits that are lost, and
    the largest value met."""
    large, rows = with_large_features(made.model), made.rows[:16]
    logits = compute_half(copy.deepcopy(large), dtype)(rows)
    met = overflow_report(large, [rows], dtype)[0]
    return {"change in float32": float((large(rows) - made.model(rows)).abs().max()),
            "lost logits": float((~torch.isfinite(logits)).float().mean()),
            "largest value": met.largest, "layer": met.name}


def judge(table: Table) -> Verdict:
    """The four statements, and the numbers that decide."""
    shares = [row["bytes"] / row["bytes of float32"] for row in table]
    moved = {name: difference(column(table, "loss", type=name), column(table, "loss of float32", type=name))
             for name in HALVES}
    coarser = difference(column(table, "kl", type="bf16"), column(table, "kl", type="fp16"))
    least, most = min(column(table, "lost logits", type="fp16")), max(column(table, "lost logits", type="bf16"))
    checks = {
        "half the bytes": all(0.49 <= share <= 0.53 for share in shares),
        "almost nothing is lost": all(-NOTHING < change.low and change.high < NOTHING for change in moved.values()),
        "float16 is finer": coarser.low > 0,
        "float16 overflows, bfloat16 does not": least > 0 and most == 0,
    }
    said = ", ".join(f"{name} moves the loss by {change.mean:+.5f} [{change.low:+.5f}, {change.high:+.5f}]"
                     for name, change in moved.items())
    largest = max(column(table, "largest value"))
    return checks, (f"files of {min(shares):.3f} to {max(shares):.3f} of float32's; {said}; with values up to "
                    f"{largest:,.0f} float16 loses {least:.0%} of the logits in the best seed, bfloat16 {most:.0%} in "
                    f"the worst")


def draw(table: Table) -> Figure:
    """KL from float32, weights stored or everything computed in 16 bits."""
    fig, axes = figure("KL from float32, 10⁻⁶ nats a token", "", 6.4, 3.0)
    bars = {f"{name}, {how}": over_seeds([1e6 * kl for kl in column(table, what, type=name)])
            for name in HALVES for how, what in (("stored", "kl"), ("computed", "kl computed"))}
    bars_with_intervals(axes, bars, digits=2)
    axes.set_xlim(left=0)
    return fig
