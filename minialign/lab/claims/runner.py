r"""Claims: what the course notes say, each turned into an experiment, a table, a figure and a verdict computed from the
table.

A claim is a module whose docstring says which paper it comes from, how the toy world tests it and what would count as
failing, and in which stand

    CLAIM                   its id, one sentence in our own words, the source
    measure(bench)          -> the rows of table.csv
    judge(table)            -> what the claim says, each statement with whether the table shows it; and one sentence with the numbers that decide
    draw(table, path)       the figure

Verdict and figure are made from the table as it was written, so both can be made again from it (`judged`) without
measuring anything. A claim that fails at this scale is a result; it is written down like the others.

Trained models that several claims need are made once and cached under a key of everything they depend on: the settings,
the seed, the versions of torch and tokenizers, and the source of every file below the claims that is imported on the
way, so that a changed setting or line never meets a stale model, and a change elsewhere in the house costs nobody an
hour of training.
"""

from __future__ import annotations

import csv
import importlib
import io
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
import torch
from filelock import FileLock

from minialign.evaluation import Interval, mean_interval
from minialign.lab.claims.sources import source_fingerprint
from minialign.runs.errors import UserError
from minialign.runs.files import fingerprint, read_json, write_atomic, write_json
from minialign.runs.process import keep_memory

TABLE = "table.csv"
HOLDS, PARTLY, FAILS = "holds", "holds partly", "does not hold at this scale"
CLAIMS = {  # id -> module
    "t0-unseen-tasks": "t0_unseen_tasks",
    "t0-templates": "t0_templates",
    "flan-clusters": "flan_clusters",
    "t5-fixed-format": "t5_fixed_format",
    "size-is-not-alignment": "size_is_not_alignment",
    "rouge-is-poor": "rouge_is_poor",
    "humans-disagree": "humans_disagree",
    "reward-scaling": "reward_scaling",
    "over-optimisation": "over_optimisation",
    "people-prefer-rlhf": "people_prefer_rlhf",
    "instructgpt": "instructgpt",
    "transfer-distance": "transfer_distance",
    "bitfit": "bitfit",
    "adapter-identity": "adapter_identity",
    "adapter-size": "adapter_size",
    "lora-rank": "lora_rank",
    "lora-size": "lora_size",
    "lora-many-tasks": "lora_many_tasks",
    "prompt-tuning": "prompt_tuning",
    "absmax-zeropoint": "absmax_zeropoint",
    "ptq-qat": "ptq_qat",
    "static-dynamic": "static_dynamic",
    "int8-outliers": "int8_outliers",
    "half-precision": "half_precision",
    "distillation": "distillation",
}


@dataclass(frozen=True)
class Claim:
    """What is claimed."""

    id: str
    text: str  # one sentence, our own words
    source: str  # paper and figure


@dataclass
class Bench:
    """What an experiment runs on.

    Args:
        folder: for its own runs, inside the output folder.
        cache: for models that claims share.
        seeds: how many; at least three unless --fast.
        fast: a quick look, too small to decide anything.
    """

    folder: Path
    cache: Path
    seeds: int = 3
    fast: bool = False
    say: Callable[[str], None] = field(default=print)

    def cached(self, name: str, settings: Any, make: Callable[[Path], None]) -> Path:
        """The folder of a shared stage, made by `make(folder)` when this exact stage was not made before.

        `make` may be interrupted: it is called again with the same folder and must go on from what it finds there.
        """
        folder = (self.cache
            / f"{name}-{fingerprint([settings, source_fingerprint(make.__module__), torch.__version__, tokenizers.__version__])}")
        self.cache.mkdir(parents=True, exist_ok=True)
        # another worker may be at it: wait, and take what it made
        with FileLock(folder.with_name(folder.name + ".lock")):
            if not (folder / "made").exists():
                make(folder)
                write_atomic(folder / "made", name)
        return folder


def over_seeds(values: list[float], lowest: float = -math.inf, highest: float = math.inf) -> Interval:
    """Mean and 95 % interval over seeds, cut at what values can be; with one seed (a quick look) the interval is
    everything that they can be."""
    return mean_interval(values, lowest, highest) if len(values) > 1 else Interval(values[0], lowest, highest)


def difference(first: list[float], second: list[float]) -> Interval:
    """Mean and interval of first − second, seed by seed."""
    return over_seeds([a - b for a, b in zip(first, second)])


def drawn(interval: Interval) -> Any:
    """An interval as the figures take it: one without ends is its mean alone."""
    return interval if math.isfinite(interval.high - interval.low) else interval.mean


