"""`python -m minialign compare --policies RUN RUN --prompts FILE.jsonl`"""

from pathlib import Path

import click

from minialign.generation import SamplingConfig
from minialign.heads import LanguageModel
from minialign.lab.commands import options as cli
from minialign.lab.commands.inputs import open_alike, prompt_rows, read_prompts
from minialign.rlhf.comparisons import Candidate, sample_pairs
from minialign.runs.errors import UserError
from minialign.runs.files import write_jsonl


@click.command(cls=cli.Command)
@click.argument("more", nargs=-1, type=click.Path(path_type=Path), metavar="[RUN]…")
@cli.file_option("--policies RUN…", "Runs whose models answer; more may follow.", multiple=True)
@cli.file_option("--prompts FILE.jsonl", "A prompt a line, or JSONL with `prompt` (and `completion`, if --references).",
                 required=True)
@cli.flag("--references", text="Let the completions of the prompts file compete, too.")
@cli.count_option("--completions", 2, 2, 9, "Completions of a prompt; every two of them make a pair.")
@cli.run_options(out="runs/pairs.jsonl")
@cli.configured("Sampling", "sampling", SamplingConfig(), {"new_tokens": 16})
@cli.gather_options
def command(args, sampling):
    """Sample pairs of completions, to be judged by people.

    Each line of the result has `prompt`, `first`, `second` and who wrote them. A judged pair becomes a comparison when
    it is written with `prompt`, `chosen` and `rejected`: that is what `minialign reward` learns from.

    \b
    Example:  python -m minialign compare --policies runs/sft runs/pretrain --prompts prompts.jsonl --out pairs.jsonl
    """
    if args.out.exists():
        raise UserError("is there already, and may hold somebody's work; choose another --out", args.out)
    runs = [*args.policies, *args.more]
    if not runs:
        raise UserError("no model to sample from; name runs with --policies")
    models, tokenizer = open_alike(runs)
    records = read_prompts(args.prompts, args.references)
    records = records[:32] if args.fast else records
    context = min(model.config.context for model in models)
    apart = all(model.config.kind == "encoder-decoder" for model in models)
    prompt_rows(tokenizer, records, sampling.new_tokens, context, apart)
    candidates = candidates_of(runs, models, records if args.references else [], sampling.temperature)
    prompts = [record["prompt"] for record in records]
    write_pairs(args.out, *sample_pairs(candidates, tokenizer, prompts, sampling, args.seed, args.completions))


def candidates_of(runs: list[Path], models: list[LanguageModel], references: list[dict],
                  temperature: float) -> list[Candidate]:
    """The models of runs, and where there are references their completions, as sources of completions."""
    found = [Candidate(str(run), model, temperature=temperature) for run, model in zip(runs, models)]
    texts = tuple(record["completion"] for record in references)
    return [*found, Candidate("reference", texts=texts)] if texts else found


def write_pairs(path: Path, pairs: list[dict], dropped: int) -> None:
    """Write pairs, and say how many there are and how many were dropped. Raises UserError where none is left."""
    if not pairs:
        raise UserError("the answers to each prompt are all the same; raise --temperature, or let another run answer, "
                        "too")
    write_jsonl(path, pairs)
    equal = f"; {dropped} were dropped because both completions are equal" if dropped else ""
    click.echo(f"{path}: {len(pairs):,} pairs{equal}")
