"""`python -m minialign annotators`"""

from pathlib import Path

import click

from minialign.lab.commands import options as cli
from minialign.lab.labelling.agreement import label_agreement, read_votes, show_label_agreement
from minialign.runs.errors import UserError
from minialign.world import annotators as world


@click.command(cls=cli.Command, device=False)
@click.argument("labels", nargs=-1, type=click.Path(path_type=Path), metavar="[LABELS.jsonl]…")
@cli.count_option("--people", 0, 0, 1000, "A random panel of so many, besides the fixed ones.")
@cli.count_option("--pairs", 1000, 2, 100_000, "Pairs of summaries that everybody judges, twice.")
@cli.seed_option()
def command(labels, people, pairs, seed):
    """How far people agree: with themselves, with each other, with the majority of the others, and what that costs.

    Without files it shows the toy world's annotators; with the files that `minialign label` writes, the people who
    labelled. "first" and "longer" are shares of choices for the answer that stood first and for the longer one; "a bit"
    is the price of one bit about what the majority thinks.

    \b
    Example:  python -m minialign annotators
              python -m minialign annotators runs/labels/labels.jsonl
    """
    if labels:
        if given := [name for name in ("people", "pairs", "seed") if cli.is_given(name)]:
            raise UserError(f"--{given[0]} is about the toy world's annotators; leave it out, or the files")
        click.echo(show_label_agreement(label_agreement(read_votes(labels))))
        return
    panels = {"whose choices train reward models": world.TRAINING_PANEL, "who only test": world.HELD_OUT_PANEL}
    if people == 1:
        raise UserError("--people 1 is nobody to agree with; ask for at least 2, or for none with 0")
    if people:
        panels["drawn by chance, every fifth with one aspect only"] = tuple(world.annotators(people, seed))
    judged = world.typical_pairs(pairs, seed)
    for title, panel in panels.items():
        table = world.show_agreement(world.agreement_table(judged, panel, seed + 1), pairs)
        click.echo(f"{len(panel)} people {title}, {pairs:,} pairs each\n{table}\n")
