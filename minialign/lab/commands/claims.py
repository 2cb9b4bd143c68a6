"""`python -m minialign claims [ID…]`"""

from __future__ import annotations

from pathlib import Path

import click

from minialign.lab.claims.page import write_page
from minialign.lab.claims.readme import write_readme
from minialign.lab.claims.runner import CLAIMS, judge_again, load, run_claims
from minialign.lab.commands.options import Command, Option
from minialign.runs.run_folder import RunFolder


@click.command(cls=Command)
@click.argument("ids", nargs=-1, metavar="[ID]…")
@click.option("--list", "only_list", is_flag=True, cls=Option, help="Say what the claims are, and stop.")
@click.option("--fast", is_flag=True, cls=Option, help="A quick look: everything runs, but too small to decide "
                                                       "anything.")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1, 100), cls=Option,
              help="How many; at least 3 for a verdict.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 64), cls=Option,
              help="Processes that share the claims and the cores.")
@click.option("--out", type=click.Path(path_type=Path), default="runs/claims", show_default=True, cls=Option,
              help="Where the verdicts go.")
@click.option("--judge", is_flag=True, cls=Option, help="Measure nothing: judge and draw what OUT's tables hold once "
                                                        "more.")
@click.option("--readme", type=click.Path(path_type=Path), cls=Option, help="Only write what OUT holds into this file, "
              "between its markers.")
def command(ids, only_list, fast, seeds, workers, out, judge, readme):
    """Check what the course notes say, one experiment a claim.

    Each writes OUT/ID/verdict.json, table.csv and figure.png; OUT/index.html shows them all. The verdict is computed
    from the table.

    \b
    Example:  python -m minialign claims over-optimisation
    """
    chosen = ids or tuple(CLAIMS)
    if only_list:
        for id in chosen:
            claim = load(id).CLAIM
            click.echo(f"{id:<20} {claim.text} ({claim.source})")
        return
    if readme is not None:
        write_readme(readme, out)
        return
    with RunFolder(out).locked():
        if judge:
            judge_again(ids or [id for id in CLAIMS if (out / id / "verdict.json").exists()], out, click.echo)
        else:
            run_claims(chosen, out, min(seeds, 1) if fast and seeds == 3 else seeds, fast, click.echo, workers)
        click.echo(f"open {write_page(out)}")