def load(id: str) -> Any:
    """The module of a claim. Raises UserError for an unknown id."""
    if id not in CLAIMS:
        raise UserError(f"there is no claim {id!r}; known are {', '.join(CLAIMS)}")
    return importlib.import_module(f"minialign.lab.claims.{CLAIMS[id]}")


def run_claims(ids: Iterable[str], out: Path, seeds: int, fast: bool, say: Callable[[str], None] = print,
               workers: int = 1) -> list[dict[str, Any]]:
    """Measure claims and write OUT/ID/{verdict.json, table.csv, figure.png}; returns the verdicts in the order of the
    ids.

    Args:
        workers: processes that share the claims, and the machine's cores among them. A small model gains little from a
            second core, two models much.

    Raises:
        UserError: an unknown id (before anything runs), fewer than three seeds for a verdict.
    """
    ids = list(ids)
    for id in ids:
        load(id)
    if seeds < 3 and not fast:
        raise UserError(f"{seeds} seeds give no interval worth the name; use at least 3, or --fast for a quick look")
    if workers == 1:
        return [run_claim(id, out, seeds, fast, say) for id in ids]
    threads = max(1, (os.cpu_count() or 1) // workers)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker, (threads,)) as pool:
        jobs = {id: pool.submit(run_claim, id, out, seeds, fast) for id in from_both_ends(ids)}
        return [jobs[id].result() for id in ids]


def start_worker(threads: int) -> None:
    """What a process of its own needs before its first claim: its share of the cores, and a run's memory."""
    keep_memory()
    torch.set_num_threads(threads)


def from_both_ends(ids: list[str]) -> list[str]:
    """First, last, second, last but one …: neighbours share models, and two workers that begin far apart seldom wait
    for each other's."""
    half = (len(ids) + 1) // 2
    return [id for pair in zip(ids[:half], [*reversed(ids[half:]), None]) for id in pair if id is not None]


def run_claim(id: str, out: Path, seeds: int, fast: bool, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure one claim and write its files; returns its verdict. "seconds" is time on the clock, "cpu_seconds" that of
    all cores."""
    module = load(id)
    say(f"{id}: {module.CLAIM.text}")
    folder, started, worked = Path(out) / id, time.perf_counter(), time.process_time()
    write_atomic(folder / TABLE, as_csv(module.measure(Bench(folder, Path(out) / "cache", seeds, fast, say))))
    verdict = judged(id, folder) | {
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - worked, 1),
        "seeds": seeds,
        "fast": fast,
    }
    write_json(folder / "verdict.json", verdict)
    say(f"  {id} {verdict['verdict']}{' (--fast is too small to decide anything)' if fast else ''}: {verdict['why']}")
    return verdict


def judged(id: str, folder: Path) -> dict[str, Any]:
    """What a claim's judge says of the table in a folder, the part of its verdict that nothing is measured for; draws
    the figure anew."""
    module, table = load(id), from_csv((folder / TABLE).read_text(encoding="utf-8"))
    checks, why = module.judge(table)
    module.draw(table, folder / "figure.png")
    verdict = HOLDS if all(checks.values()) else PARTLY if any(checks.values()) else FAILS
    return {"id": id, "claim": module.CLAIM.text, "source": module.CLAIM.source, "verdict": verdict, "why": why,
            "checks": checks}


def judge_again(ids: Iterable[str], out: Path, say: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Judge the tables that OUT/ID/ hold once more, for a judge that was changed; times, seeds and "fast" stay as they
    were measured.

    Raises:
        UserError: an unknown id, no table to judge.
    """
    verdicts = []
    for id in ids:
        load(id)
        folder = Path(out) / id
        if not (folder / TABLE).exists():
            raise UserError("there is nothing to judge; measure first", folder / TABLE)
        verdict = read_json(folder / "verdict.json") | judged(id, folder)
        write_json(folder / "verdict.json", verdict)
        say(f"  {id} {verdict['verdict']}: {verdict['why']}")
        verdicts.append(verdict)
    return verdicts


def as_csv(rows: list[dict[str, Any]]) -> str:
    """Rows as CSV text; numbers to six digits, so that a table can be compared by eye."""
    file = io.StringIO()
    writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(key for row in rows for key in row)),
                            lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})
    return file.getvalue()


def from_csv(text: str) -> list[dict[str, Any]]:
    """The rows of `as_csv`: whole numbers, numbers, words; a field that a row does not have is left out."""
    return [{key: number_or_word(value) for key, value in row.items() if value}
            for row in csv.DictReader(io.StringIO(text))]


def number_or_word(text: str) -> int | float | str:
    """What the text of a field stands for."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
