"""`python -m minialign sft --base RUN --demonstrations FILE.jsonl`"""

from __future__ import annotations

import click

from minialign.heads import describe_model, load_model
from minialign.instruct.sft import SFT, demonstration_rows, fine_tune
from minialign.lab.commands.inputs import fill_a_batch
from minialign.lab.commands.options import Command, configured, file_option, run_options
from minialign.runs.errors import UserError
from minialign.runs.files import fingerprint, held_out, read_jsonl
from minialign.runs.run_folder import RunFolder
from minialign.runs.settings import to_dict
from minialign.runs.tensors import digest, tensors_of

FAST = {"steps": 30, "validate_every": 15}


@click.command(cls=Command)
@file_option("--base", "The pretrained run to start from.", required=True, metavar="RUN")
@file_option("--demonstrations", "One JSON object a line, with `prompt` and `completion`.", required=True,
             metavar="FILE.jsonl")
@click.option("--skip-long", is_flag=True, help="Leave out what does not fit the context, and say how many, instead of "
                                                "stopping.")
@run_options(out="runs/sft")
@configured("Training", "training", SFT, FAST)
def command(base, demonstrations, skip_long, out, seed, fast, training):
    """Instruction-tune a model on demonstrations.

    A tenth of the prompts is held out for validation. A completion usually starts with a space or a line break: the
    prompt and the completion are put side by side as they are.

    \b
    Example:  python -m minialign sft --base runs/pretrain --demonstrations answers.jsonl
    Then:     python -m minialign sample runs/sft --prompt "…"
    """
    model, tokenizer = load_model(base, "decoder")
    records = read_jsonl(demonstrations, ("prompt", "completion"))
    rows, valid, skipped = [], [], 0
    for side, chosen in ((rows, [r for r in records if not held_out(r["prompt"], 0.1)]),
                         (valid, [r for r in records if held_out(r["prompt"], 0.1)])):
        found, left_out = demonstration_rows(tokenizer, chosen, model.config.context, skip_long, demonstrations)
        side += found
        skipped += left_out
    if skipped:
        click.echo(f"{skipped} demonstrations do not fit the context and are left out")
    if not valid:
        raise UserError(f"{len(rows)} demonstrations are too few to hold a tenth of the prompts out for validation; "
                        f"give more prompts", demonstrations)
    fill_a_batch(len(rows), "demonstrations to learn from", training.batch, demonstrations)
    run = RunFolder(out)
    with run.locked():
        config = {**describe_model(model), "stage": "sft", "training": to_dict(training), "data": fingerprint(records)}
        run.begin({**config, "base": digest(tensors_of(model))[:16]}, tokenizer)
        if not run.finished:
            click.echo(f"{len(rows):,} demonstrations to learn from, {len(valid):,} held out")
            fine_tune(model, rows, valid, training, run)
    click.echo(f"{out}: perplexity {run.facts()['perplexity']:.2f} on held-out completions")
    click.echo(f'try it:  python -m minialign sample {out} --prompt "…"')
