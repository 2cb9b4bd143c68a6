r"""Fine-tuning on the user's lines: what a model reads of them, and each method in a run folder of its own.

a decoder             <begin> prompt completion <end>, the completion alone taught
smollm2               the same inside the marks of its chat template
an encoder-decoder    <begin> prompt <end> → completion <end>; a published T5 has no begin
texts with labels     <begin> text; a published encoder reads [CLS] text [SEP]

Read next: peft/transfer.py. Try it:  python -m minialign finetune --method all --base RUN --data FILE.jsonl
"""

import copy
import dataclasses
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from minialign.batching import demonstration_row
from minialign.classification import LabelledTexts, class_loss, examine_classes
from minialign.generation import as_prompt
from minialign.heads import Classifier, LanguageModel, describe_model
from minialign.lab.interchange.folder import PretrainedTokenizer
from minialign.lab.memory import check_memory, training_need
from minialign.lab.pretrained.chat import taught_row
from minialign.lab.pretrained.smollm2 import SYSTEM
from minialign.lab.stages import stage_run
from minialign.peft import lora
from minialign.peft.feature_based import CachedFeatures, examine_features, feature_loss
from minialign.peft.methods import METHODS
from minialign.peft.saving import TENSORS, load
from minialign.peft.trainable import show
from minialign.peft.transfer import TunedRun, tune
from minialign.pretrain.causal_lm import LabelledRows, mean_loss, next_token_loss, perplexity
from minialign.pretrain.span_corruption import TextToTextRows, text_to_text_loss
from minialign.runs.devices import default_device, device_of, in_half
from minialign.runs.errors import UserError
from minialign.runs.files import place_of, typed
from minialign.runs.run_folder import RunFolder
from minialign.tokenizer import Tokenizer
from minialign.training import TrainingConfig


@dataclass(frozen=True)
class TuningTask:
    """What a model learns from the user's lines."""

    model: nn.Module  # that learns: the base, or a head on its body
    learned: Any  # training data (batching.Batches)
    checked: Any  # the same of the lines that are held out
    loss: Callable[[nn.Module, Any], Tensor]  # (model, batch) -> the sum over its labels, nats
    validate: Callable[[nn.Module], dict[str, float]]  # model -> measures of the held-out lines, a mean in nats first
    labels: Sequence[str] = ()  # in the order of the classes; none where it learns to write


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
                  file: Path, before: int = 0, known: Sequence[str] = ()) -> TuningTask:
    """Texts with labels, for a head on the body of a decoder or an encoder.

    Args:
        sides: lines to learn from, and those held out; before: vectors of a tuned prompt, which the context holds, too.
        known: labels in the order of a teacher's classes, which are all that there may be; those of the lines without.
    Raises:
        UserError: fewer than two labels, one that the teacher does not know, a text that does not fit.
    """
    if model.config.kind == "encoder-decoder":
        raise UserError("a head is put on an encoder or a decoder, and the base is an encoder-decoder; choose another "
                        "--base")
    records = [record for side in sides for record in side]
    labels = list(known) or sorted({record["label"] for record in records})
    if len(labels) < 2:
        raise UserError(f"all labels are {labels[0]!r}; give lines of two labels or more", file)
    if strange := [record for record in records if record["label"] not in labels]:
        first = min(strange, key=place_of)
        raise UserError(f"the teacher was not tuned on the label {first['label']!r}; it knows {', '.join(labels)}: "
                        f"rename it, or tune the teacher on these lines", file, place_of(first)[1])
    data = []
    for side in sides:
        rows = [text_row(model, tokenizer, ids) for ids in tokenizer.encode_many([record["text"] for record in side])]
        for row, record in zip(rows, side):
            must_fit(model, len(row), file, place_of(record)[1], before)
        classes = [labels.index(record["label"]) for record in side]
        data.append(LabelledTexts(rows, classes, min(training.batch, len(side)), training.seed))
    head = Classifier(model.body, len(labels), training.seed)
    return TuningTask(head, *data, class_loss, lambda model: examine_classes(model, data[1]), labels)


def written_task(model: nn.Module, tokenizer: Tokenizer, sides: list[list[dict]], training: TrainingConfig,
                 file: Path, before: int = 0, chat: bool = False) -> TuningTask:
    """Demonstrations, for a decoder or an encoder-decoder; chat: in the marks of the chat template."""
    if model.config.kind == "encoder":
        raise UserError("an encoder writes nothing, so it cannot learn completions; give lines with `text` and "
                        "`label`, or another --base", file)
    data, loss = [], next_token_loss if model.config.kind == "decoder" else text_to_text_loss
    # what is held out is the same lines whatever the batch and the seed
    for side, (batch, seed) in zip(sides, ((training.batch, training.seed), (32, 0))):
        rows, batch = demonstrations(model, tokenizer, side, file, before, chat), min(batch, len(side))
        data.append(LabelledRows(rows, batch, seed) if model.config.kind == "decoder"
                    else TextToTextRows(rows, batch, seed, model.special))
    held = data[1].first()

    def validate(model: nn.Module) -> dict[str, float]:
        mean = mean_loss(model, held, loss)
        return {"validation": mean, "perplexity": perplexity(mean)}

    return TuningTask(model, *data, loss, validate)


