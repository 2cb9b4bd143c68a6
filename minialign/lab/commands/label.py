"""`python -m minialign label RUN`"""

import webbrowser
from pathlib import Path
from types import SimpleNamespace

import click

from minialign.generation import SamplingConfig, prompt_ids
from minialign.heads import load_model
from minialign.lab.commands import options as cli
from minialign.lab.commands.compare import candidates_of, write_pairs
from minialign.lab.commands.inputs import open_alike, prompt_rows, read_input, read_prompts
from minialign.lab.labelling.reward import LABELS, PAIRS, LiveReward
from minialign.lab.labelling.store import LabelStore, read_pairs
from minialign.lab.labelling.terminal import label_in_terminal
from minialign.rlhf.comparisons import sample_pairs
from minialign.runs.errors import UserError
from minialign.runs.files import place_of, write_jsonl
from minialign.runs.run_folder import RunFolder
from minialign.world.tasks import demonstrations


@click.command(cls=cli.Command)
@cli.RUN
@cli.file_option("--pairs FILE.jsonl",
                 "Pairs to label, as `minialign compare` writes them; without it RUN answers prompts.")
@cli.file_option("--prompts FILE.jsonl", "What RUN answers: `prompt`, and `completion` if it shall "
                 "compete. Without it: stories of the toy world.")
@cli.file_option("--against RUN", "Another run that answers, too.")
@cli.count_option("--count", 100, 1, 100_000, "How many prompts are answered.")
@cli.option("--annotator", default="me",
            text="Who labels; several people may label the same pairs, one after the other.")
@cli.flag("--terminal", text="Label in this terminal instead of a browser.")
@cli.count_option("--port", 0, 0, 65535, "Port of the page on this computer.", show_default="any free one")
@cli.option("--open/--no-open", "show", default=True, text="Open the page in the browser.")
@cli.file_option("--out", "Folder of pairs and labels.", default="runs/labels")
@cli.seed_option("Of the answers, and of which stands first.")
@cli.configured("Sampling", "sampling", SamplingConfig(new_tokens=40, temperature=0.7))
@cli.gather_options
def command(args, sampling):
    """Say which of two answers is better, in the browser or in the terminal, and train a reward model on it.

    The page is for this computer only. Every label is on disk before the next pair shows; the same command goes on
    where it stopped. OUT/labels.jsonl is what `minialign reward` and `minialign dpo` learn from.

    \b
    Example:  python -m minialign label runs/sft --prompts prompts.jsonl --out runs/labels
    Then:     python -m minialign reward --base runs/sft --comparisons runs/labels/labels.jsonl
    """
    if not args.annotator.strip() or not args.annotator.isprintable():
        raise UserError(f"annotator is {args.annotator!r}; give a name that can be read")
    out = args.out
    with RunFolder(out).locked():
        load_model(args.run, "decoder")  # what a reward model will start from: complain now
        if args.pairs is not None:
            keep_pairs(args.pairs, out / PAIRS)
        elif not (out / PAIRS).exists():
            write_pairs(out / PAIRS, *completion_in_pairs(args, sampling))
        else:
            click.echo(f"going on with the pairs of {out}; for other prompts or other answers choose another --out",
                       err=True)
        asked = read_pairs(out / PAIRS)
        store = LabelStore(out / LABELS, asked, args.annotator, args.seed)
        try:
            if store.mended:
                click.echo(f"{store.path}: a fault had left its last line unfinished; that is mended")
            if args.terminal:
                label_in_terminal(store, lambda question: read_input(lambda: input(question)), click.echo)
            else:
                serve(store, LiveReward(out, args.run, args.annotator, asked), args.port, args.show)
        finally:
            store.close()


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
    """Copy the pairs to the labels' folder; raise UserError if others are there."""
    if not kept.exists():
        write_jsonl(kept, read_pairs(given))
    elif read_pairs(given) != read_pairs(kept):
        raise UserError(f"other pairs are labelled in {kept.parent}; choose another --out, or leave --pairs out to go "
                        f"on there", given)


def completion_in_pairs(args: SimpleNamespace, sampling: SamplingConfig) -> tuple[list[dict], int]:
    """Pairs of answers of the runs, and of the prompts' completions where they have them; and how many were dropped as
    equal."""
    runs = [args.run] if args.against is None else [args.run, args.against]
    models, tokenizer = open_alike(runs)
    context = min(model.config.context for model in models)
    if args.prompts is not None:
        records = read_prompts(args.prompts)[: args.count]
        prompt_rows(tokenizer, records, sampling.new_tokens, context)
    else:
        stories = demonstrations(args.count, args.seed + 7919, summary_share=1.0)
        rows = prompt_ids(tokenizer, [story["prompt"] for story in stories])
        records = [r for r, row in zip(stories, rows) if len(row) + sampling.new_tokens <= context]
        if not records:
            raise UserError(f"no story fits its context of {context}; give --prompts", args.run)
    without = [r for r in records if not isinstance(r.get("completion"), str)]
    compete = not without
    if 0 < len(without) < len(records):
        raise UserError("has no `completion`, and other lines have one: let all of them compete, or none",
                        *place_of(without[0]))
    candidates = candidates_of(runs, models, records if compete else [], sampling.temperature)
    return sample_pairs(candidates, tokenizer, [r["prompt"] for r in records], sampling, args.seed)
