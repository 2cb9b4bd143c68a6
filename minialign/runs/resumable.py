r"""Steps that may be cut off at any moment and go on to the same bits: what a training loop needs beside its method.

    with ResumableLoop(run, modules, optimizers, generators, state) as loop:     puts the last checkpoint back
        for step in loop.steps(total, label):                                    goes on where it was
            metrics = …                                                          the method
            loop.done(metrics, "loss 3.2")                                       log, checkpoint, progress bar, Ctrl-C
        run.finish(model)

Details that matter:
    1. Ctrl-C ends the step it falls in, saves and says so; `kill -9` costs the steps since the last checkpoint;
       both go on to the same bits (test_after_ctrl_c_or_kill_9_the_same_command_ends_with_the_same_bits).
    2. Lines of metrics.jsonl after the checkpoint are dropped, since they come again
       (test_a_loop_goes_on_from_its_last_checkpoint_and_writes_each_line_once).
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from minialign.runs.errors import UserError
from minialign.runs.files import write_atomic
from minialign.runs.processes import agreed, join_processes
from minialign.runs.run_folder import RunFolder
from minialign.runs.tensors import tensor_file


class Stopped(Exception):
    """The user pressed Ctrl-C; everything is saved."""


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a flag that is looked at between steps; the second one ends the process at once."""
    pressed = []

    def note(signum, frame):
        if pressed:
            raise KeyboardInterrupt
        pressed.append(True)

    try:
        before = signal.signal(signal.SIGINT, note)
    except ValueError:  # not in the main thread: nobody can press anything there
        yield lambda: False
        return
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


class ResumableLoop:
    """The steps of a run, from the beginning or from the folder's last checkpoint.

    Args:
        run: where metrics and checkpoints go.
        modules, optimizers, generators: what a checkpoint holds, each by name.
        state: what else the loop remembers, as JSON values; `state["step"]` counts the steps.
    Raises:
        Stopped: after Ctrl-C, with everything saved.
    """

    def __init__(self, run: RunFolder, modules: dict[str, nn.Module], optimizers: dict[str, torch.optim.Optimizer],
                 generators: dict[str, torch.Generator], state: dict[str, Any]):
        self.run, self.parts = run, (modules, optimizers, generators)
        self.state = run.load_checkpoint(*self.parts) or {"step": 0, **state}
        self.writes = join_processes()[0] == 0
        self.stopping, self.open = False, ExitStack()
        if self.writes:
            run.forget_after(self.state["step"])

    def __enter__(self) -> "ResumableLoop":
        self.interrupted = self.open.enter_context(interruptible())
        return self

    def __exit__(self, error: type | None, *_: object) -> None:
        self.open.close()
        if error is None and (self.stopping or self.interrupted()):  # in the last step: what comes after is not begun
            raise Stopped(f"stopped after the last {self.unit}, finished in {self.run.path}; the same command goes on "
                          f"from there")

    def steps(self, total: int, label: str, unit: str = "step", every: int = 1) -> Iterator[int]:
        """The number of each step that is left, 0 first.

        Args:
            total: steps of the whole run; label, unit: of the progress bar; every: steps between two checkpoints.
        """
        self.total, self.unit, self.every = total, unit, every
        self.bar = self.open.enter_context(tqdm(total=total, initial=self.state["step"], desc=label, unit=unit,
                                                disable=None if self.writes else True))
        while self.state["step"] < total:
            yield self.state["step"]

    def done(self, metrics: dict[str, Any], shown: str) -> None:
        """End a step: log its metrics, save a checkpoint if one is due, show a few words in the progress bar."""
        self.state["step"] += 1
        step = self.state["step"]
        if self.writes:
            self.run.log({"step": step, **metrics})
        self.stopping = agreed(self.interrupted())  # asked once: a later Ctrl-C waits for the next step
        if step < self.total and (self.stopping or step % self.every == 0):
            self.run.save_checkpoint(*self.parts, self.state)
        self.bar.set_postfix_str(shown, refresh=False)
        self.bar.update()
        if self.stopping and step < self.total:
            raise Stopped(f"stopped at {self.unit} {step} of {self.total}, saved in {self.run.path}; the same command "
                          f"goes on from there")

    @contextmanager
    def kept_on_error(self, name: str, batch: dict[str, Any]) -> Iterator[None]:
        """Write what a step could not learn from to the run folder, as `name`, when the step raises a UserError."""
        try:
            yield
        except UserError as error:
            if not self.writes:
                raise
            path = self.run.path / name
            tensors = {name: x for name, x in batch.items() if isinstance(x, Tensor)}
            write_atomic(path, tensor_file(tensors, **{name: x for name, x in batch.items() if isinstance(x, list)}))
            raise UserError(f"{self.unit} {self.state['step'] + 1}: {error}; the batch is in {path}",
                            self.run.path) from None
