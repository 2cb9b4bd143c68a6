r"""The loss of soft_targets.py some rows at a time: what lies between stays in the processor's cache.

    L = T² · mean over M tokens of KL(softmax(z_t/T) ‖ softmax(z_s/T))
    dL/dz_s = T (softmax(z_s/T) − softmax(z_t/T)) / M

The plain formula moves eight tables of M × V through memory and takes several times as long (tests/speed/distill.py).
Both are the same to rounding (test_fast_soft_targets_are_the_plain_formula).

Read next: recipe.py.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minialign.distill.recipe import check_logits


def fast_soft_target_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`soft_target_loss` of (M, V) logits of tokens that all count. Its gradient can be asked for once.

    Raises:
        UserError: vocabularies of different sizes.
    """
    check_logits(student, teacher)
    return _SoftTargetsByRows.apply(student, teacher, temperature)


class _SoftTargetsByRows(torch.autograd.Function):
    """The gradient is written beside the loss, once, and scaled in place when it is asked for."""

    @staticmethod
    def forward(ctx, student: Tensor, teacher: Tensor, T: float) -> Tensor:
        M, V = student.shape
        total, step = torch.zeros((), dtype=torch.float64), max(1, 2**17 // V)  # half a megabyte of each table
        ctx.gradient, ctx.scale = torch.empty_like(student) if ctx.needs_input_grad[0] else None, T / max(1, M)
        for start in range(0, M, step):
            rows = slice(start, start + step)
            a, b = (z[rows].to(torch.promote_types(z.dtype, torch.float32)) / T for z in (teacher, student))
            p, q = a.softmax(dim=-1), b.softmax(dim=-1)
            # log Σ eᶻ = z − log p, read at the largest
            log_sums = [z.amax(dim=-1) - prob.amax(dim=-1).log() for z, prob in ((a, p), (b, q))]
            if ctx.gradient is not None:
                torch.sub(q, p, out=ctx.gradient[rows])
            # Σ p (a − b) − log Σ eᵃ + log Σ eᵇ
            total += float(a.sub_(b).mul_(p).sum() - (log_sums[0] - log_sums[1]).sum())
        return (T * T * total / max(1, M)).to(student.device, torch.promote_types(student.dtype, torch.float32))

    @staticmethod
    @once_differentiable
    def backward(ctx, by: Tensor) -> tuple[Tensor | None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None
        if ctx.gradient is None:
            raise RuntimeError("the gradient of soft targets is given away when it is asked for; compute the loss "
                               "again to ask a second time")
        gradient, ctx.gradient = ctx.gradient, None
        return gradient.mul_(by * ctx.scale), None, None
