r"""What people hand to a command, read and checked before anything starts, so that an error names file and line and
nothing is half done."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

from minialign.generation import prompt_ids
from minialign.heads import Classifier, LanguageModel, ScalarModel, describe_model, load_model, same_tokenizer
from minialign.lab.finetuning import wrap
from minialign.lab.interchange.published import architecture, load_published, load_quantized_folder
from minialign.lab.pretrained.smollm2 import load_smollm2
from minialign.lab.stages import as_fact
from minialign.peft.lora import LoRAConfig
from minialign.peft.saving import load as load_tuned
from minialign.peft.transfer import TunedRun
from minialign.quant.saving import QUANTIZED
from minialign.runs import files
from minialign.runs.devices import default_device
from minialign.runs.errors import UserError
from minialign.runs.files import Record, place_of, read_text, typed
from minialign.runs.run_folder import CONFIG, MODEL, RunFolder
from minialign.tokenizer import Tokenizer

# by name, in place of a folder
PRETRAINED: dict[str, Callable[[], tuple[nn.Module, Tokenizer]]] = {"smollm2": load_smollm2}


def is_named(base: Path) -> bool:
    """Whether this is the name of a pretrained model; a folder that is called so comes first."""
    return str(base) in PRETRAINED and not base.exists()


def open_base(base: Path, what: str = "language-model",
              device: torch.device | None = None) -> tuple[nn.Module, Tokenizer]:
    """A model that is about to be changed, and its tokenizer: of a finished run, of a folder that others published
    (published.py), or a real one by name.

    Raises:
        UserError: as `load_model` and `load_published` do.
    """
    device = device or default_device()
    if not is_named(base) and architecture(base) is None:
        return load_model(base, what, device)
    model, tokenizer = PRETRAINED[str(base)]() if is_named(base) else load_published(base)
    return model.to(device), tokenizer


def open_model(folder: Path, what: str = "language-model", tuned: Path | None = None) -> tuple[nn.Module, Tokenizer]:
    """A model and its tokenizer, for commands that only use it: as `open_base`, a quantized one will do too, and what
    `finetune` left may go on top.

    Args:
        folder, what: as for `load_model`; tuned: OUT/METHOD of `finetune`, made from this very model.
    """
    if (folder / QUANTIZED).exists() and not (folder / MODEL).exists():
        model, tokenizer = load_quantized_folder(folder)
    else:
        model, tokenizer = open_base(folder, what)
    if what == "decoder" and model.config.kind != what:
        raise UserError(f"holds an {model.config.kind}, and a decoder is needed here", folder)
    return (model if tuned is None else load_tuned(model, tuned).eval()), tokenizer


def open_policy(policy: Path, update: LoRAConfig, out: Path) -> tuple[nn.Module, Tokenizer, RunFolder, dict[str, Any]]:
    """A decoder that is to be improved: all of a run of this project, a LoRA on one that others published.

    Returns:
        the policy, its tokenizer, the run folder in `out` that takes what learns, and what config.json says of it.
    Raises:
        UserError: settings of a LoRA, and a run of this project, of which all learns.
    """
    if not is_named(policy) and architecture(policy) is None:
        model, tokenizer = load_model(policy, "decoder")
        if update != LoRAConfig():
            raise UserError("all of it learns: --rank, --alpha and --rank-stabilised are for published models; leave "
                            "them out", policy)
        return model, tokenizer, RunFolder(out), describe_model(model) | {"policy": as_fact(model)}
    model, tokenizer = open_model(policy, "decoder")
    about = {"what": "tuned-model", "model": model.config, "method": "lora", "tuning": update, "policy": model}
    about = {name: as_fact(value) for name, value in about.items()}
    wrap(model, "lora", update)
    return model, tokenizer, TunedRun(out), about


def say_how_to_sample(policy: Path, run: RunFolder) -> None:
    """The command that shows what the improved policy says."""
    of = f"{typed(policy)} --tuned {typed(run.path)}" if isinstance(run, TunedRun) else typed(run.path)
    click.echo(f'try it:  python -m minialign sample {of} --prompt "…"')


def open_alike(runs: Sequence[Path]) -> tuple[list[LanguageModel], Tokenizer]:
    """The language models of several runs, and the tokenizer that they share. Raises UserError for one with another."""
    loaded = [load_model(run, "language-model") for run in runs]
    for run, (_, tokenizer) in zip(runs, loaded):
        same_tokenizer((runs[0], loaded[0][1]), (run, tokenizer))
    return [model for model, _ in loaded], loaded[0][1]


def open_reward_model(reward: Path, run: Path, tokenizer: Tokenizer) -> ScalarModel:
    """A reward model that reads the ids of another run's tokenizer."""
    model, its_tokenizer = load_model(reward, "scalar-model")
    same_tokenizer((run, tokenizer), (reward, its_tokenizer))
    return model


def open_tuned_classifier(folder: Path, tuned: Path) -> tuple[Classifier, Tokenizer, list[str]]:
    """What `finetune` made of a base and texts with labels: a classifier, its tokenizer, and the labels in the order of
    its classes."""
    model, tokenizer = open_base(folder)
    labels = labels_of(tuned)
    return load_tuned(Classifier(model.body, len(labels)), tuned).eval(), tokenizer, labels


