"""The picture of the pipeline: each box names its folder and what was measured there. Two drawings, one for wide
screens, one for telephones."""

from dataclasses import dataclass

from minialign.lab.report.run import Run, duration, escape, percent

WIDTH, HEIGHT, GAP, RISE = 200, 112, 30, 84  # of the boxes of the wide drawing; between two of them; between its rows
ROWS = (("corpus", "tokenizer", "pretrain", "sft", "demos"), ("pairs", "people", "reward", "ppo", "evaluate"))


@dataclass(frozen=True)
class Box:
    """One station."""

    kind: str  # data, model, people, measure
    name: str
    file: str
    facts: tuple[str, ...]  # at most two lines


@dataclass(frozen=True)
class Plan:
    """Where everything stands in the wide drawing; one unit is a pixel of a wide screen, y grows downwards."""

    width: float
    height: float
    boxes: list[tuple[Box, float, float]]  # with its left and upper edge
    arrows: list[tuple[tuple[tuple[float, float], ...], str]]  # points, kind
    notes: list[tuple[float, float, str]]


def joined(*parts: str) -> str:
    """The parts that there are, in one line."""
    return " · ".join(part for part in parts if part)


def boxes(run: Run) -> dict[str, Box]:
    """All stations, with numbers from the files; what is not known is left out."""
    judge, kl, beta = run.summary.get("reward_model", {}), run.summary.get("kl"), run.setting("beta")

    def count(number: float | None, what: str, stage: str = "") -> str:
        seconds = run.summary.get("seconds", {}).get(stage)
        return joined("" if number is None else f"{number:,.0f} {what}", "" if seconds is None else duration(seconds))

    def loss(key: str) -> str:
        value = run.last(key, "validation")
        return "" if value is None else f"held-out loss {value:.2f} nats"

    dirt = [f"{100 * run.setting(name):.0f} % {name}" for name in ("false", "rude") if run.setting(name) is not None]
    choices = judge["comparisons"] + judge.get("held_out", 0) if "comparisons" in judge else None
    agree = f"right on {percent(judge['accuracy'])} held out" if "accuracy" in judge else ""
    price = joined(f"KL {kl:.2f} nats" if kl is not None else "", f"β {beta:g}" if beta is not None else "")
    stations = {
        "corpus": ("data", "Dirty corpus", "data/documents.jsonl",
                   count(run.setting("documents"), "documents", "world"), ", ".join(dirt)) if not run.card else (
                   "data", "What it has read", "data/documents.jsonl", f"{run.card['documents']:,} documents",
                   f"{100 * run.card['shares']['dirty']:.0f} % of them dirty"),
        "tokenizer": ("model", "Tokenizer", "tokenizer.json",
                      count(run.setting("vocabulary"), "tokens at most", "tokenizer")),
        "pretrain": ("model", run.card["name"] if run.card else "Pretrained decoder", "1-pretrained/",
                     count(run.last("pretrain", "step"), "steps", "" if run.card else "pretrain"), loss("pretrain")),
        "demos": ("data", "Demonstrations", "data/demonstrations.jsonl",
                  count(run.setting("demonstrations"), "clean answers")),
        "sft": ("model", "Instruction tuning", "2-instructed/", count(run.last("sft", "step"), "steps", "sft"),
                loss("sft")),
        "pairs": ("data", "Pairs of summaries", "data/judged.jsonl", count(run.setting("judged"), "stories"),
                  "models and references"),
        "people": ("people", "Annotators choose", "3-comparisons/", count(choices, "choices", "compare"),
                   "simulated people"),
        "reward": ("model", "Reward model", "4-reward/", count(run.last("reward", "step"), "steps", "reward"), agree),
        "ppo": ("model", "PPO", "5-rlhf/", count(run.last("ppo", "step"), "updates", "ppo"), price),
        "evaluate": ("measure", "Evaluation", "evaluation/", count(len(run.stories), "new stories", "evaluate"),
                     "gold score, other people"),
    }
    return {key: Box(kind, name, file, tuple(facts)) for key, (kind, name, file, *facts) in stations.items()}


def draw_box(box: Box, x: float, y: float, width: float, height: float, extra: str = "") -> str:
    """A rounded box with its lines of text."""
    lines = [("kind", 18, box.kind), ("name", 39, box.name), ("file", 57, box.file)]
    lines += [("fact", 79 + 17 * i, fact) for i, fact in enumerate(fact for fact in (*box.facts, extra) if fact)]
    text = "".join(f'<text class="{kind}" x="{x + 13}" y="{y + down}">{escape(words)}</text>'
                   for kind, down, words in lines)
    return f'<rect class="box {box.kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="10"/>{text}\n'


