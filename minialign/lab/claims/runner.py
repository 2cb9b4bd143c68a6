r"""Claims: what the course notes say, each an experiment, a table, a figure and a verdict computed from the table.

A claim is a module. Its docstring says where the claim comes from, how the toy world tests it and what would count as
failing; in it stand

    CLAIM            its id, one sentence in our own words, the source
    measure(bench)   -> the rows of table.csv, one after the other
    judge(table)     -> each statement with whether the table shows it, and one sentence with the numbers that decide
    draw(table)      -> the figure, or name -> figure where there are several

Rows may be controls (`control`): what the claim takes for granted, measured in the same run. Where one of them fails,
the claim is *not measurable* with these models, whatever the comparison says.

Verdict and figure are made from the table as it was written, so that both can be made again (`judged`) without
measuring anything. A claim that fails at this scale is a result; it is written down like the others. What was tried
before stands in data/claims/ID/notes.md.

Read next: page.py. Try it:  python -m minialign claims absmax-zeropoint --fast
"""

import csv
import importlib
import io
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from minialign.lab.claims import Bench, Table, controls, distinct
from minialign.lab.plotting import save_png
from minialign.runs.errors import UserError
from minialign.runs.files import read_json, write_atomic, write_json
from minialign.runs.process import keep_memory
from minialign.runs.processes import end_with_parent

TABLE = "table.csv"
HOLDS, PARTLY, FAILS = "holds", "holds partly", "does not hold at this scale"
UNDECIDED = "undecided, too few seeds"
UNMEASURABLE = "not measurable, a control failed"
# verdict -> its style on the page and its sign
SIGNS = {HOLDS: ("holds", "✓"), PARTLY: ("partly", "◐"), FAILS: ("fails", "✗"), UNDECIDED: ("undecided", "?"),
         UNMEASURABLE: ("unmeasurable", "–")}
CHECKED = {True: HOLDS, False: FAILS, None: UNDECIDED}  # a check -> the verdict whose sign it has
FEWEST = 3  # seeds whose interval is worth the name
HEADINGS = {  # heading of the notes -> its claims; the module of "lora-rank" is lora_rank.py
    "Instruction tuning": ("t0-unseen-tasks", "t0-templates", "flan-clusters", "t5-fixed-format"),
    "Human feedback": ("size-is-not-alignment", "rouge-is-poor", "humans-disagree", "reward-scaling",
                       "over-optimisation", "people-prefer-rlhf", "instructgpt"),
    "Fine-tuning": ("transfer-distance", "bitfit", "adapter-identity", "adapter-size", "lora-rank", "lora-size",
                    "lora-many-tasks", "prompt-tuning"),
    "Quantization": ("absmax-zeropoint", "ptq-qat", "static-dynamic", "int8-outliers", "half-precision"),
    "Distillation": ("distillation",),
    "After the notes": ("grpo-verifiable", "qlora", "gptq-rounding", "smoothquant-outliers", "speculative-exact",
                        "dora"),
}
CLAIMS = {id: id.replace("-", "_") for ids in HEADINGS.values() for id in ids}  # id -> module


def load(id: str) -> Any:
    """The module of a claim. Raises UserError for an unknown id."""
    if id not in CLAIMS:
        raise UserError(f"there is no claim {id!r}; known are {', '.join(CLAIMS)}")
    return importlib.import_module(f"minialign.lab.claims.{CLAIMS[id]}")


def run_claims(ids: Iterable[str], out: Path, seeds: int, fast: bool, say: Callable[[str], None] = print,
               workers: int = 1) -> list[dict[str, Any]]:
    """Measure claims, write OUT/ID/{verdict.json, table.csv, figure.png}, and return the verdicts in the order of ids.

    Args:
        workers: processes that share the claims, and the machine's cores among them. A small model gains little from a
            second core, two models much.

    Raises:
        UserError: an unknown id (before anything runs), fewer than FEWEST seeds for a verdict.
    """
    ids = list(ids)
    for id in ids:
        load(id)
    if seeds < FEWEST and not fast:
        raise UserError(f"--seeds {seeds} gives no interval worth the name; use at least {FEWEST}, or --fast for a "
                        f"quick look")
    if workers == 1:
        return collected({id: partial(run_claim, id, out, seeds, fast, say) for id in ids}, say)
    threads = max(1, (os.cpu_count() or 1) // workers)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker, (threads,)) as pool:
        jobs = {id: pool.submit(run_claim, id, out, seeds, fast) for id in from_both_ends(ids)}
        return collected({id: jobs[id].result for id in ids}, say)


def collected(works: dict[str, Callable[[], dict[str, Any]]], say: Callable[[str], None]) -> list[dict[str, Any]]:
    """The verdicts, in order. A claim that lacks what it is measured with is left out, which is said; it is an error
    when nothing else was asked for."""
    found = []
    for id, work in works.items():
        try:
            found.append(work())
        except UserError as error:
            if len(works) == 1:
                raise
            say(f"  {id} is left out: {error}")
    return found


def start_worker(threads: int) -> None:
    """What a process of its own needs before its first claim: its share of the cores, and a run's memory; and it ends
    with the one that waits for it."""
    end_with_parent()
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
    module, folder = load(id), Path(out) / id
    say(f"{id}: {module.CLAIM.text}")
    started, worked = time.perf_counter(), time.process_time()
    table = list(module.measure(Bench(folder, Path(out) / "cache", seeds, fast, say)))
    write_atomic(folder / TABLE, as_csv(table))
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
    the figures anew. A table of fewer than FEWEST seeds decides nothing, nor one with a control that failed: its checks
    are None."""
    module, table = load(id), from_csv((folder / TABLE).read_text(encoding="utf-8"))
    taken_for_granted = controls(table)
    table = [row for row in table if "control" not in row]  # a judge does not look at them
    checks, why = module.judge(table)
    figures = module.draw(table)
    for name, figure in (figures if isinstance(figures, dict) else {"figure": figures}).items():
        save_png(figure, folder / f"{name}.png")
    verdict = HOLDS if all(checks.values()) else PARTLY if any(checks.values()) else FAILS
    if not all(control["passed"] for control in taken_for_granted):
        checks, verdict = dict.fromkeys(checks), UNMEASURABLE
    if len(distinct(table, "seed")) < FEWEST:
        checks, verdict = dict.fromkeys(checks), UNDECIDED
    claim = module.CLAIM
    said = {"id": id, "claim": claim.text, "source": claim.source, "verdict": verdict, "why": why, "checks": checks}
    return said | ({"controls": taken_for_granted} if taken_for_granted else {})


def judge_again(ids: Iterable[str], out: Path, say: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Judge the tables that OUT/ID/ hold once more, for a judge that was changed; times, seeds and "fast" stay.

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


def as_csv(rows: Table) -> str:
    """Rows as CSV text; numbers to six digits, so that a table can be compared by eye."""
    file, fields = io.StringIO(), list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(file, fieldnames=fields, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})
    return file.getvalue()


def from_csv(text: str) -> Table:
    """The rows of `as_csv`: whole numbers, numbers, words; a field that a row does not have is left out."""
    rows = csv.DictReader(io.StringIO(text))
    return [{key: number_or_word(value) for key, value in row.items() if value} for row in rows]


def number_or_word(text: str) -> int | float | str:
    """What the text of a field stands for."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
