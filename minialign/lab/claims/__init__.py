r"""What a claim is made of: the claim, the bench that its experiment runs on, the table that its verdict is read from.

A trained model that several claims need is made once. It is kept under a key of all that it depends on: its settings,
the versions of torch and tokenizers, and the source of every file that its module imports on the way. So a changed
setting or line never meets a stale model, and a change elsewhere costs nobody an hour of training.

Read next: runner.py.
"""

import ast
import functools
import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import tokenizers
import torch
from filelock import FileLock

from minialign.evaluation import Interval, mean_interval
from minialign.runs.errors import UserError
from minialign.runs.files import fingerprint, write_atomic

Rows = Iterator[dict[str, Any]]  # of table.csv, one after the other
Table = list[dict[str, Any]]
Verdict = tuple[dict[str, bool], str]  # statement -> whether the table shows it; one sentence with the numbers
# what only runs, judges and shows: no kept model depends on it
ABOVE = ("lab/commands", "lab/claims/__init__.py", "lab/claims/runner.py", "lab/claims/page.py")


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
        """The folder of a shared stage; `make(folder)` makes it unless this exact stage was made before.

        `make` may be interrupted: it is called again with the same folder and must go on from what it finds there.
        """
        sources = source_fingerprint(make.__module__)
        key = fingerprint([settings, sources, torch.__version__, tokenizers.__version__])
        folder = self.cache / f"{name}-{key}"
        self.cache.mkdir(parents=True, exist_ok=True)
        # another worker may be at it: wait, and take what it made
        with FileLock(folder.with_name(folder.name + ".lock")):
            if not (folder / "made").exists():
                make(folder)
                write_atomic(folder / "made", name)
        return folder

    def fetched(self, what: str, fetch: Callable[[], Any]) -> Any:
        """What `fetch()` gives; None when it cannot be fetched, and it is said that `what` is left out."""
        try:
            return fetch()
        except UserError as error:
            self.say(f"  left out: {what} ({error})")
            return None


# the table


def column(table: Table, what: str, **which: Any) -> list[Any]:
    """One field of the rows that match and have it, in the order of the seeds."""
    return [row[what] for row in table if what in row and all(row.get(key) == value for key, value in which.items())]


def distinct(table: Table, what: str, **which: Any) -> list[Any]:
    """The values that a field takes in the rows that match, in the order in which they appear."""
    return list(dict.fromkeys(column(table, what, **which)))


def over_seeds(values: list[float], lowest: float = -math.inf, highest: float = math.inf) -> Interval:
    """Mean and 95 % interval over seeds, cut at what values can be. With one seed (a quick look) the interval is
    everything that they can be."""
    return mean_interval(values, lowest, highest) if len(values) > 1 else Interval(values[0], lowest, highest)


def minus(first: list[float], second: list[float]) -> list[float]:
    """first − second, seed by seed."""
    return [a - b for a, b in zip(first, second)]


def difference(first: list[float], second: list[float]) -> Interval:
    """Mean and interval of first − second, seed by seed."""
    return over_seeds(minus(first, second))


def point(table: Table, what: str, **which: Any) -> Interval:
    """One field of the rows that match, over the seeds."""
    return over_seeds(column(table, what, **which))


# controls: what a claim takes for granted, measured in the same run


def control(name: str, value: float, threshold: float, seed: int) -> dict[str, Any]:
    """A row of the table: something that the claim takes for granted, fixed before anything was run. It never looks at
    what the claim compares. Where the mean over seeds stays below the threshold the claim is not measurable."""
    return {"seed": seed, "control": name, "value": float(value), "threshold": threshold}


def controls(table: Table) -> list[dict[str, Any]]:
    """The controls of a table as they stand in verdict.json: {name, value, threshold, passed}."""
    found = []
    for name in distinct(table, "control"):
        value = over_seeds(column(table, "value", control=name)).mean
        threshold = column(table, "threshold", control=name)[0]
        found.append({"name": name, "value": round(value, 4), "threshold": threshold, "passed": value >= threshold})
    return found


# the machine


def time_ratio(first: Callable, second: Callable, rounds: int, alternate: bool = False) -> float:
    """Median ratio of the times of two pieces of work, in turn, after three rounds that warm up; `alternate` lets the
    second begin every other round."""
    ratios = []
    for number in range(rounds + 3):
        times = {}
        for work in (second, first) if alternate and number % 2 else (first, second):
            began = perf_counter()
            work()
            times[work] = perf_counter() - began
        ratios.append(times[first] / times[second])
    return sorted(ratios[3:])[rounds // 2]


# what a kept model depends on


def source_fingerprint(module: str) -> str:
    """Sixteen hex digits of the source files that a module reaches by its imports, and of the JSON tables beside them;
    those of ABOVE are left out.

    Args:
        module: full name, as that of a claim.
    """
    package, digest = Path(__file__).parents[2], hashlib.sha256()
    below = [path for path in reached(module) if not path.relative_to(package).as_posix().startswith(ABOVE)]
    tables = {file for folder in {path.parent for path in below} for file in folder.glob("*.json")}
    for path in sorted({*below, *tables}):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def reached(module: str) -> set[Path]:
    """The files of minialign that are imported, directly or not, when a module is."""
    files, waiting = set(), [module]
    while waiting:
        path = Path(__file__).parents[3] / Path(*waiting.pop().split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if path.exists() and path not in files:
            files.add(path)
            waiting += imported(path)
    return files


@functools.cache
def imported(path: Path) -> list[str]:
    """Full names of minialign's modules, and of the packages around them, that a file's import statements could mean,
    wherever they stand in it."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            around = path.relative_to(Path(__file__).parents[3]).parts[: -node.level] if node.level else ()
            module = ".".join((*around, *([node.module] if node.module else [])))
            names += [module, *(f"{module}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.split(".")[0] == "minialign"]
