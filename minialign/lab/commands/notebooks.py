"""`python -m minialign notebooks [NAME]…`"""

from __future__ import annotations

from pathlib import Path

import click

from minialign.lab.commands.options import Command, Option
from minialign.lab.notebook import execute
from minialign.runs.errors import UserError


@click.command(cls=Command)
@click.argument("names", nargs=-1, metavar="[NAME]…")
@click.option("--folder", type=click.Path(path_type=Path), default="notebooks", show_default=True, cls=Option,
              help="Where the notebooks are.")
@click.option("--fast", is_flag=True, cls=Option, help="Quick settings: everything runs, but too small to decide "
                                                       "anything.")
@click.option("--out", type=click.Path(path_type=Path), cls=Option, help="Where the executed ones go. [in place]")
def command(names, folder, fast, out):
    """Run notebooks from their first cell to their last and write them with their outputs.

    NAME is the beginning of a file's name, such as 07. A cell that fails or warns is an error.

    \b
    Example:  python -m minialign notebooks 07 --fast --out runs/notebooks
    """
    paths = sorted(folder.glob("*.ipynb"))
    if not paths:
        raise UserError("there are no notebooks here; give --folder", folder)
    chosen = [path for path in paths if not names or any(path.name.startswith(name) for name in names)]
    for name in names:
        if not any(path.name.startswith(name) for path in paths):
            raise UserError(f"no notebook's name begins with {name!r}; there are "
                            f"{', '.join(path.stem for path in paths)}", folder)
    if fast and out is None:
        raise UserError("quick outputs would replace those that are kept; give --out, a folder for them")
    for path in chosen:
        seconds = execute(path, path if out is None else out / path.name, fast)
        click.echo(f"{path.name}: {seconds:.0f} s")
