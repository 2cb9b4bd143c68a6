"""The report's figures with their tables: gold scores, win rates, and how training went."""

from collections.abc import Sequence
from typing import Any

from minialign.lab import plotting
from minialign.lab.plotting import INK, STYLES, bars_with_intervals, figure, legend, line, reference_line
from minialign.lab.report import run as files
from minialign.lab.report.run import ASPECTS, STAGES, Run, cell, escape, marked_name, percent, table

POINTS = 160  # of a curve; a longer log is shown as means of neighbours


def framed(heading: str, fig: plotting.Figure, label: str, caption: str = "") -> str:
    """A figure in a card, with a heading and what to look at."""
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure class="card"><h3>{escape(heading)}</h3>{plotting.as_svg(fig, label)}{below}</figure>\n'


def scores_section(run: Run) -> str:
    """One small figure an aspect, and the table."""
    cards = []
    for aspect in ASPECTS:
        values = {STAGES[stage]: value for stage, value in run.measured(aspect).items()}
        if not values:
            continue
        fig, axes = figure("", "", 3.6, 1.75)
        bars_with_intervals(axes, values)
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
        said = "; ".join(f"{name} {files.with_interval(value)}" for name, value in values.items())
        cards.append(framed(aspect, fig, f"{aspect}: {said}"))
    rows = [[marked_name(stage), *(cell(run.interval(stage, aspect), 3) for aspect in ASPECTS),
             cell(run.interval(stage, "length"), 1)] for stage in run.stages]
    return f'<div class="grid four">{"".join(cards)}</div>\n{table("stack", ["stage", *ASPECTS, "words"], rows)}'


def wins_section(run: Run) -> str:
    """Win rates against the references, the line of equality, and what is left of them at equal length."""
    rates, equal = run.measured("win_rate"), run.measured("win_rate_at_equal_length")
    if not rates:
        return "<p>They were not measured in this run.</p>"
    fig, axes = figure("share of comparisons won", "", 4.1, 2.3)
    bars_with_intervals(axes, {STAGES[stage]: rate for stage, rate in rates.items()})
    points = [(equal[stage]["mean"], place + 0.42) for place, stage in enumerate(rates) if stage in equal]
    if points:
        axes.plot(*zip(*points), "D", color="none", markeredgecolor=INK, markersize=5, label="at equal length")
    reference_line(axes, 0.5, "as good as they are", vertical=True)
    axes.set_xlim(0, 1)
    legend(axes, outside=True)
    said = "; ".join(f"{STAGES[stage]} {percent(rate)}" for stage, rate in rates.items())
    panel = framed("preferred to the references", fig, f"Win rates against the references: {said}")
    text = ("<p>Held-out annotators, whose choices trained nothing, compare each summary with the reference of the "
            "same story. Which of the two\n    they see first is drawn; a tie counts one half. At 0.5 the model is as "
            "good as the references.")
    text += " “At equal length” is the rate expected if both wrote as many words.</p>" if points else "</p>"
    columns = 3 if points else 2
    rows = [[marked_name(stage), cell(rate, 3), cell_of_number(equal.get(stage))][:columns]
            for stage, rate in rates.items()]
    wins = table("stack", ["stage", "win rate", "at equal length"][:columns], rows)
    return f'{text}\n<div class="grid wins">{panel}<div>{wins}{people(run)}</div></div>'


def cell_of_number(value: dict[str, float] | None) -> str:
    """A number, with its interval only if it has one."""
    return "" if not value else cell(value, 3) if value["low"] != value["high"] else f"{value['mean']:.3f}"


def people(run: Run) -> str:
    """The reward model beside judges that do not read, and beside people."""
    model = run.summary.get("reward_model", {})
    names = {"accuracy": "reward model", "length_only": "only the length", "position_only": "only the position",
             "annotator_agreement": "annotators with each other"}
    values = {key: files.interval(model[key]) for key in names if model.get(key) is not None}
    if not values:
        return ""
    if "accuracy" in values:
        values["accuracy"] |= {end: model[end] for end in ("low", "high") if end in model}
    number = f" on {model['held_out']:,} of them" if "held_out" in model else ""
    rows = [[escape(names[key]), cell_of_number(value)] for key, value in values.items()]
    return ("<h3>Who can foresee the annotators’ choices?</h3><p class='soft'>Share of held-out choices ordered "
            f"rightly{number}.</p>{table('plain', ['judge', 'right'], rows)}")


