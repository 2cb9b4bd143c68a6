r"""report.html: what the main job did, as one self-contained page, from the files of the run and from nothing else.

    run.py       reads the files; the stages' names, markers and how numbers are written
    words.py     the sentences that judge: they follow the numbers, also when the hoped-for order does not hold
    base.py      the card of the base that it started from
    pipeline.py  the picture of the pipeline
    figures.py   scores, win rates and training curves, with their tables
    reward.py    the reward model: calibration, best of n as PPO's rival, and what it judged most wrongly
    stories.py   the same stories told by each stage, every statement marked
    touch.py     the three models themselves, to write in the reader's browser
    page.html    the page around them

The page asks no other machine for anything; it runs no script but that of touch.py, which can be left out. Same files,
same bytes.
"""

from importlib.resources import files
from pathlib import Path
from string import Template

from minialign.lab.report.base import base_section
from minialign.lab.report.figures import curves_section, scores_section, wins_section
from minialign.lab.report.pipeline import pipeline_section
from minialign.lab.report.reward import reward_section
from minialign.lab.report.run import Run, escape
from minialign.lab.report.stories import stories_section
from minialign.lab.report.touch import touch
from minialign.lab.report.words import cost_section, tiles, title, verdict
from minialign.runs.files import write_atomic


def write_report(folder: Path, play: bool = False) -> Path:
    """Write `report.html` of a finished main job and return its path.

    Args:
        folder: of the run: summary.json, */metrics.jsonl, evaluation/samples.jsonl and evaluation/stories.jsonl.
        play: whether the run's models stand in it, to write in the reader's browser; 1.5 MB more.
    Raises:
        UserError: a file is missing or broken; names it.
    """
    run = Run.read(Path(folder))
    page = Template(files("minialign.lab.report").joinpath("page.html").read_text(encoding="utf-8"))
    content = page.substitute(
        title=escape(title(run)),
        verdict=verdict(run),
        tiles=tiles(run),
        pipeline=pipeline_section(run),
        base=base_section(run),
        scores=scores_section(run),
        wins=wins_section(run),
        reward=reward_section(run),
        curves=curves_section(run),
        stories=stories_section(run),
        cost=cost_section(run),
        **touch(Path(folder) if play else None),
    )
    path = Path(folder) / "report.html"
    write_atomic(path, content)
    return path
