r"""The one supervised loop: pretraining, instruction tuning and reward models all run through it.

    each step:  loss = Σ losses of its micro-batches / Σ their labels;  clip the gradient;  AdamW;  one line of metrics

Read next: evaluation.py. See also: instruct/sft.py. Details that matter:
    1. The sum of losses is divided by the labels of the whole step, so accumulating over micro-batches of ragged
       lengths gives the gradient of the full batch (test_accumulation_equals_the_full_batch); a mean of means does not.
    2. Weight decay on matrices only: not on biases and norms (test_only_matrices_decay).       Loshchilov & Hutter 2019
    3. The learning rate rises linearly, then falls along a cosine, a pure function of the step.     Radford et al. 2018
    4. Ctrl-C and `kill -9` cost no more than the steps since the last checkpoint; the same command goes on to the same
       bits (runs/resumable.py; test_a_resumed_run_ends_with_the_same_bits).
    5. A loss that is not finite stops the run before it touches the weights.

Metrics, one line a step: `loss` mean over labels, nats · `learning_rate` · `gradient_norm` before clipping (normal: 0.2
to 2; steadily rising: the learning rate is too high) · `tokens_per_second` · `validation` (when it was measured) mean
loss on held-out examples, nats.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from minialign.batching import Batches
from minialign.heads import evaluating
from minialign.runs.devices import device_of, in_half, moved
from minialign.runs.early_stop import BestWeights
from minialign.runs.errors import UserError
from minialign.runs.processes import join_processes, shared, summed, waits_for_more, whole_weights
from minialign.runs.resumable import ResumableLoop
from minialign.runs.run_folder import RunFolder
from minialign.runs.settings import check_at_least_1
from minialign.runs.tensors import whole


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained, whatever it learns."""

    steps: int = 1000  # optimizer steps
    batch: int = 32  # examples a step
    learning_rate: float = 2e-3  # its peak
    warmup: float = 0.05  # share of the steps in which the learning rate rises
    final: float = 0.1  # the learning rate at the end, as a share of its peak
    weight_decay: float = 0.1  # on matrices only
    beta2: float = 0.98  # how slowly AdamW forgets squared gradients
    clip: float = 1.0  # longest gradient; 0 leaves it as it is
    accumulation: int = 1  # micro-batches that a batch is computed in; more need less memory, the result is the same
    validate_every: int = 250  # steps between two looks at held-out examples
    # early stop after this many looks without a better loss, with the best weights; 0 never stops early
    patience: int = 0
    checkpoint_every: int = 250  # steps between two checkpoints
    # compute in bfloat16 where that is safe; pays only on CPUs with bfloat16 instructions and wide models
    bf16: bool = False
    seed: int = 0  # of the weights and the order of the examples

    def __post_init__(self):
        check_at_least_1(self, "steps", "batch", "accumulation", "validate_every", "checkpoint_every")
        if not 0 < self.learning_rate < 1 or not 0 <= self.warmup <= 1 or not 0 <= self.final <= 1:
            raise UserError(f"learning rate {self.learning_rate} (above 0, below 1), warmup {self.warmup} or final "
                            f"{self.final} (0 to 1) is out of range")
        if not 0 <= self.beta2 < 1 or not self.weight_decay >= 0 or not self.clip >= 0 or self.patience < 0:
            others = f"weight decay {self.weight_decay}, clip {self.clip} or patience {self.patience} (at least 0)"
            raise UserError(f"beta2 {self.beta2} (at least 0, below 1), {others} is out of range")
        if self.batch < self.accumulation:
            raise UserError(f"a batch of {self.batch} cannot be computed in {self.accumulation} parts; use a smaller "
                            f"--accumulation")


def adamw(module: nn.Module, learning_rate: float, weight_decay: float, beta2: float = 0.98,
          eps: float = 1e-8) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019, Alg. 2) for the parameters that train; decay on matrices only."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, beta2), eps=eps, fused=True)


def learning_rate_at(step: int, config: TrainingConfig) -> float:
    """Learning rate of a step (0 first): linear to its peak, then half a cosine down to `final` of it."""
    warmup = max(1, round(config.warmup * config.steps))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, config.steps - warmup)
    return config.learning_rate * (config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * progress)))