def labels_of(tuned: Path | None) -> list[str]:
    """The labels that a tuned head knows, in the order of its classes; none where a language model was tuned. Raises
    UserError for a list of anything else."""
    config = files.read_json(tuned / CONFIG) if tuned is not None and (tuned / CONFIG).exists() else {}
    labels = config.get("labels") or [] if isinstance(config, dict) else []
    if not isinstance(labels, list) or [*dict.fromkeys(map(str, labels))] != labels:
        raise UserError(f"labels is {labels!r}; it must be a list of different texts, one a class", tuned / CONFIG)
    return labels


def read_documents(path: Path, split: str = "file") -> list[str]:
    """The documents of a text file, or of the `text` fields of a JSONL file; empty ones are passed over."""
    text, records = read_either(path, ("text",))
    if records is not None:
        parts = [record["text"] for record in records]
    else:
        lines = files.lines_of(text)  # a file from Windows has the same paragraphs
        text = "\n".join(lines)
        parts = {"file": [text], "paragraphs": text.split("\n\n"), "lines": lines}[split]
    documents = [part.strip() for part in parts if part.strip()]
    if not documents:
        raise UserError("every text in it is empty", path)
    return documents


def read_either(path: Path, fields: Sequence[str]) -> tuple[str, list[Record] | None]:
    """A file's text, and its objects if it is JSONL. The content decides; says what, where the name does not."""
    text = read_text(path)
    found = files.is_jsonl(path, text)
    if path.suffix != (".jsonl" if found else ".txt"):
        click.echo(f"{path}: read as {'JSONL, one object a line' if found else 'plain text'}")
    return text, files.parse_jsonl(text, path, fields) if found else None


def read_prompts(path: Path, references: bool = False) -> list[Record]:
    """{"prompt"} of each line of a text file, or the objects of a JSONL file, which alone can have the `references`
    that answers compete with. Raises UserError where those are missing."""
    text, records = read_either(path, ("prompt", "completion") if references else ("prompt",))
    if records is None and references:
        raise UserError("has no references to compare with; give JSONL with `prompt` and `completion`, or another run "
                        "to compare with", path)
    lines = enumerate(files.lines_of(text), 1) if records is None else ()
    return records or [Record({"prompt": line}, path, number) for number, line in lines if line.strip()]


def prompt_rows(tokenizer: Tokenizer, records: Sequence[dict], new_tokens: int, context: int,
                apart: bool = False) -> list[list[int]]:
    """Prompts as rows of ids; `apart`: encoder-decoders alone read them, whose completions have a context of their
    own. Raises UserError, with the line, for one that leaves no room for the completion."""
    rows = prompt_ids(tokenizer, [record["prompt"] for record in records], "encoder-decoder" if apart else "decoder")
    for row, record in zip(rows, records):
        if (max(len(row), new_tokens) if apart else len(row) + new_tokens) > context:
            raise UserError(f"a prompt of {len(row)} tokens and {new_tokens} new ones do not fit the model's context "
                            f"of {context}; shorten it or use a smaller --new-tokens", *place_of(record))
    return rows


@contextlib.contextmanager
def given_context() -> Iterator[None]:
    """Inside, errors of too short a text leave --context out: it is the model's, and no option of the command."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(" or a shorter --context", "")) from None


def fill_a_batch(count: int, what: str, batch: int, file: Path) -> None:
    """Raise UserError when there are fewer examples than one batch."""
    if count < batch:
        raise UserError(f"there are {count} {what}, fewer than one batch of {batch}; give more, or a smaller --batch",
                        file)


def read_lines(file: Path) -> tuple[list[dict], bool]:
    """The lines to learn from, and whether they are texts with labels; the first one says so.

    Raises:
        UserError: a line that lacks a field, with its number, or says that a completion is bad.
    """
    records = files.read_jsonl(file)
    labelled = "label" in records[0] and ("text" in records[0] or "completion" not in records[0])
    for record in records:
        if not labelled:
            refuse_judged(record)
        files.check_fields(record, ("text", "label") if labelled else ("prompt", "completion"), str, *place_of(record))
    return records, labelled


def refuse_judged(record: Record) -> None:
    """Raise UserError for a demonstration with a verdict, as in KTO: a bad completion would be taught as a good one."""
    if "completion" in record and type(record.get("label")) is bool:
        raise UserError("label says whether the completion was liked, as in KTO: `kto` learns from such lines, with "
                        "`liked` in the place of `label`; or keep those where it is true, without it, as "
                        "demonstrations", *place_of(record))


def two_sides(records: list[dict], key: str, batch: int, file: Path) -> list[list[dict]]:
    """Lines to learn from, and the tenth of them that is held out, the same one for every command."""
    sides = [[r for r in records if files.held_out(r[key], 0.1) is side] for side in (False, True)]
    if not sides[1]:
        raise UserError(f"{len(records)} lines are too few to hold a tenth out for validation; give more", file)
    fill_a_batch(len(sides[0]), "examples to learn from", batch, file)
    return sides


def typed_lines(greeting: str) -> Iterator[str]:
    """Lines of a person, who is greeted, or of a pipe, up to an empty one or the end."""
    at_terminal = sys.stdin.isatty()
    if at_terminal:
        click.echo(greeting)
    while True:
        try:
            line = read_input(lambda: input("> " if at_terminal else ""))
        except EOFError:
            return
        if not line.strip():
            return
        yield line


def read_input(read: Callable[[], str]) -> str:
    """What was typed or piped in. Raises UserError when it is not UTF-8."""
    try:
        return read()
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8: byte 0x{error.object[error.start]:02x}; save the prompt as UTF-8",
                        "standard input") from None
