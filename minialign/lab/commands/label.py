"""`python -m minialign label RUN`"""

from __future__ import annotations

import sys
import webbrowser
from pathlib import Path

import click

from minialign.generation import SamplingConfig, prompt_ids
from minialign.heads import load_model, same_tokenizer
from minialign.lab.commands.inputs import prompt_rows
from minialign.lab.commands.options import Command, Option, configured, file_option
from minialign.lab.labelling.reward import LABELS, PAIRS, LiveReward
from minialign.lab.labelling.store import LabelStore, read_pairs
from minialign.lab.labelling.terminal import label_in_terminal
from minialign.rlhf.comparisons import Candidate, sample_pairs
from minialign.runs.errors import UserError
from minialign.runs.files import read_jsonl, write_jsonl
from minialign.runs.run_folder import RunFolder
from minialign.world.tasks import demonstrations


@click.command(cls=Command)
@click.argument("run", type=click.Path(path_type=Path))
@file_option("--pairs", "Pairs to label, as `minialign compare` writes them; without it RUN answers prompts.",
             metavar="FILE.jsonl")
@file_option("--prompts", "What RUN answers: `prompt`, and `completion` if it shall compete. Without it: stories of "
                          "the toy world.", metavar="FILE.jsonl")
@file_option("--against", "Another run that answers, too.", metavar="RUN")
@click.option("--count", default=100, show_default=True, type=click.IntRange(1, 100_000), cls=Option,
              help="How many prompts are answered.")
@click.option("--annotator", default="me", show_default=True, cls=Option, help="Who labels; several people may label "
              "the same pairs, one after the other.")
@click.option("--terminal", is_flag=True, cls=Option, help="Label in this terminal instead of a browser.")
@click.option("--port", default=0, show_default="any free one", type=click.IntRange(0, 65535), cls=Option,
              help="Port of the page on this computer.")
@click.option("--open/--no-open", "show", default=True, show_default=True, cls=Option,
              help="Open the page in the browser.")
@click.option("--out", type=click.Path(path_type=Path), default="runs/labels", show_default=True, cls=Option,
              help="Folder of pairs and labels.")
@click.option("--seed", default=0, type=click.IntRange(0, 2**31 - 1), show_default=True, cls=Option,
              help="Of the answers, and of which stands first.")
@configured("Sampling", "sampling", SamplingConfig(new_tokens=40, temperature=0.7))
def command(run, pairs, prompts, against, count, annotator, terminal, port, show, out, seed, sampling):
    """Say which of two answers is better, in the browser or in the terminal, and train a reward model on it.

    The page is for this computer only. Every label is on disk before the next pair shows; the same command goes on
    where it stopped. OUT/labels.jsonl is what `minialign reward` and `minialign dpo` learn from.

    \b
    Example:  python -m minialign label runs/sft --prompts prompts.jsonl --out runs/labels
    Then:     python -m minialign reward --base runs/sft --comparisons runs/labels/labels.jsonl
    """
    if not annotator.strip() or not annotator.isprintable():
        raise UserError(f"annotator is {annotator!r}; give a name that can be read")
    folder = RunFolder(out)
    with folder.locked():
        if pairs is not None:
            keep_pairs(pairs, out / PAIRS)
        elif not (out / PAIRS).exists():
            made, dropped = made_pairs(run, prompts, against, count, seed, sampling)
            write_jsonl(out / PAIRS, made)
            click.echo(f"{out / PAIRS}: {len(made)} pairs" + (f"; {dropped} were dropped because both answers are equal"
                if dropped else ""))
        asked = read_pairs(out / PAIRS)
        load_model(run, "decoder")  # what a reward model will start from: complain now
        store = LabelStore(out / LABELS, asked, annotator, seed)
        try:
            if store.mended:
                click.echo(f"{store.path}: a fault had left its last line unfinished; that is mended")
            if terminal:
                label_in_terminal(store, typed, click.echo)
            else:
                serve(store, LiveReward(out, run, annotator, asked), port, show)
        finally:
            store.close()


def typed(prompt: str) -> str:
    """A line that somebody typed; EOFError at the end of the input."""
    click.echo(prompt, nl=False)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


def serve(store: LabelStore, reward: LiveReward, port: int, show: bool) -> None:
    """The page, until Ctrl-C."""
    # not before it is needed: the terminal does without a web framework
    from minialign.lab.labelling.page import LabelPage

    page = LabelPage(store, reward, port)
    click.echo(f"{page.url}\nOpen this address in a browser on this computer. Ctrl-C ends; every label is saved.")
    if show:
        webbrowser.open(page.url)
    page.wait()


def keep_pairs(given: Path, kept: Path) -> None:
    """Copy the pairs to the labels' folder, or check that they are the ones that are there. Raises UserError
    otherwise."""
    pairs = [{k: v for k, v in pair.items() if k != "line"} for pair in read_pairs(given)]
    if not kept.exists():
        write_jsonl(kept, pairs)
    elif pairs != [{k: v for k, v in pair.items() if k != "line"} for pair in read_pairs(kept)]:
        raise UserError(f"other pairs are labelled in {kept.parent}; choose another --out, or leave --pairs out to go "
                        f"on there", given)


def made_pairs(run: Path, prompts: Path | None, against: Path | None, count: int, seed: int,
               sampling: SamplingConfig) -> tuple[list[dict], int]:
    """Pairs of answers of the runs, and of the prompts' completions where they have them, to `count` prompts; and how
    many were dropped as equal."""
    model, tokenizer = load_model(run, "language-model")
    models = [(str(run), model)]
    if against is not None:
        other, its_tokenizer = load_model(against, "language-model")
        same_tokenizer((run, tokenizer), (against, its_tokenizer))
        models.append((str(against), other))
    context = min(m.config.context for _, m in models)
    if prompts is not None:
        records = read_jsonl(prompts, ("prompt",))[:count]
        prompt_rows(tokenizer, [(r["prompt"], r["line"]) for r in records], sampling.new_tokens, context, prompts)
    else:
        records = demonstrations(count, seed + 7919, summary_share=1.0)
        rows = prompt_ids(tokenizer, [r["prompt"] for r in records])
        records = [r for r, row in zip(records, rows) if len(row) + sampling.new_tokens <= context]
        if not records:
            raise UserError(f"no story fits its context of {context}; give --prompts", run)
    candidates = [Candidate(name, m, temperature=sampling.temperature) for name, m in models]
    if all(isinstance(r.get("completion"), str) for r in records):
        candidates.append(Candidate("reference", texts=tuple(r["completion"] for r in records)))
    made, dropped = sample_pairs(candidates, tokenizer, [r["prompt"] for r in records], sampling, seed)
    if not made:
        raise UserError("all its answers to a prompt are equal; raise --temperature, or name another run with --against", run)
    return made, dropped
