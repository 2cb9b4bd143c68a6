"""minialign: the course notes on aligning, fine-tuning, quantizing and distilling language models, made runnable."""

import os

# While a small model computes, threads wait for each other thousands of times a second. By default they spin; with a neighbour on one of two
# cores a spinning thread keeps a working one from its core, and sampling falls to a quarter. A short spin costs nothing when it is quiet and
# halves that loss. It must be set before torch is imported; whoever sets either variable decides.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
