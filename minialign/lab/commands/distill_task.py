"""The command `distill` for TinyBERT's second stage: a student of the first one learns a task from a teacher that was
tuned on it."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from pathlib import Path

import click
import torch
from click.core import ParameterSource

from minialign.classification import LabelledTexts, examine_classes
from minialign.distill.tinybert import AugmentationConfig, TinyBERT, TinyBERTConfig, augment, distil_task
from minialign.evaluation import bytes_on_disk, latency
from minialign.heads import Classifier, LanguageModel, describe_model, load_model, same_tokenizer
from minialign.lab.commands.inputs import two_sides
from minialign.lab.finetuning import labelled_task
from minialign.peft import feature_based, saving
from minialign.runs.errors import UserError
from minialign.runs.files import fingerprint, read_jsonl, write_json
from minialign.runs.run_folder import MODEL, RunFolder
from minialign.runs.settings import to_dict
from minialign.runs.tensors import digest, tensors_of
from minialign.training import TrainingConfig

HEAD, STAGE = "head", "task"  # folders in OUT: the head on the student's body, and the two halves of the training
FEW = 2  # copies of each text with --fast


def distil_second_stage(
    teacher: tuple[Path, Path],
    student: Path,
    task: Path,
    config: TinyBERTConfig,
    augmentation: AugmentationConfig,
    training: TrainingConfig,
    out: Path,
    fast: bool,
) -> None:
    """Teach a classifier by a tuned one, on more texts than there are; write its body as a run like any other, its head
    beside it, and compare.

    Args:
        teacher: the run, and the folder that `finetune` wrote for it; student: a run of the first stage; task: lines
            with text and label.
        config, augmentation: what is copied, how many texts are made; training: each half; out: where; fast: fewer
            texts.
    Raises:
        UserError: runs that do not belong together, a teacher that cannot be copied layer by layer, labels other than
            those it was tuned on.
    """
    if fast and click.get_current_context().get_parameter_source("copies") is ParameterSource.DEFAULT:
        augmentation = dataclasses.replace(augmentation, copies=FEW)
    (words, tokenizer), (pupil, own) = load_model(teacher[0], "language-model"), load_model(student, "language-model")
    same_tokenizer((student, own), (teacher[0], tokenizer))
    if words.config.kind != "encoder" and augmentation.copies:
        raise UserError(f"new texts are made by an encoder that fills in hidden words, and the teacher is a "
                        f"{words.config.kind}; add --copies 0")
    records = read_jsonl(task, ("text", "label"))
    lesson = labelled_task(pupil, tokenizer, two_sides(records, "text", training.batch, task), training, task)
    small, learned, checked = lesson.model, lesson.learned, lesson.checked
    large = tuned(words, small.head.out_features, teacher[1])
    TinyBERT(large, config).begin(small)  # whatever it cannot teach is said now
    del small.projections
    run = RunFolder(out)
    with run.locked():
        about = {**describe_model(pupil), "stage": "distill", "recipe": "tinybert, task", "loss": to_dict(config),
                 "texts": to_dict(augmentation)}
        about |= {"training": to_dict(training), "data": fingerprint(records), "tuned": digest(tensors_of(large))[:16]}
        run.begin({**about, "teacher": digest(tensors_of(words))[:16], "student": digest(tensors_of(pupil))[:16]},
                  tokenizer)
        if run.new:
            shutil.rmtree(out / STAGE, ignore_errors=True)  # of a run that failed with other settings
        if not run.finished:
            texts = more_texts(learned, words, augmentation, training)
            click.echo(f"tinybert, task: {len(learned.rows):,} texts became {len(texts.rows):,}; first the layers, "
                       f"then what is predicted")
            found = distil_task(small, large, texts, checked, training, RunFolder(out / STAGE), config)
            head = feature_based.wrap(Classifier(copy.deepcopy(pupil.body), small.head.out_features))
            head.head.load_state_dict(small.head.state_dict())
            saving.save(head, out / HEAD)
            run.finish(pupil, **found)
    labels = sorted({record["label"] for record in records})
    result = {"labels": labels, **compare(large, read_back(out, len(labels)), checked, (teacher, (out, out / HEAD)),
                                          3 if fast else 9)}
    write_json(out / "report.json", result)
    click.echo("\n" + table(result))
    click.echo(f"{out} is the body, a run like any other; {out / HEAD} its head, as finetune writes one")


def tuned(model: LanguageModel, classes: int, folder: Path) -> Classifier:
    """The classifier that `finetune` made of a run; the run's model is not changed."""
    if (how := saving.read_saved(folder)[0]["method"]) == "prompt-tuning":
        raise UserError("was made by prompt tuning, whose vectors before the text the student does not read; tune the "
                        "teacher by another method", folder)
    found = saving.load(Classifier(copy.deepcopy(model).body, classes), folder)
    if how == "feature-based":
        found.body = found.body.base  # its layers are looked at
    return found.eval()


def read_back(out: Path, classes: int) -> Classifier:
    """The student from its files."""
    return saving.load(Classifier(load_model(out, "language-model")[0].body, classes), out / HEAD).eval()


def more_texts(data: LabelledTexts, model: LanguageModel, config: AugmentationConfig,
               training: TrainingConfig) -> LabelledTexts:
    """The texts and those made from them, each with the label of the one that it was made from, which nobody looks
    at."""
    made = augment(data.rows, model, config, training.seed)
    classes = torch.cat([data.classes, data.classes.repeat_interleave(config.copies)]).tolist()
    return LabelledTexts([*data.rows, *made], classes, training.batch, training.seed)


def compare(large: Classifier, small: Classifier, checked: LabelledTexts, folders: tuple[tuple[Path, Path], ...],
            rounds: int) -> dict[str, list[float]]:
    """Loss, accuracy, parameters, bytes and latency of teacher and student."""
    both, batch = (large, small), checked.batch(list(range(min(32, len(checked.rows)))))
    found = [examine_classes(model, checked) for model in both]
    with torch.inference_mode():
        seconds = [latency(lambda model=model: model(batch.tokens, batch.mask), rounds) / len(batch.classes)
                   for model in both]
    sizes = [sum(p.numel() for p in model.parameters()) for model in both]
    stored = [bytes_on_disk(run / MODEL) + bytes_on_disk(beside / saving.TENSORS) for run, beside in folders]
    measured = {"loss": [f["validation"] for f in found], "accuracy": [f["accuracy"] for f in found]}
    return measured | {"parameters": sizes, "bytes": stored, "seconds": seconds, "texts": len(checked.rows)}


def table(result: dict) -> str:
    """Teacher and student, side by side."""
    lines = [f"{'':<34}{'teacher':>14}{'student':>14}"]
    for name, key, how in (
        (f"loss on {result['texts']:,} held-out texts, nats", "loss", ".3f"),
        ("accuracy", "accuracy", ".3f"),
        ("parameters", "parameters", ","),
        ("bytes on the disk", "bytes", ","),
    ):
        lines.append(f"{name:<34}" + "".join(f"{value:>14{how}}" for value in result[key]))
    a, b = (1000 * seconds for seconds in result["seconds"])
    lines.append(f"{'milliseconds a text':<34}{a:>14.2f}{b:>14.2f}   {a / b:.2f} times as fast")
    return "\n".join(lines)
