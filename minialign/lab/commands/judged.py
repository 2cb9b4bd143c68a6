"""Comparisons that `reward` and `dpo` learn from: their options, and how the files are read and divided."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import click

from minialign.lab.commands import options as cli
from minialign.lab.commands.inputs import fill_a_batch
from minialign.rlhf.comparisons import read_comparisons, say_left_out, split_by_prompt
from minialign.rlhf.ranked import Ranked, count_pairs, ranked_rows
from minialign.runs.errors import UserError
from minialign.tokenizer import Tokenizer

LONG = {"skip": "Leave out what does not fit the context", "cut": "Cut completions that do not fit the context"}


def comparison_options(function: Callable) -> Callable:
    """--comparisons, --valid, and --skip-long or --cut-long."""
    options = [
        cli.file_option("--comparisons FILE.jsonl", required=True,
                        text="One JSON object a line, with `prompt`, `chosen` and `rejected`."),
        cli.file_option("--valid FILE.jsonl",
                        "Comparisons to validate on; without it a tenth of the prompts is held out."),
        *(cli.option(f"--{value}-long", "long", flag_value=value, default=None,
                     text=f"{text}, and say how many, instead of stopping.") for value, text in LONG.items())]
    for add in reversed(options):
        function = add(function)
    return function


def read_judged(path: Path) -> list[dict]:
    """Comparisons of a file; says what in it orders no two completions and is left out."""
    kept, left_out = read_comparisons(path)
    if left_out:
        click.echo(f"{path}: left out are comparisons {say_left_out(left_out)}")
    return kept


def rank_judged(tokenizer: Tokenizer, comparisons: list[dict], context: int, long: str | None,
                file: Path) -> list[Ranked]:
    """Comparisons as rows of ids (ranked.py); says how many do not fit the context, or are no longer two when they are
    made to fit."""
    ranked, left_out = ranked_rows(tokenizer, comparisons, context, long or "stop", file)
    if left_out:
        click.echo(f"{file}: comparisons {say_left_out(left_out)}")
    return ranked


def read_sides(tokenizer: Tokenizer, context: int, batch: int,
               args: SimpleNamespace) -> tuple[list[list[dict]], list[list[Ranked]]]:
    """Comparisons to learn from and to validate on, as they were written and as rows of ids.

    Raises:
        UserError: too few of either; a comparison that does not fit the context, with its line, unless an option says
            what becomes of it.
    """
    learned, valid = read_judged(args.comparisons), args.valid
    sides = [learned, read_judged(valid)] if valid else list(split_by_prompt(learned))
    if valid:
        say_shared_prompts(*sides, valid)
    files = (args.comparisons, valid or args.comparisons)
    ranked = [rank_judged(tokenizer, side, context, args.long, file) for side, file in zip(sides, files)]
    pairs = list(map(count_pairs, ranked))
    if pairs[1] < 2:
        few = "too few to validate on" if valid else "too few to hold a tenth of the prompts out for validation"
        raise UserError(f"{pairs[1] if valid else sum(pairs)} comparisons are {few}; give more", files[1])
    fill_a_batch(len(ranked[0]), "prompts with comparisons to learn from", batch, args.comparisons)
    return sides, ranked


def say_shared_prompts(learned: list[dict], measured: list[dict], file: Path) -> None:
    """Says how many prompts of a file that is measured on are learned from, too, if any are."""
    asked = {comparison["prompt"] for comparison in measured}
    shared = asked & {comparison["prompt"] for comparison in learned}
    if shared:
        click.echo(f"{file}: {len(shared):,} of its {len(asked):,} prompts are learned from as well; what is measured "
                   f"on them says little about new ones")
