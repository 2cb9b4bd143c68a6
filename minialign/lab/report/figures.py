"""The report's figures with their tables: gold scores, win rates, and how training went."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minialign.lab.plotting import INK, STYLES, Figure, as_svg, bars_with_intervals, figure, legend, line, reference_line
from minialign.lab.report.run import ASPECTS, STAGES, Run, cell, escape, marked_name, percent, table, with_interval

POINTS = 160  # of a curve; a longer log is shown as means of neighbours


def framed(heading: str, fig: Figure, label: str, caption: str = "") -> str:
    """A figure in a card, with a heading and what to look at."""
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure class="card"><h3>{escape(heading)}</h3>{as_svg(fig, label)}{below}</figure>\n'


def scores_section(run: Run) -> str:
    """One small figure an aspect, and the table."""
    cards = []
    for aspect in ASPECTS:
        values = {STAGES[stage]: run.interval(stage, aspect) for stage in run.stages if run.interval(stage, aspect)}
        if not values:
            continue
        fig, axes = figure("", "", 3.6, 1.75)
        bars_with_intervals(axes, values)
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
        cards.append(framed(aspect, fig, f"{aspect}: " + "; ".join(f"{name} {with_interval(value)}" for name,
            value in values.items())))
    heads = ["stage", *ASPECTS, "words"]
    return f'<div class="grid four">{"".join(cards)}</div>\n{table("stack", heads, scores_rows(run))}'


def scores_rows(run: Run) -> list[list[str]]:
    """The gold scores and lengths as cells of a table."""
    rows = []
    for stage in run.stages:
        cells = [run.interval(stage, aspect) for aspect in ASPECTS]
        length = run.interval(stage, "length")
        rows.append([marked_name(stage), *(cell(value, 3) for value in cells), cell(length, 1)])
    return rows


def wins_section(run: Run) -> str:
    """Win rates against the references, the line of equality, and what is left of them at equal length."""
    rates = {stage: run.interval(stage, "win_rate") for stage in run.stages if run.interval(stage, "win_rate")}
    if not rates:
        return "<p>They were not measured in this run.</p>"
    equal = {stage: run.interval(stage, "win_rate_at_equal_length") for stage in rates}
    fig, axes = figure("share of comparisons won", "", 4.1, 2.3)
    bars_with_intervals(axes, {STAGES[stage]: rate for stage, rate in rates.items()})
    controlled = [(place, value["mean"]) for place, value in enumerate(equal.values()) if value]
    if controlled:
        places, means = zip(*controlled)
        axes.plot(means, [place + 0.42 for place in places], "D", color="none", markeredgecolor=INK, markersize=5,
                  label="at equal length")
    reference_line(axes, 0.5, "as good as they are", vertical=True)
    axes.set_xlim(0, 1)
    legend(axes, outside=True)
    label = "Win rates against the references: " + "; ".join(f"{STAGES[stage]} {percent(rate)}" for stage,
        rate in rates.items())
    rows = [[marked_name(stage), cell(rate, 3), cell_of_number(equal[stage])] for stage, rate in rates.items()]
    text = """<p>Held-out annotators, whose choices trained nothing, compare each summary with the reference of the same story. Which of the two
    they see first is drawn; a tie counts one half. At 0.5 the model is as good as the references."""
    text += " “At equal length” is the rate expected if both wrote as many words.</p>" if controlled else "</p>"
    heads = ["stage", "win rate", "at equal length"] if controlled else ["stage", "win rate"]
    rows = rows if controlled else [row[:2] for row in rows]
    panel = framed("preferred to the references", fig, label)
    return f'{text}\n<div class="grid wins">{panel}<div>{table("stack", heads, rows)}{people(run)}</div></div>'


def cell_of_number(value: dict[str, float] | None) -> str:
    """A number, with its interval only if it has one."""
    return "" if not value else cell(value, 3) if value["low"] != value["high"] else f"{value['mean']:.3f}"


def people(run: Run) -> str:
    """The reward model beside judges that do not read, and beside people."""
    model = run.summary.get("reward_model", {})
    names = {"accuracy": "reward model", "length_only": "only the length", "position_only": "only the position"}
    names["annotator_agreement"] = "annotators with each other"
    rows = []
    for key, name in names.items():
        value = model.get(key)
        if value is not None:
            low, high = (model.get(end, value) for end in ("low", "high")) if key == "accuracy" else (value, value)
            rows.append([escape(name), cell_of_number({"mean": value, "low": low, "high": high}
                                                      if isinstance(value, int | float) else value)])
    if not rows:
        return ""
    number = f" on {model['held_out']:,} of them" if "held_out" in model else ""
    return f"<h3>Who can foresee the annotators’ choices?</h3><p class='soft'>Share of held-out choices ordered rightly{number}.</p>" + table(
        "plain", ["judge", "right"], rows
    )


def thinned(records: Sequence[dict], field: str) -> tuple[list[float], list[float], int]:
    """Steps and values of a field, as means of at most POINTS groups of neighbours, and how many a group holds."""
    found = [(record["step"], record[field]) for record in records if isinstance(record.get(field), int | float)]
    size = max(1, -(-len(found) // POINTS))
    groups = [found[i : i + size] for i in range(0, len(found), size)]
    return [sum(x for x, _ in g) / len(g) for g in groups], [sum(y for _, y in g) / len(g) for g in groups], size


def curve(
    heading: str,
    records: Sequence[dict],
    fields: dict[str, str],
    x: str,
    y: str,
    caption: str,
    at: tuple[float, str] | None = None,
    log: bool = False,
) -> str:
    """A panel of one stage's log; nothing when none of the fields was logged.

    Args:
        heading: above it; caption: below it, HTML.
        records: lines of metrics.jsonl.
        fields: field -> label.
        x, y: labels of the axes.
        at: a line to compare with, and its name.
        log: whether y is logarithmic.
    """
    fig, axes = figure(x, y)
    said = []
    for number, (field, label) in enumerate(fields.items()):
        steps, values, size = thinned(records, field)
        if steps:
            line(axes, number, steps, values, label + (f", mean of {size} {x}s" if size > 1 else ""))
            said.append(f"{label} from {values[0]:.3g} to {values[-1]:.3g}")
    if not said:
        return ""
    axes.xaxis.get_major_locator().set_params(integer=True)
    if at:
        reference_line(axes, *at)
    if log and len(records) > 1:
        axes.set_yscale("log")
        ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10) if axes.get_ylim()[0] <= tick <= axes.get_ylim()[1]]
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    if at or len(said) > 1 or thinned(records, next(iter(fields)))[2] > 1:
        legend(axes)
    return framed(heading, fig, f"{heading}: " + "; ".join(said), caption)


def curves_section(run: Run) -> str:
    """All panels, in the order of the pipeline."""
    losses, kls, golds = {"loss": "train", "validation": "held out"}, {"kl": "k1 (the penalty)",
        "kl_k3": "k3"}, {a: a for a in ("gold", "helpful", "honest")}
    pretrain, sft, reward, ppo = (run.metrics[key] for key in ("pretrain", "sft", "reward", "ppo"))
    a_token, a_pair, share = "loss, nats a token", "loss, nats a pair", "share ordered rightly"
    gap = "What “held out” lies above “train” was learned by heart."
    overlong = "Only the answer’s tokens count. If “held out” turns upward, it trained too long."
    naive = "A judge that knows nothing pays ln 2 ≈ 0.693."
    agree = "Held-out choices ordered as people did. Mind the axis: it does not begin at 0."
    climbs = "What PPO climbs. Rising is not yet better: see the gold score."
    far = "How far the policy has gone. It begins at 0; a mean that stays negative is a bug."
    unseen = "PPO never sees these. If they fall while the score rises, the reward model is being gamed."
    panels = [
        curve("Pretraining", pretrain, losses, "step", a_token + " (log scale)", gap, log=True),
        curve("Instruction tuning", sft, losses, "step", a_token, overlong),
        curve("Reward model: loss", reward, losses, "step", a_pair, naive, (0.6931, "knows nothing")),
        curve("Reward model: accuracy", reward, {"accuracy": "held out"}, "step", share, agree, (0.5, "guessing")),
        curve("PPO: score", ppo, {"score": "reward model’s score"}, "update", "score, deviations", climbs),
        curve("PPO: KL to the reference", ppo, kls, "update", "KL, nats an answer", far),
        against(ppo),
        curve("PPO: gold score of its own samples", ppo, golds, "update", "score, 0 to 1", unseen),
    ]
    shown = "".join(panels)
    return f'<div class="grid" style="--least:19rem">{shown}</div>' if shown else "<p>Nothing was logged.</p>"


def against(records: Sequence[dict[str, Any]]) -> str:
    """PPO in the plane of KL and score: what was bought, and at what price. Updates go from pale to full."""
    found = [(r["kl"], r["score"]) for r in records if "kl" in r and "score" in r]
    found = [found[i] for i in sorted({round(i * (len(found) - 1) / POINTS)
                                       for i in range(POINTS + 1)})] if len(found) > POINTS else found
    if not found:
        return ""
    fig, axes = figure("KL to the reference, nats an answer", "score, deviations")
    for i, (kl, score) in enumerate(found):
        axes.plot(kl, score, "o", color=STYLES[0][0], alpha=(i + 2) / (len(found) + 1), markeredgewidth=0, markersize=6)
    for (kl, score), marker, name in ((found[0], "s", "first update"), (found[-1], "D", "last update")):
        axes.plot(kl, score, marker, color="none", markeredgecolor=INK, markeredgewidth=1.5, markersize=10, label=name)
    legend(axes)
    label = "Score against KL, from {1:.2f} at {0:.2f} nats to {3:.2f} at {2:.2f} nats".format(*found[0], *found[-1])
    caption = ("One point an update, from pale to full. Up is bought with right; points that go right but not up pay "
               "for nothing.")
    return framed("PPO: score against KL", fig, label, caption)
