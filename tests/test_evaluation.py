"""Intervals that cover as often as they say, win rates, latency, bytes."""

import math
import random

import pytest

from minialign.evaluation import (
    Interval,
    binary_accuracy,
    bytes_on_disk,
    latency,
    mean_interval,
    peak_memory_mib,
    wilson_interval,
    win_rate,
)
from minialign.runs.errors import UserError


def test_students_interval_of_three_values_is_the_textbooks():
    """x̄ = 2, s = 1, n = 3: 2 ± 4.303 / √3."""
    found = mean_interval([1.0, 2.0, 3.0])
    assert found.mean == 2 and found.high == pytest.approx(2 + 4.303 / math.sqrt(3)) and found.low == pytest.approx(2
        - 4.303 / math.sqrt(3))
    assert mean_interval([0.9, 0.95, 1.0], 0.0, 1.0).high == 1.0
    with pytest.raises(UserError, match="at least two values"):
        mean_interval([1.0])


@pytest.mark.parametrize("n", [3, 10, 40])
def test_the_interval_covers_the_mean_as_often_as_it_says(n):
    """2,000 draws: the share covered has a std of .005 at .95."""
    chance = random.Random(0)
    covered = 0
    for _ in range(2000):
        interval = mean_interval([chance.gauss(0.3, 1.0) for _ in range(n)])
        covered += interval.low <= 0.3 <= interval.high
    assert covered / 2000 == pytest.approx(0.95, abs=0.025)


@pytest.mark.parametrize("n", range(2, 45))
def test_the_factor_of_every_number_of_values_is_the_quantile_of_students_distribution(n):
    """Probability between -t and t, by Simpson's rule over Student's density with n - 1 degrees of freedom."""
    df, values = n - 1, [(-1.0) ** i for i in range(n)]
    found = mean_interval(values)
    std = math.sqrt(math.fsum((v - found.mean) ** 2 for v in values) / df)
    t, parts = (found.high - found.mean) / std * math.sqrt(n), 4000
    scale = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(df * math.pi)
    density = [scale * (1 + (t * i / parts) ** 2 / df) ** (-(df + 1) / 2) for i in range(parts + 1)]
    inside = 2 * t / parts / 3 * (density[0] + density[-1] + 4 * sum(density[1:-1:2]) + 2 * sum(density[2:-1:2]))
    assert inside == pytest.approx(0.95, abs=1e-4 if n < 22 else 1e-3)  # a formula stands for the longer tables


def test_peak_memory_is_in_mebibytes_on_both_kinds_of_system(monkeypatch):
    found = peak_memory_mib()
    monkeypatch.setattr("sys.platform", "darwin")  # where the same number counts bytes
    assert peak_memory_mib() == pytest.approx(found / 1024, rel=0.1)


def test_wilsons_interval_stays_inside_and_covers():
    assert wilson_interval(0, 10).low == 0 and wilson_interval(10, 10).high == 1
    for n in range(1, 400):  # for n = 6 and 21, rounding once put the mean of n successes above the upper end
        assert all(found.low <= found.mean <= found.high for found in (wilson_interval(k, n) for k in (0, n)))
    centre, half = (0.5 + 1.96**2 / 200) / (1 + 1.96**2 / 100), 1.96 / (1 + 1.96**2 / 100) * math.sqrt(0.25 / 100
        + 1.96**2 / 40000)
    found = wilson_interval(50, 100)
    assert (found.low, found.high) == (pytest.approx(centre - half), pytest.approx(centre + half))
    with pytest.raises(UserError, match="at least one trial"):
        wilson_interval(0, 0)


def test_the_judges_of_a_prompt_count_once():
    assert win_rate([[1, 1, 1], [0, 0, 0]]).mean == 0.5
    assert win_rate([[1], [0, 0, 0, 0]]).mean == 0.5, "four judges of one prompt are no four prompts"
    nearly_all, hardly_any = (win_rate([[x], [x], [x], [abs(x - 0.5)]]) for x in (1.0, 0.0))
    assert nearly_all.high == 1.0 and hardly_any.low == 0.0, "nobody wins more than every time"


def test_intervals_are_apart_or_not():
    assert Interval(0.6, 0.55, 0.65).above(Interval(0.5, 0.45, 0.54)) and not Interval(0.6, 0.5,
        0.7).above(Interval(0.5, 0.45, 0.54))


def test_an_interval_of_one_seed_says_so():
    assert str(Interval(0.5, 0.4, 0.6)) == "0.500 [0.400, 0.600]"
    assert str(Interval(0.5, -math.inf, math.inf)) == str(Interval(0.5, 0.0, math.inf)) == "0.500 (one seed)"


def test_ties_count_one_half():
    assert binary_accuracy([1.0, -1.0, 0.0, 0.0]).mean == 0.5


def test_bytes_are_those_on_the_disk(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "below" / "b").write_bytes(b"123")
    assert bytes_on_disk(tmp_path) == 8 and bytes_on_disk(tmp_path / "a") == 5
    with pytest.raises(UserError, match="no such file or folder"):
        bytes_on_disk(tmp_path / "c")


def test_latency_is_the_median_without_the_first(monkeypatch):
    ticks = iter([0, 100, 100, 101, 101, 104, 104, 106])  # 100 s to warm up, then 1, 3 and 2 s
    monkeypatch.setattr("minialign.evaluation.time.perf_counter", lambda: next(ticks))
    assert latency(lambda: None, rounds=3) == 2


def test_memory_is_known_or_said_to_be_unknown():
    assert peak_memory_mib() is None or peak_memory_mib() > 10
