"""`python -m minialign notebooks [NAME]…`"""

import click

from minialign.lab.commands import options as cli
from minialign.lab.notebook import execute
from minialign.runs.errors import UserError


@click.command(cls=cli.Command, device=False)
@click.argument("names", nargs=-1, metavar="[NAME]…")
@cli.file_option("--folder", "Where the notebooks are.", default="notebooks")
@cli.flag("--fast", text="Quick settings: everything runs, but too small to decide anything.")
@cli.file_option("--out", "Where the executed ones go. [in place]")
def command(names, folder, fast, out):
    """Run notebooks from their first cell to their last and write them with their outputs.

    NAME is the beginning of a file's name, such as 07. A cell that fails or warns is an error.

    \b
    Example:  python -m minialign notebooks 07 --fast --out runs/notebooks
    """
    paths = sorted(folder.glob("*.ipynb"))
    if not paths:
        raise UserError("there are no notebooks here; give --folder", folder)
    for name in names:
        if not any(path.name.startswith(name) for path in paths):
            there = ", ".join(path.stem for path in paths)
            raise UserError(f"no notebook's name begins with {name!r}; there are {there}", folder)
    if fast and out is None:
        raise UserError("quick outputs would replace those that are kept; give --out, a folder for them")
    for path in paths:
        if not names or path.name.startswith(names):
            seconds = execute(path, path if out is None else out / path.name, fast)
            click.echo(f"{path.name}: {seconds:.0f} s")