def thinned(records: Sequence[dict], field: str) -> tuple[list[float], list[float], int]:
    """Steps and values of a field, as means of at most POINTS groups of neighbours, and how many a group holds."""
    found = [(record["step"], record[field]) for record in records if isinstance(record.get(field), int | float)]
    size = max(1, -(-len(found) // POINTS))
    groups = [found[i : i + size] for i in range(0, len(found), size)]
    return [sum(x for x, _ in g) / len(g) for g in groups], [sum(y for _, y in g) / len(g) for g in groups], size


def curve(heading: str, records: Sequence[dict], fields: dict[str, str], axis: tuple[str, str], caption: str,
          at: tuple[float, str] | None = None, log: bool = False) -> str:
    """A panel of one stage's log; nothing when none of the fields was logged.

    Args:
        heading: above it; caption: below it, HTML.
        records: lines of metrics.jsonl.
        fields: field -> label.
        axis: labels of x and y.
        at: a line to compare with, and its name.
        log: whether y is logarithmic.
    """
    fig, axes = figure(*axis)
    said, grouped = [], False
    for number, (field, label) in enumerate(fields.items()):
        steps, values, size = thinned(records, field)
        grouped |= number == 0 and size > 1
        if steps:
            line(axes, number, steps, values, label + (f", mean of {size} {axis[0]}s" if size > 1 else ""))
            said.append(f"{label} from {values[0]:.3g} to {values[-1]:.3g}")
    if not said:
        return ""
    axes.set_xlim(0, 1.04 * max(record["step"] for record in records))  # also where there is one point alone
    axes.xaxis.get_major_locator().set_params(integer=True)
    if at:
        reference_line(axes, *at)
    if log and len(records) > 1:
        axes.set_yscale("log")
    if at or len(said) > 1 or grouped:
        legend(axes)
    return framed(heading, fig, f"{heading}: " + "; ".join(said), caption)


def curves_section(run: Run) -> str:
    """All panels, in the order of the pipeline."""
    losses, kls = {"loss": "train", "validation": "held out"}, {"kl": "k1 (the penalty)", "kl_k3": "k3"}
    golds = {aspect: aspect for aspect in ("gold", "helpful", "honest")}
    pretrain, sft, reward, ppo = (run.metrics[key] for key in ("pretrain", "sft", "reward", "ppo"))
    panels = [
        curve("Pretraining", pretrain, losses, ("step", "loss, nats a token (log scale)"),
              "What “held out” lies above “train” was learned by heart.", log=True),
        curve("Instruction tuning", sft, losses, ("step", "loss, nats a token"),
              "Only the completion’s tokens count. If “held out” turns upward, it trained too long."),
        curve("Reward model: loss", reward, losses, ("step", "loss, nats a pair"),
              "A judge that knows nothing pays ln 2 ≈ 0.693.", (0.6931, "knows nothing")),
        curve("Reward model: accuracy", reward, {"accuracy": "held out"}, ("step", "share ordered rightly"),
              "Held-out choices ordered as people did. Mind the axis: it does not begin at 0.", (0.5, "guessing")),
        curve("PPO: score", ppo, {"score": "reward model’s score"}, ("update", "score, std"),
              "What PPO climbs. Rising is not yet better: see the gold score."),
        curve("PPO: KL to the reference", ppo, kls, ("update", "KL, nats a completion"),
              "How far the policy has gone. It begins at 0; a mean that stays negative is a bug."),
        score_against_kl(ppo),
        curve("PPO: gold score of its own samples", ppo, golds, ("update", "score, 0 to 1"),
              "PPO never sees these. If they fall while the score rises, the reward model is being gamed."),
    ]
    shown = "".join(panels)
    return f'<div class="grid" style="--least:19rem">{shown}</div>' if shown else "<p>Nothing was logged.</p>"


def score_against_kl(records: Sequence[dict[str, Any]]) -> str:
    """PPO in the plane of KL and score: what was bought, and at what price. Updates go from pale to full."""
    found = [(record["kl"], record["score"]) for record in records if "kl" in record and "score" in record]
    if len(found) > POINTS:
        found = [found[i] for i in sorted({round(i * (len(found) - 1) / POINTS) for i in range(POINTS + 1)})]
    if not found:
        return ""
    fig, axes = figure("KL to the reference, nats a completion", "score, std")
    for i, (kl, score) in enumerate(found):
        axes.plot(kl, score, "o", color=STYLES[0][0], alpha=(i + 2) / (len(found) + 1), markeredgewidth=0, markersize=6)
    for (kl, score), marker, name in ((found[0], "s", "first update"), (found[-1], "D", "last update")):
        axes.plot(kl, score, marker, color="none", markeredgecolor=INK, markeredgewidth=1.5, markersize=10, label=name)
    legend(axes)
    (kl, score), (last_kl, last_score) = found[0], found[-1]
    label = f"Score against KL, from {score:.2f} at {kl:.2f} nats to {last_score:.2f} at {last_kl:.2f} nats"
    return framed("PPO: score against KL", fig, label, "One point an update, from pale to full. Up is bought with "
                  "right; points that go right but not up pay for nothing.")
