r"""How good is it, and how sure are we: intervals, win rates, latency, bytes, memory.

Every number that the project reports comes with a 95 % interval, over prompts for one model and over seeds for a claim.
What the interval is over must be said: completions to one prompt are not independent, so a prompt counts once.

Read next: ranking.py.
"""

import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from minialign.runs.errors import UserError

# 97.5 % points of Student's t for 1, 2, … degrees of freedom: three seeds have two
STUDENT = [12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
           2.120, 2.110, 2.101, 2.093, 2.086]


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """As JSON holds it."""
        return asdict(self)

    def above(self, other: "Interval") -> bool:
        """Whether the two intervals are apart, this one higher."""
        return self.low > other.high

    def __str__(self) -> str:
        if math.isinf(self.high - self.low):
            return f"{self.mean:.3f} (one seed)"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean_interval(values: Sequence[float], lowest: float = -math.inf, highest: float = math.inf) -> Interval:
    """Mean of independent values (one a prompt, or one a seed) with Student's interval x̄ ± t s / √n, cut at what
    values can be. Raises UserError for fewer than two values."""
    n = len(values)
    if n < 2:
        raise UserError(f"an interval needs at least two values, and there are {n}; use more --seeds or more prompts")
    mean = math.fsum(values) / n
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    t = STUDENT[n - 2] if n - 2 < len(STUDENT) else 1.96 + 2.5 / n
    half = t * std / math.sqrt(n)
    return Interval(mean, max(lowest, mean - half), min(highest, mean + half))


def wilson_interval(successes: float, n: int) -> Interval:
    """Share of successes (a tie may count one half) among n independent trials, with the interval of Wilson 1927, which
    stays inside [0, 1]."""
    if n < 1:
        raise UserError("a share needs at least one trial")
    z2, p = 1.96**2, successes / n
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = 1.96 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return Interval(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)))  # p inside despite rounding


def win_rate(outcomes: Sequence[Sequence[float]]) -> Interval:
    """How often one side wins, with an interval over prompts.

    outcomes: for each prompt, what every judge said: 1 a win, ½ a tie, 0 a loss. The judges of one prompt look at the
    same two completions, so they are averaged first and the prompt counts once.
    """
    return mean_interval([math.fsum(judges) / len(judges) for judges in outcomes], 0.0, 1.0)


def binary_accuracy(predicted: Sequence[float]) -> Interval:
    """Share of pairs ordered rightly, from signed differences (above 0: right; 0 counts one half)."""
    return wilson_interval(sum(1.0 if d > 0 else 0.5 if d == 0 else 0.0 for d in predicted), len(predicted))


def latency(work: Callable[[], object], rounds: int = 5) -> float:
    """Seconds that a piece of work takes: the median of `rounds` after one that warms up. For ratios in one run."""
    samples = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        work()
        samples.append(time.perf_counter() - began)
    return statistics.median(samples[1:])


def bytes_on_disk(path: Path) -> int:
    """Bytes of a file, or of all files below a folder. Raises UserError when it is not there."""
    path = Path(path)
    if not path.exists():
        raise UserError("there is no such file or folder", path)
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


def peak_memory_mib() -> float | None:
    """Most memory that this process has held, MiB; None where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
