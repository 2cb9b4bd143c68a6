r"""The verdicts of all claims as one page with all figures, index.html.

It is written from the files that a run of the claims leaves, OUT/ID/{verdict.json, table.csv, figure.png}, and from
nothing else. Same files, same bytes.

Read next: readme.py (the same for the README), runner.py.
Try it:  python -m minialign claims --out runs/claims, then open runs/claims/index.html
"""

from __future__ import annotations

import base64
import csv
import html
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from minialign.lab.claims.runner import CLAIMS, FAILS, HOLDS, PARTLY
from minialign.runs.files import read_json, write_atomic

# verdict -> its style on the page and its sign
SIGNS = {HOLDS: ("holds", "✓"), PARTLY: ("partly", "◐"), FAILS: ("fails", "✗")}
HEADINGS = {  # heading of the notes -> its claims
    "Instruction tuning": ("t0-unseen-tasks", "t0-templates", "flan-clusters", "t5-fixed-format"),
    "Human feedback": (
        *("size-is-not-alignment", "rouge-is-poor", "humans-disagree", "reward-scaling", "over-optimisation",
          "people-prefer-rlhf", "instructgpt"),
    ),
    "Fine-tuning": (
        *("transfer-distance", "bitfit", "adapter-identity", "adapter-size", "lora-rank", "lora-size",
          "lora-many-tasks", "prompt-tuning"),
    ),
    "Quantization": ("absmax-zeropoint", "ptq-qat", "static-dynamic", "int8-outliers", "half-precision"),
    "Distillation": ("distillation",),
}


def verdicts(folder: Path) -> dict[str, dict[str, Any] | None]:
    """Claim -> what its last run in the folder found, None where there is none; quick looks (--fast) count as none."""
    found: dict[str, dict[str, Any] | None] = {}
    for id in CLAIMS:
        path = Path(folder) / id / "verdict.json"
        verdict = read_json(path) if path.exists() else None
        found[id] = None if verdict is None or verdict.get("fast") else verdict
    return found


def write_page(folder: Path) -> Path:
    """Write index.html into the folder: every claim that was run in it, with its figure and its checks; quick looks are
    marked as such."""
    folder = Path(folder)
    parts, links = [], []
    for heading, ids in HEADINGS.items():
        found = {id: read_json(folder / id / "verdict.json") for id in ids if id in CLAIMS
                 and (folder / id / "verdict.json").exists()}
        links += [f'<li>{mark(verdict["verdict"])}<a href="#{id}">{id}</a></li>' for id, verdict in found.items()]
        if found:
            parts.append(f"<h2>{html.escape(heading)}</h2>\n" + "\n".join(card(folder, id, verdict) for id,
                verdict in found.items()))
    page = Template(files("minialign.lab.claims").joinpath("page.html").read_text(encoding="utf-8"))
    write_atomic(folder / "index.html", page.substitute(count=len(links), links="".join(links),
                                                        content="\n".join(parts)))
    return folder / "index.html"


def mark(verdict: str) -> str:
    """A verdict as a sign in its colour, with its words for who cannot see it."""
    style, sign = SIGNS[verdict]
    return f'<span class="mark {style}" role="img" aria-label="{verdict}" title="{verdict}">{sign}</span>'


def card(folder: Path, id: str, verdict: dict[str, Any]) -> str:
    """One claim on the page: what is claimed and what was found, the figures, and the table folded away."""
    esc = html.escape
    checks = "".join(f"<li>{mark(HOLDS if holds else FAILS)}{esc(name)}</li>" for name,
                     holds in verdict["checks"].items())
    measured = "".join(f"<li>{esc(part)}</li>" for part in verdict["why"].split("; "))
    figures = "".join(
        f'<img alt="{esc(verdict["claim"])} {esc(verdict["why"])}" '
        f'src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
        for path in sorted((folder / id).glob("*.png"))
    )
    quick = " · a quick look, too small to decide anything" if verdict["fast"] else ""
    facts = (f"{verdict['source']} · {verdict['seeds']} seed{'s' * (verdict['seeds'] > 1)} · {verdict['seconds']:,.0f} "
             f"s · claims/{CLAIMS[id]}.py{quick}")
    return (
        f'<section id="{id}"><h3>{esc(verdict["claim"])}</h3><div class="two"><div><p class="verdict '
        f'{SIGNS[verdict["verdict"]][0]}">{verdict["verdict"]}</p>'
        f'<ul class="checks">{checks}</ul><ul class="measured">{measured}</ul><p class="facts">{esc(facts)}</p></div>'
        f'<div class="figures">{figures}</div></div>{rows(folder / id / "table.csv")}</section>'
    )


def rows(path: Path, most: int = 60) -> str:
    """A claim's table, folded away; its first rows when it is long."""
    if not path.exists():
        return ""
    with open(path, encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file))
    def cells(line, kind):
        return "<tr>" + "".join(f"<{kind}>{html.escape(value)}</{kind}>"
                                                    for value in line) + "</tr>"
    body = "".join(cells(line, "td") for line in lines[1 : most + 1])
    rest = f"<p>the first {most} of {len(lines) - 1} rows; all are in table.csv</p>" if len(lines) - 1 > most else ""
    return (f'<details><summary>table</summary><div '
            f'class="wide"><table>{cells(lines[0], "th")}{body}</table></div>{rest}</details>')
