"""What the report reads, and how it writes stages and numbers."""

import html
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minialign.runs.errors import UserError
from minialign.runs.files import read_json, read_jsonl
from minialign.runs.run_folder import METRICS, RunFolder

ASPECTS = ("helpful", "honest", "harmless", "gold")
# in the order of the figures' styles
STAGES = {"pretrained": "pretrained", "sft": "instruction-tuned", "rlhf": "RLHF", "reference": "references"}
MARKERS = {"pretrained": "●", "sft": "■", "rlhf": "▲", "reference": "◆"}  # the same shapes as in the figures
# key of the seconds -> folder
TRAINED = {"pretrain": "1-pretrained", "sft": "2-instructed", "reward": "4-reward", "ppo": "5-rlhf"}
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Run:
    """The files of a finished main job."""

    folder: Path
    summary: dict[str, Any]
    metrics: dict[str, list[dict]]  # key of the seconds -> the stage's log
    samples: list[dict]
    stories: list[dict]
    card: dict[str, Any] | None = None  # of the base that it started from

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """Read them all. Raises UserError naming the file that is missing or broken."""
        summary = read_json(folder / "summary.json")
        if not isinstance(summary, dict) or not isinstance(summary.get("stages"), dict) or not summary["stages"]:
            raise UserError("does not say what the `stages` scored; run the main job again", folder / "summary.json")
        metrics = {}
        for key, name in TRAINED.items():
            if not (folder / name / METRICS).exists():
                raise UserError("there is no such file", folder / name / METRICS)
            metrics[key] = RunFolder(folder / name).metrics()
        samples, stories = (read_jsonl(folder / "evaluation" / name, ("text",))
                            for name in ("samples.jsonl", "stories.jsonl"))
        card = folder / "card.json"
        return cls(folder, summary, metrics, samples, stories, read_json(card) if card.exists() else None)

    def interval(self, stage: str, what: str) -> dict[str, float] | None:
        """A stage's measured interval {"mean", "low", "high"}; None where it was not measured."""
        return interval(self.summary["stages"].get(stage, {}).get(what))

    def measured(self, what: str) -> dict[str, dict[str, float]]:
        """Stage -> interval, of the stages for which it was measured."""
        return {stage: value for stage in self.stages if (value := self.interval(stage, what))}

    @property
    def stages(self) -> dict[str, str]:
        """Those that were evaluated, in order, with their names."""
        return {stage: name for stage, name in STAGES.items() if stage in self.summary["stages"]}

    def setting(self, name: str) -> Any:
        """A setting of the run; None where it is not written down."""
        return self.summary.get("settings", {}).get(name)

    def last(self, key: str, field: str) -> float | None:
        """The last logged value of a field."""
        return next((record[field] for record in reversed(self.metrics[key]) if record.get(field) is not None), None)


def interval(value: Any) -> Any:
    """A number as an interval without width; an interval, or None, as it is."""
    return {"mean": value, "low": value, "high": value} if isinstance(value, int | float) else value


def escape(text: Any) -> str:
    """Text that may stand anywhere in HTML; what cannot be printed becomes �."""
    return html.escape(UNPRINTABLE.sub("\ufffd", str(text)), quote=True)


def with_interval(value: dict[str, float], digits: int = 3) -> str:
    """0.576 [0.551, 0.601]"""
    return f"{value['mean']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def percent(value: dict[str, float] | float) -> str:
    """22.5 % [18.9, 26.1]; without the interval for a bare number."""
    if isinstance(value, dict):
        return f"{100 * value['mean']:.1f}\u00a0% [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"
    return f"{100 * value:.1f}\u00a0%"


def duration(seconds: float) -> str:
    """0.2 s, 44 s, 4 min 57 s."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min {whole % 60} s"


def table(kind: str, heads: list[str], rows: list[list[str]]) -> str:
    """A table whose rows become cards on a narrow screen; the first cell of a row is its heading. Cells are HTML, heads
    are plain."""
    names, body = [escape(name) for name in heads], ""
    head = "".join(f'<th role="columnheader" scope="col">{name}</th>' for name in names)
    for first, *cells in rows:
        rest = "".join(f'<td role="cell" data-name="{name}">{cell}</td>' for name, cell in zip(names[1:], cells))
        body += f'<tr role="row"><th role="rowheader" scope="row">{first}</th>{rest}</tr>\n'
    return (f'<table class="{kind}" role="table"><thead role="rowgroup"><tr role="row">{head}</tr></thead><tbody '
            f'role="rowgroup">\n{body}</tbody></table>\n')


def marked_name(stage: str) -> str:
    """A stage's name behind its marker, in its colour."""
    return (f'<span class="marker s{list(STAGES).index(stage)}" aria-hidden="true">{MARKERS[stage]}</span> '
            f'{escape(STAGES[stage])}')


def cell(value: dict[str, float] | None, digits: int) -> str:
    """Mean, and the interval smaller; nothing where nothing was measured."""
    if not value:
        return ""
    mean, interval = with_interval(value, digits).split(" ", 1)
    return f"<span>{mean} <small>{interval}</small></span>"
