r"""The few figures everybody shares, in one style: colour-blind-safe colours that also differ in line style and marker, labelled axes,
intervals drawn as bands or whiskers."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from minialign.checkpoints import write_atomic  # noqa: E402

STYLES = [("#0072B2", "-", "o"), ("#D55E00", "--", "s"), ("#009E73", "-.", "^"), ("#CC79A7", ":", "D"), ("#56B4E9", "-", "v"), ("#E69F00", "--", "x")]
INK = "#333333"
matplotlib.rcParams.update(
    {
        "svg.fonttype": "none",
        "svg.hashsalt": "minialign",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.color": INK,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "legend.frameon": False,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
    }
)


def figure(x: str, y: str, width: float = 5.6, height: float = 3.4):
    """A figure with one pair of labelled axes; labels carry their units."""
    fig, axes = plt.subplots(figsize=(width, height), layout="constrained")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return fig, axes


def line(axes, number: int, x: Sequence[float], y: Sequence[float], label: str, low=None, high=None) -> None:
    """A curve in the number-th style, with its interval as a band where there is one."""
    colour, style, _ = STYLES[number % len(STYLES)]
    axes.plot(x, y, style, color=colour, label=label, linewidth=1.6)
    if low is not None:
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)


def whiskers(axes, number: int, x: Sequence[float], intervals: Sequence[dict], label: str) -> None:
    """Means as points with their 95 % intervals as whiskers; each interval has `mean`, `low` and `high`."""
    colour, _, marker = STYLES[number % len(STYLES)]
    means = [i["mean"] for i in intervals]
    errors = [[m - i["low"] for m, i in zip(means, intervals)], [i["high"] - m for m, i in zip(means, intervals)]]
    axes.errorbar(x, means, errors, fmt=marker, color=colour, label=label, capsize=3, markersize=6)


def as_svg(fig) -> str:
    """The figure as SVG to put into a page; ink follows the page's text colour, and ids are made unique by the caller's order."""
    file = io.StringIO()
    fig.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
    plt.close(fig)
    svg = file.getvalue()
    return re.sub(r"#333333", "currentColor", svg[svg.index("<svg") :])


def save_png(fig, path: Path) -> None:
    """Write the figure as a picture on white, atomically."""
    file = io.BytesIO()
    fig.savefig(file, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    plt.close(fig)
    write_atomic(path, file.getvalue())
