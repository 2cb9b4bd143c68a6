r"""Several processes that train one model: who they are, what each computes, and how they agree to stop. Alone, all of
it does nothing.

    torchrun --nproc-per-node 2 -m minialign pretrain …

Each process reads its part of a step's micro-batches; torch's DistributedDataParallel averages their gradients while
they are computed (gloo on CPUs, nccl on graphics cards). So the curve is that of one process, within rounding
(test_one_two_and_four_processes_learn_the_same), and a checkpoint goes on with any number of them.

Read next: training.py, whose loop they share.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from minialign.runs.devices import default_device, device_of
from minialign.runs.errors import UserError

GRACE = 10.0  # seconds in which a process that ended is looked for
OTHERS: list[tuple[str, int]] = []  # machine and number of each process that takes part, in the order of their ranks


def join_processes() -> tuple[int, int]:
    """(rank, number of processes), (0, 1) alone: under torchrun each takes its share of a step's micro-batches.

    Raises:
        UserError: the port by which they find each other is in use.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not distributed.is_initialized():
        device = default_device()
        if device.type == "cuda":
            torch.cuda.set_device(device)
        try:
            distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
        except distributed.DistNetworkError as error:
            if "address already in use" not in str(error).lower():
                raise
            raise UserError(f"the port {os.environ['MASTER_PORT']}, by which the processes find each other, is in use; "
                            f"give torchrun another --master-port") from None
        OTHERS[:] = [("", 0)] * distributed.get_world_size()
        distributed.all_gather_object(OTHERS, (socket.gethostname(), os.getpid()))
        if device.type == "cpu":  # torchrun ends the others when one is gone: they say first which one that was
            with contextlib.suppress(ValueError):  # not in the main thread
                signal.signal(signal.SIGTERM, lambda signum, frame: None)
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def leave_processes() -> None:
    """Say goodbye to the others, at the end of the work."""
    if distributed.is_initialized():
        OTHERS.clear()
        distributed.destroy_process_group()


def two_workers() -> ProcessPoolExecutor:
    """Two processes for work that needs no other's; Ctrl-C is for the one that waits for them."""
    return ProcessPoolExecutor(2, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN))


def wait_for_all() -> None:
    """Let every process come as far as this line before any goes on."""
    if distributed.is_initialized():
        distributed.barrier()


def agreed(stop: bool) -> bool:
    """Whether any process was told to stop: all must stop after the same step, or the others would wait for ever."""
    return bool(summed(torch.tensor(float(stop))) > 0)


def summed(number: Tensor) -> Tensor:
    """The sum of a number over all processes."""
    if distributed.is_initialized():
        distributed.all_reduce(number)
    return number


def check_alike(settings: dict[str, Any]) -> None:
    """Raise UserError, in every process, where one was given other settings or data than the first."""
    rank, processes = join_processes()
    if processes == 1:
        return
    found: list[dict] = [{}] * processes
    distributed.all_gather_object(found, settings)
    for other, theirs in enumerate(found):
        for key in {**found[0], **theirs}:
            if found[0].get(key) != theirs.get(key):
                raise UserError(f"process {other} was given another {key} than process 0: {theirs.get(key)!r}, not "
                                f"{found[0].get(key)!r}; start all of them with the same command and files")


class SharedLoss(nn.Module):
    """A loss that several processes compute a part of each; what is backpropagated adds up over all of them."""

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, Any], Tensor]):
        super().__init__()
        self.model, self.compute = model, [loss]  # in a list: a teacher inside is no part of what is trained

    def forward(self, batch: Any) -> Tensor:
        """What the loss says of this process's part."""
        return self.compute[0](self.model, batch)


def shared_loss(model: nn.Module, loss: Callable[[nn.Module, Any], Tensor]) -> Callable[[nn.Module, Any], Tensor]:
    """The same loss (model, batch) -> Tensor; with several processes its gradient is the sum over them."""
    rank, processes = join_processes()
    if processes == 1:
        return loss
    device = device_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parallel = DistributedDataParallel(SharedLoss(model, loss), broadcast_buffers=False,
                                           device_ids=[device] if device.type == "cuda" else None,
                                           find_unused_parameters=True)

    def together(model: nn.Module, batch: Any) -> Tensor:
        return parallel(batch) * processes  # DistributedDataParallel takes the mean

    together.parallel = parallel
    return together


def waits_for_more(loss: Callable, more: bool) -> contextlib.AbstractContextManager:
    """Inside, gradients of a shared loss stay here if there are more micro-batches to come: one message a step."""
    return loss.parallel.no_sync() if more and hasattr(loss, "parallel") else contextlib.nullcontext()


def who_ended() -> str | None:
    """Which of the processes is gone, for people, in the first one that is left; None in the others and alone."""
    if not OTHERS:
        return None
    gone, began = set(), time.monotonic()
    while not gone and time.monotonic() - began < GRACE:
        time.sleep(0.1)
        gone = {rank for rank, (machine, number) in enumerate(OTHERS)
                if machine == socket.gethostname() and not is_alive(number)}
    if distributed.get_rank() != min(set(range(len(OTHERS))) - gone):
        return None
    who = f"process {', '.join(map(str, sorted(gone)))} has" if gone else "another process has"
    return f"{who} ended, so the others stop; the same command goes on from the last checkpoint"


def is_alive(number: int) -> bool:
    """Whether the process with this number runs on this machine."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's, or a system that does not tell
        return True
    return True
