r"""The lines that `finetune` learns from, as the model at hand reads them.

a decoder             <begin> prompt completion <end>, the completion alone taught
smollm2               the same inside the marks of its chat template
an encoder-decoder    <begin> prompt → completion <end>; a published T5 has its prompt ended instead of begun
texts with labels     <begin> text; a published encoder reads [CLS] text [SEP]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from minialign.batching import demonstration_row
from minialign.classification import LabelledTexts, class_loss, examine_classes
from minialign.generation import as_prompt
from minialign.heads import Classifier
from minialign.lab.commands.inputs import fill_a_batch
from minialign.lab.interchange.folder import PretrainedTokenizer
from minialign.lab.pretrained.chat import taught_row
from minialign.lab.pretrained.smollm2 import SYSTEM
from minialign.pretrain.causal_lm import LabelledRows, mean_loss, next_token_loss, perplexity
from minialign.pretrain.span_corruption import TextToTextRows, text_to_text_loss
from minialign.runs.errors import UserError
from minialign.runs.files import check_fields, held_out, read_jsonl
from minialign.tokenizer import Tokenizer
from minialign.training import TrainingConfig


@dataclass(frozen=True)
class TuningTask:
    """What a model learns from the user's lines."""

    model: nn.Module  # that learns: the base, or a head on its body
    learned: Any  # training data (training.Data)
    checked: Any  # the same of the lines that are held out
    loss: Callable[[nn.Module, Any], Tensor]  # (model, batch) -> the sum over its labels, nats
    validate: Callable[[nn.Module], dict[str, float]]  # model -> measures of the held-out lines, one in nats
    labels: Sequence[str] = ()  # in the order of the classes; none where it learns to write


def read_lines(file: Path) -> tuple[list[dict], bool]:
    """The lines to learn from, and whether they are texts with labels; the first one says so.

    Raises:
        UserError: a line that lacks a field, with its number.
    """
    records = read_jsonl(file)
    labelled = "label" in records[0]
    for record in records:
        said = {name: value for name, value in record.items() if name != "line"}
        check_fields(said, ("text", "label") if labelled else ("prompt", "completion"), str, file, record["line"])
    return records, labelled


def two_sides(records: list[dict], key: str, batch: int, file: Path) -> list[list[dict]]:
    """Lines to learn from, and the tenth of them that is held out, the same one for every command."""
    sides = [[r for r in records if held_out(r[key], 0.1) is side] for side in (False, True)]
    if not sides[1]:
        raise UserError(f"{len(records)} lines are too few to hold a tenth out for validation; give more", file)
    fill_a_batch(len(sides[0]), "examples to learn from", batch, file)
    return sides


def must_fit(model: nn.Module, tokens: int, file: Path, line: int, before: int = 0) -> None:
    """Raise UserError, with the line, for more tokens than the model can read after `before` vectors of a tuned
    prompt."""
    if tokens + before > model.config.context:
        room = f"{model.config.context}" + (f", of which a tuned prompt takes {before}" if before else "")
        raise UserError(f"{tokens} tokens do not fit the model's context of {room}; shorten it", file, line)


def text_row(model: nn.Module, tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """A text as a classifier reads it."""
    published_encoder = model.config.kind == "encoder" and isinstance(tokenizer, PretrainedTokenizer)
    return [tokenizer.begin, *ids, *([tokenizer.end] if published_encoder else [])]


def labelled_task(model: nn.Module, tokenizer: Tokenizer, sides: list[list[dict]], training: TrainingConfig,
                  file: Path, before: int = 0) -> TuningTask:
    """Texts with labels, for a head on the body of a decoder or an encoder; before: vectors of a tuned prompt that the
    context has to hold as well."""
    if model.config.kind == "encoder-decoder":
        raise UserError("a head is put on an encoder or a decoder, and the base is an encoder-decoder; choose another "
                        "--base")
    labels = sorted({record["label"] for side in sides for record in side})
    if len(labels) < 2:
        raise UserError(f"all labels are {labels[0]!r}; give lines of two labels or more", file)
    data = []
    for side in sides:
        rows = [text_row(model, tokenizer, ids) for ids in tokenizer.encode_many([record["text"] for record in side])]
        for row, record in zip(rows, side):
            must_fit(model, len(row), file, record["line"], before)
        classes = [labels.index(record["label"]) for record in side]
        data.append(LabelledTexts(rows, classes, min(training.batch, len(side)), training.seed))
    head = Classifier(model.body, len(labels), training.seed)
    return TuningTask(head, *data, class_loss, lambda model: examine_classes(model, data[1]), labels)


def written_task(model: nn.Module, tokenizer: Tokenizer, sides: list[list[dict]], training: TrainingConfig,
                 file: Path, before: int = 0, chat: bool = False) -> TuningTask:
    """Demonstrations, for a decoder or an encoder-decoder; before: as above; chat: in the marks of the chat
    template."""
    if model.config.kind == "encoder":
        raise UserError("an encoder writes nothing, so it cannot learn completions; give lines with `text` and "
                        "`label`, or another --base", file)
    data, loss = [], next_token_loss if model.config.kind == "decoder" else text_to_text_loss
    for side in sides:
        rows, batch = demonstrations(model, tokenizer, side, file, before, chat), min(training.batch, len(side))
        data.append(LabelledRows(rows, batch, training.seed) if model.config.kind == "decoder"
                    else TextToTextRows(rows, batch, training.seed, model.special))
    held = [data[1].batch(names) for names in map(data[1].order, range(min(8, data[1].order.steps_in_epoch)))]

    def validate(model: nn.Module) -> dict[str, float]:
        mean = mean_loss(model, held, loss)
        return {"validation": mean, "perplexity": perplexity(mean)}

    return TuningTask(model, *data, loss, validate)


def demonstrations(model: nn.Module, tokenizer: Tokenizer, side: list[dict], file: Path, vectors: int,
                   chat: bool) -> list[tuple]:
    """Each line as a row and the place where its completion begins; for an encoder-decoder as the ids of its prompt and
    of its completion.

    Args:
        vectors: of a tuned prompt, which the context of what is read has to hold as well.
    Raises:
        UserError: an empty completion, or more tokens than the model can read, with the line.
    """
    prompts = tokenizer.encode_many([record["prompt"] for record in side])
    completions = tokenizer.encode_many([r["completion"].strip() if chat else r["completion"] for r in side])
    rows = []
    for record, prompt, completion in zip(side, prompts, completions):
        if not completion:
            raise UserError("the completion is empty; there is nothing to learn from it", file, record["line"])
        if model.config.kind == "encoder-decoder":
            row = (as_prompt(tokenizer, prompt), completion)
            # the begin token stands before what is written; the encoder alone reads the vectors
            tokens = max(len(row[0]), 1 + len(completion) - vectors)
        else:
            row = (taught_row(tokenizer, SYSTEM, prompt, completion) if chat
                   else demonstration_row(tokenizer, prompt, completion))
            tokens = len(row[0]) - 1  # the last one is said, and not read
        must_fit(model, tokens, file, record["line"], vectors)
        rows.append(row)
    return rows
