r"""The two diagrams of the notes, for any tensor: real numbers above, integers below, and which goes where.

    absmax: symmetric, 0 goes to 0                 zero-point: the whole range is used, 0 goes to z

Read next: quant/mappings.py (the equations). Try it:  save_png(show_mapping(x, bits=3), path)
"""

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from minialign.lab.plotting import INK, STYLES
from minialign.quant.mappings import MappingConfig, quantize_tensor

TICKS = 16  # with more codes than this, only some of them are marked


def show_mapping(x: Tensor, bits: int = 4) -> Figure:
    """Draw how absmax and zero-point map a finite tensor of any shape to 2 to 8 bits, of which few show the steps; at
    most 200 of its values, evenly chosen from the sorted ones."""
    fig = Figure(figsize=(9.2, 2.9), layout="constrained")
    for axes, mapping in zip(fig.subplots(1, 2), ("absmax", "zero-point")):
        draw_mapping(axes, x, MappingConfig(mapping, bits))
    return fig


def draw_mapping(axes: Axes, x: Tensor, config: MappingConfig) -> None:
    """One mapping: a line of real numbers above, one of integers below, thin lines from value to code."""
    values = x.detach().float().flatten().sort().values
    values = values[torch.linspace(0, len(values) - 1, min(200, len(values))).round().long()]
    whole = quantize_tensor(x.flatten()[None], config)
    zero = 0 if whole.zero_point is None else int(whole.zero_point)
    scale, (least, greatest) = float(whole.scale), config.codes
    codes = (values / scale).round().add(zero).clamp(least, greatest).tolist()
    low, high = scale * (least - zero), scale * (greatest - zero)  # what the codes can stand for

    def at(code: float) -> float:
        return (code - least) / (greatest - least)  # both lines are as long as the range of the codes

    def place(value: float) -> float:
        return (value - low) / (high - low)

    colour, _, marker = STYLES[0]
    ticks, used = [place(value) for value in values.tolist()], sorted(set(codes))
    for tick, code in zip(ticks, codes):
        axes.plot([tick, at(code)], [1, 0], color=colour, linewidth=0.5, alpha=0.35)
    axes.plot(ticks, [1] * len(ticks), linestyle="", marker="|", markersize=9, color=colour)
    axes.plot([at(c) for c in used], [0] * len(used), linestyle="", marker=marker, markersize=4, color=STYLES[1][0])
    for height in (0, 1):
        axes.plot([0, 1], [height, height], color=INK, linewidth=0.9, zorder=1)
    step = max(1, (greatest - least + 1) // TICKS)
    for code in sorted({least, greatest, zero, *range(least, greatest + 1, step)}):
        axes.plot([at(code)] * 2, [-0.05, 0.05], color=INK, linewidth=0.8)
        if code in (least, greatest, zero):
            axes.text(at(code), -0.12, str(code), ha="center", va="top")
    for value in sorted({low, 0.0, high}):
        axes.text(place(value), 1.12, f"{value:.3g}", ha="center", va="bottom")
    axes.plot([place(0.0), at(zero)], [1, 0], color=STYLES[1][0], linewidth=1.6)  # where 0 goes
    axes.set_title(f"{config.mapping}, {config.bits} bits: step {scale:.3g}, 0 goes to {zero}")
    axes.set(ylim=(-0.4, 1.45), xticks=[])
    axes.set_yticks([0, 1], ["integers", "real"])
    axes.tick_params(axis="y", length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
