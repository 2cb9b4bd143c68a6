r"""What the README says about the claims, written between its markers: the map, the gallery of figures, the table of
verdicts.

    map        a heading of the notes -> files -> claims and their verdicts -> notebook -> paper
    gallery    the figures of the claims that were measured
    verdicts   every claim, its verdict and the numbers that decide

All are written from what a full run of the claims leaves, OUT/ID/{verdict.json, figure.png}; a claim without a verdict
is listed as not run.

Read next: page.py. Try it:  python -m minialign claims --readme README.md --out data/claims
"""

from __future__ import annotations

import html
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minialign.lab.claims.page import HEADINGS, SIGNS, verdicts
from minialign.lab.claims.runner import CLAIMS, load
from minialign.runs.errors import UserError
from minialign.runs.files import read_text, write_atomic

NOTEBOOKS = (
    *("00_start_here", "01_transformer", "02_pretraining", "03_instruction_tuning", "04_human_feedback", "05_ppo",
      "06_fine_tuning"),
    *("07_quantization", "08_llm_int8", "09_distillation", "10_all_together"),
)
ACROSS = 3  # figures beside each other in the gallery


@dataclass(frozen=True)
class Heading:
    """One heading of the notes, and where it lives here.

    Args:
        name: of the heading.
        files: below minialign/.
        claims: ids.
        notebooks: their numbers.
        paper: whose method it is; empty where the claims say it.
    """

    name: str
    files: tuple[str, ...]
    claims: tuple[str, ...]
    notebooks: tuple[int, ...]
    paper: str = ""


MAP = (
    Heading("The transformer (before the notes)", ("transformer.py", "heads.py", "generation.py"), (), (1,),
            "Vaswani et al. 2017"),
    Heading(
        "Pretraining (before the notes)",
        ("pretrain/causal_lm.py", "pretrain/masked_lm.py", "pretrain/span_corruption.py", "pretrain/pretrain.py"),
        *((), (2,), "Radford et al. 2019; Devlin et al. 2019; Raffel et al. 2020"),
    ),
    Heading(
        "T0 model; templates for prompting; results; FLAN",
        ("instruct/t5.py", "instruct/t0.py", "instruct/flan.py", "instruct/zero_shot.py", "world/prompts.json"),
        *(HEADINGS["Instruction tuning"], (3,)),
    ),
    Heading(
        "Model alignment; collecting human feedback",
        ("rlhf/comparisons.py", "lab/labelling/page.py", "world/annotators.py", "rlhf/rouge.py"),
        *(("size-is-not-alignment", "rouge-is-poor", "humans-disagree"), (4,)),
    ),
    Heading("Train a reward model", ("rlhf/reward_model.py", "rlhf/ranked.py", "rlhf/reward_checks.py"),
            ("reward-scaling",), (4,)),
    Heading(
        "Fine-tune on feedback; the KL term",
        ("rlhf/kl.py", "rlhf/ppo.py", "rlhf/best_of_n.py", "rlhf/dpo.py"),
        *(("over-optimisation",), (5,), "Ziegler et al. 2019; Stiennon et al. 2020; Gao et al. 2022; Rafailov et al. "
                                        "2023"),
    ),
    Heading("Results of alignment", ("rlhf/equal_length.py", "lab/demo/pipeline.py", "lab/report/pipeline.py"),
            ("people-prefer-rlhf",), (5,)),
    Heading("InstructGPT; new trend", ("instruct/sft.py", "rlhf/pretraining_mix.py"), ("instructgpt",), (3, 5, 10)),
    Heading("Fine-tuning vs feature-based transfer", ("peft/full.py", "peft/feature_based.py", "peft/transfer.py"),
            ("transfer-distance",), (6,)),
    Heading("Parameter-efficient fine-tuning (PEFT)", ("peft/methods.py", "peft/trainable.py"), (), (6,),
            "Houlsby et al. 2019"),
    Heading("BitFit", ("peft/bitfit.py",), ("bitfit",), (6,)),
    Heading("Adapter layers", ("peft/adapters.py",), ("adapter-identity", "adapter-size"), (6,)),
    Heading("Low-rank adaptation (LoRA)", ("peft/lora.py", "peft/many_tasks.py"),
            ("lora-rank", "lora-size", "lora-many-tasks"), (6,)),
    Heading("Prompt tuning", ("peft/prompt_tuning.py",), ("prompt-tuning",), (6,)),
    Heading(
        "Quantization",
        ("quant/mappings.py", "quant/calibration.py", "quant/ptq.py", "quant/qat.py", "quant/linear.py"),
        *(("absmax-zeropoint", "ptq-qat", "static-dynamic"), (7,)),
    ),
    Heading("LLM.int8(); half precision", ("quant/llm_int8.py", "quant/fast_products.py", "quant/half.py"),
            ("int8-outliers", "half-precision"), (8,)),
    Heading(
        "Model distillation",
        ("distill/soft_targets.py", "distill/distilbert.py", "distill/tinybert.py", "distill/minilm.py",
         "distill/distilgpt2.py")
        + ("distill/sequence_level.py", "distill/on_policy.py"),
        *(("distillation",), (9,), "Hinton et al. 2015; Sanh et al. 2019; Jiao et al. 2020; Wang et al. 2020"),
    ),
    Heading(
        "Real models (beside the notes)",
        ("lab/pretrained/smollm2.py", "lab/pretrained/minilm.py", "lab/pretrained/gpt2.py", "lab/pretrained/t5.py"),
        *((), (8, 10), "Allal et al. 2025; Wang et al. 2020; Radford et al. 2019; Raffel et al. 2020"),
    ),
)


