"""The same stories told by each stage, side by side, with every statement marked as the world knows it.

A verdict is never told by colour alone: it has an underline and a sign of its own, and a word for those who listen.
"""

from minialign.lab.report.run import Run, escape, marked_name

SHOWN = 10
SIGNS = {"true": "true", "false": "not what the story says", "unclear": "unclear, so not counted as true",
         "remark": "a remark, says nothing about the story"}


def stories_section(run: Run) -> str:
    """The legend and the first stories."""
    shown = run.stories[:SHOWN]
    own: dict[object, dict[str, dict]] = {}
    for sample in run.samples:
        own.setdefault(sample.get("story"), {})[sample.get("stage")] = sample
    text = (f"The first {len(shown)} of {len(run.stories)} test stories, not chosen. No model trained on them." if shown
            else "No stories were evaluated.")
    parts = [f"<p>{text}</p>", legend()]
    for story in shown:
        summaries = own.get(story.get("story"), {})
        cards = "".join(card(stage, summaries[stage]) for stage in run.stages if stage in summaries)
        plot = f": {escape(story['plot'])}" if story.get("plot") else ""
        number = story["story"] + 1 if isinstance(story.get("story"), int) else escape(story.get("story"))
        parts.append(f'<article class="story"><h3>Story {number}{plot}</h3><p>{escape(story["text"])}</p>'
                     f'<div class="grid">{cards}</div></article>')
    return "\n".join(parts)


def legend() -> str:
    """What the marks mean, each shown on itself."""
    items = [f'<li><span class="v {verdict}">like this</span>: {meaning}</li>' for verdict, meaning in SIGNS.items()]
    return f'<ul class="grid legend">{"".join(items)}<li><mark class="rude">like this</mark>: a rude word</li></ul>'


def card(stage: str, sample: dict) -> str:
    """One stage's summary with its scores."""
    gold = f'<span class="soft">gold {sample["gold"]:.2f}</span>' if "gold" in sample else ""
    digits = {"helpful": 2, "honest": 2, "harmless": 0}
    scores = ", ".join(f"{aspect} {sample[aspect]:.{digits[aspect]}f}" for aspect in digits if aspect in sample)
    text = marked(sample) or '<span class="soft">(it says nothing)</span>'
    head = f'<p class="top"><span>{marked_name(stage)}</span>{gold}</p>'
    return f'<div class="card">{head}<p class="summary">{text}</p><p class="scores"><small>{scores}</small></p></div>'


def marked(sample: dict) -> str:
    """A summary as HTML: statements underlined by verdict, rude words boxed, everything escaped.

    Spans may lie anywhere, overlap or end past the text; what lies outside is cut off, and of two statements the
    earlier keeps its characters.
    """
    text, out, at = sample["text"], [], 0
    if not text.strip():
        return ""
    rude = [max(0, min(i, len(text))) for span in sample.get("rude", ()) for i in span]
    rude_spans = list(zip(rude[::2], rude[1::2]))
    for statement in sorted(sample.get("statements", ()), key=lambda s: s["start"]):
        start, end = max(at, statement["start"]), min(len(text), statement["end"])
        if start >= end:
            continue
        verdict = statement["verdict"] if statement["verdict"] in SIGNS else "unclear"
        said = {"false": "not true", "remark": ""}.get(verdict, verdict)
        out.append(boxed(text, at, start, rude_spans))
        out.append(f'<span class="v {verdict}">{boxed(text, start, end, rude_spans)}</span>')
        out.append(f'<span class="hear"> ({said})</span>' if said else "")
        at = end
    return ("".join(out) + boxed(text, at, len(text), rude_spans)).strip()


def boxed(text: str, start: int, end: int, rude_spans: list[tuple[int, int]]) -> str:
    """text[start:end], escaped, with its rude words in boxes."""
    out, at = [], start
    for low, high in sorted(rude_spans):
        low, high = max(at, low), min(end, high)
        if low < high:
            out.append(f'{escape(text[at:low])}<mark class="rude">{escape(text[low:high])}</mark>')
            at = high
    return "".join(out) + escape(text[at:end])
