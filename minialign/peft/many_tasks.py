r"""Many tasks from one base: several LoRAs on the same frozen weights, chosen row by row of one batch.

    hᵢ = W₀ xᵢ + s_t B_t A_t xᵢ,    t = the task of row i                  Hu et al. 2021 (LoRA), §4.2 (switching tasks)

A full copy of the model for each task costs its whole size each time; here a task costs two thin matrices a layer.
Details that matter:
    1. Each row gets its own task's matrices, gathered and multiplied in one batch
       (test_a_mixed_batch_equals_separate_models).
    2. The tasks are those of `with serving.rows(…)`; without it the model is the plain base
       (test_without_tasks_the_base_answers).

Read next: prompt_tuning.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from minialign.peft.methods import configuration
from minialign.peft.trainable import ABOUT, check_base, fingerprint, freeze, note, read_saved, refuse_wrapped, replace
from minialign.runs.errors import UserError


class Tasks:
    """Which task each row of the batch is for; shared by all layers of a model."""

    def __init__(self, names: Sequence[str]):
        self.names = list(names)
        self.of: Tensor | None = None  # (B,) index of each row's task, or −1 for the base; None when nothing is served

    def index(self, tasks: Sequence[str | None]) -> Tensor:
        """(B,) their places. Raises UserError for an unknown one."""
        unknown = [task for task in tasks if task is not None and task not in self.names]
        if unknown:
            raise UserError(f"there is no task {unknown[0]!r}; known are {', '.join(self.names)}")
        return torch.tensor([-1 if task is None else self.names.index(task) for task in tasks])


class ManyLoRALinear(nn.Module):
    """A frozen linear layer with one low-rank update for each task."""

    def __init__(self, base: nn.Linear, A: Tensor, B: Tensor, tasks: Tasks):
        super().__init__()
        self.base, self.tasks = base, tasks
        self.register_buffer("A", A)  # (K + 1, r, in), the last one zeros: the base
        self.register_buffer("B", B)  # (K + 1, out, r), scales multiplied in

    def forward(self, x: Tensor) -> Tensor:
        h = self.base(x)  # (N, T, out)
        of = self.tasks.of
        if of is None:
            return h
        if len(x) % len(of):
            raise UserError(f"a batch of {len(x)} rows is no multiple of the {len(of)} tasks that it is for; give a "
                            f"task for each row")
        of = of.repeat_interleave(len(x) // len(of))  # several answers to each prompt stand together
        first = int(of[0])
        if bool((of == first).all()):  # one task for all rows: no gathering
            return h if first < 0 else h + (x @ self.A[first].T) @ self.B[first].T
        low = torch.bmm(x, self.A[of].transpose(1, 2))  # (N, T, r)   −1 is the last one, of zeros
        return torch.baddbmm(h, low, self.B[of].transpose(1, 2))


class Serving:
    """A base model with the updates of several tasks."""

    def __init__(self, model: nn.Module, tasks: Tasks):
        self.model, self.tasks = model, tasks

    @contextmanager
    def rows(self, tasks: Sequence[str | None] | str | None) -> Iterator[nn.Module]:
        """Inside, row i of every batch is for tasks[i] (or all rows for one task); None is the base."""
        before = self.tasks.of
        self.tasks.of = self.tasks.index([tasks] if tasks is None or isinstance(tasks, str) else tasks)
        try:
            yield self.model
        finally:
            self.tasks.of = before


def serve(model: nn.Module, folders: dict[str, Path]) -> Serving:
    """Load one saved LoRA for each task onto one base; the model is changed in place.

    Args:
        model: the base, not wrapped; folders: task -> what `trainable.save` wrote.
    Raises:
        UserError: no folder, a method other than lora, another base, a task with a head of its own, or other layers
            than the first task's.
    """
    refuse_wrapped(model)
    if not folders:
        raise UserError("there is no task to serve; give a folder for each")
    base = fingerprint(model)
    saved = {}
    for task, folder in folders.items():
        about, tensors = read_saved(folder)
        if about["method"] != "lora":
            raise UserError(f"holds {about['method']}; only LoRAs can be served side by side", folder)
        check_base(model, about, folder)
        if any(not name.endswith((".A", ".B")) for name in tensors):
            raise UserError("trains a head of its own, which tasks side by side cannot share; serve it alone", folder)
        saved[task] = (configuration("lora", about["config"], Path(folder) / ABOUT), tensors)
    layers = sorted({name.rpartition(".")[0] for _, tensors in saved.values() for name in tensors})
    tasks = Tasks(list(folders))
    freeze(model)
    for name in layers:
        linear = model.get_submodule(name)
        rank = max(config.rank for config, _ in saved.values())
        A = linear.weight.new_zeros(len(saved) + 1, rank, linear.in_features)
        B = linear.weight.new_zeros(len(saved) + 1, linear.out_features, rank)
        for i, (config, tensors) in enumerate(saved.values()):
            if f"{name}.A" in tensors:  # a task that leaves this layer alone keeps its zeros
                A[i, : config.rank], B[i, :, : config.rank] = tensors[f"{name}.A"], config.scale * tensors[f"{name}.B"]
        replace(model, name, lambda linear, A=A, B=B: ManyLoRALinear(linear, A, B, tasks))
    note(model, "many LoRAs", None, base, layers)
    return Serving(model, tasks)


def stored_bytes(folders: dict[str, Path]) -> int:
    """Bytes on the disk of all tasks' files."""
    return sum(file.stat().st_size for folder in folders.values() for file in Path(folder).iterdir() if file.is_file())
