r"""The verdicts of all claims for people, from what a run leaves: OUT/ID/{verdict.json, table.csv, figure.png}.

    index.html        in OUT: every claim with its figures, its checks and its table; same files, same bytes
    OUT/README.md     between its markers: the gallery of figures and the table of verdicts
    README.md         between its markers: heading of the notes -> file -> notebook

Read next: runner.py. Try it:  python -m minialign claims --out runs/claims, then open runs/claims/index.html;
python -m minialign claims --map-file docs/map.md --out data/claims
"""

import base64
import csv
import html
import os
import re
import textwrap
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from minialign.lab.claims.runner import CHECKED, CLAIMS, FEWEST, HEADINGS, SIGNS, TABLE, load
from minialign.runs.errors import UserError
from minialign.runs.files import read_json, read_text, write_atomic

NUMBER = r"(?<![\w.,-])[-+]?\d[\d.,]*(?:e[-+]\d+)?%?"
# with its interval, or with what says that it has none
VALUE = re.compile(NUMBER + r" (?:\[[^]]*\]|± [\d.]+(?: \(one seed\))?|\(one seed\))")
MOST = 60  # rows of a table that are shown
ACROSS = 3  # figures beside each other in the gallery
ALT = 110  # characters of a figure's alternative text
NOTEBOOKS = ("00_start_here", "01_transformer", "02_pretraining", "03_instruction_tuning", "04_human_feedback",
             "05_ppo", "06_fine_tuning", "07_quantization", "08_llm_int8", "09_distillation", "10_all_together",
             "11_after_the_notes")
MAP = {  # heading of the notes -> files below minialign/, numbers of notebooks
    "The transformer (before the notes)": ("transformer.py heads.py generation.py", (1,)),
    "Pretraining (before the notes)": (
        "pretrain/causal_lm.py pretrain/masked_lm.py pretrain/span_corruption.py pretrain/pretrain.py", (2,)),
    "T0 model; templates for prompting; results; FLAN": (
        "instruct/t5.py instruct/t0.py instruct/flan.py instruct/zero_shot.py world/prompts.json", (3,)),
    "Model alignment; collecting human feedback": (
        "rlhf/comparisons.py lab/labelling/page.py world/annotators.py rlhf/rouge.py", (4,)),
    "Train a reward model": ("rlhf/reward_model.py rlhf/ranked.py rlhf/reward_checks.py", (4,)),
    "Fine-tune on feedback; the KL term": ("rlhf/kl.py rlhf/ppo.py rlhf/best_of_n.py rlhf/dpo.py", (5,)),
    "Results of alignment": ("rlhf/equal_length.py lab/demo/pipeline.py lab/report/pipeline.py", (5,)),
    "InstructGPT; new trend": ("instruct/sft.py rlhf/pretraining_mix.py", (3, 5, 10)),
    "Fine-tuning vs feature-based transfer": ("peft/full.py peft/feature_based.py peft/transfer.py", (6,)),
    "Parameter-efficient fine-tuning (PEFT)": ("peft/methods.py peft/trainable.py", (6,)),
    "BitFit": ("peft/bitfit.py", (6,)),
    "Adapter layers": ("peft/adapters.py", (6,)),
    "Low-rank adaptation (LoRA)": ("peft/lora.py peft/many_tasks.py", (6,)),
    "Prompt tuning": ("peft/prompt_tuning.py", (6,)),
    "Quantization": ("quant/mappings.py quant/calibration.py quant/ptq.py quant/qat.py quant/linear.py", (7,)),
    "LLM.int8(); half precision": ("quant/llm_int8.py quant/fast_products.py quant/half.py", (8,)),
    "Model distillation": (
        "distill/soft_targets.py distill/distilbert.py distill/tinybert.py distill/minilm.py distill/distilgpt2.py "
        "distill/sequence_level.py distill/on_policy.py", (9,)),
    "GRPO; DPO's relatives (after the notes)": ("rlhf/grpo.py rlhf/dpo.py rlhf/kto.py", (11,)),
    "QLoRA; DoRA (after the notes)": ("quant/nf4.py peft/dora.py", (11,)),
    "GPTQ; SmoothQuant; a cache of few bits (after the notes)": (
        "quant/gptq.py quant/smoothquant.py quant/cache.py", (11,)),
    "Speculative decoding (after the notes)": ("distill/speculative.py", (11,)),
    "Real models (beside the notes)": (
        "lab/pretrained/smollm2.py lab/pretrained/minilm.py lab/pretrained/gpt2.py lab/pretrained/t5.py", (8, 10)),
}


