"""What the reward model is worth: how sure it may be, what best of n makes of it without PPO, and the summaries that it
judged most wrongly."""

from collections.abc import Mapping, Sequence

from minialign.evaluation import Interval
from minialign.lab.plotting import INK, STYLES, Figure, figure, legend, whiskers
from minialign.lab.report.figures import framed
from minialign.lab.report.run import Run, cell, escape, table
from minialign.rlhf.reward_checks import Bin, Sample, widest

SHOWN = 10


def reward_section(run: Run) -> str:
    """The three parts; what an older run did not measure is left out."""
    parts = [sureness(run), rivals(run), hacked(run)]
    return "\n".join(part for part in parts if part) or "<p>It was not measured in this run.</p>"


def calibration_figure(bins: Sequence[Bin], blind: Mapping[str, float]) -> Figure:
    """Predicted against observed preference, the diagonal on which they agree, and the accuracy of judges that do not
    read.

    Args:
        bins: from `calibration`; blind: name -> accuracy, at least one half if the better sign is known.
    """
    fig, axes = figure("predicted: how sure it is", "observed share", 4.6, 3.6)
    axes.plot([0.5, 1], [0.5, 1], color=INK, linestyle=(0, (6, 3)), linewidth=1.1, label="calibrated", zorder=1)
    whiskers(axes, 0, [b.predicted for b in bins], [b.observed for b in bins], "reward model")
    for number, (name, share) in enumerate(blind.items(), 1):
        colour, _, _ = STYLES[number]
        axes.axhline(share, color=colour, linestyle=":" if number == 1 else "-.", linewidth=1.5,
                     label=f"{name} {share:.2f}", zorder=1)
    axes.set_xlim(0.48, max(0.8, *(b.predicted + 0.03 for b in bins)))
    axes.set_ylim(min(0.4, *(b.observed.low - 0.02 for b in bins)), 1.02)
    legend(axes, outside=True, columns=2)
    return fig


def bins_of(run: Run) -> list[Bin]:
    """The calibration's bins."""
    found = run.summary.get("reward_model", {}).get("calibration", ())
    return [Bin(one["predicted"], Interval(**one["observed"]), one["count"]) for one in found]


def sureness(run: Run) -> str:
    """Predicted against observed preference, with the judges that do not read beside it."""
    bins, model = bins_of(run), run.summary.get("reward_model", {})
    if not bins:
        return ""
    names = {"only the length": "length_only", "only the position": "position_only"}
    blind = {name: model[key] for name, key in names.items() if model.get(key) is not None}
    said = "; ".join(f"predicted {b.predicted:.2f}, observed {b.observed.mean:.2f}" for b in bins)
    caption = ("Held-out pairs in bins of equal size. On the dashed diagonal it would be calibrated; below it, it is "
               "too sure. The level\n    lines are how often judges who never read are right, over all pairs.")
    shown = framed("is it calibrated?", calibration_figure(bins, blind), f"calibration: {said}", caption)
    return f'<div class="grid wins">{shown}</div>'


def rivals(run: Run) -> str:
    """PPO beside best of n: the same reward model, without training."""
    found = run.summary.get("best_of_n", ())
    if not found:
        return ""
    heads = ["", "KL, nats", "reward", "gold", "win rate", "at equal length"]
    digits = {"score": 2, "gold": 3, "win_rate": 3, "win_rate_at_equal_length": 3}
    rows = [[escape(row["name"]), f"{row['kl']:.2f}", *(cell(row[what], count) for what, count in digits.items())]
            for row in found]
    count = found[0]["stories"]
    asked = (f"The same {count} test stories for all" if count >= len(run.stories) else
             f"The first {count} of {len(run.stories):,} test stories for all, so RLHF’s numbers are not those above")
    text = ("<h3>PPO beside best of n</h3><p>Best of n asks the instruction-tuned model n times and keeps what the "
            "reward model likes best: no training, n\n    times the work for each completion, KL log n − (n − 1)/n at "
            f"most. {asked}; 95 % intervals over them.</p>")
    return text + table("stack", heads, rows)


def hacked_samples(run: Run) -> list[Sample]:
    """The summaries of RLHF whose reward and gold score differ most, those that are liked too much first."""
    own = [(s.get("prompt", ""), s["text"], s["proxy"], s["gold"]) for s in run.samples
           if s.get("stage") == "rlhf" and isinstance(s.get("proxy"), int | float) and "gold" in s]
    found = widest(*map(list, zip(*own)), SHOWN) if own else []
    return sorted(found, key=lambda sample: sample.excess <= 0)


def hacked(run: Run) -> str:
    """Those summaries, with their stories."""
    samples = hacked_samples(run)
    if not samples:
        return ""
    rows = []
    for sample in samples:
        verdict = "liked beyond its worth" if sample.excess > 0 else "better than it thinks"
        summary = escape(sample.completion.strip()) or '<span class="soft">(it says nothing)</span>'
        texts = f"<details><summary>{summary}</summary><p class='soft'>{escape(sample.prompt)}</p></details>"
        rows.append([verdict, f"{sample.proxy:+.2f}", f"{sample.gold:+.2f}", texts])
    text = ("<h3>Where reward and gold differ most</h3><p>Summaries of RLHF on test stories, both scores in standard "
            "deviations from their mean over all of them.\n    First those that the reward model likes too much: what "
            "they have in common is what PPO would climb next. Then those that it misses.\n    Open one to see its "
            "prompt.</p>")
    return text + table("stack", ["the reward model", "reward", "gold", "summary"], rows)
