r"""How fast minialign is beside its peers: ratios, measured in one run, for a person to read; it is no test and pytest
does not collect it.

    ratio = median time of the peer / median time of ours            above 1: ours is faster

    train     one training step, next token, fp32, against nanoGPT's model and AdamW, eager (peer_gpt.py: same weights,
              same first loss)
    bf16      the same step of ours under bfloat16 autocast, against itself in fp32
    sample    64 prompts of 32 tokens, 32 new ones, cache, log-probabilities kept, against transformers' `generate`
    ppo       one PPO update, rollout included: 64 × (16 + 24) tokens, 4 epochs, minibatches of 16, a value function
              with a trunk of its own, against TRL's trainer as it is, and without its two calls of gc.collect an
              update, whose cost is the size of the process's heap

Details that matter:
    1. The rivals take turns, round by round; the first round warms up and is thrown away; two threads for all.
    2. A sample in which our threads waited for a core for more than a twentieth of its time is thrown away as long as
       five others are left; the last column says how many of the rounds were quiet. Absolute times move with the
       machine and its neighbours, ratios less.
    3. The process is prepared before torch is imported, so that threads wait and memory is kept as in a run
       (runs/process.py), for the peers as well; OMP_WAIT_POLICY, GOMP_SPINCOUNT and the MALLOC_ variables override
       it.
    4. All answers have full length on both sides: random models would end one in twenty early, and TRL computes what
       stands after an end.
    5. GELU is torch's exact one everywhere, and the peers' settings are the fastest that their libraries offer
       (peer_huggingface.py); --gelu gelu_new takes the slower formula that transformers' GPT-2 has by default.

Run it:  python tests/speed/bench.py [--only train|bf16|sample|ppo] [--rounds 9] [--sizes S M L] [--gelu gelu_new]
[--json FILE]
"""

# ruff: noqa: E402, I001    the imports' order decides how threads wait
from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from minialign.runs.process import prepare_process

prepare_process()
import torch

from rivals import PARTS, SIZES, Part, Sampler

THREADS = 2
WAITED = 0.05  # share of a sample's time that our threads may have waited for a core
ENOUGH = 5  # quiet samples that make a median


def waited() -> float:
    """Seconds that threads of this process have been ready to run and had no core; 0 on systems that do not count it
    (Linux does)."""
    total = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total += int(path.read_text().split()[1])
        except (OSError, IndexError):  # a thread that has just ended
            continue
    return total / 1e9


def measure(rivals: dict[str, Sampler], rounds: int) -> dict[str, tuple[float, int]]:
    """For each rival its median time in seconds, and how many of the rounds were quiet."""
    samples = {name: [] for name in rivals}
    for round in range(rounds + 1):
        for name, sample in rivals.items():
            before, began = waited(), time.perf_counter()
            seconds = sample()
            noise = (waited() - before) / (time.perf_counter() - began)
            if round > 0:  # the first one warms up
                samples[name].append((seconds, noise <= WAITED))
    medians = {}
    for name, found in samples.items():
        quiet = [seconds for seconds, alone in found if alone]
        medians[name] = median(quiet if len(quiet) >= ENOUGH else [seconds for seconds, _ in found]), len(quiet)
    return medians


def compare(part: Part, size: str, rounds: int, gelu: str) -> list[dict]:
    """One row of the table for each peer."""
    torch.manual_seed(0)
    found = measure(part.rivals(replace(SIZES[size], gelu=gelu)), rounds)
    (ours, quiet), *peers = found.values()
    rows = []
    for i, (name, (seconds, alone)) in enumerate(zip(list(found)[1:], peers)):
        reach = part.reach.get(size) if i == 0 else None
        row = {"work": f"{part.work} / {name}", "size": size, "ours": ours, "peer": seconds, "ratio": seconds / ours,
               "reach": reach}
        rows.append(row | {"quiet": min(quiet, alone), "rounds": rounds})
    return rows


def machine() -> dict[str, object]:
    """What the figures depend on."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    waiting = {name: os.environ.get(name, "not set") for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY",
        "GOMP_SPINCOUNT")}
    return versions | {"cores": os.cpu_count(), "threads": torch.get_num_threads()} | waiting


def main() -> int:
    """Measure what is asked for; returns 2 when the peers of all of it are missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog="what is measured, and how, stands at "
                                     "the top of this file")
    parser.add_argument("--only", choices=PARTS, help="one kind of work")
    parser.add_argument("--rounds", type=int, default=9, help="samples of each rival after the warm-up (9); at least 5 "
                        "for a figure that counts")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="sizes of the model")
    parser.add_argument("--gelu", choices=("gelu", "gelu_new"), default="gelu",
                        help="activation of transformers' and TRL's models (gelu)")
    parser.add_argument("--json", type=Path, help="where to write the table as JSON too")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}; it must be at least 1")
    torch.set_num_threads(THREADS)
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    warnings.simplefilter("ignore", FutureWarning)  # among the peers' libraries
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    chosen = [PARTS[options.only]] if options.only else list(PARTS.values())
    lacking = sorted({name for part in chosen for name in part.needs if importlib.util.find_spec(name) is None})
    if lacking:
        print(f"peers are missing ({', '.join(lacking)}), sample and ppo are left out: pip install -r "
              f"tests/parity/requirements.txt")
        chosen = [part for part in chosen if not part.needs]
    if not chosen:
        return 2
    print(f"{'work / peer':<50} {'size':<4} {'ours ms':>9} {'peer ms':>9} {'ratio':>6} {'reach':>6} {'quiet':>6}")
    rows = []
    for part in chosen:
        for size in (size for size in options.sizes if size in part.sizes):
            for row in compare(part, size, options.rounds, options.gelu):
                rows.append(row)
                times, reach = (f"{row['ours'] * 1000:>9.1f} {row['peer'] * 1000:>9.1f} {row['ratio']:>6.2f}",
                                row["reach"] or "-")
                print(f"{row['work']:<50} {size:<4} {times} {reach:>6} {row['quiet']:>3}/{row['rounds']}", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine() | {"gelu": options.gelu}, "rows": rows}, indent=1)
                                + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
