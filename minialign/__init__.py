"""minialign: the course notes on aligning, fine-tuning, quantizing and distilling language models, made runnable."""

import os

# While a small model computes, threads wait for each other thousands of times a second. By default they spin; with a neighbour on one of two
# cores a spinning thread keeps a working one from its core, and sampling falls to a quarter. A short spin halves that loss; one that is too
# short makes a quiet machine slow, where waking a thread is dear. The short main job with 1000, 2000, 3000 turns took 47, 37, 38 s on a quiet
# machine (35 s with 10000) and 53, 68, 73 s beside a busy neighbour. It must be set before torch is imported; whoever sets either variable decides.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
