"""`python -m minialign bases [NAME…] [--check] [--list]`"""

import time
from pathlib import Path

import click

from minialign.lab.bases.controls import PASSAGES, SEED, Control
from minialign.lab.bases.make import BASES, CARD, Maker, check
from minialign.lab.bases.recipes import RECIPES
from minialign.lab.commands import options as cli
from minialign.runs.errors import UserError
from minialign.runs.files import read_json, write_json
from minialign.runs.run_folder import MODEL


@click.command(cls=cli.Command)
@click.argument("names", nargs=-1, metavar="[NAME]…")
@cli.flag("--check", "checked", text="Measure the controls of bases that are there, on new passages.")
@cli.flag("--list", "listed", text="Which bases there are, and what their cards say.")
@cli.file_option("--json FILE", "Write what --check measured.")
@cli.file_option("--work FOLDER", "Where texts and unfinished trainings are kept.", default="runs/bases")
@cli.count_option("--passages", PASSAGES, 10, 10_000, "Passages that --check asks about.")
@cli.count_option("--processes", 0, 0, 2, "That share the work of training; 0: two where there are two cores.")
@cli.run_options(out=None, otherwise="data/bases")
@cli.gather_options
def command(args):
    """Make the bases: models that have read enough to be asked something. Minutes to hours; goes on where it stopped.

    \b
    Example:  python -m minialign bases --list
    Example:  python -m minialign bases decoder-0.4m --check
    """
    unknown = [name for name in args.names if name not in RECIPES]
    if unknown:
        raise UserError(f"there is no recipe for {unknown[0]!r}; known are {', '.join(RECIPES)}")
    out = args.out or BASES
    if args.listed:
        return click.echo(table_of(out))
    if args.checked:
        return check_all(out, args)
    maker = Maker(args.work, out, args.seed, args.fast, args.processes, say=click.echo)
    for name in args.names or RECIPES:
        maker.make(name)


def table_of(out: Path) -> str:
    """One line a base."""
    lines = [f"{'':<22}{'parameters':>11}{'tokens':>9}{'file':>10}   controls"]
    for name in RECIPES:
        if not (out / name / MODEL).exists():
            lines.append(f"{name:<22}not made: python -m minialign bases {name}")
            continue
        card = read_json(out / name / CARD)
        needed = [control for control in card["controls"] if control["threshold"] is not None]
        passed = f"{sum(c['passed'] for c in needed)} of {len(needed)} passed" if needed else "told, none demanded"
        size = (out / name / MODEL).stat().st_size / 1e6
        lines.append(f"{name:<22}{card['parameters']:>11,}{card['tokens'] / 1e6:>7.0f} M{size:>7.1f} MB   {passed}")
    return "\n".join(lines)


def check_all(out: Path, args) -> None:
    """Measure and print the controls; status 1 where one fails."""
    found = {}
    for name in args.names or [name for name in RECIPES if (out / name).exists()]:
        started = time.perf_counter()
        found[name] = check(out / name, args.passages, SEED + 1 + args.seed)
        click.echo(f"{name} ({time.perf_counter() - started:.0f} s)\n" + "\n".join(map(line_of, found[name])))
    if not found:
        raise UserError("there is no base to check; make one with `python -m minialign bases`", out)
    if args.json:
        write_json(args.json, {name: [control.to_dict() for control in controls] for name, controls in found.items()})
    if not all(control.passed for controls in found.values() for control in controls):
        raise click.exceptions.Exit(1)


def line_of(control: Control) -> str:
    """A control for people."""
    needed = "" if control.threshold is None else f"needs {control.threshold:.2f}   "
    verdict = "" if control.threshold is None else "passed" if control.passed else "FAILED"
    return f"  {control.name:<32}{control.value:.3f}   {needed}{verdict}"
