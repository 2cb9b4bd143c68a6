r"""QLoRA: a LoRA on top of weights in 4-bit NormalFloats learns what a LoRA on full weights learns.

Dettmers et al. 2023 (QLoRA), Tables 2 to 4: NormalFloats lose less than other 4-bit types, quantizing their scales once
more costs nothing, and a LoRA on such a base reaches the 16-bit one.

The test. The shipped decoder's linear layers in blocks of 32 (the paper's 64 do not divide its rows): plain 4-bit
integers (absmax), NF4, and NF4 with double quantization; KL from the model in float on unseen documents, nats a token.
Then a LoRA of rank 8 tuned on summaries (300 steps of 16, rate searched) on the model in float and on each of these.
SmolLM2-135M, when it can be fetched: the same bases on Macbeth, and the LoRAs after 24 steps of 128 tokens of it.

    1. NF4 loses less than 4-bit integers with the same blocks; on the real model, too
    2. double quantization adds less than a tenth to NF4's KL
    3. a LoRA on NF4 with double quantization is at most 0.02 nats a token behind one on float
    4. the quantized layers take at most 0.15 of their bytes in float

1 to 3 are over seeds, 95 %. Taken for granted: tuning on float gains at least 0.1 nats, or there is nothing to reach.
"""

import copy

import torch
from torch import nn

from minialign.heads import LanguageModel
from minialign.lab.claims import Bench, Claim, Rows, Table, Verdict, column, control, difference, over_seeds, point
from minialign.lab.claims.quantized import cost, kl_by_scheme, means
from minialign.lab.claims.shipped import TARGETS, base, real_model, rows_of, searched, summaries
from minialign.lab.fidelity import fidelity, windows
from minialign.lab.plotting import Figure, bars_with_intervals, figure
from minialign.peft.lora import LoRAConfig
from minialign.peft.lora import wrap as wrap_lora
from minialign.pretrain.causal_lm import LabelledRows, mean_loss
from minialign.quant.ptq import quantize
from minialign.quant.scheme import SchemeConfig
from minialign.runs.settings import to_dict
from minialign.training import adamw

CLAIM = Claim("qlora", "A LoRA on top of 4-bit NormalFloats learns what a LoRA on full weights learns.",
              "Dettmers et al. 2023, Tables 2 to 4")
BASES = {"float": None, "4-bit integers": SchemeConfig("weights", bits=4, per="group", group=32),
         "nf4": SchemeConfig("nf4", block=32, double=False), "nf4, double": SchemeConfig("nf4", block=32)}
TUNED = ("float", "4-bit integers", "nf4, double")
GAIN, BEHIND, SHARE = 0.1, 0.02, 0.15  # nats that tuning must gain and that QLoRA may lose; of the bytes in float
LORA, RATE = LoRAConfig(8, 16.0, TARGETS), 1e-3
REAL = LoRAConfig(8, 16.0, ("query", "value"))


def measure(bench: Bench) -> Rows:
    """What each base loses, and what a LoRA on it learns."""
    model, tokenizer = base()
    for seed in range(bench.seeds):
        judged, _ = rows_of(bench, tokenizer, seed)
        for name, scheme in BASES.items():
            if scheme:
                yield {"model": "toy", "base": name, "seed": seed} | cost(model, scheme, judged).to_dict()
        yield {"model": "toy", "base": "untuned", "seed": seed, "loss": untuned(bench, model, seed)}
    for name in TUNED:
        what = ["qlora", name, to_dict(LORA), to_dict(BASES[name]) if BASES[name] else None]
        rows = searched(bench, "lora", what, lambda model, name=name: wrap_lora(on(model, name)[0], LORA),
                        model="toy", base=name)
        yield from rows
        if name == "float":
            yield from (control("tuning on float gains, nats a token", untuned(bench, model, row["seed"]) - row["loss"],
                                GAIN, row["seed"]) for row in rows)
    yield from ({"model": "toy", "base": name, "seed": 0, "share": on(base()[0], name)[1]} for name in BASES)
    for real, ids in real_model(bench):
        yield from on_macbeth(real, ids)


