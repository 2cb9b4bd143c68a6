r"""Early stopping, an option: keep the weights that did best on held-out examples, give up when they stay the best."""

import math
import shutil

from torch import nn

from minialign.runs.run_folder import RunFolder


class BestWeights:
    """Early stopping: the weights of the best look at held-out examples, and how long ago it was.

    Args:
        run: the best weights are kept in its folder, so that a resumed run still has them.
        patience: looks without improvement after which training gives up; 0 does nothing at all.
        state: the loop's; carries "best", "stale" (looks since the best) and "last" (look) through checkpoints.
    """

    def __init__(self, run: RunFolder, patience: int, state: dict):
        self.run, self.patience, self.state = run, patience, state

    @property
    def gave_up(self) -> bool:
        """Whether it was `patience` looks ago."""
        return 0 < self.patience <= self.state["stale"]

    def look(self, model: nn.Module, found: dict[str, float]) -> dict[str, float]:
        """Take note of a validation and return it; keep it and the weights when its loss is the best so far."""
        self.state["last"] = found
        if not self.patience:
            return found
        if found.get("validation", math.nan) < self.state["best"]:
            self.state.update(best=found["validation"], found=found, stale=0)
            RunFolder(self.run.path / "best").save_checkpoint({"model": model}, {}, {}, {})
        else:
            self.state["stale"] += 1
        return found

    def restore(self, model: nn.Module) -> None:
        """Put the best weights back, at the end."""
        if self.patience and self.state["best"] < math.inf:
            RunFolder(self.run.path / "best").load_checkpoint({"model": model}, {}, {})
            self.state["last"] = self.state["found"]

    def forget(self) -> None:
        """Remove the copy: the finished run holds the same weights."""
        shutil.rmtree(self.run.path / "best", ignore_errors=True)
