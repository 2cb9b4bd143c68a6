r"""The table of commands in docs/commands.md: each is run as it stands there, in an empty folder, in this order; its
seconds, its memory and its result are written down.

Everything is at the size of a quick look (`--fast`): the results say that the commands work and what they print, not
how well the methods do. The table stands between its markers `commands`; a quiet machine takes under two
minutes for all of it.

Run it:  python tests/speed/commands.py --readme docs/commands.md
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from minialign.lab.claims.page import filled  # noqa: E402
from minialign.runs.errors import UserError  # noqa: E402
from minialign.runs.files import write_atomic  # noqa: E402

PYTHON = "python -m minialign"
BOOK = "runs/data/python-reference/texts"
DEMO = "runs/demo"
# a small process between: on Linux a new process's peak begins with what the one that started it held
PEAK = ("import resource, subprocess, sys; status = subprocess.call(sys.argv[2:]); "
        "open(sys.argv[1], 'w').write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)); sys.exit(status)")


@dataclass(frozen=True)
class Line:
    """One command.

    Args:
        command: as it is typed, in a folder where the commands before it have run.
        found: pattern of the part of its output that is the result; its groups stand in `said`.
        said: the result, with {0}, {1} … for the groups.
    """

    command: str
    found: str
    said: str = "{0}"


LINES = (
    Line(f"{PYTHON} --fast --out {DEMO}", r"RLHF(?:\s+[\d.]+){3}\s+([\d.]+)",
         "the whole pipeline and its report; gold score after RLHF {0}"),
    Line(f"{PYTHON} play {DEMO} --out runs/play.html", r"play\.html: (.*?);"),
    Line(f"{PYTHON} realdata python-reference", r"texts\.train\.txt: (.*)", "{0} to learn from"),
    Line(
        f"{PYTHON} pretrain --text {BOOK}.train.txt --valid {BOOK}.valid.txt --vocabulary 512 --fast --out runs/book",
        *(r"(perplexity [\d.]+)", "{0} on held-out text"),
    ),
    Line(f'{PYTHON} sample runs/book --prompt "The value of" --new-tokens 8', r"(?s)(.+)", "“{0}”"),
    Line(f"{PYTHON} sft --base {DEMO}/1-pretrained --demonstrations {DEMO}/data/demonstrations.jsonl --fast --out "
         f"runs/sft", r"(perplexity .*)"),
    Line(f"{PYTHON} compare --policies {DEMO}/2-instructed --prompts {DEMO}/data/tests.jsonl --fast --out "
         f"runs/pairs.jsonl", r"(\d+ pairs)", "{0} to judge"),
    Line(
        f"{PYTHON} annotators --pairs 50",
        r"panel\s+(\S+)\s+(\S+)",
        "simulated people agree with themselves in {0}, with each other in {1}",
    ),
    Line(
        f"{PYTHON} reward --base {DEMO}/2-instructed --comparisons {DEMO}/3-comparisons/comparisons.jsonl --fast --out "
        f"runs/reward",
        r"(orders [\d.]+%) of the held-out",
        "{0} of held-out choices as people did",
    ),
    Line(
        f"{PYTHON} ppo --policy {DEMO}/2-instructed --reward runs/reward --prompts {DEMO}/data/prompts.jsonl --best-of "
        f"2 --fast --out runs/ppo",
        r"(score [-+.\d]+) .*?(KL [\d.]+ nats)",
        "{0}, {1} per completion",
    ),
    Line(
        f"{PYTHON} grpo --policy {DEMO}/2-instructed --prompts {DEMO}/data/demonstrations.jsonl --check answer --fast "
        f"--out runs/grpo",
        r"reward ([\d.]+) → ([\d.]+)",
        "reward {0} → {1}",
    ),
    Line(
        f"{PYTHON} dpo --policy {DEMO}/2-instructed --comparisons {DEMO}/3-comparisons/comparisons.jsonl --fast --out "
        f"runs/dpo",
        r"(orders [\d.]+%) of the held-out",
        "{0} of held-out choices as people did",
    ),
    Line(
        f"{PYTHON} evaluate runs/ppo --against {DEMO}/2-instructed --judge {DEMO}/4-reward --prompts "
        f"{DEMO}/data/tests.jsonl --fast",
        r"preferred to \S+ in (.*) of (\d+) prompts",
        "preferred in {0} of {1} prompts",
    ),
    Line(f"{PYTHON} instruct --fast", r"([\d,]+ instructions of \d+ tasks)"),
    Line(
        f"{PYTHON} finetune --method lora --base {DEMO}/1-pretrained --data {DEMO}/data/demonstrations.jsonl --fast "
        f"--out runs/lora",
        r"\nlora\s+([\d.]+)\s+[\d.]+\s+([\d,]+)",
        "held-out loss {0} nats, {1} trained parameters",
    ),
    Line(
        f"{PYTHON} distill --teacher runs/book --recipe distilgpt2 --layers 1 --text {BOOK}.train.txt --valid "
        f"{BOOK}.valid.txt --fast --out runs/student",
        r"distilgpt2: (.*)",
    ),
    Line(
        f"{PYTHON} quantize runs/book --scheme llm-int8 --text {BOOK}.valid.txt",
        r"(?s)perplexity, a token\s+([\d.]+)\s+([\d.]+).*bytes in memory.*?(\d+%)",
        "perplexity {0} before, {1} after; {2} of the memory",
    ),
    Line(f"{PYTHON} claims absmax-zeropoint --fast", r"absmax-zeropoint (.*?) \(", "{0}, says a quick look"),
)


def measure(line: Line, folder: Path) -> tuple[float, float, str]:
    """Run a command in a folder: seconds on the clock, MiB that its largest process held at its peak, and the result.

    Raises:
        UserError: the command failed, or did not print what was to be found.
    """
    words = shlex.split(line.command)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
                                "PYTHONIOENCODING": "utf-8"}
    with tempfile.TemporaryDirectory() as apart:
        peak, started = Path(apart, "peak"), time.perf_counter()
        done = subprocess.run([sys.executable, "-c", PEAK, str(peak), sys.executable, *words[1:]], cwd=folder,
                              env=environment, capture_output=True, text=True, encoding="utf-8")
        seconds = time.perf_counter() - started
        if done.returncode:
            raise UserError(f"{line.command!r} failed: {done.stderr.strip()[-500:]}")
        memory = int(peak.read_text()) / 1024
    match = re.search(line.found, done.stdout)
    if match is None:
        raise UserError(f"{line.command!r} printed nothing like {line.found!r}: {done.stdout[-500:]!r}")
    result = " ".join(line.said.format(*match.groups()).split()).replace("|", "\\|")
    return seconds, memory, result


def table(lines: tuple[Line, ...], folder: Path, say=print) -> str:
    """Measure all and return the table in Markdown, with the sum and the state of the machine below it."""
    busy = f"; load average when it began {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    rows, total = ["| command | seconds | MiB | result |", "| --- | ---: | ---: | --- |"], 0.0
    for line in lines:
        seconds, memory, result = measure(line, folder)
        total += seconds
        rows.append(f"| `{line.command}` | {seconds:.1f} | {memory:,.0f} | {result} |")
        say(rows[-1])
    return "\n".join([*rows, "", f"{total:.0f} s in all, on {os.cpu_count()} cores{busy}."])


def main() -> int:
    """Measure, and write the table where it is wanted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--readme", type=Path, help="the file between whose markers the table goes; without it the "
                                                    "table is only shown")
    chosen = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            content = table(LINES, Path(folder))
        if chosen.readme:
            write_atomic(chosen.readme, filled(chosen.readme, {"commands": content}))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(content.splitlines()[-1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
