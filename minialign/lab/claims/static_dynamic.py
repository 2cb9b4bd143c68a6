r"""Calibrated or measured on the spot: static scales are fast and steady, dynamic ones fit better.

The notes' two ways to get the scale of an activation. Static: from a calibration set, one for the tensor, fixed;
dynamic: from the values themselves, one for each token or, to compare nothing but *when* one looks, one for the tensor.
Jacob et al. 2018, §3; Wu et al. 2020, §3.2.

The test: the shipped decoder with int8 weights and activations of 8 and of 5 bits (where a coarser scale shows), scales
dynamic, or static from 1, 8 or 64 documents, by the range seen (min-max) or by the least squared error (mse), and from
64 documents of the wrong kind (all in capitals). The number is KL from the float model, nats a token. Time is that of
one linear layer and 512 tokens, taking turns.

    1. dynamic with a scale for each token fits better: lower KL than static (64 documents, min-max), at 8 and at 5 bits
    2. so does dynamic with one scale for the tensor of each call, as static has it
    3. static is faster (median of 1,000 pairs of calls)
    4. the wrong text is worse than the right one, at 5 bits

1, 2 and 4 need a difference, seed by seed, whose 95 % interval over seeds is above 0; 3 the ratio of times above 1.
Static is steady by construction, and so is a scale for each token; how far one scale for the tensor lets neighbours
move a document's logits stands in the table and decides nothing.
"""

import copy
from functools import partial

import torch
from torch import nn

from minialign.lab.claims import Bench, Claim, Rows, Table, Verdict, column, difference, over_seeds, point, time_ratio
from minialign.lab.claims.quantized import Subject, as_its_card, cost, subject
from minialign.lab.claims.shipped import beginnings
from minialign.lab.plotting import Figure, figure, finish, lines_with_intervals
from minialign.quant.calibration import MinMax
from minialign.quant.ptq import quantize
from minialign.quant.scheme import SchemeConfig, quantized_layer

CLAIM = Claim("static-dynamic", "Calibrated scales are fast and steady; scales measured on the spot fit better.",
              "Jacob et al. 2018, §3; Wu et al. 2020, §3.2")
SIZES = (1, 8, 64)  # documents of a calibration set
BITS = (8, 5)  # of an activation
DYNAMIC, WHOLE, WRONG = "dynamic, a token", "dynamic, a tensor", "static, wrong text"
RIGHT, MSE = "static, min-max", "static, mse"
ROUNDS = 1000  # timings of each way


def measure(bench: Bench) -> Rows:
    """Quantize with every kind of scale and compare."""
    steady = []
    for seed in range(bench.seeds):
        yield as_its_card(seed)
        made = subject(bench, seed)
        pace, texts = speed_ratio(5 if bench.fast else ROUNDS, seed), made.texts[:200]
        right, wrong = (beginnings(made.tokenizer, part) for part in (texts, [text.upper() for text in texts]))
        for bits in BITS:
            tensor = SchemeConfig(activation_per="tensor", activation_bits=bits)
            min_max, mse = (SchemeConfig("static", activation_per="tensor", activation_bits=bits, observer=name)
                            for name in ("min-max", "mse"))
            tried = [(DYNAMIC, 0, SchemeConfig(activation_bits=bits), None), (WHOLE, 0, tensor, None)]
            tried.append((WRONG, SIZES[-1], min_max, [wrong[: SIZES[-1]]]))
            tried += [(name, size, scheme, list(right[:size].split(32)))
                      for name, scheme in ((RIGHT, min_max), (MSE, mse)) for size in SIZES]
            for name, size, scheme, batches in tried:
                found = cost(made.model, scheme, made.rows, batches)
                row = {"scales": name, "documents": size, "bits": bits, "seed": seed, "kl": found.kl}
                row |= {"perplexity": found.after, "float": found.before}
                yield row | {"time of dynamic / static": pace}
        static, tensor = (SchemeConfig(scales, activation_per="tensor") for scales in ("static", "dynamic"))
        for name, scheme in (("static", static), (DYNAMIC, SchemeConfig()), (WHOLE, tensor)):
            moved = moved_by_neighbours(made, scheme, [right[:64]])
            steady.append({"scales": name, "seed": seed, "moved by neighbours": moved})
    yield from steady


