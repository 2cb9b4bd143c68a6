"""`python -m minialign claims [ID…]`"""

import click

from minialign.lab.claims.page import write_page, write_results
from minialign.lab.claims.runner import CLAIMS, judge_again, load, run_claims
from minialign.lab.commands import options as cli
from minialign.runs.run_folder import RunFolder


@click.command(cls=cli.Command, device=False)
@click.argument("ids", nargs=-1, metavar="[ID]…")
@cli.flag("--list", "only_list", text="Say what the claims are, and stop.")
@cli.flag("--fast", text="A quick look: everything runs, but too small to decide anything.")
@cli.count_option("--seeds", 3, 1, 100, "How many; at least 3 for a verdict.")
@cli.count_option("--workers", 1, 1, 64, "Processes that share the claims and the cores.")
@cli.file_option("--out", "Where the verdicts go.", default="runs/claims")
@cli.flag("--judge", text="Measure nothing: judge and draw what OUT's tables hold once more.")
@cli.file_option("--map-file", "Only write the map into this file, gallery and verdicts into OUT/README.md.")
def command(ids, only_list, fast, seeds, workers, out, judge, map_file):
    """Check what the course notes say, one experiment a claim.

    Each writes OUT/ID/verdict.json, table.csv and figure.png; OUT/index.html shows them all. The verdict is computed
    from the table. Exits 1 where a claim lacked what it is measured with.

    \b
    Example:  python -m minialign claims over-optimisation
    """
    chosen = ids or tuple(CLAIMS)
    if only_list:
        for id in chosen:
            claim = load(id).CLAIM
            click.echo(f"{id:<20} {claim.text} ({claim.source})")
        return
    if map_file is not None:
        write_results(map_file, out)
        return
    with RunFolder(out).locked():
        if judge:
            judge_again(ids or [id for id in CLAIMS if (out / id / "verdict.json").exists()], out, click.echo)
        else:
            measured = run_claims(chosen, out, 1 if fast and seeds == 3 else seeds, fast, click.echo, workers)
        click.echo(f"open {write_page(out)}")
    if not judge and len(measured) < len(chosen):
        raise SystemExit(1)
