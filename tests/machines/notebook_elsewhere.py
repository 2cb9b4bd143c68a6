r"""A notebook's code on the pretended device, at the quick setting: what it makes by hand must stand where models do.

    python tests/machines/notebook_elsewhere.py 05_ppo.ipynb      prints what failed, and in which cell; 1 if anything

One notebook is a test; the others take half a minute to three. PyTorch's inference mode is no more than `no_grad`
here: it forbids what tensors on the pretended device are made of.
"""

import contextlib
import io
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "machines")]


def failures(name):
    """What the cells of a notebook raised, each with its number."""
    import torch
    from IPython import display
    from matplotlib import use
    from pretended_device import DEVICE, pretended

    from minialign.runs import devices

    use("Agg")
    found, before = [], devices.default_device()
    space = {"__name__": "__main__", "display": lambda *shown, **how: None}
    kept = [(devices, "choose_device"), (display, "display"), (torch, "inference_mode")]
    values, there = [getattr(*place) for place in kept], Path.cwd()
    for place, value in zip(kept, (lambda name="auto": DEVICE, lambda *shown, **how: None, torch.no_grad)):
        setattr(*place, value)
    os.chdir(ROOT / "notebooks")
    try:
        with pretended(), contextlib.redirect_stdout(io.StringIO()):
            for number, cell in enumerate(json.loads(Path(name).read_text(encoding="utf-8"))["cells"]):
                if cell["cell_type"] == "code":
                    try:
                        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), space)
                    except Exception as error:
                        found.append(f"cell {number}: {type(error).__name__}: {error}")
    finally:
        for place, value in zip(kept, values):
            setattr(*place, value)
        devices.use_device(before)
        os.chdir(there)
    return found


if __name__ == "__main__":
    os.environ["MINIALIGN_FAST"] = "1"
    bad = {name: failures(name) for name in sys.argv[1:]}
    for name, found in bad.items():
        print(name, *found or ["as on the CPU"], sep="\n    ")
    sys.exit(any(bad.values()))
