r"""Run folders: what a stage leaves behind, and what it needs to go on after a fault.

    RUN/config.json             what this is, the model's shape, all settings, fingerprints of tokenizer and data
    RUN/tokenizer.json          the tokenizer
    RUN/metrics.jsonl           one line a step
    RUN/checkpoint.safetensors  while it trains: weights, optimizer, generators, step; one file: whole or not there
    RUN/model.safetensors       the finished weights; a run without it has not finished

Everything is written to a temporary name, fsynced and renamed, so that a fault at any moment leaves the old file or the
new one (test_kill_and_restart_ends_with_the_same_bits). Weights are safetensors, never pickles: reading a stranger's
file runs nothing.
"""

import contextlib
import errno
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import nn

from minialign.runs.errors import UserError
from minialign.runs.files import read_json, unwritable, write_atomic, write_json
from minialign.runs.processes import check_alike, first_writes
from minialign.runs.settings import renamed
from minialign.runs.tensors import as_kept, load_into, read_tensors, tensor_file, tensors_of, whole

CONFIG, TOKENIZER, METRICS, CHECKPOINT, MODEL = ("config.json", "tokenizer.json", "metrics.jsonl",
                                                 "checkpoint.safetensors", "model.safetensors")


class RunFolder:
    """One stage's folder; made when needed."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.new = False  # whether this process wrote config.json

    @property
    def finished(self) -> bool:
        """Whether the stage ended and left its model."""
        return (self.path / MODEL).exists()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep the folder for this process, until it dies. Raises UserError when another one holds it."""
        # under torchrun the first process keeps the folder for all, and alone writes to it
        if int(os.environ.get("RANK", 0)) > 0:
            yield
            return
        lock = FileLock(self.path / ".lock")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError("this run folder is in use by another process; wait for it or choose another --out",
                            self.path) from None
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise unwritable(self.path, error) from None
            raise UserError("not a folder that can be written; choose another --out", self.path) from None
        try:
            self.clean()
            yield
        except UserError:
            # it failed before its first step: the corrected command shall find the place free
            if self.new and not self.metrics():
                for name in (CONFIG, TOKENIZER, METRICS):
                    (self.path / name).unlink(missing_ok=True)
            raise
        finally:
            lock.release()

    def clean(self) -> None:
        """Remove what a fault left half-written, or a finished run does not need, here and one folder below; a run down
        there cleans up after itself."""
        below = [file for file in self.path.glob("*/.*.tmp") if not (file.parent / ".lock").exists()]
        for file in [*self.path.glob(".*.tmp"), *below]:
            if re.fullmatch(r"\..+\.\d+\.tmp", file.name):  # the names that write_atomic gives: somebody else's stay
                file.unlink(missing_ok=True)
        if self.finished:  # a fault came between the two lines of `finish`
            (self.path / CHECKPOINT).unlink(missing_ok=True)

    def begin(self, config: dict[str, Any], tokenizer: Any) -> None:
        """Write what the run is, or check that the run that is there is the same one. Raises UserError for another run,
        with the first setting that differs, for processes that were given different ones, and for files of these names
        that are nobody's run."""
        # as it will be read back: tuples are lists
        config = json.loads(json.dumps({**config, "tokenizer": tokenizer.fingerprint()}))
        check_alike(flatten(config))
        path = self.path / CONFIG
        if path.exists():
            there, here = flatten(renamed(read_json(path))), flatten(config)
            for key in {**there, **here}:
                before, now = there.get(key), here.get(key)
                if before != now:
                    raise UserError(f"this folder holds another run: {key} is {before!r} there and {now!r} now; choose "
                                    f"another --out, or remove the folder", self.path)
            return
        if int(os.environ.get("RANK", 0)) == 0:
            file = self.path / TOKENIZER
            same = file.is_file() and file.read_bytes() == tokenizer.to_json().encode()  # a fault came between
            ours = (METRICS, CHECKPOINT, MODEL) if same else (METRICS, CHECKPOINT, MODEL, TOKENIZER)
            if strange := [name for name in ours if (self.path / name).exists()]:
                raise UserError(f"this folder holds {', '.join(strange)} and no {CONFIG}: nothing of ours; choose "
                                f"another --out", self.path)
            write_atomic(file, tokenizer.to_json())
            write_json(path, config)
            self.new = True

    @first_writes
    def save_checkpoint(self, modules: dict[str, nn.Module], optimizers: dict[str, torch.optim.Optimizer],
                        generators: dict, state: dict) -> None:
        """Write all that the run needs to go on bit for bit, as one file."""
        tensors = {f"module.{m}.{name}": t for m, module in modules.items() for name, t in tensors_of(module).items()}
        for o, optimizer in optimizers.items():
            for i, values in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{o}.{i}.{name}": whole(torch.as_tensor(t)) for name, t in values.items()}
        tensors |= {f"generator.{g}": generator.get_state() for g, generator in generators.items()}
        write_atomic(self.path / CHECKPOINT, tensor_file(tensors, state=state))

    def load_checkpoint(self, modules: dict[str, nn.Module], optimizers: dict[str, torch.optim.Optimizer],
                        generators: dict) -> dict | None:
        """Put everything back as it was at the last checkpoint and return its state; None when there is none."""
        path = self.path / CHECKPOINT
        if not path.exists():
            return None
        tensors, about = read_tensors(path)

        def part(prefix):
            return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

        for m, module in modules.items():
            load_into(module, part(f"module.{m}."), path)
        for o, optimizer in optimizers.items():
            state, moved = optimizer.state_dict(), [p for group in optimizer.param_groups for p in group["params"]]
            state["state"] = {}
            for key, tensor in part(f"optimizer.{o}.").items():
                i, name = key.split(".")
                state["state"].setdefault(int(i), {})[name] = as_kept(tensor, moved[int(i)])
            optimizer.load_state_dict(state)
        for g, generator in generators.items():
            if f"generator.{g}" not in tensors:
                raise UserError(f"has no state of the generator {g!r}; it was written by another version: remove it to "
                                f"start again", path)
            generator.set_state(tensors[f"generator.{g}"])
        return about["state"]

    @first_writes
    def finish(self, model: nn.Module, **facts: Any) -> None:
        """Write the finished weights, with facts about them as metadata, and let go of the checkpoint."""
        write_atomic(self.path / MODEL, tensor_file(tensors_of(model), facts=facts))
        (self.path / CHECKPOINT).unlink(missing_ok=True)

    def facts(self) -> dict[str, Any]:
        """What `finish` was told."""
        return read_tensors(self.path / MODEL)[1].get("facts", {})

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with open(self.path / METRICS, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise unwritable(self.path / METRICS, error) from None

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl; a last line that a fault cut short is left out."""
        path = self.path / METRICS
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
        records = []
        for number, line in enumerate(lines, 1):
            if line.endswith("}"):
                try:
                    records.append(json.loads(line))
                except ValueError as error:
                    raise UserError(f"not JSON ({getattr(error, 'msg', error)}); restore it from a copy", path,
                                    number) from None
        return records

    def forget_after(self, step: int) -> None:
        """Drop the metrics of steps after the checkpoint that the run goes on from: they come again."""
        kept = [record for record in self.metrics() if record["step"] <= step]
        write_atomic(self.path / METRICS, "".join(json.dumps(record) + "\n" for record in kept))


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, keys joined by dots."""
    if not isinstance(value, dict):
        return {prefix: value}
    start = f"{prefix}." if prefix else ""
    return {k: v for key, inner in value.items() for k, v in flatten(inner, start + key).items()}