def untuned(bench: Bench, model: LanguageModel, seed: int) -> float:
    """The base's own loss on the summaries that the tuned ones are judged on."""
    rows = summaries(bench.fast, seed)[2]
    return mean_loss(model, LabelledRows(rows, min(16, len(rows)), seed).first())


def on(model: LanguageModel, name: str) -> tuple[nn.Module, float]:
    """The model with its linear layers as a base has them, and the share of their bytes in float that they take."""
    if not BASES[name]:
        return model, 1.0
    model, report = quantize(model, BASES[name])
    rows = [row for row in report.rows if not row.kept]
    return model, sum(row.bytes_after for row in rows) / sum(row.bytes_before for row in rows)


def on_macbeth(model: LanguageModel, ids: list[int]) -> Rows:
    """The same on SmolLM2: KL on the beginning of the play, loss there before and after a LoRA learned what follows."""
    judged, learned = windows(ids, 128, 1024), windows(ids[1024:], 128, 24 * 128)
    for name in BASES:
        changed, share = on(copy.deepcopy(model), name)
        found = fidelity(model, changed, judged, batch=1)
        row = {"model": "real", "base": name, "seed": 0, "share": share} | found.to_dict()
        yield row | ({"loss": tuned_on(changed, learned, judged)} if name in TUNED else {})


def tuned_on(model: nn.Module, learned: torch.Tensor, judged: torch.Tensor) -> float:
    """Loss on windows (R, T) after one pass of a LoRA over others, a window a step."""
    model = wrap_lora(model, REAL)
    optimizer = adamw(model, RATE, 0.0)

    def loss_on(row: torch.Tensor) -> torch.Tensor:
        logits = model(row[None, :-1])[0]
        return nn.functional.cross_entropy(logits.float(), row[1:])

    for row in learned:
        optimizer.zero_grad()
        loss_on(row).backward()
        optimizer.step()
    with torch.no_grad():
        return float(torch.stack([loss_on(row) for row in judged]).mean())


def judge(table: Table) -> Verdict:
    """The four statements, and the numbers that decide."""
    kl = kl_by_scheme(table, ("toy", "real"), BASES, ("model", "base"))
    loss = {name: column(table, "loss", model="toy", base=name) for name in (*TUNED, "untuned")}
    behind, plain = (difference(loss[name], loss["float"]) for name in ("nf4, double", "4-bit integers"))
    more = over_seeds([a / b - 1 for a, b in zip(kl["toy", "nf4, double"], kl["toy", "nf4"])])
    share = column(table, "share", model="toy", base="nf4, double")[0]
    gain = difference(kl["toy", "4-bit integers"], kl["toy", "nf4"])
    real = all(a > b for a, b in zip(kl["real", "4-bit integers"], kl["real", "nf4"]))
    checks = {
        "NF4 loses less than 4-bit integers": real and gain.low > 0,
        "double quantization costs little": more.high < 0.1,
        "a LoRA on NF4 is near one on float": behind.high < BEHIND,
        "a small share of the bytes": share <= SHARE,
    }
    real_loss = {name: column(table, "loss", model="real", base=name) for name in TUNED}
    rest = "; SmolLM2 was left out" if not real_loss["float"] else "; SmolLM2 after its LoRA: " + ", ".join(
        f"{name} {values[0]:.3f}" for name, values in real_loss.items())
    return checks, (f"KL from float, nats a token: {means(kl, 'toy', BASES)}; double quantization adds {more} of it; a "
                    f"LoRA on NF4 is behind one on float by {behind} nats a token (on integers {plain}), from "
                    f"{over_seeds(loss['untuned'])} to {over_seeds(loss['float'])}; bytes {share:.3f} of float{rest}")


def draw(table: Table) -> dict[str, Figure]:
    """KL of each base, and the loss after a LoRA on each."""
    drawn = {}
    for name, what, bases, unit in (("figure", "kl", [b for b in BASES if b != "float"], "KL from float, nats a token"),
                                    ("tuned", "loss", ["untuned", *TUNED], "loss on summaries, nats a token")):
        drawn[name], axes = figure(unit, "", 5.2, 3.4)
        bars_with_intervals(axes, {base: point(table, what, model="toy", base=base) for base in bases}, digits=3)
    return drawn