def map_table(folder: Path) -> str:
    """Heading of the notes -> files -> claims and verdicts -> notebook -> paper, as a table in Markdown."""
    found, lines = verdicts(folder), ["| heading of the notes | file | claim: verdict | notebook | paper |",
                                      "| --- | --- | --- | --- | --- |"]
    for heading in MAP:
        claims = [f"[{id}](minialign/lab/claims/{CLAIMS[id]}.py): {said(found[id])}" for id in heading.claims]
        notebooks = [f"[{NOTEBOOKS[number][:2]}](notebooks/{NOTEBOOKS[number]}.ipynb)" for number in heading.notebooks]
        papers = dict.fromkeys(source.split(",")[0] for id in heading.claims
                               for source in load(id).CLAIM.source.split("; "))
        cells = (heading.name, ", ".join(files_of(heading)), "<br>".join(claims), ", ".join(notebooks),
                 heading.paper or "; ".join(papers))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def files_of(heading: Heading) -> list[str]:
    """The files of a heading as links; a folder is written where it changes."""
    links, before = [], ""
    for path in heading.files:
        folder, _, name = path.rpartition("/")
        links.append(f"[`{name if folder == before else path}`](minialign/{path})")
        before = folder
    return links


def said(verdict: dict[str, Any] | None) -> str:
    """A verdict in bold, with its sign."""
    return "not run in full" if verdict is None else f"{SIGNS[verdict['verdict']][1]} **{verdict['verdict']}**"


def gallery(folder: Path, link: str) -> str:
    """The figures of the claims that were measured, some beside each other, each above what is claimed and the verdict.

    Args:
        folder: of the results; link: the same folder as the README's links name it.
    """
    found = {id: verdict for id, verdict in verdicts(folder).items() if verdict is not None
             and (Path(folder) / id / "figure.png").exists()}
    cells = []
    for id, verdict in found.items():
        picture, text = f"{link}/{id}/figure.png", html.escape(load(id).CLAIM.text)
        cells.append(
            f'<td width="{100 // ACROSS}%" valign="top"><a href="{picture}"><img src="{picture}" '
            f'alt="{html.escape(verdict["why"])}"></a><br>'
            f"{text} <b>{SIGNS[verdict['verdict']][1]} {verdict['verdict']}</b></td>"
        )
    rows = ["<tr>\n" + "\n".join(cells[start : start + ACROSS]) + "\n</tr>" for start in range(0, len(cells), ACROSS)]
    return "<table>\n" + "\n".join(rows) + "\n</table>"


def verdict_table(folder: Path) -> str:
    """The verdicts as a table in Markdown: claim, verdict, the numbers that decide, paper, under the headings of the
    notes."""
    found, lines = verdicts(folder), ["| claim | verdict | what was measured | paper |", "| --- | --- | --- | --- |"]
    for heading, ids in HEADINGS.items():
        known = [id for id in ids if id in CLAIMS]
        lines += [f"| **{heading}** | | | |"] if known else []
        for id in known:
            verdict, claim = found[id], load(id).CLAIM
            why = "" if verdict is None else verdict["why"].replace("|", "\\|")
            lines.append(f"| [{claim.text}](minialign/lab/claims/{CLAIMS[id]}.py) | {said(verdict)} | {why} | "
                         f"{claim.source} |")
    return "\n".join(lines)


def parts(readme: Path, folder: Path) -> dict[str, str]:
    """Name of each part -> what stands between its markers."""
    link = Path(os.path.relpath(folder, Path(readme).parent)).as_posix()
    return {"map": map_table(folder), "gallery": gallery(folder, link), "verdicts": verdict_table(folder)}


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


def write_parts(readme: Path, contents: dict[str, str]) -> None:
    """Put each part between its two markers. Raises UserError, and changes nothing, when the file has none."""
    text = read_text(readme)
    for part, content in contents.items():
        before, _, after = between(text, part, readme)
        text = f"{before}{content}\n{after}"
    write_atomic(readme, text)


def write_readme(readme: Path, folder: Path) -> None:
    """Write all parts that the claims' results make."""
    write_parts(readme, parts(readme, folder))