def verdicts(folder: Path) -> dict[str, dict[str, Any] | None]:
    """Claim -> what its last run in the folder found, None where there is none; quick looks (--fast) count as none."""
    found: dict[str, dict[str, Any] | None] = {}
    for id in CLAIMS:
        path = Path(folder) / id / "verdict.json"
        verdict = read_json(path) if path.exists() else None
        found[id] = None if verdict is None or verdict.get("fast") else verdict
    return found


# index.html


def write_page(folder: Path) -> Path:
    """Write index.html into the folder: every claim that was run in it, quick looks too, and marked as such."""
    folder, parts, links = Path(folder), [], []
    for heading, ids in HEADINGS.items():
        run = [id for id in ids if (folder / id / "verdict.json").exists()]
        found = {id: read_json(folder / id / "verdict.json") for id in run}
        links += [f'<li>{mark(verdict["verdict"])}<a href="#{id}">{id}</a></li>' for id, verdict in found.items()]
        if found:
            cards = "\n".join(card(folder, id, verdict) for id, verdict in found.items())
            parts.append(f"<h2>{html.escape(heading)}</h2>\n{cards}")
    page = Template(files("minialign.lab.claims").joinpath("page.html").read_text(encoding="utf-8"))
    content = page.substitute(count=counted(len(links), "claim"), links="".join(links), content="\n".join(parts))
    write_atomic(folder / "index.html", content)
    return folder / "index.html"


def counted(number: int, noun: str) -> str:
    """1 claim, 2 claims."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def mark(verdict: str) -> str:
    """A verdict as a sign in its colour, with its words for who cannot see it."""
    style, sign = SIGNS[verdict]
    return f'<span class="mark {style}" role="img" aria-label="{verdict}" title="{verdict}">{sign}</span>'


def card(folder: Path, id: str, verdict: dict[str, Any]) -> str:
    """One claim on the page: what is claimed and what was found, the figures, and the table folded away."""
    esc = html.escape
    checks = "".join(f"<li>{mark(CHECKED[holds])}{esc(name)}</li>" for name, holds in verdict["checks"].items())
    figures = "".join(
        f'<details class="figure"><summary><img alt="{esc(verdict["claim"])} {esc(verdict["why"])}" '
        f'src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"></summary></details>'
        for path in sorted((folder / id).glob("*.png"))
    )
    seeds = counted(verdict["seeds"], "seed")
    facts = f"{verdict['source']} · {seeds} · {verdict['seconds']:,.0f} s · claims/{CLAIMS[id]}.py"
    facts += " · a quick look, too small to decide anything" if verdict["fast"] else ""
    return (
        f'<section id="{id}"><h3>{esc(verdict["claim"])}</h3><div class="two"><div><p class="verdict '
        f'{SIGNS[verdict["verdict"]][0]}">{verdict["verdict"]}</p>'
        f'<p>{finding(verdict["checks"], verdict.get("controls", []))}</p><ul class="checks">{checks}</ul>'
        f'{measured(verdict["why"])}{control_list(verdict.get("controls", []))}'
        f'<p class="facts">{esc(facts)}</p></div>'
        f'<div class="figures">{figures}</div></div>{folded_table(folder / id / TABLE)}</section>'
    )


def finding(checks: dict[str, bool | None], controls: list[dict[str, Any]] = ()) -> str:
    """What was found, as a sentence."""
    held, all_of_them = sum(holds is True for holds in checks.values()), counted(len(checks), "statement")
    failed = [control["name"] for control in controls if not control["passed"]]
    if None in checks.values() and failed:
        return f"What it takes for granted is not there ({html.escape(', '.join(failed))}), so nothing is said."
    if None in checks.values():
        return f"Fewer than {FEWEST} seeds give no interval worth the name, so nothing is decided about {all_of_them}."
    if len(checks) == 1:
        return f"Its statement {'holds' if held else 'does not hold'}."
    if held == len(checks):
        return f"All {all_of_them} hold."
    return f"{held or 'None'} of {all_of_them} {'hold' if held > 1 else 'holds'}."


def control_list(controls: list[dict[str, Any]]) -> str:
    """What was taken for granted, with what it had to reach."""
    items = "".join(f'<li>{mark(CHECKED[control["passed"]])}{html.escape(control["name"])}: {control["value"]:.3f} '
                    f'(at least {control["threshold"]:g})</li>' for control in controls)
    return f'<p class="facts">Controls:</p><ul class="checks">{items}</ul>' if items else ""


def measured(why: str) -> str:
    """The numbers that decide, as a small table of HTML."""
    rows = []
    for words, value in number_rows(why):
        cells = f'<th colspan="2">{html.escape(words)}</th>' if value is None else (
            f"<td>{html.escape(words)}</td><td>{html.escape(value).replace(chr(10), '<br>')}</td>" if value else
            f'<td colspan="2">{html.escape(words)}</td>')
        rows.append(f"<tr>{cells}</tr>")
    return f'<table class="measured">{"".join(rows)}</table>'


def number_rows(why: str) -> list[tuple[str, str | None]]:
    """A judge's numbers, parts between semicolons, as rows: what was measured and its number, or several between line
    breaks; a part's head and None; words that hold no number, or more than one, and an empty text."""
    rows: list[tuple[str, str | None]] = []
    for part in why.split("; "):
        head, colon, rest = part.partition(": ")
        if colon and not VALUE.search(head) and (re.match(NUMBER, rest) or not re.search(r" [\d.]+$", head)):
            # "by size 1: …, 2: …": the 1 belongs to its number
            first = re.fullmatch(r"(.*[^\d., ]),? ([\d.]+)", head) if re.search(r", [\w.]+: ", rest) else None
            rows.append((first[1] if first else head, None))
            part = f"{first[2]}: {rest}" if first else rest
        for words, value in map(words_and_number, pieces(part)):
            if words or not rows:
                rows.append((words, value))
            else:  # one number more of what stands above, or the only one of a head
                above, before = rows.pop()
                rows.append((above, f"{before}\n{value}" if before else value))
    return rows


