r"""The few figures everybody shares, in one style.

Every curve or bar has a number; the number decides colour (Okabe & Ito 2008, some darker so that they stand out on
paper), line style and marker together, so that figures can be read in grey and by colour-blind people. Axes carry
units. Intervals are drawn, never left out.

    fig, axes = figure("step", "loss, nats a token")
    lines_with_intervals(axes, steps, {"train": losses, "held out": intervals})
    save_png(fig, folder / "figure.png")                          # on white, for claims and the README
    page += as_svg(fig, "the loss falls from 7.3 to 0.7 nats")    # in a page, in the page's own colours, light or dark

An interval is a `minialign.evaluation.Interval`, a dictionary with `mean`, `low` and `high`, or a bare number, which
has none. Figures are made without pyplot: nothing is opened, nothing is kept alive, and a notebook's own backend is
left alone.
"""

import hashlib
import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from minialign.runs.files import write_atomic

INK, FAINT = "#33383e", "#c9cdd2"  # text and axes; grid
STYLES = [("#0072b2", "-", "o"), ("#c24f00", "--", "s"), ("#00805c", "-.", "^"), ("#a8508a", ":", "D"),
          ("#4a86b8", (0, (5, 1, 1, 1, 1, 1)), "v"), ("#8a6400", (0, (8, 2)), "X"), ("#56606a", (0, (3, 1, 1, 1)), "P")]
# inherited by all of an SVG
ROOT = "stroke-linejoin: round; font-family: system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
STEPS = ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 3, 5), (1, 2, 5), (1, 3))  # where ticks may stand between two powers of ten
FEW = 16  # a curve of fewer points shows its markers
INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "axes.titlecolor")

matplotlib.rcParams.update({
    "svg.fonttype": "none",  # text stays text: it can be read aloud, searched, and follows the page's font
    "svg.hashsalt": "minialign",  # same figure, same bytes
    **dict.fromkeys(("font.size", "axes.labelsize", "axes.titlesize"), 11),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "axes.formatter.useoffset", "legend.frameon"), False),
    **dict.fromkeys(("axes.axisbelow", "axes.grid"), True),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), "none"),
    **dict.fromkeys(INKED, INK),
    "legend.fontsize": 10.5,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
})


def figure(x: str, y: str, width: float = 4.6, height: float = 3.1) -> tuple[Figure, Axes]:
    """A figure with one pair of labelled axes.

    Args:
        x, y: labels, with units. Empty where the axis says itself what it is.
        width, height: inches; text has its natural size on a telephone at the default width.
    """
    fig = Figure(figsize=(width, height), layout="constrained")
    axes = fig.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return fig, axes


def interval_of(value: Any) -> tuple[float, float, float]:
    """(mean, low, high) of an interval in any of the three forms; a bare number or one seed's interval has no width."""
    if isinstance(value, int | float):
        return value, value, value
    value = value if isinstance(value, Mapping) else value.to_dict()
    low, high = value.get("low", value["mean"]), value.get("high", value["mean"])
    return (value["mean"], low, high) if math.isfinite(high - low) else (value["mean"],) * 3


def line(axes: Axes, number: int, x: Sequence[float], y: Sequence[float], label: str, low=None, high=None) -> None:
    """A curve in the number-th style, with its interval as a band where there is one."""
    colour, style, marker = STYLES[number % len(STYLES)]
    axes.plot(x, y, linestyle=style, color=colour, label=label, linewidth=1.8, marker=marker if len(x) < FEW else None,
              markersize=5)
    if low is not None and any(a != b for a, b in zip(low, high)):
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)


def lines_with_intervals(axes: Axes, x: Sequence[float], curves: Mapping[str, Sequence[Any]], first: int = 0) -> None:
    """Several curves over the same x, each a list of intervals or numbers, and a legend when there is more than one.

    Args:
        axes: of `figure`; x: shared by all.
        curves: label -> values; the order decides the styles.
        first: number of the first one's style.
    """
    for number, (label, values) in enumerate(curves.items(), first):
        means, lows, highs = zip(*map(interval_of, values)) if len(values) else ((), (), ())
        line(axes, number, x, means, label, lows, highs)
    if len(curves) > 1:
        legend(axes)


