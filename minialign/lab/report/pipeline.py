"""The picture of the pipeline: each box names its folder and what was measured there. Two drawings, one for wide
screens, one for telephones."""

from __future__ import annotations

from dataclasses import dataclass

from minialign.lab.report.run import Run, duration, escape, percent

WIDTH, HEIGHT, GAP, RISE = 200, 112, 30, 84  # of the boxes of the wide drawing; between two of them; between its rows


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


def count(number: float | None, what: str) -> str:
    """16,000 documents; nothing when it is not known."""
    return "" if number is None else f"{number:,.0f} {what}"


def share(number: float | None, what: str) -> str:
    """30 % false; nothing when it is not known."""
    return "" if number is None else f"{100 * number:.0f} % {what}"


def both(*parts: str) -> str:
    """The parts that there are, in one line."""
    return " · ".join(part for part in parts if part)


def loss(run: Run, key: str) -> str:
    """The last held-out loss of a stage."""
    value = run.last(key, "validation")
    return "" if value is None else f"held-out loss {value:.2f} nats"


def boxes(run: Run) -> dict[str, Box]:
    """All stations, with numbers from the files."""
    time = {key: duration(value) for key, value in run.summary.get("seconds", {}).items()}
    judge = run.summary.get("reward_model", {})
    choices = judge["comparisons"] + judge.get("held_out", 0) if "comparisons" in judge else None
    agree = f"right on {percent(judge['accuracy'])} held out" if "accuracy" in judge else ""
    kl, beta = run.summary.get("kl"), run.setting("beta")
    def step(key, what):
        return both(count(run.last(key, "step"), what), time.get(key, ""))
    dirt = ", ".join(part for part in (share(run.setting("false"), "false"), share(run.setting("rude"), "rude"))
                     if part)
    ppo = both(f"KL {kl:.2f} nats" if kl is not None else "", f"β {beta:g}" if beta is not None else "")
    new = both(count(len(run.stories), "new stories"), time.get("evaluate", ""))
    return {
        "corpus": Box("data", "Dirty corpus", "data/documents.jsonl", (both(count(run.setting("documents"),
        "documents"), time.get("world", "")), dirt)),
        "tokenizer": Box("model", "Tokenizer", "tokenizer.json", (both(count(run.setting("vocabulary"),
        "tokens at most"), time.get("tokenizer", "")),)),
        "pretrain": Box("model", "Pretrained decoder", "1-pretrained/", (step("pretrain", "steps"),
        loss(run, "pretrain"))),
        "demos": Box("data", "Demonstrations", "data/demonstrations.jsonl",
                     (count(run.setting("demonstrations"), "clean answers"),)),
        "sft": Box("model", "Instruction tuning", "2-instructed/", (step("sft", "steps"), loss(run, "sft"))),
        "pairs": Box("data", "Pairs of summaries", "data/judged.jsonl", (count(run.setting("judged"), "stories"),
        "models and references")),
        "people": Box("people", "Annotators choose", "3-comparisons/", (both(count(choices, "choices"),
        time.get("compare", "")), "simulated people")),
        "reward": Box("model", "Reward model", "4-reward/", (step("reward", "steps"), agree)),
        "ppo": Box("model", "PPO", "5-rlhf/", (step("ppo", "updates"), ppo)),
        "evaluate": Box("measure", "Evaluation", "evaluation/", (new, "gold score, other people")),
    }  # fmt: skip


def draw_box(box: Box, x: float, y: float, width: float, height: float, extra: str = "") -> str:
    """A rounded box with its lines of text."""
    facts = [fact for fact in (*box.facts, extra) if fact]
    lines = [("kind", 18, box.kind), ("name", 39, box.name), ("file", 57, box.file),
             *(("fact", 79 + 17 * i, fact) for i, fact in enumerate(facts))]
    text = "".join(f'<text class="{kind}" x="{x + 13}" y="{y + down}">{escape(words)}</text>' for kind, down,
                   words in lines)
    return f'<rect class="box {box.kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="10"/>{text}\n'


