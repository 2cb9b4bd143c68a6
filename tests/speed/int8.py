r"""How fast quantized linear layers are beside fp32 and beside their peers, and how exact: ratios in one run, for a
person to read.

    times fp32 = median time of F.linear in fp32 / median time of the layer            above 1: faster than fp32
    error      = ‖y − y_exact‖ / ‖y_exact‖, y_exact the product in float64            on inputs with six outlier columns

Ours: LLM.int8() with the original 16-bit weights for outlier columns, the same with dequantized ones, vector-wise int8,
weights only, weights only with the fast way for single tokens. Peers: bitsandbytes' LLM.int8() (eval mode), torch's own
dynamic int8 linear (no outlier handling, and 7 bits of x where its kernel would overflow). Rounds in turn, the first
thrown away; see bench.py for how disturbed samples are treated.

What to expect: with integer products (AVX-512 VNNI) int8 beats fp32 from about 1024 × 1024 on. Without them (AVX2
alone) it does not: the exact integers are then computed by the float unit, at best as fast as fp32 and for single
tokens about half as fast. There int8 saves memory, and only weights read by the single-token kernel save time.

Run it:  python tests/speed/int8.py [--rounds 9] [--shapes 64x512x512 …] [--threads 2] [--json FILE]
"""

# ruff: noqa: E402, I001    the imports' order decides how threads wait
from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from minialign.runs.process import prepare_process

prepare_process()
import torch
import torch.nn.functional as F
from torch import nn

from bench import THREADS, machine, measure
from minialign.quant.fast_products import fastest_kernel, has_integer_products
from minialign.quant.scheme import SchemeConfig, quantized_layer

# tokens × inputs × outputs
SHAPES = ["64x512x512", "512x1024x1024", "512x2048x2048", "512x4096x4096", "1x1024x1024", "1x4096x4096"]
OURS = {
    "ours llm-int8": SchemeConfig("llm-int8"),
    "ours llm-int8, dequantized": SchemeConfig("llm-int8", outlier_weights="dequantized"),
    "ours vector-wise": SchemeConfig(),
    "ours weights": SchemeConfig("weights"),
    "ours weights, single token": SchemeConfig("weights", single_token=True),
}
OUTLIERS = 6


def their_layers(linear: nn.Linear) -> dict[str, Callable]:
    """The peers that are installed."""
    layers = {}
    try:
        import bitsandbytes

        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        theirs = bitsandbytes.nn.Linear8bitLt(linear.in_features, linear.out_features, has_fp16_weights=False,
                                              threshold=6.0)
        theirs.load_state_dict(linear.state_dict())
        layers["bitsandbytes llm-int8"] = theirs.to("cpu").eval()
    except ImportError:
        print("bitsandbytes is missing: pip install -r tests/parity/requirements.txt")
    layers["torch dynamic int8"] = torch.ao.quantization.quantize_dynamic(nn.Sequential(linear), {nn.Linear},
        torch.qint8)
    return layers


def sampler(layer: Callable, x: torch.Tensor, repeats: int) -> Callable[[], float]:
    """Does the work and returns the seconds of one repetition."""

    @torch.inference_mode()
    def sample() -> float:
        began = time.perf_counter()
        for _ in range(repeats):
            layer(x)
        return (time.perf_counter() - began) / repeats

    return sample


def compare(shape: str, rounds: int) -> list[dict]:
    """One row for each rival at a shape."""
    T, K, N = map(int, shape.split("x"))
    g = torch.Generator().manual_seed(0)
    linear, x = nn.Linear(K, N), torch.randn(T, K, generator=g)
    linear.weight.data.normal_(0, K**-0.5, generator=g)
    x[:, torch.randperm(K, generator=g)[:OUTLIERS]] *= 20
    rivals = {"fp32 F.linear": linear}
    rivals |= {name: quantized_layer(linear, config) for name, config in OURS.items() if T == 1
               or not config.single_token}
    rivals |= their_layers(linear)
    exact = F.linear(x.double(), linear.weight.double(), linear.bias.double())
    with torch.inference_mode():
        errors = {name: float((layer(x).double() - exact).norm() / exact.norm()) for name, layer in rivals.items()}
    repeats = max(1, round(2e8 / (2 * T * K * N)))  # no sample shorter than some milliseconds
    found = measure({name: sampler(layer, x, repeats) for name, layer in rivals.items()}, rounds)
    base = found["fp32 F.linear"][0]
    return [{"shape": shape, "rival": n, "ms": s * 1e3, "times_fp32": base / s, "error": errors[n], "quiet": q} for n,
            (s, q) in found.items()]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog="what is measured, and how, stands at "
                                     "the top of this file")
    parser.add_argument("--rounds", type=int, default=9, help="samples of each rival after the warm-up (9); at least 5 "
                        "for a figure that counts")
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="tokens x inputs x outputs, e.g. 64x512x512")
    parser.add_argument("--threads", type=int, default=THREADS, help=f"threads of all rivals ({THREADS})")
    parser.add_argument("--json", type=Path, help="where to write the table as JSON too")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}; it must be at least 1")
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")  # torch's own int8 layers are deprecated
    about = machine() | {"cpu": torch.backends.cpu.get_cpu_capability(), "integer products": has_integer_products()}
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    print(f"{'shape':<16} {'layer':<30} {'ms':>9} {'times fp32':>11} {'error':>9} {'quiet':>6}")
    rows = []
    for shape in options.shapes:
        for row in compare(shape, options.rounds):
            rows.append(row)
            figures = (f"{row['ms']:>9.3f} {row['times_fp32']:>11.2f} {row['error']:>9.5f} "
                       f"{row['quiet']:>3}/{options.rounds}")
            print(f"{shape:<16} {row['rival']:<30} {figures}", flush=True)
        T, K, N = map(int, shape.split("x"))
        print(f"{'':<16} integer products of ours by: {fastest_kernel('cpu', 1 << max(0, T - 1).bit_length(), K, N)}")
    if options.json:
        options.json.write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
