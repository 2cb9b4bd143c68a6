r"""How a process that computes waits and keeps its memory. Importing the package changes nothing; the command line
(`minialign.__main__.program`) and a notebook's first cell call this before their work, and the processes that they
start inherit how threads wait.

    OMP_WAIT_POLICY, GOMP_SPINCOUNT   whoever sets one of them decides how threads wait
    MALLOC_…                          whoever sets one of them decides what is kept

Read next: processes.py, for several processes that train one model.
"""

import ctypes
import os

SPINS = "2000"
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def prepare_process() -> None:
    """Short spins and kept memory. Call it before torch is imported: later the spins have no effect.

    While a small model computes, its threads wait for each other thousands of times a second, and by default they
    spin. With a neighbour on one of two cores a spinning thread keeps a working one from its core, and sampling falls
    to a quarter. A short spin halves that loss; a very short one makes a quiet machine slow, where waking a thread is
    dear. Seconds of the short main job, quiet and beside a busy neighbour: 47 and 53 with 1000 spins, 37 and 68 with
    2000, 38 and 73 with 3000; quiet with 10000 it took 35.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    keep_memory()
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # of several processes each would log the same warnings
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def keep_memory() -> None:
    """Let the C library keep large tables that are freed.

    By default a table of 32 MiB or more (a batch's logits over a real vocabulary) goes back to the system, and the next
    one is fetched page by page and zeroed. Kept, it costs nothing the second time: a training step with 32,768 words
    took 289 ms instead of 466, one with 4,096 words 1319 instead of 1425. The process stays as large as it ever was;
    its peak was a tenth higher. Only glibc has this switch.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (TypeError, AttributeError):  # Windows; macOS and musl
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def give_back_memory() -> None:
    """Return what was kept and is not in use: between two stages, whose tables have other sizes."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (TypeError, AttributeError):  # as above
        return
