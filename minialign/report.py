r"""report.html: what the main job did, as one self-contained page, from the files of the run and from nothing else.

Every number on the page is read from summary.json, metrics.jsonl or samples.jsonl; the sentences that judge follow the numbers.
"""

from __future__ import annotations

import html
from pathlib import Path

from minialign.checkpoints import RunFolder, read_json, write_atomic
from minialign.files import read_jsonl
from minialign.plotting import as_svg, figure, line, whiskers

NAMES = {"pretrained": "pretrained", "sft": "instruction-tuned", "rlhf": "RLHF", "reference": "references"}
ASPECTS = ("helpful", "honest", "harmless", "gold")
STYLE = """
:root{color-scheme:light dark;--ink:#1c2128;--paper:#fdfdfb;--line:#cfd4da;--good:#00664b;--bad:#a63a00}
@media(prefers-color-scheme:dark){:root{--ink:#e6e6e3;--paper:#15181c;--line:#3b424b;--good:#5fd3ab;--bad:#ff9a61}}
body{margin:0 auto;max-width:70rem;padding:1rem;font:1rem/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper)}
svg{max-width:100%;height:auto}.row{display:grid;gap:1rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr))}
table{border-collapse:collapse;display:block;overflow-x:auto}td,th{padding:.25rem .6rem;border-bottom:1px solid var(--line);text-align:left}
.flow{display:flex;flex-wrap:wrap;gap:.5rem;list-style:none;padding:0}.flow li{border:1px solid var(--line);border-radius:.5rem;padding:.4rem .7rem}
.flow li:not(:last-child)::after{content:" \\2192"}article{border-top:1px solid var(--line);padding:.5rem 0}
.true{color:var(--good);text-decoration:underline solid 2px}.false,.unclear{color:var(--bad);text-decoration:underline wavy}
.rude{outline:2px dotted var(--bad);font-weight:bold}
"""


def write_report(folder: Path) -> Path:
    """Write `report.html` of a finished main job and return its path. Raises UserError naming a file that is missing."""
    summary = read_json(folder / "summary.json")
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width,initial-scale=1'>",
        f"<title>minialign: from raw text to an aligned model</title><style>{STYLE}</style>",
        "<h1>From raw text to an aligned model</h1>",
        f"<p>{verdict(summary)}</p>",
        pipeline(summary),
        "<h2>Scores</h2>",
        scores(summary),
        "<h2>Training</h2><div class='row'>",
        *curves(folder),
        "</div><h2>The same ten stories</h2>",
        "<p>Underlined: <span class='true'>true</span>; wavy: <span class='false'>not what the story says</span>; dotted box: rude.</p>",
        stories(folder),
        "<h2>What it cost</h2>",
        cost(summary),
        "<p>The people here are simulated annotators, and the gold score is a simulator's; see the README for what is simplified.</p></html>",
    ]
    path = folder / "report.html"
    write_atomic(path, "\n".join(parts))
    return path


def verdict(summary: dict) -> str:
    """What the numbers say about the three steps, in words that follow them."""
    sentences = []
    for lower, higher in (("pretrained", "sft"), ("sft", "rlhf")):
        a, b = summary["stages"][lower]["gold"], summary["stages"][higher]["gold"]
        how = "above" if b["low"] > a["high"] else "below" if b["high"] < a["low"] else "not clearly different from"
        sentences.append(f"The {NAMES[higher]} model's gold score, {b['mean']:.2f}, is {how} the {NAMES[lower]} model's {a['mean']:.2f}.")
    accuracy = summary["reward_model"]
    guess = " That is hardly better than guessing, so PPO had little to learn from." if accuracy["low"] <= 0.5 else ""
    sentences.append(f"The reward model orders {accuracy['accuracy']:.0%} of held-out comparisons as people did.{guess}")
    return " ".join(sentences)


