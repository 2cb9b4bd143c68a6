"""`python -m minialign sft --base RUN --demonstrations FILE.jsonl`"""

import sys

import click

from minialign.batching import next_token_batch
from minialign.heads import describe_model, load_model
from minialign.instruct.sft import SFT, demonstration_rows, fine_tune
from minialign.lab.commands import options as cli
from minialign.lab.commands.inputs import fill_a_batch, refuse_judged
from minialign.lab.stages import stage_run
from minialign.runs.errors import UserError
from minialign.runs.files import fingerprint, held_out, read_jsonl, typed
from minialign.runs.run_folder import RunFolder
from minialign.tokenizer import show_loss_mask

FAST = {"steps": 30, "validate_every": 15}


@click.command(cls=cli.Command, trains=True)
@cli.file_option("--base RUN", "The pretrained run to start from.", required=True)
@cli.file_option("--demonstrations FILE.jsonl", "One JSON object a line, with `prompt` and `completion`.",
                 required=True)
@cli.flag("--skip-long", text="Leave out what does not fit the context, and say how many, instead of stopping.")
@cli.run_options(out="runs/sft")
@cli.configured("Training", "training", SFT, FAST)
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
    for record in records:
        refuse_judged(record)
    sides = [[r for r in records if held_out(r["prompt"], 0.1) is side] for side in (False, True)]
    (rows, skipped), (valid, skipped_too) = (
        demonstration_rows(tokenizer, side, model.config.context, skip_long, demonstrations) for side in sides)
    if skipped + skipped_too:
        click.echo(f"{skipped + skipped_too} demonstrations do not fit the context and are left out")
    if not valid:
        raise UserError(f"{len(rows)} demonstrations are too few to hold a tenth of the prompts out for validation; "
                        f"give more prompts", demonstrations)
    fill_a_batch(len(rows), "demonstrations to learn from", training.batch, demonstrations)
    about = {**describe_model(model), "stage": "sft", "training": training, "data": fingerprint(records)}
    with stage_run(RunFolder(out), tokenizer, **about, base=model) as run:
        if not run.finished:
            click.echo(f"{len(rows):,} demonstrations to learn from, {len(valid):,} held out")
            if sys.stdout.isatty():
                first = next_token_batch([rows[0][0]], [rows[0][1]])
                click.echo("green is taught: " + show_loss_mask(tokenizer, first.tokens[0], first.labels[0]))
            fine_tune(model, rows, valid, training, run)
    click.echo(f"{out}: perplexity {run.facts()['perplexity']:.2f} on held-out completions")
    click.echo(f'try it:  python -m minialign sample {typed(out)} --prompt "…"')
