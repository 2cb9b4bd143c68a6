"""`python -m minialign hacking RUN`"""

import sys
from pathlib import Path

import click

from minialign.lab.commands import options as cli
from minialign.rlhf.reward_checks import show_hacking, widest
from minialign.runs.errors import UserError
from minialign.runs.files import place_of, read_jsonl

SAMPLES = Path("evaluation") / "samples.jsonl"


@click.command(cls=cli.Command, device=False)
@cli.RUN
@cli.count_option("--count", 10, 1, 10_000, "How many.")
def command(run, count):
    """Show the completions whose reward and worth differ most: what the reward model was fooled by, and what it missed.

    RUN is a run of the main job, or a JSONL file whose lines have `prompt`, `text`, `proxy` (the reward) and `gold`
    (the worth, by whoever may judge it); lines without `proxy` are passed over.

    \b
    Example:  python -m minialign hacking runs/demo
    Then:     python -m minialign evaluate runs/ppo --judge runs/judge --proxy runs/reward --prompts prompts.txt
              (without a gold score)
    """
    path = run / SAMPLES if run.is_dir() else run
    found = [record for record in read_jsonl(path, ("prompt", "text")) if record.get("proxy") is not None]
    for record in found:
        for name in ("proxy", "gold"):
            value = record.get(name)
            if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
                raise UserError(f"{name!r} is {str(value)[:40]}, not a number", *place_of(record))
    if not found:
        raise UserError("no line says what its text scored as `proxy`; an older run of the main job did not write it: "
                        "run it again", path)
    prompts, texts, proxy, gold = ([record[name] for record in found] for name in ("prompt", "text", "proxy", "gold"))
    click.echo(show_hacking(widest(prompts, texts, proxy, gold, count)))