def lines_beside_one_seed(axes: Axes, x: Sequence[float], curves: Mapping[str, Sequence[Any]]) -> None:
    """`lines_with_intervals`, but a number among intervals is what one seed alone has shown: a hollow point beside the
    curve, not one of its points.

    Otherwise the interval would seem to shrink to nothing where least is known. Where nothing has an interval all are
    curves.
    """
    single = [all(low == high for _, low, high in map(interval_of, values)) for values in zip(*curves.values())]
    several = [i for i, alone in enumerate(single) if not alone] or list(range(len(x)))
    shown = {label: [values[i] for i in several] for label, values in curves.items()}
    lines_with_intervals(axes, [x[i] for i in several], shown)
    alone = [(x[i], interval_of(values[i])[0]) for values in curves.values() for i in range(len(x)) if i not in several]
    if alone:
        axes.plot(*zip(*alone), "o", markerfacecolor="white", markeredgecolor="0.2", markersize=7, label="one seed",
                  zorder=4)


def moving_mean(values: Sequence[float], window: int = 10) -> list[float]:
    """Means of each `window` neighbours, fewer at the beginning: a step's loss without most of its noise."""
    return [sum(part) / len(part) for part in (values[max(0, i - window + 1) : i + 1] for i in range(len(values)))]


def legend(axes: Axes, outside: bool = False, columns: int = 3) -> None:
    """A legend above the axes, where it hides no data; `outside` gives it the width of the whole figure, and
    then it speaks for its other axes, too."""
    style = {"ncols": columns, "handlelength": 2.2, "columnspacing": 1.1, "handletextpad": 0.5, "borderaxespad": 0.2}
    if outside:
        axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", **style)
    else:
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), **style)


def finish(axes: Axes, kinds: Sequence[str] = (), doublings: Sequence[float] = (), **settings: Any) -> Figure:
    """The figure of some axes with their ticks, scales, limits and legend.

    Args:
        kinds: names of what stands at x = 0, 1, 2 …; doublings: numbers that are ticks of a logarithmic x to base 2.
        settings: of `Axes.set`: xscale, yscale, xlim, ylim …
    """
    if kinds:
        axes.set_xticks(range(len(kinds)), kinds)
    if doublings:
        axes.set_xscale("log", base=2)
        axes.set_xticks(doublings, [str(number) for number in doublings])
    axes.set(**settings)
    legend(axes)
    return axes.figure


def whiskers(axes: Axes, number: int, x: Sequence[float], intervals: Sequence[Any], label: str) -> None:
    """Means as points with their intervals as whiskers, in the number-th style."""
    colour, _, marker = STYLES[number % len(STYLES)]
    means, lows, highs = zip(*map(interval_of, intervals))
    errors = [[mean - low for mean, low in zip(means, lows)], [high - mean for mean, high in zip(means, highs)]]
    axes.errorbar(x, means, errors, fmt=marker, color=colour, label=label, capsize=3, markersize=6)


def bars_with_intervals(axes: Axes, values: Mapping[str, Any], digits: int = 2) -> BarContainer:
    """Lying bars, one a name, from top to bottom: the bar is pale, the point is the mean, the whisker the interval, the
    mean stands at the right.

    Args:
        axes: of `figure`; x is the measured quantity, y the names.
        values: name -> interval or number; the order decides the styles; digits: after the point of the means.
    """
    places = list(range(len(values)))
    parts = [interval_of(value) for value in values.values()]
    bars = axes.barh(places, [mean for mean, _, _ in parts], height=0.66, color="none", linewidth=0)
    for place, bar, (mean, low, high) in zip(places, bars, parts):
        colour, _, marker = STYLES[place % len(STYLES)]
        bar.set_facecolor((colour, 0.16))
        errors = None if low == high == mean else [[mean - low], [high - mean]]
        axes.errorbar([mean], [place], xerr=errors, fmt=marker, color=colour, capsize=4, markersize=6, elinewidth=1.8,
                      clip_on=False, zorder=3)
        axes.text(1.06, place, f"{mean:.{digits}f}", transform=axes.get_yaxis_transform(), va="center")
    axes.set_yticks(places, list(values))
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    return bars


