r"""Several processes that train one model: who they are, what each computes, and how they agree to stop. Alone, all of
it does nothing.

    torchrun --nproc-per-node 2 -m minialign pretrain …

Each process reads its part of a step's micro-batches; torch's DistributedDataParallel averages their gradients while
they are computed (gloo on CPUs, nccl on graphics cards). So the curve is that of one process, within rounding
(test_one_two_and_four_processes_learn_the_same), and a checkpoint goes on with any number of them.

Read next: training.py, whose loop they share.
"""

import contextlib
import functools
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextvars import ContextVar
from multiprocessing import get_context, parent_process
from typing import Any

import torch
import torch.distributed as distributed
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from minialign.runs.devices import default_device, device_of
from minialign.runs.errors import UserError
from minialign.runs.files import SILENT

SHARDED: ContextVar[bool] = ContextVar("shard", default=False)  # each process holds a part of the weights
COMPILED: ContextVar[bool] = ContextVar("compile", default=False)  # stacks that learn are compiled by torch
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
    return bool(summed(torch.tensor(float(stop))) > 0)


def summed(number: Tensor) -> Tensor:
    """The sum of a number over all processes."""
    if distributed.is_initialized():
        distributed.all_reduce(number)
    return number


def averaged(numbers: dict[str, float]) -> dict[str, float]:
    """The mean over all processes of each of some numbers."""
    if not distributed.is_initialized():
        return numbers
    found = summed(torch.tensor(list(numbers.values()), dtype=torch.float64)) / distributed.get_world_size()
    return dict(zip(numbers, found.tolist()))


def first_writes(write: Callable[..., None]) -> Callable[..., None]:
    """Makes a function that writes files one that writes them in the first process only, while the others wait. All of
    them run it: what is written may have to be put together from parts that each holds."""

    @functools.wraps(write)
    def once(*arguments, **keywords) -> None:
        others = int(os.environ.get("RANK", 0)) > 0
        SILENT.extend([True] * others)
        try:
            write(*arguments, **keywords)
        finally:
            del SILENT[len(SILENT) - others :]
        wait_for_all()

    return once


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


class Shared(nn.Module):
    """What several processes compute of a model, each from a part of the batch."""

    def __init__(self, model: nn.Module, compute: Callable[[nn.Module, Any], Tensor]):
        super().__init__()
        self.model, self.compute = model, [compute]  # in a list: a teacher inside is no part of what is trained

    def forward(self, batch: Any) -> Tensor:
        """What is computed of this process's part."""
        return self.compute[0](self.model, batch)


def shared(model: nn.Module, compute: Callable[[nn.Module, Any], Tensor]) -> Callable[[nn.Module, Any], Tensor]:
    """`compute` (model, batch) -> Tensor; the gradient of whatever is made of it is the mean over all processes."""
    if COMPILED.get():
        model.body.compile()
    if join_processes()[1] == 1:
        return compute
    device, both = device_of(model), Shared(model, compute)
    if SHARDED.get():
        parallel = sharded(both, device)
    else:
        parallel = DistributedDataParallel(both, forward_sync_buffers=False, find_unused_parameters=True,
                                           device_ids=[device] if device.type == "cuda" else None)

    def together(model: nn.Module, batch: Any) -> Tensor:
        return parallel(batch)

    together.parallel = parallel
    return together


def own_part(rows: list, what: str = "prompts") -> list:
    """Those of a batch's rows that this process computes, as many as any other. Raises UserError where they cannot be
    dealt out."""
    rank, processes = join_processes()
    if len(rows) % processes:
        raise UserError(f"{len(rows)} {what} cannot be shared evenly by {processes} processes; choose a multiple")
    size = len(rows) // processes
    return rows[rank * size : (rank + 1) * size]


def own_share(rows: Tensor) -> Tensor:
    """Every n-th of a minibatch's rows; all of them where there are fewer than processes, which then do the same."""
    rank, processes = join_processes()
    return rows[rank::processes] if len(rows) >= processes else rows


def mean_of_all(numbers: Tensor) -> Tensor:
    """The mean of (M,) numbers; of several processes, what this one must give so that the mean over processes is the
    mean of all their numbers."""
    return numbers.mean() if join_processes()[1] == 1 else numbers.mean() * weight_of_share(len(numbers))


def weight_of_share(count: float) -> float:
    """By how much a mean over `count` things of this process must be multiplied, so that the mean over processes is the
    mean over all things."""
    processes = join_processes()[1]
    return 1.0 if processes == 1 else count * processes / float(summed(torch.tensor(float(count))))


def average_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Replace each gradient by its mean over all processes, in one message: for losses that are written out where they
    are learned, and so are no module's output, as DistributedDataParallel needs it."""
    processes = join_processes()[1]
    if processes > 1:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        line = summed(torch.cat([gradient.flatten() for gradient in gradients])) / processes
        for gradient, part in zip(gradients, line.split([gradient.numel() for gradient in gradients])):
            gradient.copy_(part.view_as(gradient))


def gathered(part: Any) -> Any:
    """A dataclass of lists and (N, …) tensors whose rows every process has computed some of, with all rows in the order
    of the ranks; second dimensions are filled up with zeros. Alone, the very object."""
    processes = join_processes()[1]
    if processes == 1:
        return part
    parts: list[dict] = [{}] * processes
    distributed.all_gather_object(parts, {name: x.cpu() if isinstance(x, Tensor) else x for name, x in
                                          vars(part).items()})
    whole = {}
    for name, own in vars(part).items():
        pieces = [each[name] for each in parts]
        if isinstance(own, Tensor):
            longest = max(piece.shape[-1] for piece in pieces)
            pieces = [F.pad(x, (0, longest - x.shape[1])) if x.dim() == 2 else x for x in pieces]
            whole[name] = torch.cat(pieces).to(own.device)
        else:
            whole[name] = own if own is None else [row for piece in pieces for row in piece]
    return type(part)(**whole)


def sharded(module: nn.Module, device: torch.device) -> nn.Module:
    """Let every process hold a part of each weight only, and put a block together while it computes: torch's
    `fully_shard`, for models that do not fit one device."""
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    for name, part in list(module.named_modules()):
        if name.rpartition(".")[0].endswith("blocks"):
            fully_shard(part, mesh=mesh)
    return fully_shard(module, mesh=mesh)


@contextlib.contextmanager
def whole_weights(loss: Callable) -> Iterator[None]:
    """Inside, a model that processes share by parts can be used as any other, by all of them together."""
    parallel = getattr(loss, "parallel", None)
    if not isinstance(parallel, FSDPModule):
        yield
        return
    parallel.unshard()
    yield
    parallel.reshard()


@contextlib.contextmanager
def waits_for_more(loss: Callable, more: bool) -> Iterator[None]:
    """Inside, gradients of a shared loss stay here where there are more micro-batches to come: one message a step."""
    parallel = getattr(loss, "parallel", None)
    if isinstance(parallel, FSDPModule):
        parallel.set_requires_gradient_sync(not more)
    with parallel.no_sync() if more and isinstance(parallel, DistributedDataParallel) else contextlib.nullcontext():
        yield


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
