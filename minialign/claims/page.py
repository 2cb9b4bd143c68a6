r"""The verdicts of all claims, as one page with all figures (index.html) and as a table for the README.

Both are written from the files that a run of the claims leaves, OUT/ID/{verdict.json, table.csv, figure.png}, and from nothing else; a claim without
them is listed as not run. Same files, same bytes.

Read next: runner.py. Try it:  python -m minialign claims --out runs/claims, then open runs/claims/index.html
"""

from __future__ import annotations

import base64
import csv
import html
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from minialign.claims.runner import CLAIMS, load
from minialign.errors import UserError
from minialign.files import read_json, read_text, write_atomic

BEGIN, END = "<!-- verdicts -->", "<!-- end of verdicts -->"
HEADINGS = {  # heading of the notes -> its claims
    "Instruction tuning": ("t0-unseen-tasks", "t0-templates", "flan-clusters", "t5-fixed-format"),
    "Human feedback": (
        *("size-is-not-alignment", "rouge-is-poor", "humans-disagree", "reward-scaling", "over-optimisation", "people-prefer-rlhf", "instructgpt"),
    ),
    "Fine-tuning": (
        *("transfer-distance", "bitfit", "adapter-identity", "adapter-size", "lora-rank", "lora-size", "lora-many-tasks", "prompt-tuning"),
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


def readme_table(folder: Path) -> str:
    """The verdicts as a table in Markdown: heading, claim, verdict, the numbers that decide, file."""
    found, lines = verdicts(folder), ["| claim | verdict | what was measured | file |", "| --- | --- | --- | --- |"]
    for heading, ids in HEADINGS.items():
        known = [id for id in ids if id in CLAIMS]
        lines += [f"| **{heading}** | | | |"] if known else []
        for id in known:
            verdict = found[id]
            said, why = ("not run in full", "") if verdict is None else (f"**{verdict['verdict']}**", verdict["why"].replace("|", "\\|"))
            lines.append(f"| {load(id).CLAIM.text} | {said} | {why} | `claims/{CLAIMS[id]}.py` |")
    return "\n".join(lines)


def write_readme(readme: Path, folder: Path) -> None:
    """Put the table between its two markers.

    Raises:
        UserError: the file has no such markers.
    """
    text = read_text(readme)
    if BEGIN not in text or END not in text:
        raise UserError(f"has no place for the table: a line {BEGIN} and, after it, a line {END}", readme)
    before, rest = text.split(BEGIN, 1)
    write_atomic(readme, f"{before}{BEGIN}\n{readme_table(folder)}\n{END}{rest.split(END, 1)[1]}")


def write_page(folder: Path) -> Path:
    """Write index.html into the folder: every claim that was run in it, with its figure and its checks; quick looks are marked as such."""
    folder = Path(folder)
    parts, count = [], 0
    for heading, ids in HEADINGS.items():
        cards = [card(folder, id) for id in ids if id in CLAIMS and (folder / id / "verdict.json").exists()]
        count += len(cards)
        if cards:
            parts.append(f"<h2>{html.escape(heading)}</h2>\n" + "\n".join(cards))
    page = Template(files("minialign.claims").joinpath("page.html").read_text(encoding="utf-8"))
    write_atomic(folder / "index.html", page.substitute(count=count, content="\n".join(parts)))
    return folder / "index.html"


def card(folder: Path, id: str) -> str:
    """One claim on the page."""
    verdict, esc = read_json(folder / id / "verdict.json"), html.escape
    checks = "".join(f'<li class="{"yes" if holds else "no"}">{esc(name)}</li>' for name, holds in verdict["checks"].items())
    figures = "".join(
        f'<img alt="{esc(verdict["claim"])} {esc(verdict["why"])}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
        for path in sorted((folder / id).glob("*.png"))
    )
    quick = " · a quick look, too small to decide anything" if verdict["fast"] else ""
    facts = f"{verdict['source']} · {verdict['seeds']} seeds · {verdict['seconds']:.0f} s · claims/{CLAIMS[id]}.py{quick}"
    return (
        f'<section id="{id}"><h3>{esc(verdict["claim"])}</h3><p class="verdict">{esc(verdict["verdict"])}</p><ul>{checks}</ul>'
        f"<p>{esc(verdict['why'])}</p><div>{figures}</div>{rows(folder / id / 'table.csv')}<p class=\"facts\">{esc(facts)}</p></section>"
    )


def rows(path: Path, most: int = 60) -> str:
    """A claim's table, folded away; its first rows when it is long."""
    if not path.exists():
        return ""
    with open(path, encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file))
    cells = lambda line, kind: "<tr>" + "".join(f"<{kind}>{html.escape(value)}</{kind}>" for value in line) + "</tr>"  # noqa: E731
    body = "".join(cells(line, "td") for line in lines[1 : most + 1])
    rest = f"<p>the first {most} of {len(lines) - 1} rows; all are in table.csv</p>" if len(lines) - 1 > most else ""
    return f'<details><summary>table</summary><div class="wide"><table>{cells(lines[0], "th")}{body}</table></div>{rest}</details>'
