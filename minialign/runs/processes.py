r"""Several processes that train one model: who they are, and how they agree to stop. Alone, all of it does nothing.

Read next: training.py, whose loop they share.
"""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process

import torch
import torch.distributed as distributed


def join_processes() -> tuple[int, int]:
    """(rank, number of processes), (0, 1) alone: under torchrun each takes its share of a step's micro-batches."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not distributed.is_initialized():
        distributed.init_process_group("gloo")
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def two_workers() -> ProcessPoolExecutor:
    """Two processes for work that needs no other's; Ctrl-C is for the one that waits for them."""
    return ProcessPoolExecutor(2, get_context("spawn"), start_worker)


def start_worker() -> None:
    """What such a process does before its work: leave Ctrl-C to the one that started it, and end when that one does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """End this process when the one that started it has gone: after `kill -9` nobody else would, and it would wait for
    work, or do work that nobody wants, for ever."""
    def wait() -> None:
        parent_process().join()
        os._exit(1)

    if parent_process() is not None:
        threading.Thread(target=wait, daemon=True).start()


def wait_for_all() -> None:
    """Let every process come as far as this line before any goes on."""
    if distributed.is_initialized():
        distributed.barrier()


def agreed(stop: bool) -> bool:
    """Whether any process was told to stop: all must stop after the same step, or the others would wait for ever."""
    if not distributed.is_initialized():
        return stop
    flag = torch.tensor(float(stop))
    distributed.all_reduce(flag)
    return bool(flag > 0)


def sum_over_processes(tensors: list[torch.Tensor]) -> None:
    """Replace each tensor by its sum over all processes: one message for all, since fifty small ones take ten times as
    long."""
    line = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(line)
    for tensor, part in zip(tensors, line.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(part.view_as(tensor))
