"""`python -m minialign`, the main job."""

import os
from pathlib import Path

import click
import torch

from minialign.evaluation import peak_memory_mib
from minialign.lab.bases.make import BASES, Maker
from minialign.lab.bases.recipes import RECIPES
from minialign.lab.commands import options as cli
from minialign.lab.demo.pipeline import PRETRAINED, Demo
from minialign.lab.demo.settings import FAST, DemoConfig
from minialign.lab.report import write_report
from minialign.runs.errors import UserError
from minialign.runs.files import read_json, write_json
from minialign.runs.run_folder import CONFIG, RunFolder
from minialign.runs.settings import to_dict

ROWS = {"pretrained": "pretrained", "sft": "instructed", "rlhf": "RLHF", "reference": "references"}


@click.command(cls=cli.Command)
@cli.file_option("--out", "The run folder.  [default: runs/demo, with --fast runs/demo-fast]")
@cli.seed_option()
@cli.flag("--fast", text="A quick look: less of every stage, in seconds.")
@cli.option("--play/--no-play", default=True, text="Put the models into the report, to write in the browser; 1.5 MB.")
@cli.flag("--from-scratch", text="Train the base first, in the run folder, instead of taking the shipped one.")
@cli.configured("Settings", "config", DemoConfig(), FAST)
def command(out, seed, fast, play, from_scratch, config):
    """The main job: from raw text to an aligned model, with a report.

    Dirty corpus, tokenizer, pretraining, instruction tuning, comparisons, reward model, PPO, evaluation. Every stage
    leaves files to read in the run folder; when it is stopped, the same command goes on.

    \b
    Example:  python -m minialign
    Then:     open runs/demo/report.html
    """
    out = out or Path("runs/demo-fast" if fast else "runs/demo")
    with RunFolder(out).locked():
        claim_folder(out, config)
        demo = Demo(out, config, click.echo, make_base(out, config, fast) if from_scratch else BASES)
        click.echo(f"{torch.get_num_threads()} threads, which {waiting()} (OMP_WAIT_POLICY and GOMP_SPINCOUNT override "
                   f"it)")
        if not (out / "report.html").exists():
            summary = demo.run()
            with demo.stage("report", "writing the report"):
                note_seconds(out, summary)
                write_report(out, play)
            note_seconds(out, summary)  # the report's own, too
    tell(read_json(out / "summary.json"), out)


def make_base(out: Path, config: DemoConfig, fast: bool) -> Path:
    """Train the base in the run folder; returns the folder that it is in, as data/bases is for the shipped ones."""
    if config.base not in RECIPES:
        raise UserError(f"--from-scratch trains a base, and --base is {config.base!r}; known are {', '.join(RECIPES)}")
    minutes = "less than one minute: with --fast it is too small to read" if fast else (
        f"about {RECIPES[config.base].minutes} minutes on two quiet cores")
    work = out / "0-base"
    if (out / PRETRAINED / CONFIG).exists() and not work.exists():
        raise UserError("holds a run from the shipped base; choose another --out for one from scratch", out)
    click.echo(f"0 training {config.base} from nothing, {minutes}")
    Maker(work, work / "made", config.seed, fast, 0, click.echo).make(config.base)
    return work / "made"


def waiting() -> str:
    """How threads wait for each other, in words."""
    policy, spins = os.environ.get("OMP_WAIT_POLICY"), os.environ.get("GOMP_SPINCOUNT", "some")
    return f"wait as OMP_WAIT_POLICY={policy} says" if policy else f"spin {spins} times before they sleep"


def claim_folder(out: Path, config: DemoConfig) -> None:
    """Write the settings of a new run; a folder that holds a run with others is left alone. What an earlier version's
    run does not say has its default."""
    path, here = out / "demo.json", to_dict(config)
    if path.exists() and (there := to_dict(DemoConfig()) | read_json(path)) != here:
        odd = next(key for key in {**there, **here} if there.get(key) != here.get(key))
        raise UserError(f"this folder holds a run with {odd} = {there.get(odd)!r}, now it is {here.get(odd)!r}; choose "
                        f"another --out, or remove it", out)
    write_json(path, here)


def note_seconds(out: Path, summary: dict) -> None:
    """Write summary.json, with the seconds of the stages so far."""
    seconds = read_json(out / "seconds.json")
    summary |= {"seconds": {**seconds, "total": round(sum(seconds.values()), 1)},
                "peak_memory_mib": round(peak_memory_mib() or 0)}
    write_json(out / "summary.json", summary)


def tell(summary: dict, out: Path) -> None:
    """The result in a few lines."""
    click.echo(f"\n{'':<14}{'helpful':>9}{'honest':>9}{'harmless':>10}{'gold':>7}   preferred to the references")
    for name, label in ROWS.items():
        stage = summary["stages"][name]
        rate = stage.get("win_rate")
        wins = f"{rate['mean']:.0%} [{rate['low']:.0%}, {rate['high']:.0%}]" if rate else ""
        widths = {"helpful": 9, "honest": 9, "harmless": 10, "gold": 7}
        numbers = "".join(f"{stage[score]['mean']:>{width}.2f}" for score, width in widths.items())
        click.echo(f"{label:<14}{numbers}   {wins}")
    minutes = summary["seconds"]["total"] / 60
    click.echo(f"\n{minutes:.1f} minutes, {summary['peak_memory_mib']} MiB. Open {out / 'report.html'}")