def reference_line(axes: Axes, at: float, label: str = "", vertical: bool = False) -> None:
    """A thin dashed line to compare with: chance, a rival, a budget. Its label joins the legend."""
    draw = axes.axvline if vertical else axes.axhline
    draw(at, color=INK, linestyle=(0, (3, 3)), linewidth=1.1, label=label or None, zorder=1)


def plain_ticks(fig: Figure) -> None:
    """On logarithmic axes that span less than two powers of ten, write 0.02 and 0.05 in place of 2 × 10⁻² and
    unnumbered strokes.

    Ticks that a figure set itself are left alone. Called by whatever writes a figure, when its limits are final.
    """
    for axes in fig.axes:
        for axis, limits, most in ((axes.xaxis, axes.get_xlim(), 4), (axes.yaxis, axes.get_ylim(), 6)):
            low, high = sorted(limits)
            automatic = axis.get_scale() == "log" and isinstance(axis.get_major_locator(), LogLocator)
            if not automatic or axis.get_transform().base != 10 or high >= 100 * low:
                continue
            powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            choices = [[step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
                       for steps in STEPS]
            # the finest that leave room for their numbers
            ticks = next((ticks for ticks in choices if len(ticks) <= most), choices[-1])
            axis.set_ticks(ticks, [f"{tick:,.12g}" for tick in ticks])
            axis.set_ticks([], minor=True)


def as_svg(fig: Figure, label: str) -> str:
    """The figure as SVG to put into a page.

    Text is the page's own, ink is `currentColor`, the styles' colours are `var(--series-0)` to `var(--series-5)` and
    the grid is `var(--grid)`, each with the printed colour to fall back on. Ids begin with a fingerprint of the
    drawing, so that figures of one page do not clash.

    Args:
        label: what a person who cannot see it should know, in one sentence.
    """
    plain_ticks(fig)
    file = io.StringIO()
    fig.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = file.getvalue()
    svg = re.sub(r"\s*<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>|font-family: [^;\"]*; ?", "",
                 svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path.group()).replace(" \n", " "), svg)
    mark = "f" + hashlib.sha256(svg.encode()).hexdigest()[:8]
    svg = re.sub(r' (?:xlink:)?href="#', f' href="#{mark}-', svg.replace("url(#", f"url(#{mark}-"))
    svg = re.sub(r' id="', f' id="{mark}-', svg)
    for number, (colour, _, _) in enumerate(STYLES):
        svg = svg.replace(colour, f"var(--series-{number}, {colour})")
    svg = svg.replace(FAINT, f"var(--grid, {FAINT})").replace(INK, "currentColor")
    box = re.search(r'viewBox="[^"]*"', svg).group()
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img" aria-label="{html.escape(label)}" style="{ROOT}"'
    return head + svg[svg.index(">") :].rstrip() + "\n"


def as_png(fig: Figure, dpi: int = 150, notes: Mapping[str, str] | None = None) -> bytes:
    """The figure as a picture on white. `notes` are written into the file beside the picture: name -> text."""
    plain_ticks(fig)
    file = io.BytesIO()
    fig.savefig(file, format="png", dpi=dpi, facecolor="white", metadata={"Software": None, **(notes or {})})
    return file.getvalue()


def save_png(fig: Figure, path: Path) -> None:
    """Write the figure as a picture on white, whole or not at all."""
    write_atomic(path, as_png(fig))
