r"""The lines that `finetune` learns from, as the model at hand reads them.

    a decoder             <begin> prompt completion <end>, the completion alone taught
    smollm2               the same inside the marks of its chat template
    an encoder-decoder    <begin> prompt → completion <end>; a published T5 has its prompt ended instead of begun
    texts with labels     <begin> text; a published encoder reads [CLS] text [SEP]
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from minialign.batching import demonstration_row
from minialign.classification import LabelledTexts
from minialign.commands.inputs import fill_a_batch
from minialign.errors import UserError
from minialign.files import held_out
from minialign.generation import prompt_ids
from minialign.heads import Classifier
from minialign.pretrain.causal_lm import LabelledRows, mean_loss, next_token_loss, perplexity
from minialign.pretrain.span_corruption import TextToTextRows, text_to_text_loss
from minialign.pretrained.chat import taught_row
from minialign.pretrained.folder import PretrainedTokenizer
from minialign.pretrained.smollm2 import SYSTEM
from minialign.tokenizer import Tokenizer
from minialign.training import TrainingConfig


def two_sides(records: list[dict], key: str, batch: int, file: Path) -> list[list[dict]]:
    """Lines to learn from, and the tenth of them that is held out, the same one for every command."""
    sides = [[r for r in records if held_out(r[key], 0.1) is side] for side in (False, True)]
    if not sides[1]:
        raise UserError(f"{len(records)} lines are too few to hold a tenth out for validation; give more", file)
    fill_a_batch(len(sides[0]), "examples to learn from", batch, file)
    return sides


def must_fit(model: nn.Module, tokens: int, file: Path, line: int) -> None:
    """Raise UserError, with the line, for more tokens than the model can read."""
    if tokens > model.config.context:
        raise UserError(f"{tokens} tokens do not fit the model's context of {model.config.context}; shorten it", file, line)


def text_row(model: nn.Module, tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """A text as a classifier reads it."""
    published_encoder = model.config.kind == "encoder" and isinstance(tokenizer, PretrainedTokenizer)
    return [tokenizer.begin, *ids, *([tokenizer.end] if published_encoder else [])]


def classification(model: nn.Module, tokenizer: Tokenizer, sides: list[list[dict]], training: TrainingConfig, file: Path) -> tuple:
    """Data to learn from and to validate on, a classifier, and its labels, for texts with labels."""
    if model.config.kind == "encoder-decoder":
        raise UserError("a head is put on an encoder or a decoder, and the base is an encoder-decoder; choose another --base")
    labels = sorted({record["label"] for side in sides for record in side})
    if len(labels) < 2:
        raise UserError(f"all labels are {labels[0]!r}; give lines of two labels or more", file)
    made = []
    for side in sides:
        rows = [text_row(model, tokenizer, ids) for ids in tokenizer.encode_many([record["text"] for record in side])]
        for row, record in zip(rows, side):
            must_fit(model, len(row), file, record["line"])
        made.append(LabelledTexts(rows, [labels.index(record["label"]) for record in side], min(training.batch, len(side)), training.seed))
    return made, Classifier(model.body, len(labels), training.seed), labels


def writing(model: nn.Module, tokenizer: Tokenizer, sides: list[list[dict]], training: TrainingConfig, file: Path, chat: bool = False) -> tuple:
    """Data, validation and loss for demonstrations; chat: in the marks of the chat template."""
    if model.config.kind == "encoder":
        raise UserError("an encoder writes nothing, so it cannot learn completions; give lines with `text` and `label`, or another --base", file)
    pairs = model.config.kind == "encoder-decoder"
    make, loss = (pair_rows, text_to_text_loss) if pairs else (chat_rows if chat else demonstration_rows, next_token_loss)
    made = [make(model, tokenizer, side, training, file) for side in sides]
    held = [made[1].batch(names) for names in map(made[1].order, range(min(8, made[1].order.steps_in_epoch)))]

    def validate(model: nn.Module) -> dict[str, float]:
        mean = mean_loss(model, held, loss)
        return {"validation": mean, "perplexity": perplexity(mean)}

    return made[0], validate, loss


def encoded(tokenizer: Tokenizer, side: list[dict], file: Path) -> list[tuple[dict, list[int], list[int]]]:
    """Each line with the ids of its prompt and of its completion. Raises UserError for an empty completion, with its line."""
    prompts, completions = (tokenizer.encode_many([record[key] for record in side]) for key in ("prompt", "completion"))
    for record, ids in zip(side, completions):
        if not ids:
            raise UserError("the completion is empty; there is nothing to learn from it", file, record["line"])
    return list(zip(side, prompts, completions))


def demonstration_rows(model: nn.Module, tokenizer: Tokenizer, side: list[dict], training: TrainingConfig, file: Path) -> LabelledRows:
    """Prompt and completion one after the other."""
    rows = []
    for record, before, after in encoded(tokenizer, side, file):
        rows.append(demonstration_row(tokenizer, before, after))
        must_fit(model, len(rows[-1][0]) - 1, file, record["line"])
    return LabelledRows(rows, min(training.batch, len(rows)), training.seed)


def chat_rows(model: nn.Module, tokenizer: PretrainedTokenizer, side: list[dict], training: TrainingConfig, file: Path) -> LabelledRows:
    """Prompt and completion as a conversation of one turn."""
    rows = []
    for record, _, _ in encoded(tokenizer, side, file):
        rows.append(taught_row(tokenizer, SYSTEM, record["prompt"], record["completion"]))
        must_fit(model, len(rows[-1][0]) - 1, file, record["line"])
    return LabelledRows(rows, min(training.batch, len(rows)), training.seed)


def pair_rows(model: nn.Module, tokenizer: Tokenizer, side: list[dict], training: TrainingConfig, file: Path) -> TextToTextRows:
    """Prompts for the encoder, completions for the decoder."""
    rows, prompts = [], prompt_ids(tokenizer, [record["prompt"] for record in side])
    for (record, _, after), prompt in zip(encoded(tokenizer, side, file), prompts):
        rows.append((prompt, after))
        must_fit(model, max(len(rows[-1][0]), 1 + len(after)), file, record["line"])
    return TextToTextRows(rows, min(training.batch, len(rows)), training.seed, model.special)
