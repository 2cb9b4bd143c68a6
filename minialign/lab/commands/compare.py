"""`python -m minialign compare --policies RUN RUN --prompts FILE.jsonl`"""

from __future__ import annotations

from pathlib import Path

import click

from minialign.generation import SamplingConfig
from minialign.heads import load_model, same_tokenizer
from minialign.lab.commands.inputs import prompt_rows
from minialign.lab.commands.options import Command, configured, file_option, run_options
from minialign.rlhf.comparisons import Candidate, sample_pairs
from minialign.runs.errors import UserError
from minialign.runs.files import read_jsonl, write_jsonl


@click.command(cls=Command)
@click.argument("more", nargs=-1, type=click.Path(path_type=Path), metavar="[RUN]…")
@file_option("--policies", "Runs whose models answer; more may follow.", multiple=True, metavar="RUN…")
@file_option("--prompts", "One JSON object a line, with `prompt` (and `completion`, if --references).", required=True,
             metavar="FILE.jsonl")
@click.option("--references", is_flag=True, help="Let the completions of the prompts file compete, too.")
@click.option("--answers", default=2, type=click.IntRange(2, 9), show_default=True,
              help="Answers to a prompt; every two of them make a pair.")
@run_options(out="runs/pairs.jsonl")
@configured("Sampling", "sampling", SamplingConfig(), {"new_tokens": 16})
def command(more, policies, prompts, references, answers, out, seed, fast, sampling):
    """Sample pairs of answers, to be judged by people.

    Each line of the result has `prompt`, `first`, `second` and who wrote them. A judged pair becomes a comparison when
    it is written with `prompt`, `chosen` and `rejected`: that is what `minialign reward` learns from.

    \b
    Example:  python -m minialign compare --policies runs/sft runs/pretrain --prompts prompts.jsonl --out pairs.jsonl
    """
    if out.exists():
        raise UserError("is there already, and may hold somebody's work; choose another --out", out)
    runs = [*policies, *more]
    if not runs:
        raise UserError("no model to sample from; name runs with --policies")
    loaded = [load_model(run, "language-model") for run in runs]
    for run, (_, tokenizer) in zip(runs, loaded):
        same_tokenizer((runs[0], loaded[0][1]), (run, tokenizer))
    records = read_jsonl(prompts, ("prompt", "completion") if references else ("prompt",))
    records = records[:32] if fast else records
    context = min(model.config.context for model, _ in loaded)
    prompt_rows(loaded[0][1], [(r["prompt"], r["line"]) for r in records], sampling.new_tokens, context, prompts)
    candidates = [Candidate(str(run), model, temperature=sampling.temperature) for run, (model, _) in zip(runs, loaded)]
    if references:
        candidates.append(Candidate("reference", texts=tuple(r["completion"] for r in records)))
    pairs, dropped = sample_pairs(candidates, loaded[0][1], [r["prompt"] for r in records], sampling, seed, answers)
    write_jsonl(out, pairs)
    click.echo(f"{out}: {len(pairs):,} pairs" + (f"; {dropped} were dropped because both answers are equal" if dropped
                                                 else ""))
