r"""Solutions of notebook 07."""

import torch


def absmax(x):
    """Map to int8 with one symmetric scale."""
    s = (x.abs().max() / 127).clamp(min=1e-38)
    q = (x / s).round().clamp(-127, 127).to(torch.int8)
    return q, s


def zero_point(x):
    """Map to int8 with a scale and a zero-point."""
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    s = (high - low) / 255
    z = -128 - (low / s).round()
    q = ((x / s).round() + z).clamp(-128, 127).to(torch.int8)
    return q, s, z.int()


def fake_quantize(x, s):
    """Round in the forward pass alone."""
    y = x / s
    y = y + (y.round() - y).detach()
    return s * y.clamp(-7, 7)


def integer_product(x, x_scale, w, w_scale):
    """Sum in int32, scale at the end."""
    total = x.int() @ w.int().T
    return total.float() * x_scale * w_scale.T


def half_step():
    """Half of s = max|x| / 127."""
    return 6.35 / 127 / 2


def clipped_scale(x):
    """Try many scales and keep the one with the least squared error."""
    scales = x.abs().max() / 7 * torch.linspace(0.05, 1, 100)
    errors = [(((x / s).round().clamp(-7, 7) * s - x) ** 2).mean() for s in scales]
    return scales[torch.stack(errors).argmin()]
