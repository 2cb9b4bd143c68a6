"""`python -m minialign sample RUN --prompt "…"`"""

import sys
from pathlib import Path

import click
import torch

from minialign.distill.speculative import speculate_text
from minialign.generation import ENDED_AT_ONCE, NO_WORDS, Generated, SamplingConfig, continue_texts
from minialign.heads import LanguageModel
from minialign.lab.commands import options as cli
from minialign.lab.commands.inputs import open_model, read_input
from minialign.pretrain.gap_filling import GAP, fill_gaps
from minialign.runs.errors import UserError
from minialign.tokenizer import Tokenizer, show_merges


@click.command(cls=cli.Command)
@cli.RUN
@cli.TUNED
@cli.file_option("--draft RUN", "A smaller model with the same tokenizer, such as a distilled student, that guesses "
                                "ahead: fewer passes, and what is written is as likely as without it (at "
                                "temperature 0 the same text).")
@cli.option("--prompt", default="",
            text="What to continue; `-` reads it from standard input. Without it the model begins by itself.")
@cli.count_option("--count", 1, 1, 1000, "How many completions.")
@cli.choice_option("--show", ("text", "tokens"), "text", "Plain text, or cut into tokens.")
@cli.seed_option("Same seed, same completions.")
@cli.configured("Sampling", "sampling", SamplingConfig(new_tokens=64, temperature=0.8))
def command(run, tuned, draft, prompt, count, show, seed, sampling):
    """Let a model write: go on from the prompt, or, if it was pretrained on texts with gaps, fill those that are marked
    with ___.

    \b
    Example:  python -m minialign sample runs/demo/5-rlhf --prompt "$(cat story.txt)" --count 3
    Example:  python -m minialign sample runs/t5 --prompt "Rosa lost ___ in the barn."
    """
    model, tokenizer = open_model(run, tuned=tuned)
    prompt = read_input(sys.stdin.read).rstrip("\n") if prompt == "-" else prompt.replace("\\n", "\n")
    generator = torch.Generator().manual_seed(seed)
    gaps = model.config.kind == "encoder" or (model.config.kind == "encoder-decoder" and GAP in prompt)
    if gaps and draft:
        raise UserError("a draft guesses ahead of a text that goes on, and gaps are filled here; leave --draft out")
    if gaps:
        prompt, completions = "", fill_gaps(model, tokenizer, prompt, count, sampling, generator)
    elif draft:
        completions = guessed_ahead(model, tokenizer, draft, prompt, count, sampling, generator)
    else:
        completions = continue_texts(model, tokenizer, [prompt] * count, sampling, generator, read=Generated.shown)
    for completion in completions:
        text, note = (prompt, completion) if completion in (ENDED_AT_ONCE, NO_WORDS) else (prompt + completion, "")
        click.echo((show_merges(tokenizer, text) if show == "tokens" else text) + note)
        if count > 1:
            click.echo("---")


def guessed_ahead(model: LanguageModel, tokenizer: Tokenizer, draft: Path, prompt: str, count: int,
                  sampling: SamplingConfig, generator: torch.Generator) -> list[str]:
    """The completions, written by speculative decoding; says what it took."""
    small, other = open_model(draft)
    if other.fingerprint() != tokenizer.fingerprint():
        raise UserError("its tokenizer is another one; give a draft that was distilled from the model, or trained with "
                        "its tokenizer", draft)
    completions = []
    for _ in range(count):
        text, found = speculate_text(model, small, tokenizer, prompt, sampling, generator)
        nothing = ENDED_AT_ONCE if found.ids[0] == model.special.end else NO_WORDS
        completions.append(text if text.strip() else nothing)
        click.echo(f"{len(found.ids)} tokens in {found.passes} passes of the model; {found.accepted} of "
                   f"{found.guessed} guesses accepted", err=True)
    return completions
