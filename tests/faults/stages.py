"""Every stage as a command line of a second, the files that it reads, and what it leaves that must not change: shared
by the tests of kills, of full disks and of determinism."""

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from minialign.__main__ import run
from minialign.runs.tensors import digest, read_tensors

SHAPE = "--vocabulary 300 --context 64 --width 16 --heads 2 --layers 1"
QUICK = "--steps 6 --batch 4 --checkpoint-every 2 --validate-every 3"
DEMO = ("--base none --documents 60 --demonstrations 120 --judged 64 --completions 3 --prompts 8 --evaluated 6 "
        "--width 16 --layers 1 --heads 1 --pretrain-steps 3 --sft-steps 3 --reward-steps 3 --ppo-updates 2")
STAGES = {
    "pretrain": f"pretrain --text {{d}}/text.txt {SHAPE} {QUICK}",
    "sft": f"sft --base {{d}}/pretrain --demonstrations {{d}}/demos.jsonl {QUICK}",
    "reward": f"reward --base {{d}}/sft --comparisons {{d}}/pairs.jsonl --references 8 {QUICK}",
    "ppo": "ppo --policy {d}/sft --reward {d}/reward --prompts {d}/prompts.txt --updates 3 --batch 4 --minibatch 2 "
           "--new-tokens 6",
    "dpo": f"dpo --policy {{d}}/sft --comparisons {{d}}/pairs.jsonl {QUICK}",
    "kto": f"kto --policy {{d}}/sft --judged {{d}}/judged.jsonl {QUICK}",
    "grpo": "grpo --policy {d}/sft --prompts {d}/demos.jsonl --check answer --updates 3 --batch 2 --completions 2 "
            "--minibatch 2 --new-tokens 6",
    "finetune": f"finetune --method lora --base {{d}}/pretrain --data {{d}}/demos.jsonl --merged {QUICK}",
    "distill": "distill --teacher {d}/pretrain --recipe soft-targets --layers 1 --width 8 --text {d}/text.txt " + QUICK,
    "quantize": "quantize {d}/pretrain --scheme llm-int8 --text {d}/few.txt --fast",
    "claims": "claims absmax-zeropoint --fast",
    "demo": f"demo {DEMO}",
}
PREPARED = ("pretrain", "sft", "reward")  # what the others start from
TIMES = {"seconds", "cpu_seconds", "time", "tokens_per_second", "minutes", "peak_memory_mib", "writing", "reading"}
PLACES = {"run", "base", "file", "teacher", "cache", "of"}  # that hold a path


def write_files(d: Path) -> None:
    """Texts, demonstrations, comparisons and judged completions of one rule."""
    names = ["Mira", "Nora", "Sam", "Ben", "Rosa", "Leo"]
    demos = [{"prompt": f"Where is {name} at {hour}?", "completion": f" {name} is at home."} for name in names
             for hour in range(10)]
    pairs = [{"prompt": r["prompt"], "chosen": r["completion"], "rejected": " Go away, " + r["prompt"][9:13]}
             for r in demos]
    judged = [{"prompt": p["prompt"], "completion": p[side], "liked": side == "chosen"} for p in pairs
              for side in ("chosen", "rejected")]
    text = "\n\n".join(r["prompt"] + r["completion"] for r in demos * 2)
    for name, records in (("demos", demos), ("pairs", pairs), ("judged", judged)):
        (d / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    (d / "text.txt").write_text(text, encoding="utf-8")
    (d / "few.txt").write_text(text[:800], encoding="utf-8")
    (d / "prompts.txt").write_text("\n".join(r["prompt"] for r in demos), encoding="utf-8")


def command(stage: str, d: Path, out: Path) -> int:
    """Run a stage's command in this process and return its status."""
    return run([*(word.format(d=d) for word in STAGES[stage].split()), "--out", str(out)])


def prepare(d: Path) -> None:
    """The files, and the finished runs that other stages start from."""
    d.mkdir(parents=True, exist_ok=True)
    if not (d / "few.txt").exists():
        write_files(d)
    for stage in PREPARED:
        assert in_a_fork(lambda stage=stage: command(stage, d, d / stage), d / "said.txt")[0] == 0, stage


def without_times(value):
    """JSON data without what depends on the clock and the machine, or on where the folder lies."""
    if isinstance(value, dict):
        return {key: without_times(inner) for key, inner in value.items()
                if key not in TIMES | PLACES}
    return [without_times(inner) for inner in value] if isinstance(value, list) else value


def left(out: Path) -> dict[str, str]:
    """File -> digest of all weights, tables and logs below a folder; pages and pictures are left out."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if name == "seconds.json":
            continue
        if path.suffix == ".safetensors":
            found[name] = digest(read_tensors(path)[0])
        elif path.suffix in (".json", ".jsonl"):
            lines = path.read_text(encoding="utf-8").split("\n") if path.suffix == ".jsonl" else [path.read_text()]
            values = [without_times(json.loads(line)) for line in lines if line.strip()]
            found[name] = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
        elif path.suffix == ".csv":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def in_a_fork(work, said: Path, kill_after=None) -> tuple[int, float]:
    """Status and seconds of a process of its own that does some work; killed with -9 after so many seconds. What it
    says goes to a file."""
    started = time.perf_counter()
    if pid := os.fork():
        status = None
        while status is None:
            done, state = os.waitpid(pid, os.WNOHANG)
            if done:
                status = os.waitstatus_to_exitcode(state)
            elif kill_after is not None and time.perf_counter() - started > kill_after:
                os.kill(pid, signal.SIGKILL)
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            else:
                time.sleep(0.002)
        return status, time.perf_counter() - started
    status = 70
    try:
        with open(said, "w", encoding="utf-8") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            sys.stdout = sys.stderr = file
            torch.set_num_threads(1)
            random.seed(0)
            status = work()
    finally:
        os._exit(status)
