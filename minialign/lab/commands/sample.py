"""`python -m minialign sample RUN --prompt "…"`"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import torch

from minialign.generation import SamplingConfig, continue_texts
from minialign.lab.commands.inputs import open_model
from minialign.lab.commands.options import TUNED, Command, Option, configured
from minialign.pretrain.gap_filling import GAP, fill_gaps
from minialign.runs.errors import UserError
from minialign.tokenizer import show_merges


@click.command(cls=Command)
@click.argument("run", type=click.Path(path_type=Path))
@TUNED
@click.option("--prompt", default="", cls=Option, help="What to continue; `-` reads it from standard input. Without it "
                                                       "the model begins by itself.")
@click.option("--count", default=1, show_default=True, type=click.IntRange(1, 1000), cls=Option,
              help="How many answers.")
@click.option("--show", type=click.Choice(["text", "tokens"]), default="text", show_default=True, cls=Option,
              help="Plain text, or cut into tokens.")
@click.option("--seed", default=0, type=click.IntRange(0, 2**31 - 1), show_default=True, cls=Option,
              help="Same seed, same answers.")
@configured("Sampling", "sampling", SamplingConfig(new_tokens=64, temperature=0.8))
def command(run, tuned, prompt, count, show, seed, sampling):
    """Let a model write: go on from the prompt, or, if it was pretrained on texts with gaps, fill those that are marked
    with ___.

    \b
    Example:  python -m minialign sample runs/demo/5-rlhf --prompt "$(cat story.txt)" --count 3
    Example:  python -m minialign sample runs/t5 --prompt "Rosa lost ___ in the barn."
    """
    model, tokenizer = open_model(run, tuned=tuned)
    try:
        prompt = sys.stdin.read().rstrip("\n") if prompt == "-" else prompt.replace("\\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8: byte 0x{error.object[error.start]:02x}; save the prompt as UTF-8",
                        "standard input") from None
    generator = torch.Generator().manual_seed(seed)
    if model.config.kind == "encoder" or (model.config.kind == "encoder-decoder" and GAP in prompt):
        texts = fill_gaps(model, tokenizer, prompt, count, sampling, generator)
    else:
        texts = [prompt + answer for answer in continue_texts(model, tokenizer, [prompt] * count, sampling, generator)]
    for text in texts:
        click.echo(show_merges(tokenizer, text) if show == "tokens" else text)
        if count > 1:
            click.echo("---")
