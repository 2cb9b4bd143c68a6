"""What a run changes in its process, and that importing the package changes nothing."""

import os
import platform
import subprocess
import sys

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


def said(code, *arguments, **variables):
    """What a process says whose user set none of the variables but these."""
    ours = ("MALLOC_", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    others = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run([sys.executable, "-c", code, *arguments], env=others | variables, capture_output=True,
                          text=True, check=True).stdout.strip()


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