def demonstrations(model: nn.Module, tokenizer: Tokenizer, side: list[dict], file: Path, vectors: int,
                   chat: bool) -> list[tuple]:
    """Each line as a row and the place where its completion begins; for an encoder-decoder as the ids of its prompt and
    of its completion. Raises UserError, with the line, for an empty completion or more tokens than the model can read
    besides the `vectors` of a tuned prompt."""
    prompts = tokenizer.encode_many([record["prompt"] for record in side])
    completions = tokenizer.encode_many([r["completion"].strip() if chat else r["completion"] for r in side])
    rows = []
    for record, prompt, completion in zip(side, prompts, completions):
        if not completion:
            raise UserError("the completion is empty; there is nothing to learn from it", file, place_of(record)[1])
        if model.config.kind == "encoder-decoder":
            row = (as_prompt(tokenizer, prompt, model.config.kind), completion)
            # the begin token stands before what is written; the encoder alone reads the vectors
            tokens = max(len(row[0]), 1 + len(completion) - vectors)
        else:
            row = (taught_row(tokenizer, SYSTEM, prompt, completion) if chat
                   else demonstration_row(tokenizer, prompt, completion))
            tokens = len(row[0]) - 1  # the last one is said, and not read
        must_fit(model, tokens, file, place_of(record)[1], vectors)
        rows.append(row)
    return rows


def tune_once(name: str, config: Any, task: TuningTask, tokenizer: Tokenizer, training: TrainingConfig, data: str,
              out: Path) -> dict[str, Any]:
    """Tune a copy of the task's model by one method in a folder of its own, or find it done. `data` is the fingerprint
    of the lines. Says what memory it needs, and raises UserError where there is too little."""
    model, run = copy.deepcopy(task.model), TunedRun(out / name)
    about = {"what": "tuned-model", "model": model.config, "stage": "finetune", "method": name, "tuning": config}
    about |= {"training": training, **({"labels": task.labels} if task.labels else {}), "data": data, "base": model}
    with stage_run(run, tokenizer, **about):
        if not run.finished:
            wrap(model, name, config)
            click.echo(show(model).splitlines()[-1])
            put_in_place(model, task, training)
            if name == "feature-based":
                task = cache_features(model, task, training)
            tune(model, task.learned, task.loss, in_its_type(task.validate), training, run)
    return run.facts() | {"file_bytes": (run.path / TENSORS).stat().st_size, "folder": str(run.path)}


def wrap(model: nn.Module, name: str, config: Any) -> None:
    """Prepare a model for a method of that name; what it warns of becomes a note."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        METHODS[name].wrap(model, config)
    for note in said:
        click.echo(f"note: {note.message}", err=True)


def in_its_type(validate: Callable[[nn.Module], dict[str, float]]) -> Callable[[nn.Module], dict[str, float]]:
    """The same in bfloat16 for a model of which a part is kept in it (`put_in_place`): its layers take no other."""
    def measured(model: nn.Module) -> dict[str, float]:
        with in_half(device_of(model), any(p.dtype == torch.bfloat16 for p in model.parameters())):
            return validate(model)

    return measured


def put_in_place(model: nn.Module, task: TuningTask, training: TrainingConfig) -> None:
    """Put a wrapped model on the command's device, if it fits. With --bf16 a graphics card keeps what is frozen in 16
    bits."""
    device = default_device()
    half = training.bf16 and device.type != "cpu"
    together = -(-training.batch // training.accumulation)
    need = training_need(model, int(task.learned.order.lengths.max()), half, getattr(model.body, "checkpoints", False))
    if said := check_memory(need, together, device):
        click.echo(said)
    for parameter in model.parameters():
        if half and not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    model.to(device)


def cache_features(model: Classifier, task: TuningTask, training: TrainingConfig) -> TuningTask:
    """The task for a head alone: the frozen body reads every text here, and never again. Says what that saves."""
    began = time.perf_counter()
    features, held = (CachedFeatures(model, part) for part in (task.learned, task.checked))
    seconds, texts = time.perf_counter() - began, len(features.classes) + len(held.classes)
    looks = -(-training.steps // training.validate_every)
    otherwise = training.steps * task.learned.order.batch + looks * len(held.classes)
    click.echo(f"feature-based: the body read {texts:,} texts once, in {seconds:.2f} s "
               f"({(features.bytes + held.bytes) / 1000:,.1f} kB of features); {training.steps:,} steps without them "
               f"would read {otherwise:,}, {otherwise / texts:.1f} times as many")
    return dataclasses.replace(task, learned=features, checked=held, loss=feature_loss,
                               validate=lambda model: examine_features(model, held))


def write_merged(model: LanguageModel, tokenizer: Tokenizer, out: Path, result: dict[str, Any]) -> None:
    """The base with LoRA's update merged in, as a plain run."""
    plain, run = lora.merged_plain(load(model, Path(result["folder"]))), RunFolder(out / "lora-merged")
    with stage_run(run, tokenizer, **describe_model(plain), stage="finetune", of=result["folder"], merged=plain):
        if not run.finished:
            run.finish(plain, **{name: result[name] for name in ("validation", "perplexity", "steps")})
    click.echo(f'{run.path}: plain again; try  python -m minialign sample {typed(run.path)} --prompt "…"')
