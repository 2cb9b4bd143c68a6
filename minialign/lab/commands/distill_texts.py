"""What `distill` reads: texts as batches, or their beginnings as prompts that the teacher or the student goes on
from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from minialign.batching import text_rows
from minialign.distill.sequence_level import WRITTEN, WritingConfig, written_once
from minialign.generation import check_room
from minialign.heads import LanguageModel
from minialign.lab.commands.inputs import read_documents
from minialign.lab.commands.pretrain import hold_out_the_end
from minialign.pretrain.causal_lm import LabelledRows, encode_documents, training_rows
from minialign.pretrain.masked_lm import MaskedText, MaskingConfig
from minialign.runs.errors import UserError
from minialign.tokenizer import BEGIN, Tokenizer
from minialign.training import Data, TrainingConfig

PROMPT = 8  # tokens of a prompt, the begin token among them


def read_both(paths: list[Path], valid: Path | None, split: str, context: int) -> tuple[list[str], list[str]]:
    """Documents to learn from, and to validate on."""
    documents = [document for path in paths for document in read_documents(path, split)]
    return hold_out_the_end(documents, context) if valid is None else (documents, read_documents(valid, split))


def batches(tokenizer, student: LanguageModel, texts: list[str], valid: list[str], training: TrainingConfig,
            packed: bool, masking: MaskingConfig, places) -> tuple:  # noqa: E501
    """Training data, and up to eight batches that are always the same ones."""
    made, context = [], student.config.context
    for part, place, seed in ((texts, places[0], training.seed), (valid, places[1], 0)):
        if student.config.kind == "decoder":
            made.append(training_rows(encode_documents(tokenizer, part), context,
                                      dataclasses.replace(training, seed=seed), packed, place))
        else:
            rows = [[BEGIN, *row] for row in text_rows(tokenizer.encode_many(part), context - 1, packed, place)]
            made.append(MaskedText(rows, min(training.batch, len(rows)), seed, student.config.vocabulary, masking))
    data, checked = made
    return data, some_of(checked)


def some_of(data: Data) -> list:
    """Up to eight of its batches, always the same ones."""
    return [batch for step in range(min(8, data.order.steps_in_epoch)) for batch in data.microbatches(step, 1)]


def begun(tokenizer: Tokenizer, texts: list[str], valid: list[str], context: int, length: int,
          training: TrainingConfig) -> tuple[LabelledRows, list]:
    """Texts, one a row and cut at the context, taught from where their prompts end; and batches to validate on, taught
    from their first word on."""
    made = []
    for part, prompt, seed in ((texts, length, training.seed), (valid, 1, 0)):
        rows = [ids[: context + 1] for ids in encode_documents(tokenizer, part)]
        made.append(LabelledRows([(row, min(prompt, len(row) - 1)) for row in rows], min(training.batch, len(rows)),
                                 seed))
    return made[0], some_of(made[1])


def check_prompts(model: LanguageModel, data: LabelledRows, new_tokens: int) -> None:
    """Raise UserError when what is to be written after the longest prompt does not fit the model's context."""
    longest = max(start for _, start in data.rows)
    try:
        check_room(model.config, longest, new_tokens)
    except UserError:
        sizes = (f"prompts of {longest} tokens and {new_tokens} new ones do not fit the context of "
                 f"{model.config.context}")
        raise UserError(f"{sizes}; use a smaller --new-tokens or --prompt-tokens") from None


def by_the_teacher(teacher: LanguageModel, data: LabelledRows, writing: WritingConfig, training: TrainingConfig,
                   out: Path) -> LabelledRows:
    """The prompts of some texts as the teacher goes on from them: written once, in OUT/written.jsonl."""
    rows = written_once(teacher, [row[:start] for row, start in data.rows], writing, training.seed, out / WRITTEN)
    return LabelledRows(rows, min(training.batch, len(rows)), training.seed)


