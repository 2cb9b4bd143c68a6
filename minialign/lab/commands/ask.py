"""`python -m minialign ask RUN --prompt "…" [--options yes,no]`"""

from pathlib import Path

import click
import torch

from minialign.batching import pad
from minialign.generation import Generated, SamplingConfig, continue_texts, prompt_ids
from minialign.heads import LanguageModel
from minialign.lab.commands import options as cli
from minialign.lab.commands.inputs import labels_of, open_model, open_tuned_classifier, typed_lines
from minialign.lab.finetuning import text_row
from minialign.ranking import option_logprobs
from minialign.runs.devices import device_of
from minialign.runs.errors import UserError
from minialign.tokenizer import Tokenizer


@click.command(cls=cli.Command)
@cli.RUN
@cli.TUNED
@cli.option("--prompt", text="What to ask, in your own words; without it questions are asked one after the other.")
@cli.option("--options", default="", text="Answers to choose from, between commas (or | where an answer has a comma).")
@cli.flag("--mean-logprob", text="Rank by the mean over an option's tokens instead of the sum.")
@cli.seed_option("Same seed, same answers.")
@cli.configured("Sampling, without options", "sampling", SamplingConfig(new_tokens=40, temperature=0.0))
def command(run, tuned, prompt, options, mean_logprob, seed, sampling):
    """Ask a trained model a question in your own words. With options it says how likely it finds each of them, without
    it writes.

    \b
    Example:  python -m minialign ask runs/instruct/2-instructed --prompt "Mira lost it. Who?" --options Mira,Tom
    Example:  python -m minialign ask runs/pretrain --tuned runs/finetune/lora --prompt "A text"
              (which label, if it was tuned on labels)
    """
    if labels_of(tuned):
        classify(run, tuned, prompt, options)
        return
    model, tokenizer = open_model(run, tuned=tuned)
    if model.config.kind == "encoder":
        raise UserError("holds an encoder, which does not answer; ask a decoder or an encoder-decoder", run)
    choices, chance = split_options(options), torch.Generator().manual_seed(seed)
    for question in [prompt] if prompt is not None else typed_lines("Ask; \\n begins a new line, an empty line ends."):
        own = ""
        if prompt is None:
            question, _, own = question.partition(" ?? ")  # "… ?? yes, no": options for this question alone
        question, offered = question.replace("\\n", "\n"), split_options(own) or choices
        click.echo(answer(model, tokenizer, question, offered, mean_logprob, sampling, chance))


def classify(run: Path, tuned: Path, prompt: str | None, options: str) -> None:
    """The labels of a text, or of each that is typed, with their probabilities, the likeliest first."""
    if options:
        raise UserError("--options are for a model that answers; this one was tuned on labels, and knows no other "
                        "answers", tuned)
    model, tokenizer, labels = open_tuned_classifier(run, tuned)
    for text in [prompt] if prompt is not None else typed_lines("A text; \\n begins a new line, an empty line ends."):
        row = text_row(model, tokenizer, tokenizer.encode(text.replace("\\n", "\n")))
        if len(row) > model.config.context:
            raise UserError(f"{len(row)} tokens do not fit the model's context of {model.config.context}; shorten the "
                            f"text")
        with torch.inference_mode():
            click.echo(show_shares(model(*pad([row], device=device_of(model)))[0], labels))


def split_options(text: str) -> list[str]:
    """The answers of "yes, no" or "Mira, who ran | Tom". Raises UserError for one alone, empty ones and equal ones."""
    if not text.strip():
        return []
    found = [part.strip() for part in text.split("|" if "|" in text else ",")]
    if len(found) < 2 or not all(found) or len(set(found)) < len(found):
        raise UserError(f"the options {text!r} are not two or more different answers; write them as --options yes,no")
    return found


def answer(
    model: LanguageModel, tokenizer: Tokenizer, prompt: str, options: list[str], mean_logprob: bool,
    sampling: SamplingConfig, chance: torch.Generator
) -> str:
    """What the model writes, or the options with their probabilities among each other, the likeliest first."""
    if not options:
        return continue_texts(model, tokenizer, [prompt], sampling, chance, read=Generated.shown)[0].strip()
    ids = [tokenizer.encode(" " + option) for option in options]
    return show_shares(option_logprobs(model, prompt_ids(tokenizer, [prompt], model.config.kind), [ids],
                                       mean_logprob)[0], options)


def show_shares(scores: torch.Tensor, names: list[str]) -> str:
    """Names with the probabilities that (N,) scores give them, the likeliest first."""
    ranked = sorted(zip(scores.softmax(dim=0).tolist(), names), reverse=True)
    return "\n".join(f"{share:6.1%}  {name}" for share, name in ranked)