def gradient_step(model: nn.Module, optimizer: torch.optim.Optimizer, batches: list,
                  loss: Callable[[nn.Module, Any], Tensor], config: TrainingConfig, count: int) -> tuple[float, float]:
    """One optimizer step on the mean loss of all labels of the micro-batches.

    Args:
        loss: (model, batch) -> the *sum* of the batch's losses.
        count: labels of the whole step, divided by the processes that share it.
    Returns:
        mean loss in nats, norm of the gradient before clipping. Raises UserError where either is not finite; the
        weights are as before the step.
    """
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=device_of(model))
    for left, batch in zip(reversed(range(len(batches))), batches):
        with in_half(total.device, config.bf16), waits_for_more(loss, left > 0):
            part = loss(model, moved(batch, model)).float() / count
        part.backward()
        total += part.detach()
    total = summed(total) / join_processes()[1]
    trained = [p for p in model.parameters() if p.grad is not None]
    norm = whole(nn.utils.clip_grad_norm_(trained, config.clip if config.clip > 0 else math.inf))
    if not (math.isfinite(total) and math.isfinite(norm)):
        rows = [row for batch in batches for row in batch.rows]
        raise UserError(f"the loss is {float(total)} and its gradient {float(norm)} on examples "
                        f"{rows[:8]}{' …' * (len(rows) > 8)}; try a smaller --learning-rate")
    optimizer.step()
    return float(total), float(norm)


def one_step(model: nn.Module, optimizer: torch.optim.Optimizer, data: Batches, loss: Callable, config: TrainingConfig,
             run: RunFolder, step: int, place: tuple[int, int]) -> dict[str, float]:
    """Step number `step` (0 first), and its metrics.

    Args:
        model, optimizer, data, loss, config, run: as in `train`.
        place: rank of this process, and how many share each batch.
    Raises UserError for a loss that is not finite, or more processes than micro-batches.
    """
    rank, processes = place
    started, rate = time.perf_counter(), learning_rate_at(step, config)
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("times", 1.0)
    batches = data.microbatches(step, max(config.accumulation, processes))
    if len(batches) < processes:
        raise UserError(f"a batch of {len(batches)} cannot be shared by {processes} processes; start fewer, or use a "
                        f"larger --batch")
    if processes > 1 or device_of(model).type != "cpu":  # chance of its own for each, the same after a restart
        torch.manual_seed((config.seed * 1_000_003 + step) * processes + rank)
    count = sum(batch.count for batch in batches) / processes
    try:
        mean, norm = gradient_step(model, optimizer, batches[rank::processes], loss, config, count)
    except UserError as error:
        raise UserError(f"step {step}: {error}; the last good checkpoint is kept", run.path) from None
    speed = round(sum(batch.size for batch in batches) / (time.perf_counter() - started))
    return {"loss": mean, "learning_rate": rate, "gradient_norm": norm, "tokens_per_second": speed}


def train(model: nn.Module, data: Batches, loss: Callable[[nn.Module, Any], Tensor], config: TrainingConfig,
          run: RunFolder, validate: Callable[[nn.Module], dict[str, float]] | None = None, label: str = "training",
          complete: Callable[[nn.Module], dict[str, float]] | None = None, optimizer: Any = None) -> dict[str, float]:
    """Train a model in its run folder, from the beginning or from the folder's last checkpoint.

    Args:
        model: trained in place; data: gives each step's micro-batches.
        loss: (model, batch) -> sum of the losses of the batch's labels.
        config: how; run: where metrics and checkpoints go, and the finished model.
        validate: model -> {"validation": mean held-out loss, ...}, every `validate_every` steps and at the end.
        label: name of the progress bar.
        complete: the last change to the trained model (a reward model is normalised); returns facts about it.
        optimizer: in place of AdamW; its `parts` are several optimizers by name, and a group's `times` its learning
            rate in units of the loop's.
    Returns:
        The last validation, the step it stands at, and the facts of `complete`.
    Raises:
        UserError: a loss that is not finite; the last checkpoint is kept.
        Stopped: after Ctrl-C, with everything saved.
    """
    place, loss = join_processes(), shared(model, loss)
    optimizer = optimizer or adamw(model, config.learning_rate, config.weight_decay, config.beta2)
    torch.manual_seed(config.seed)
    model.train()
    parts = getattr(optimizer, "parts", {"adamw": optimizer})
    with ResumableLoop(run, {"model": model}, parts, {"dropout": torch.default_generator},
                       {"best": math.inf, "stale": 0, "last": {}}) as loop:
        best = BestWeights(run, config.patience, loop.state)
        for step in loop.steps(config.steps, label, every=config.checkpoint_every):
            if best.gave_up:
                break
            metrics = one_step(model, optimizer, data, loss, config, run, step, place)
            if validate is not None and ((step + 1) % config.validate_every == 0 or step + 1 == config.steps):
                with evaluating(model), whole_weights(loss):
                    metrics |= best.look(model, validate(model))
            loop.done(metrics, f"loss {metrics['loss']:.3f}, {metrics['tokens_per_second'] / 1000:.1f}k tokens/s")
        best.restore(model)
        model.eval()
        with whole_weights(loss):
            result = {**loop.state["last"], "steps": loop.state["step"], **(complete(model) if complete else {})}
        run.finish(model, **result)
        best.forget()
    return result