def words_and_number(piece: str) -> tuple[str, str]:
    """A piece's words, … where its number stood, and the number; all of it and nothing unless there is just one."""
    found = list(VALUE.finditer(piece))
    if not found and len(re.findall(NUMBER, re.sub(r"^[\d.]+: ", "", piece))) == 1:
        found = list(re.finditer(NUMBER + "$", piece))
    if len(found) != 1:
        return piece, ""
    before, after = piece[: found[0].start()].strip(" :"), piece[found[0].end() :].strip()
    return before + (after if after.startswith(")") else f" … {after}" if before and after else after), found[0].group()


def pieces(part: str) -> list[str]:
    """What stands between commas, or between two numbers with intervals and an "and", outside of all brackets; words
    without a number stay with what follows."""
    whole: list[str] = []
    for text in re.split(r", (?:and )?(?![^\[]*\])(?![^(]*\))", part):
        both = text.split(" and ")
        for piece in both if all(len(VALUE.findall(one)) == 1 for one in both) else [text]:
            if whole and not re.search(r"\d", whole[-1]):
                whole[-1] += f", {piece}"
            else:
                whole.append(piece)
    return whole


def folded_table(path: Path) -> str:
    """A claim's table, folded away; its first rows when it is long."""
    if not path.exists():
        return ""
    with open(path, encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    body = "".join(table_row(row, "td") for row in rows[:MOST])
    rest = f"<p>the first {MOST} of {len(rows)} rows; all are in table.csv</p>" if len(rows) > MOST else ""
    return (f'<details><summary>table</summary><div class="wide"><table>{table_row(head, "th")}{body}</table></div>'
            f"{rest}</details>")


def table_row(cells: list[str], tag: str) -> str:
    """A row of an HTML table."""
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


# the two README.md


def write_results(map_file: Path, folder: Path) -> None:
    """Write the map into its file, gallery and verdicts into the README.md beside the results.

    Raises:
        UserError: one of the files has no markers; then none is changed.
    """
    contents = {path: filled(path, parts) for path, parts in written_parts(map_file, folder).items()}
    for path, text in contents.items():
        write_atomic(path, text)


def written_parts(map_file: Path, folder: Path) -> dict[Path, dict[str, str]]:
    """File -> name of each part -> what stands between its markers."""
    root = Path(map_file).parent.parent
    sources = Path(os.path.relpath(root / "minialign/lab/claims", folder)).as_posix()
    beside = {"gallery": gallery(folder), "verdicts": verdict_table(folder, sources)}
    return {Path(map_file): {"map": map_table()}, Path(folder) / "README.md": beside}


def map_table() -> str:
    """Heading of the notes -> files -> notebook, as a table in Markdown, for a file in docs/."""
    lines = ["| heading of the notes | file | notebook |", "| --- | --- | --- |"]
    for heading, (paths, numbers) in MAP.items():
        links, before = [], ""
        for path in paths.split():  # a folder is written where it changes
            folder, _, name = path.rpartition("/")
            links.append(f"[`{name if folder == before else path}`](../minialign/{path})")
            before = folder
        notebooks = [f"[{NOTEBOOKS[number][:2]}](../notebooks/{NOTEBOOKS[number]}.ipynb)" for number in numbers]
        lines.append(f"| {heading} | {', '.join(links)} | {', '.join(notebooks)} |")
    return "\n".join(lines)


def signed(verdict: dict[str, Any] | None) -> str:
    """A verdict in bold, behind its sign."""
    return "not run in full" if verdict is None else f"{SIGNS[verdict['verdict']][1]} **{verdict['verdict']}**"


def gallery(folder: Path) -> str:
    """The figures of the claims that were measured, some beside each other, each above what is claimed and the
    verdict."""
    cells = []
    for id, verdict in verdicts(folder).items():
        if verdict is None or not (Path(folder) / id / "figure.png").exists():
            continue
        alt = html.escape(textwrap.shorten(verdict["why"], ALT, placeholder=" …"))
        cells.append(
            f'<td width="{100 // ACROSS}%" valign="top"><a href="{id}/figure.png"><img src="{id}/figure.png" '
            f'alt="{alt}"></a><br>{html.escape(load(id).CLAIM.text)} '
            f"<b>{SIGNS[verdict['verdict']][1]} {verdict['verdict']}</b></td>"
        )
    rows = ["<tr>\n" + "\n".join(cells[start : start + ACROSS]) + "\n</tr>" for start in range(0, len(cells), ACROSS)]
    return "<table>\n" + "\n".join(rows) + "\n</table>"


def verdict_table(folder: Path, sources: str) -> str:
    """The verdicts as a table in Markdown, under the headings of the notes: claim, verdict, the numbers that decide,
    what was tried, paper. `sources` is the claims' folder as the links name it."""
    found = verdicts(folder)
    lines = ["| claim | verdict | what was measured | what was tried | paper |", "| --- | --- | --- | --- | --- |"]
    for heading, ids in HEADINGS.items():
        lines.append(f"| **{heading}** | | | | |")
        for id in ids:
            claim, verdict = load(id).CLAIM, found[id]
            why = "" if verdict is None else verdict["why"].replace("|", "\\|").replace("; ", "<br>")
            notes = f"[notes]({id}/notes.md)" if (Path(folder) / id / "notes.md").exists() else ""
            lines.append(f"| [{claim.text}]({sources}/{CLAIMS[id]}.py) | {signed(verdict)} | {why} | {notes} | "
                         f"{claim.source} |")
    return "\n".join(lines)


def between(text: str, part: str, path: Path) -> tuple[str, str, str]:
    """What stands before and with a part's first marker, between the two, and from the second on.

    Raises:
        UserError: the file has no such markers.
    """
    begin, end = f"<!-- {part} -->\n", f"<!-- end of {part} -->"
    if begin not in text or end not in text.split(begin, 1)[1]:
        raise UserError(f"has no place for the {part}: a line {begin.strip()} and, after it, a line {end}", path)
    before, rest = text.split(begin, 1)
    inside, after = rest.split(end, 1)
    return before + begin, inside, end + after


def filled(path: Path, parts: Mapping[str, str]) -> str:
    """The text of a file with each part between its two markers. Raises UserError when the file has none."""
    text = read_text(path)
    for part, content in parts.items():
        before, _, after = between(text, part, path)
        text = f"{before}{content}\n{after}"
    return text