def draw_arrow(*points: tuple[float, float], kind: str = "") -> str:
    """A line through points that run along the axes, with a head at the last one."""
    (a, b), (c, d) = points[-2:]
    right, down = (c > a) - (c < a), (d > b) - (d < b)
    corners = [(c, d), (c - 8 * right + 4.5 * down, d - 8 * down + 4.5 * right),
               (c - 8 * right - 4.5 * down, d - 8 * down - 4.5 * right)]
    path, head = (" L".join(f"{x:g} {y:g}" for x, y in line)
                  for line in ((*points[:-1], (c - 6 * right, d - 6 * down)), corners))
    return f'<path class="arrow {kind}" d="M{path}"/><path class="head" d="M{head}Z"/>\n'


def plan(stations: dict[str, Box]) -> Plan:
    """Two rows of five; the frozen reference falls from instruction tuning to PPO."""
    across, low = WIDTH + GAP, HEIGHT + RISE
    placed, arrows = [], []
    for y, row, beside in ((0, ROWS[0], 3), (low, ROWS[1], 4)):
        placed += [(stations[name], i * across + 2, y + 2) for i, name in enumerate(row)]
        middle = y + 2 + HEIGHT / 2
        arrows += [(((i * across + 2 + WIDTH, middle), ((i + 1) * across + 2, middle)), "") for i in range(beside)]
    middle, top, turn, bottom = 2 + HEIGHT / 2, HEIGHT + 2, HEIGHT + 2 + RISE / 2, low + 2
    sft = 3 * across
    arrows.append((((4 * across + 2, middle), (sft + 2 + WIDTH, middle)), ""))
    arrows.append((((sft + 52, top), (sft + 52, turn), (102, turn), (102, bottom)), ""))
    arrows.append((((sft + 122, top), (sft + 122, bottom)), "frozen"))
    notes = [(across + 60, turn - 9, "several summaries of each story"),
             (sft + 134, turn + 4, "start, and frozen reference")]
    return Plan(5 * WIDTH + 4 * GAP + 4, 2 * HEIGHT + RISE + 4, placed, arrows, notes)


def wide(stations: dict[str, Box], label: str) -> str:
    """The plan as SVG."""
    drawing = plan(stations)
    parts = [draw_box(box, x, y, WIDTH, HEIGHT) for box, x, y in drawing.boxes]
    parts += [draw_arrow(*points, kind=kind) for points, kind in drawing.arrows]
    parts += [f'<text class="note" x="{x}" y="{y}">{words}</text>' for x, y, words in drawing.notes]
    return (f'<svg class="wide" viewBox="0 0 {drawing.width} {drawing.height}" role="img" '
            f'aria-label="{escape(label)}">\n{"".join(parts)}</svg>')


def tall(stations: dict[str, Box], label: str) -> str:
    """One column; the frozen reference runs down the right side."""
    names = [name for name in stations if name != "demos"]
    width, gap, parts, y, ends = 306, 26, [], 2, {}
    for name in names:
        extra = f"on {stations['demos'].facts[0]}" if name == "sft" and stations["demos"].facts[0] else ""
        height = HEIGHT + (17 if extra else 0)
        parts.append(draw_box(stations[name], 2, y, width, height, extra))
        ends[name] = y + height / 2
        if name != names[-1]:
            parts.append(draw_arrow((width / 2, y + height), (width / 2, y + height + gap)))
        y += height + gap
    start, end, right = ends["sft"], ends["ppo"], width + 16
    parts.append(draw_arrow((width + 2, start), (right, start), (right, end), (width + 2, end), kind="frozen"))
    parts.append(f'<text class="note" text-anchor="middle" transform="translate({width + 32} {(start + end) / 2}) '
                 'rotate(-90)">start, and frozen reference</text>')
    return (f'<svg class="tall" viewBox="0 0 {width + 36} {y - gap + 4}" role="img" '
            f'aria-label="{escape(label)}">\n{"".join(parts)}</svg>')


def pipeline_section(run: Run) -> str:
    """Both drawings; the page shows the one that fits."""
    stations = boxes(run)
    label = "The stations in order: " + "; ".join(
        f"{box.name} in {box.file}" + "".join(f", {fact}" for fact in box.facts if fact) for box in stations.values()
    )
    return f'<figure class="pipeline">{wide(stations, label)}\n{tall(stations, label)}</figure>'