@torch.inference_mode()
def moved_by_neighbours(made: Subject, scheme: SchemeConfig, batches: list) -> float:
    """Most that a document's logits change, relative to their size, when others stand beside it in the batch."""
    model = quantize(copy.deepcopy(made.model), scheme, batches if scheme.calibrated else None)[0]
    alone, among = model(made.rows[:1]), model(made.rows[:8])[:1]
    return float((alone - among).norm() / alone.norm())


@torch.inference_mode()
def speed_ratio(rounds: int, seed: int) -> float:
    """Time of the dynamic layer over that of the static one, 512 × 512 with 512 tokens: the median of the ratios, each
    of two calls in a row."""
    torch.manual_seed(seed)
    linear, x, observer = nn.Linear(512, 512), torch.randn(512, 512), MinMax()
    observer.see(x)
    static = quantized_layer(linear, SchemeConfig("static", activation_per="tensor"), observer=observer)
    dynamic = quantized_layer(linear, SchemeConfig())
    return time_ratio(partial(dynamic, x), partial(static, x), rounds, alternate=True)


def judge(table: Table) -> Verdict:
    """The four statements, and the numbers that decide."""
    kl = {(name, bits): [1000 * nats for nats in column(table, "kl", scales=name, documents=size, bits=bits)]
          for name, size in ((RIGHT, SIZES[-1]), (WRONG, SIZES[-1]), (DYNAMIC, 0), (WHOLE, 0)) for bits in BITS}
    fits = {name: [difference(kl[RIGHT, bits], kl[name, bits]) for bits in BITS] for name in (DYNAMIC, WHOLE)}
    paces = {row["seed"]: row["time of dynamic / static"] for row in table if "kl" in row}
    pace, change = over_seeds(list(paces.values())), difference(kl[WRONG, 5], kl[RIGHT, 5])
    checks = {
        "dynamic fits better, a scale for each token": all(fit.low > 0 for fit in fits[DYNAMIC]),
        "also with one scale for the tensor": all(fit.low > 0 for fit in fits[WHOLE]),
        "static is faster": pace.low > 1,
        "the wrong text is worse": change.low > 0,
    }
    shown = {key: over_seeds(values) for key, values in kl.items()}
    said = ", ".join(f"{shown[RIGHT, bits]} at {bits} bits against {shown[DYNAMIC, bits]} and {shown[WHOLE, bits]}"
                     for bits in BITS)
    moved = {name: max(column(table, "moved by neighbours", scales=name)) for name in ("static", DYNAMIC, WHOLE)}
    neighbours = ", ".join(f"{name} {value:.1e}" for name, value in moved.items())
    return checks, (
        f"KL of static against dynamic with a scale for each token and one for the tensor, 10⁻³ nats a token: {said}; "
        f"static is behind one for the tensor by {fits[WHOLE][0]} and {fits[WHOLE][1]}; at 5 bits the wrong text "
        f"changes it by {change}; a dynamic layer takes {pace} times as long; moved by neighbours: {neighbours}"
    )


def draw(table: Table) -> Figure:
    """KL against the size of the calibration set, at five bits; level lines where it has one size or none."""
    _, axes = figure("documents to calibrate on", "KL from float at 5 bits, nats a token", 6.4, 4.0)
    sizes = {RIGHT: SIZES, MSE: SIZES, WRONG: SIZES[-1:] * 3, WHOLE: (0,) * 3, DYNAMIC: (0,) * 3}
    curves = {name: [point(table, "kl", scales=name, documents=size, bits=5) for size in own]
              for name, own in sizes.items()}
    lines_with_intervals(axes, range(len(SIZES)), curves)
    return finish(axes, [str(size) for size in SIZES], yscale="log")