def draw_arrow(*points: tuple[float, float], kind: str = "") -> str:
    """A line through points that run along the axes, with a head at the last one."""
    (a, b), (c, d) = points[-2:]
    right, down = (c > a) - (c < a), (d > b) - (d < b)
    corners = [(c, d), (c - 8 * right + 4.5 * down, d - 8 * down + 4.5 * right),
               (c - 8 * right - 4.5 * down, d - 8 * down - 4.5 * right)]
    path = " L".join(f"{x:g} {y:g}" for x, y in (*points[:-1], (c - 6 * right, d - 6 * down)))
    return (f'<path class="arrow {kind}" d="M{path}"/><path class="head" '
            f'd="M{" L".join(f"{x:g} {y:g}" for x, y in corners)}Z"/>\n')


def plan(stations: dict[str, Box]) -> Plan:
    """Two rows of five; the frozen reference falls from instruction tuning to PPO."""
    across, low = WIDTH + GAP, HEIGHT + RISE
    first, second = ("corpus", "tokenizer", "pretrain", "sft", "demos"), ("pairs", "people", "reward", "ppo",
        "evaluate")
    placed = [(stations[name], i * across + 2, y + 2) for y, row in ((0, first), (low, second)) for i,
              name in enumerate(row)]
    def middle(y):
        return y + 2 + HEIGHT / 2
    arrows = []
    for y, places in ((0, (0, 1, 2)), (low, (0, 1, 2, 3))):
        arrows += [(((i * across + 2 + WIDTH, middle(y)), ((i + 1) * across + 2, middle(y))), "") for i in places]
    arrows.append((((4 * across + 2, middle(0)), (3 * across + 2 + WIDTH, middle(0))), ""))
    top, turn, bottom = HEIGHT + 2, HEIGHT + 2 + RISE / 2, low + 2
    arrows.append((((3 * across + 52, top), (3 * across + 52, turn), (102, turn), (102, bottom)), ""))
    arrows.append((((3 * across + 122, top), (3 * across + 122, bottom)), "frozen"))
    notes = [(across + 60, turn - 9, "four summaries of each story"), (3 * across + 134, turn + 4,
        "start, and frozen reference")]
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
    width, height, gap, parts, y, ends = 306, 112, 26, [], 2, {}
    for name in names:
        extra = f"on {stations['demos'].facts[0]}" if name == "sft" and stations["demos"].facts[0] else ""
        tallness = height + (17 if extra else 0)
        parts.append(draw_box(stations[name], 2, y, width, tallness, extra))
        ends[name] = y + tallness / 2
        if name != names[-1]:
            parts.append(draw_arrow((width / 2, y + tallness), (width / 2, y + tallness + gap)))
        y += tallness + gap
    parts.append(draw_arrow((width + 2, ends["sft"]), (width + 16, ends["sft"]), (width + 16, ends["ppo"]),
                            (width + 2, ends["ppo"]), kind="frozen"))
    side, centre = width + 32, (ends["sft"] + ends["ppo"]) / 2
    parts.append(f'<text class="note" text-anchor="middle" transform="translate({side} {centre}) rotate(-90)">start, '
                 f'and frozen reference</text>')
    return (f'<svg class="tall" viewBox="0 0 {width + 36} {y - gap + 4}" role="img" '
            f'aria-label="{escape(label)}">\n{"".join(parts)}</svg>')


def pipeline_section(run: Run) -> str:
    """Both drawings; the page shows the one that fits."""
    stations = boxes(run)
    label = "The stations in order: " + "; ".join(
        f"{box.name} in {box.file}" + "".join(f", {fact}" for fact in box.facts if fact) for box in stations.values()
    )
    return f'<figure class="pipeline">{wide(stations, label)}\n{tall(stations, label)}</figure>'
