"""`python -m minialign pretrain --text FILES… [--objective next-token|span-corruption|masked-lm]`"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from minialign.heads import LanguageModel, describe_model
from minialign.lab.commands import options as cli
from minialign.lab.commands.inputs import read_documents
from minialign.pretrain.causal_lm import NextToken
from minialign.pretrain.masked_lm import MaskedLM, MaskingConfig
from minialign.pretrain.pretrain import pretrain
from minialign.pretrain.span_corruption import LMAdaptation, SpanCorruption, SpanCorruptionConfig
from minialign.runs.devices import default_device
from minialign.runs.errors import UserError
from minialign.runs.files import fingerprint, typed
from minialign.runs.run_folder import MODEL, RunFolder
from minialign.runs.settings import to_dict
from minialign.runs.tensors import load_into, read_tensors
from minialign.tokenizer import train_tokenizer
from minialign.training import TrainingConfig
from minialign.transformer import TransformerConfig

DEFAULT = TrainingConfig(steps=1500, batch=16, learning_rate=3e-3)
# the kind that every option is allowed for; the objective says which it will be
SHAPE = TransformerConfig(vocabulary=1024, kind="encoder-decoder", initial_std=0.1, activation="relu")
FAST = {"steps": 60, "validate_every": 30}
KINDS = {"next-token": "decoder", "span-corruption": "encoder-decoder", "masked-lm": "encoder"}


@click.command(cls=cli.Command, trains=True)
@click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="[FILES]…")
@cli.file_option("--text FILES…", "Text to learn from: .txt files, or .jsonl files with a field `text`; more may "
                 "follow.", multiple=True)
@cli.file_option("--valid FILE", "A file to validate on; without it the last twentieth of the documents is held out.")
@cli.choice_option("--split", ["file", "paragraphs", "lines"], "file", "What is a document in a .txt file.")
@cli.option("--packed/--no-packed", default=True,
            text="Pack documents one after the other, or one a row (many short ones).")
@cli.choice_option("--objective", KINDS, "next-token", "GPT's, T5's or BERT's; it says what is built.")
@cli.count_option("--lm-adaptation-steps", 0, 0, cli.LARGEST, "More steps, after span corruption: go on from texts.")
@cli.run_options(out="runs/pretrain")
@cli.configured("Training", "training", DEFAULT, FAST)
@cli.configured("Model", "shape", SHAPE, hide=("kind",))
@cli.configured("Span corruption", "noise", SpanCorruptionConfig())
@cli.configured("Masked language modelling", "masking", MaskingConfig())
@cli.gather_options
def command(args, training, shape, noise, masking):
    """Teach a model your texts: a decoder the next token, an encoder-decoder what is missing in gaps, or an encoder the
    hidden tokens.

    \b
    Example:  python -m minialign pretrain --text plays/*.txt --out runs/plays
    Then:     python -m minialign sample runs/plays --prompt "ROMEO"
    Example:  python -m minialign pretrain --text plays/*.txt --objective span-corruption --out runs/t5
    """
    paths = [*args.text, *args.files]
    if not paths:
        raise UserError("there is no text to learn from; name files with --text")
    settings = objective_settings(args.objective, args.lm_adaptation_steps, noise, masking)
    documents, held_out = read_both(paths, args.valid, args.split, shape.context)
    learned = {"next-token": NextToken(args.packed), "masked-lm": MaskedLM(masking, args.packed),
               "span-corruption": SpanCorruption(noise, args.packed)}[args.objective]
    places = (str(paths[0]) if len(paths) == 1 else f"{len(paths)} files",
              str(args.valid) if args.valid else "the part held out for validation")
    run = RunFolder(args.out)
    with run.locked():
        tokenizer = train_tokenizer(documents, shape.vocabulary)
        shape = dataclasses.replace(shape, vocabulary=tokenizer.size, kind=KINDS[args.objective])
        model = LanguageModel(shape, training.seed).to(default_device())
        config = {**describe_model(model), "stage": "pretrain", "training": to_dict(training), "packed": args.packed,
                  **settings, "data": fingerprint([documents, held_out])}
        run.begin(config, tokenizer)
        if not run.finished:
            click.echo(f"{len(documents):,} documents, {tokenizer.size:,} tokens in the vocabulary, "
                       f"{sum(p.numel() for p in model.parameters()):,} parameters")
            texts = documents, held_out
            if args.lm_adaptation_steps:  # span corruption in a folder of its own inside the run's, and on from there
                first = RunFolder(args.out / "span-corruption")
                with first.locked():
                    first.begin({**config, "lm_adaptation_steps": 0}, tokenizer)
                    if not first.finished:
                        pretrain(model, tokenizer, *texts, training, first, learned, places)
                    load_into(model, read_tensors(first.path / MODEL)[0], first.path / MODEL)
                learned = LMAdaptation(args.packed)
                training = dataclasses.replace(training, steps=args.lm_adaptation_steps)
            pretrain(model, tokenizer, *texts, training, run, learned, places)
    report(run, args.objective, bool(args.lm_adaptation_steps))


def report(run: RunFolder, objective: str, adapted: bool) -> None:
    """What came of it, and what to try; `adapted` to go on from texts."""
    measured = {"next-token": "held-out text", "masked-lm": "the hidden tokens of held-out text",
                "span-corruption": "the gaps of held-out text"}[objective]
    click.echo(f"{run.path}: perplexity {run.facts()['perplexity']:.2f} on "
               f"{'the rests of held-out texts' if adapted else measured}")
    click.echo(f'try it:  python -m minialign sample {typed(run.path)} --prompt '
               f'"{"…" if objective == "next-token" or adapted else "… ___ …"}"')


def objective_settings(objective: str, lm_adaptation_steps: int, noise: SpanCorruptionConfig,
                       masking: MaskingConfig) -> dict[str, Any]:
    """What a run's config.json says of its objective. Raises UserError for settings of another one, which would have no
    effect."""
    for given, options, its_objective in (
        (lm_adaptation_steps, "--lm-adaptation-steps", "span-corruption"),
        (noise != SpanCorruptionConfig(), "--noise or --mean-span", "span-corruption"),
        (masking != MaskingConfig(), "--chosen, --masked or --replaced", "masked-lm"),
    ):
        if given and objective != its_objective:
            raise UserError(f"{options} can only be used with --objective {its_objective}, and this is {objective}; "
                            f"leave it out, or change the objective")
    own = {"masked-lm": {"masking": to_dict(masking)},
           "span-corruption": {"noise": to_dict(noise), "lm_adaptation_steps": lm_adaptation_steps}}
    return {"objective": objective, **own[objective]} if objective in own else {}


def read_both(paths: Sequence[Path], valid: Path | None, split: str, context: int) -> tuple[list[str], list[str]]:
    """Documents to learn from, and to validate on: those of `valid`, or the last ones."""
    documents = [document for path in paths for document in read_documents(path, split)]
    return hold_out_the_end(documents, context) if valid is None else (documents, read_documents(valid, split))


def hold_out_the_end(documents: list[str], context: int) -> tuple[list[str], list[str]]:
    """The last twentieth of the documents, or the end of the longest one when there are few, for validation; of a short
    text up to a fifth."""
    letters = sum(map(len, documents))
    share = min(0.2, max(0.05, 8 * context / letters))  # 8 letters a token are enough to fill a context
    count = round(len(documents) * share)
    if count:
        return documents[:-count], documents[-count:]
    place = max(range(len(documents)), key=lambda i: len(documents[i]))
    cut = len(documents[place]) - max(1, round(share * letters))
    return [*documents[:place], documents[place][:cut], *documents[place + 1 :]], [documents[place][cut:]]
