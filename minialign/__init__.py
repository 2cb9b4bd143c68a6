"""minialign: the course notes on aligning, fine-tuning, quantizing and distilling language models, made runnable."""

import ctypes
import os

# While a small model computes, threads wait for each other thousands of times a second. By default they spin; with a
# neighbour on one of two cores a spinning thread keeps a working one from its core, and sampling falls to a quarter. A
# short spin halves that loss; one that is too short makes a quiet machine slow, where waking a thread is dear. The
# short main job with 1000, 2000, 3000 turns took 47, 37, 38 s on a quiet machine (35 s with 10000) and 53, 68, 73 s
# beside a busy neighbour. It must be set before torch is imported; whoever sets either variable decides.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

# A table of 32 MiB or more (a batch's logits over a real vocabulary) is given back to the system when it is freed, and
# the next one is fetched from it page by page and zeroed. Kept instead, as the C library can be told, such memory costs
# nothing the second time: a training step with 32,768 words took 289 ms (236 to 371 in five processes) for 466 (308 to
# 566 in eight), one with 4,096 words 1319 ms for 1425. The process stays as large as it ever was, and its peak was a
# tenth higher. Whoever sets a MALLOC_ variable decides; other C libraries have no such switch.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
if not any(name.startswith("MALLOC_") for name in os.environ):
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (TypeError, AttributeError):  # Windows; macOS and musl
        pass
    else:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
