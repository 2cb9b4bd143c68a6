"""What a run changes in its process, and that importing the package changes nothing."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

FETCHED = """
import resource, sys
from minialign.runs.process import prepare_process
if "prepared" in sys.argv:
    prepare_process()
import minialign.__main__, torch
def fetched():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(40):  # the first ones find their places
    before = fetched()
    torch.ones(2**23)
print(fetched() - before)
"""
CHANGED = """
import os
before = dict(os.environ)
import minialign, minialign.__main__, minialign.runs.process
assert dict(os.environ) == before
minialign.runs.process.prepare_process()
print({name: value for name, value in os.environ.items() if before.get(name) != value})
"""

FIRST_CELL = """
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"))
            os._exit(0)
sys.meta_path.insert(0, Watch())
sys.stdout.reconfigure(line_buffering=True)
exec(sys.argv[1])
"""
NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def said(code, *arguments, **variables):
    """What a process says whose user set none of the variables but these."""
    ours = ("MALLOC_", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    others = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run([sys.executable, "-c", code, *arguments], env=others | variables, text=True, check=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout.strip()


def first_cell(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "".join(next(cell["source"] for cell in cells if cell["cell_type"] == "code"))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries decide for themselves")
def test_memory_of_large_tables_is_kept_unless_the_user_says_otherwise():
    assert int(said(FETCHED, "prepared")) < 100  # of 8192 pages
    assert int(said(FETCHED, "prepared", MALLOC_ARENA_MAX="8")) > 100


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries decide for themselves")
def test_importing_the_package_leaves_the_c_library_alone():
    assert int(said(FETCHED)) > 100


def test_importing_the_package_leaves_the_environment_alone_and_a_run_sets_how_long_threads_spin():
    assert said(CHANGED) == "{'GOMP_SPINCOUNT': '2000'}"


@pytest.mark.parametrize("chosen", [{"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "PASSIVE"}])
def test_whoever_says_how_threads_wait_is_left_alone(chosen):
    assert said(CHANGED, **chosen) == "{}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_says_how_long_threads_spin_before_it_imports_torch(path):
    """A kernel is no command. With the usual 300,000 spins a training cell took ten times as long beside a neighbour
    that keeps one of two cores busy, and less than three times with these."""
    assert said(FIRST_CELL, first_cell(path)) == "2000"


def test_the_library_that_runs_the_threads_has_heard_it():
    heard = said(first_cell(NOTEBOOKS[0]).partition("import torch")[0] + "import torch", OMP_DISPLAY_ENV="verbose")
    if "GOMP_SPINCOUNT" not in heard:
        pytest.skip("another library runs torch's threads here")
    assert "GOMP_SPINCOUNT = '2000'" in heard
