"""Writes the table of docs/parity.md from the comparisons themselves:

    python -m pytest tests/parity --parity-table docs/parity.md

A test says by `@pytest.mark.piece(piece, library)` what it compares and with whose numbers. While it runs, every
`torch.testing.assert_close`, `torch.equal` and `torch.allclose` in it measures how far its two sides are apart; the row
gets the largest such difference of all its cases. No number is typed by hand, and when a test fails no table is left.
"""

import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

HEAD = """# The same numbers as the libraries that professionals use

Every row is a test that computes a piece with minialign and with the library, on the same input, and fails where they
differ by more than its tolerance. The **largest difference** is absolute, over all numbers and all cases of the test;
beside it stands the largest number that was compared, since a difference of 1e-6 says something else of 0.1 than of
1000. "equal" are numbers that are equal to the last bit. Where the two are known to differ, the test takes the
difference out first and its file says why. A reference without a version is one of our own: slow, written from the
paper, and sharing no line with the package. Rows about what is drawn by chance compare shares, as a statistical test
does.

{rows} rows. CPU, float32, one thread; the last digits differ from processor to processor. Written by

```
.venv/bin/pip install -q -r tests/parity/requirements.txt
.venv/bin/python -m pytest tests/parity --parity-table docs/parity.md
```

| piece | compared with | largest difference | of numbers up to | test |
| --- | --- | ---: | ---: | --- |
"""
NAMES = {"gpt2": "GPT-2", "llama": "Llama"}  # of what a test is given, as the table writes it


def pytest_addoption(parser):
    parser.addoption("--parity-table", metavar="FILE", help="write the table of all comparisons to this file")


def pytest_configure(config):
    config.addinivalue_line("markers", "piece(piece, library): what a test compares, and with which library")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Table(config.getoption("--parity-table")), "parity-table")


class Measured:
    """The largest difference between two sides that were compared, and the largest number among them."""

    def __init__(self):
        self.difference, self.largest, self.compared = 0.0, 0.0, 0

    def see(self, ours, theirs):
        """Two sides of a comparison: tensors, numbers, or sequences of these."""
        if isinstance(ours, list | tuple) and isinstance(theirs, list | tuple):
            for a, b in zip(ours, theirs):
                self.see(a, b)
            return
        a, b = (torch.as_tensor(side).detach().double().flatten() for side in (ours, theirs))
        if a.numel() == b.numel() and a.numel():
            self.difference = max(self.difference, float((a - b).abs().max()))
            self.largest = max(self.largest, float(b.abs().max()))
            self.compared += a.numel()


def measuring(original, found):
    """A function that compares, and what it compares is measured too: of a test itself, not of a library below it."""
    def compare(a, b, *rest, **named):
        verdict = original(a, b, *rest, **named)
        here = Path(sys._getframe(1).f_code.co_filename).parent == Path(__file__).parent
        if here and verdict is not False:  # what a test expects to differ is no parity
            found.see(a, b)
        return verdict

    return compare


@pytest.fixture(autouse=True)
def measured(request, monkeypatch):
    """Measures every comparison of a test; ask for it to add one that is made in another way: measured.see(a, b)."""
    found = Measured()
    for place, name in ((torch.testing, "assert_close"), (torch, "equal"), (torch, "allclose")):
        monkeypatch.setattr(place, name, measuring(getattr(place, name), found))
    yield found
    mark = request.node.get_closest_marker("piece")
    if mark and found.compared:
        piece, library = mark.args
        case = {name: NAMES.get(str(value), value)
                for name, value in getattr(getattr(request.node, "callspec", None), "params", {}).items()}
        test = f"{Path(request.node.fspath).name}::{request.node.originalname}"
        row = [piece.format(**case), library, test, found.difference, found.largest]
        request.node.user_properties.append(("parity", row))


def shown(number: float) -> str:
    """A number as the table shows it."""
    if number >= 1000:
        return f"{number:,.0f}"
    return re.sub(r"e-0", "e-", f"{number:.1e}") if 0 < number < 0.1 else f"{number:.3g}"


class Table:
    """Gathers what the tests measured, from every process that runs some, and writes it at the end."""

    def __init__(self, file):
        self.file, self.rows, self.passed = file, {}, True

    def pytest_runtest_logreport(self, report):
        self.passed &= not report.failed
        if report.when == "teardown":
            for name, value in report.user_properties:
                if name == "parity":
                    piece, library, test, difference, largest = value
                    row = self.rows.setdefault((test, piece, library), [0.0, 0.0])
                    row[:] = max(row[0], difference), max(row[1], largest)

    def pytest_terminal_summary(self, terminalreporter):
        if self.file is None or not self.passed:
            return
        lines = []
        for (test, piece, library), (difference, largest) in sorted(self.rows.items()):
            peer = f"{library} {version(library).split('+')[0]}" if library != "slow reference" else library
            found = "equal" if difference == 0 else shown(difference)
            lines.append(f"| {piece} | {peer} | {found} | {shown(largest)} | [`{test.split('::')[1]}`]"
                         f"(../tests/parity/{test.split('::')[0]}) |\n")
        Path(self.file).write_text(HEAD.format(rows=len(lines)) + "".join(lines), encoding="utf-8")
        terminalreporter.write_line(f"{len(lines)} rows in {self.file}")
