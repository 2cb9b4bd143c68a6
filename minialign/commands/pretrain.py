"""`python -m minialign pretrain --text FILES…`"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from minialign.checkpoints import RunFolder, describe_model
from minialign.commands.inputs import read_documents
from minialign.commands.options import Command, configured, file_option, run_options
from minialign.errors import UserError
from minialign.files import fingerprint
from minialign.heads import LanguageModel
from minialign.pretrain.causal_lm import pretrain
from minialign.settings import to_dict
from minialign.tokenizer import train_tokenizer
from minialign.training import TrainingConfig
from minialign.transformer import TransformerConfig

DEFAULT = TrainingConfig(steps=1500, batch=16, learning_rate=3e-3)
SHAPE = TransformerConfig(vocabulary=1024, initial_std=0.1, activation="relu")
FAST = {"steps": 60, "validate_every": 30}


@click.command(cls=Command)
@click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="[FILES]…")
@file_option("--text", "Text to learn from: .txt files, or .jsonl files with a field `text`; more may follow.", multiple=True, metavar="FILES…")
@file_option("--valid", "A file to validate on; without it the last twentieth of the documents is held out.", metavar="FILE")
@click.option("--split", type=click.Choice(["file", "paragraphs", "lines"]), default="file", show_default=True, help="What is a document in a .txt file.")
@click.option("--packed/--no-packed", default=True, show_default=True, help="Pack documents one after the other, or one a row (many short ones).")
@run_options(out="runs/pretrain")
@configured("Training", "training", DEFAULT, FAST)
@configured("Model", "shape", SHAPE, hide=("kind",))
def command(files, text, valid, split, packed, out, seed, fast, training, shape):
    """Teach a decoder to predict the next token of your texts.

    \b
    Example:  python -m minialign pretrain --text plays/*.txt --out runs/plays
    Then:     python -m minialign sample runs/plays --prompt "ROMEO"
    """
    paths = [*text, *files]
    if not paths:
        raise UserError("there is no text to learn from; name files with --text")
    documents = [document for path in paths for document in read_documents(path, split)]
    if valid is not None:
        held_out = read_documents(valid, split)
    else:
        documents, held_out = hold_out_the_end(documents, shape.context)
    run = RunFolder(out)
    with run.locked():
        tokenizer = train_tokenizer(documents, shape.vocabulary)
        shape = dataclasses.replace(shape, vocabulary=tokenizer.size)
        model = LanguageModel(shape, training.seed)
        config = {**describe_model(model), "stage": "pretrain", "training": to_dict(training), "packed": packed}
        run.begin({**config, "data": fingerprint([documents, held_out])}, tokenizer)
        if not run.finished:
            parameters = sum(p.numel() for p in model.parameters())
            click.echo(f"{len(documents):,} documents, {tokenizer.size:,} tokens in the vocabulary, {parameters:,} parameters")
            places = (str(paths[0]) if len(paths) == 1 else f"{len(paths)} files", str(valid) if valid else "the part held out for validation")
            pretrain(model, tokenizer, documents, held_out, training, run, packed, places)
    click.echo(f"{out}: perplexity {run.facts()['perplexity']:.2f} on held-out text")
    click.echo(f'try it:  python -m minialign sample {out} --prompt "…"')


def hold_out_the_end(documents: list[str], context: int) -> tuple[list[str], list[str]]:
    """The last twentieth of the documents, or of the last document when there are few, for validation; of a short text up to a fifth."""
    letters = sum(map(len, documents))
    share = min(0.2, max(0.05, 8 * context / letters))  # 8 letters a token are enough to fill a context
    count = round(len(documents) * share)
    if count:
        return documents[:-count], documents[-count:]
    cut = round(len(documents[-1]) * (1 - share * len(documents)))
    return [*documents[:-1], documents[-1][:cut]], [documents[-1][cut:]]
