"""docs/parity.md, which the tests of tests/parity write, has rows enough, names tests that exist and the pinned
libraries, and the README leads to it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TABLE = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (.+?) \| (.+?) \| (\S+) \| (\S+) \| \[`(test_\w+)`\]\(\.\./(tests/parity/test_\w+\.py)\) \|$",
                  TABLE, re.M)


def test_the_table_has_forty_pieces_or_more_and_says_how_many():
    assert len(ROWS) >= 40 and len({piece for piece, *_ in ROWS}) == len(ROWS)
    assert f"\n{len(ROWS)} rows." in TABLE and TABLE.count("\n| ") == len(ROWS) + 2  # beside its head
    assert f"[{len(ROWS)} pieces](docs/parity.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("file", sorted({file for *_, file in ROWS}))
def test_its_tests_exist_and_say_what_they_compare(file):
    source = (ROOT / file).read_text(encoding="utf-8")
    for *_, test, where in ROWS:
        if where == file:
            assert re.search(rf"@pytest\.mark\.piece\([^@]*\)\n(@.*\n|    .*\n)*def {test}\(", source), test


def test_its_libraries_are_those_that_are_pinned():
    pins = "\n".join((ROOT / name).read_text() for name in ("requirements.txt", "tests/parity/requirements.txt"))
    pinned = dict(re.findall(r"^([\w-]+)==([\w.]+)", pins, re.M))
    for _, peer, *_ in ROWS:
        name, version = peer.rsplit(" ", 1)
        assert peer == "slow reference" or pinned[name] == version, peer


def test_no_difference_is_larger_than_a_hundredth_of_what_is_compared():
    for piece, _, difference, largest, *_ in ROWS:
        if difference != "equal":
            assert float(difference) <= 0.01 * float(largest.replace(",", "")), piece