def pipeline(summary: dict) -> str:
    """The stages in order, each with its seconds."""
    seconds = summary["seconds"]
    names = [("world", "dirty corpus"), ("tokenizer", "tokenizer"), ("pretrain", "pretrained decoder"), ("sft", "instruction tuning"),
             ("compare", "pairs, annotators choose"), ("reward", "reward model"), ("ppo", "PPO"), ("evaluate", "evaluation")]  # fmt: skip
    return "<ol class='flow'>" + "".join(f"<li>{text}<br><small>{seconds.get(key, 0):.0f} s</small></li>" for key, text in names) + "</ol>"


def scores(summary: dict) -> str:
    """Figure and table of the gold scores and win rates, with 95 % intervals."""
    fig, axes = figure("", "score, 0 to 1", 7)
    for number, (stage, name) in enumerate(NAMES.items()):
        places = [i + 0.15 * (number - 1.5) for i in range(len(ASPECTS))]
        whiskers(axes, number, places, [summary["stages"][stage][a] for a in ASPECTS], name)
    axes.set_xticks(range(len(ASPECTS)), ASPECTS)
    axes.set_ylim(0, 1.03)
    axes.legend()
    rows = ["<tr><th><th>" + "<th>".join(ASPECTS) + "<th>preferred to the references"]
    for stage, name in NAMES.items():
        values = summary["stages"][stage]
        cells = [values[a] for a in ASPECTS] + ([values["win_rate"]] if "win_rate" in values else [])
        rows.append(f"<tr><th>{name}" + "".join(f"<td>{c['mean']:.2f} <small>[{c['low']:.2f}, {c['high']:.2f}]</small>" for c in cells))
    return f"<figure role='img' aria-label='scores of each stage, as in the table'>{as_svg(fig)}</figure><table>{''.join(rows)}</table>"


def curves(folder: Path) -> list[str]:
    """Loss, reward and KL along the training."""
    figures = []
    panels = [("1-pretrained", "loss", "pretraining loss, nats"), ("2-instructed", "loss", "instruction tuning loss, nats"), ("4-reward", "loss", "reward loss, nats"),  # noqa: E501
              ("5-rlhf", "score", "PPO: reward, deviations"), ("5-rlhf", "gold", "PPO: gold score"), ("5-rlhf", "kl", "PPO: KL, nats per answer")]  # fmt: skip
    for name, field, label in panels:
        records = [r for r in RunFolder(folder / name).metrics() if field in r]
        fig, axes = figure("step", label, 4, 2.6)
        line(axes, 0, [r["step"] for r in records], [r[field] for r in records], label)
        figures.append(f"<figure role='img' aria-label='{label} along the steps'>{as_svg(fig)}</figure>")
    return figures


def stories(folder: Path) -> str:
    """Ten stories with every stage's summary, judged."""
    samples = read_jsonl(folder / "evaluation" / "samples.jsonl")
    out = []
    for story in read_jsonl(folder / "evaluation" / "stories.jsonl")[:10]:
        own = [s for s in samples if s["story"] == story["story"]]
        cells = "".join(f"<div><b>{NAMES[s['stage']]}</b> <small>gold {s['gold']:.2f}</small><br>{marked(s)}</div>" for s in own)
        out.append(f"<article><p>{html.escape(story['text'])}</p><div class='row'>{cells}</div></article>")
    return "".join(out)


def marked(sample: dict) -> str:
    """A summary with its statements marked by verdict; rude words boxed; everything escaped."""
    text, classes = sample["text"], [""] * len(sample["text"])
    for statement in sample["statements"]:
        for i in range(statement["start"], min(statement["end"], len(text))):
            classes[i] = statement["verdict"]
    for start, end in sample["rude"]:
        for i in range(start, min(end, len(text))):
            classes[i] = "rude"
    out, i = [], 0
    while i < len(text):
        j = i
        while j < len(text) and classes[j] == classes[i]:
            j += 1
        out.append(f"<span class='{classes[i]}'>{html.escape(text[i:j])}</span>")
        i = j
    return "".join(out)


def cost(summary: dict) -> str:
    """Seconds, memory, size and seed."""
    seconds = summary["seconds"]
    return f"<p>{seconds['total']:.0f} s in all, {summary['peak_memory_mib']} MiB, {summary['parameters']:,} parameters, seed {summary['seed']}.</p>"
