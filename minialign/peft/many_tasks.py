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

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from minialign.peft.methods import configuration
from minialign.peft.saving import ABOUT, check_base, read_saved
from minialign.peft.trainable import fingerprint, float_type, note
from minialign.runs.devices import device_of
from minialign.runs.errors import UserError
from minialign.runs.submodules import replace_modules


class ManyLoRALinear(nn.Module):
    """A frozen linear layer with one low-rank update for each task."""

    def __init__(self, base: nn.Linear, A: Tensor, B: Tensor, serving: "Serving"):
        super().__init__()
        self.base, self.serving = base, serving
        self.register_buffer("A", A)  # (K + 1, r, in), the last one zeros: the base
        self.register_buffer("B", B)  # (K + 1, out, r), scales multiplied in

    def forward(self, x: Tensor) -> Tensor:
        h = self.base(x)  # (N, T, out)
        tasks = self.serving.tasks
        if tasks is None:
            return h
        if len(x) % len(tasks):
            raise UserError(f"a batch of {len(x)} rows is no multiple of the {len(tasks)} tasks that it is for; give a "
                            f"task for each row")
        tasks = tasks.repeat_interleave(len(x) // len(tasks))  # several answers to each prompt stand together
        first = int(tasks[0])
        if bool((tasks == first).all()):  # one task for all rows: no gathering
            return h if first < 0 else h + (x @ self.A[first].T) @ self.B[first].T
        low = torch.bmm(x, self.A[tasks].transpose(1, 2))  # (N, T, r)   −1 is the last one, of zeros
        return torch.baddbmm(h, low, self.B[tasks].transpose(1, 2))


class Serving:
    """A base model with the updates of several tasks, and which of them each row of the batch is for."""

    def __init__(self, model: nn.Module, names: Sequence[str]):
        self.model, self.names = model, list(names)
        self.tasks: Tensor | None = None  # (B,) number of each row's task, or −1 for the base; None: nothing is served

    @contextmanager
    def rows(self, tasks: Sequence[str | None] | str | None) -> Iterator[nn.Module]:
        """Inside, row i of every batch is for tasks[i] (or all rows for one task); None is the base. What sorts
        its rows (`continue_texts`, `option_logprobs`) is for one task at a time. Raises UserError for an unknown
        task."""
        tasks, before = [tasks] if tasks is None or isinstance(tasks, str) else tasks, self.tasks
        if unknown := [task for task in tasks if task is not None and task not in self.names]:
            raise UserError(f"there is no task {unknown[0]!r}; known are {', '.join(self.names)}")
        self.tasks = torch.tensor([-1 if task is None else self.names.index(task) for task in tasks],
                                  device=device_of(self.model))
        try:
            yield self.model
        finally:
            self.tasks = before


def serve(model: nn.Module, folders: dict[str, Path]) -> Serving:
    """Load one saved LoRA for each task onto one base; the model is changed in place.

    Args:
        model: the base, not wrapped; folders: task -> what `saving.save` wrote.
    Raises:
        UserError: no folder, a method other than lora, another base, or a task with a head of its own.
    """
    base = fingerprint(model)
    if not folders:
        raise UserError("there is no task to serve; give a folder for each")
    saved = []
    for folder in folders.values():
        about, tensors = read_saved(folder)
        if about["method"] != "lora":
            raise UserError(f"holds {about['method']}; only LoRAs can be served side by side", folder)
        check_base(model, about, folder)
        if any(not name.endswith((".A", ".B")) for name in tensors):
            raise UserError("trains a head of its own, which tasks side by side cannot share; serve it alone", folder)
        saved.append((configuration("lora", about["config"], Path(folder) / ABOUT), tensors))
    rank, new, serving = max(config.rank for config, _ in saved), {}, Serving(model, folders)
    for name in sorted({name.rpartition(".")[0] for _, tensors in saved for name in tensors}):
        linear = model.get_submodule(name)
        A = torch.zeros(len(saved) + 1, rank, linear.in_features, dtype=float_type(linear), device=device_of(linear))
        B = A.new_zeros(len(saved) + 1, linear.out_features, rank)
        for i, (config, tensors) in enumerate(saved):
            if f"{name}.A" in tensors:  # a task that leaves this layer alone keeps its zeros
                A[i, : config.rank], B[i, :, : config.rank] = tensors[f"{name}.A"], config.scale * tensors[f"{name}.B"]
        new[name] = ManyLoRALinear(linear, A, B, serving)
    replace_modules(model.requires_grad_(False), new)
    note(model, "many LoRAs", None, base, list(new))
    return serving


def stored_bytes(folders: dict[str, Path]) -> int:
    """Bytes on the disk of all tasks' files."""
    return sum(file.stat().st_size for folder in folders.values() for file in Path(folder).iterdir() if file.is_file())
