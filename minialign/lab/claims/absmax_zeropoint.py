r"""Two mappings: absmax for symmetric data, zero-point for data that lies to one side.

The notes present both as ways to map real numbers to eight bits: absmax divides by the largest magnitude, zero-point
shifts so that the whole range is used. Jacob et al. 2018, §2.1; Dettmers et al. 2022, §2.1. The arithmetic makes a
prediction: on data without negative values absmax wastes half of its codes, so its error is twice as large; on
symmetric data there is nothing to gain but one code, which matters only with few bits.

The test: round-trip error ‖x − x̂‖ / ‖x‖ of both, at 8 to 2 bits, one scale a tensor, on draws from a normal
distribution (symmetric), from a shifted one, from its positive part (one-sided), and on two tensors of the shipped
decoder: its weights, and what leaves its ReLU. Each statement is a 95 % interval over seeds of the ratio of errors:

    1. one-sided (drawn, and after the ReLU): absmax errs at least 1.5 times as much, at 8 and at 4 bits
    2. shifted: absmax errs more, at 8 and at 4 bits
    3. symmetric (drawn, and weights): at 8 bits the two are within 15 % of each other
    4. no value moves by more than half a step, anywhere
"""

import torch
from torch import Tensor

from minialign.lab.claims import Bench, Claim, Rows, Table, Verdict, column, over_seeds, point
from minialign.lab.claims.quantized import Subject, as_its_card, subject
from minialign.lab.plotting import Figure, figure, finish, lines_with_intervals, reference_line
from minialign.lab.quantization_diagrams import show_mapping
from minialign.quant.mappings import MappingConfig, quantize_tensor, round_trip_error

CLAIM = Claim("absmax-zeropoint",
              "Absmax suits symmetric data; zero-point uses the whole range of data that lies to one side.",
              "Jacob et al. 2018; Dettmers et al. 2022, §2.1")
BITS = (8, 7, 6, 5, 4, 3, 2)
SYMMETRIC, SHIFTED, ONE_SIDED = ("normal", "weights"), ("shifted",), ("positive part", "after a ReLU")
ALL = (*SYMMETRIC, *SHIFTED, *ONE_SIDED)
ENOUGH = 1.5  # times; twice is what the arithmetic predicts
SAME = 0.15  # a ratio this near to 1 is no difference


def measure(bench: Bench) -> Rows:
    """Map everything both ways."""
    for seed in range(bench.seeds):
        yield as_its_card(seed)
        for name, x in tensors(subject(bench, seed), seed).items():
            for bits in BITS:
                row = {"data": name, "bits": bits, "seed": seed}
                for mapping in ("absmax", "zero-point"):
                    config = MappingConfig(mapping, bits)
                    row[f"{mapping} error"] = round_trip_error(x, config)
                    row[f"{mapping} largest, steps"] = largest_move(x, config)
                yield row | {"ratio": row["absmax error"] / row["zero-point error"]}


def tensors(made: Subject, seed: int) -> dict[str, Tensor]:
    """What is mapped: draws of 2 ** 14 numbers, and tensors of the model of the seed."""
    normal = torch.randn(2**14, generator=torch.Generator().manual_seed(seed))
    feed_forward = made.model.body.blocks[0].feed_forward
    caught: list[Tensor] = []
    hook = feed_forward.output.register_forward_hook(lambda module, inputs, output: caught.append(inputs[0]))
    with torch.no_grad():
        made.model(made.rows[:32])
    hook.remove()
    return {"normal": normal, "weights": feed_forward.inner.weight.detach(), "shifted": normal + 2,
            "positive part": normal.clamp(min=0), "after a ReLU": caught[0]}


def largest_move(x: Tensor, config: MappingConfig) -> float:
    """max |x − x̂| in units of the step; at most a half, and the rounding of float32."""
    mapped = quantize_tensor(x, config)
    return float(((x - mapped.dequantize()).abs() / mapped.scale).max())


def judge(table: Table) -> Verdict:
    """The four statements, and the numbers that decide."""
    ratio = {(data, bits): over_seeds(column(table, "ratio", data=data, bits=bits)) for data in ALL for bits in BITS}
    moves = max(row[f"{mapping} largest, steps"] for row in table for mapping in ("absmax", "zero-point"))
    symmetric = [ratio[data, 8] for data in SYMMETRIC]
    one_sided, shifted = ([ratio[name, bits] for name in data for bits in (8, 4)] for data in (ONE_SIDED, SHIFTED))
    checks = {
        "one-sided data: absmax errs more": all(r.low > ENOUGH for r in one_sided),
        "shifted data: absmax errs more": all(r.low > 1 for r in shifted),
        "symmetric data: no difference at 8 bits": all(1 - SAME < r.low and r.high < 1 + SAME for r in symmetric),
        "nothing moves more than half a step": moves < 0.5001,
    }
    said = "; ".join(f"{data} {ratio[data, 8]}" for data in ALL)
    return checks, f"error of absmax over that of zero-point at 8 bits: {said}; the largest move is {moves:.4f} steps"


def draw(table: Table) -> dict[str, Figure]:
    """The ratio of errors against bits, and the notes' two diagrams."""
    fig, axes = figure("bits", "error of absmax / error of zero-point", 6.0, 3.8)
    curves = {name: [point(table, "ratio", data=name, bits=bits) for bits in BITS] for name in ALL}
    lines_with_intervals(axes, BITS, curves)
    reference_line(axes, 1.0, "equal")
    axes.invert_xaxis()
    finish(axes, ylim=(0, None))
    normal = torch.randn(200, generator=torch.Generator().manual_seed(0))
    return {"figure": fig, "mapping-symmetric": show_mapping(normal, 4),
            "mapping-one-sided": show_mapping(normal.clamp(min=0), 4)}
