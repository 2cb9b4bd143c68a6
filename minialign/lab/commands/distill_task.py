"""`distill` with a task: the second stage of TinyBERT, from a teacher that was tuned on the task."""

import copy
import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace

import click
import torch

from minialign.classification import LabelledTexts, examine_classes
from minialign.distill.tinybert import AugmentationConfig, TinyBERT, augment, distil_task
from minialign.evaluation import bytes_on_disk, latency
from minialign.heads import Classifier, LanguageModel, describe_model, load_model, same_tokenizer
from minialign.lab.commands import options as cli
from minialign.lab.commands.distill_options import TINY, changed, comparison_table
from minialign.lab.commands.inputs import labels_of, two_sides
from minialign.lab.finetuning import TuningTask, labelled_task
from minialign.lab.stages import stage_run
from minialign.lab.teacher_cache import CacheConfig
from minialign.peft import feature_based, saving
from minialign.pretrain.masked_lm import MaskingConfig
from minialign.runs.devices import moved
from minialign.runs.errors import UserError
from minialign.runs.files import fingerprint, read_jsonl, write_json
from minialign.runs.run_folder import CONFIG, MODEL, RunFolder
from minialign.training import TrainingConfig

HEAD, STAGE = "head", "task"  # folders in OUT: the head on the student's body, and the two halves of the training
FEW = 2  # copies of each text with --fast


def check_request(asked: SimpleNamespace) -> None:
    """Raise UserError where an option is missing, or one of the first stage is there."""
    student, unasked = asked.student, (MaskingConfig(), CacheConfig(""))
    first_stage = asked.paths or asked.valid or student.split or student.prompt_tokens or student.makes_one()
    missing = asked.recipe not in (None, TINY) or None in (asked.task, asked.tuned) or not student.run
    if missing or first_stage or (asked.masking, asked.cache) != unasked:
        raise UserError("the second stage of tinybert needs --task, --tuned and --student, and takes neither --text "
                        "nor what makes a new student")


def distil_second_stage(asked: SimpleNamespace) -> None:
    """Teach a classifier by a tuned one, on more texts than there are; write its body as a run like any other, its head
    beside it, and compare.

    Raises:
        UserError: runs that do not belong together, a teacher that cannot be copied layer by layer, labels other than
            those it was tuned on.
    """
    check_request(asked)
    config, augmentation = changed(TINY, asked.changes)
    if asked.fast and not cli.is_given("copies"):
        augmentation = dataclasses.replace(augmentation, copies=FEW)
    words, tokenizer = load_model(asked.teacher, "language-model")
    student, own = load_model(Path(asked.student.run), "language-model")
    same_tokenizer((Path(asked.student.run), own), (asked.teacher, tokenizer))
    if words.config.kind != "encoder" and augmentation.copies:
        raise UserError(f"new texts are made by an encoder that fills in hidden words, and the teacher is a "
                        f"{words.config.kind}; add --copies 0")
    records, training, out = read_jsonl(asked.task, ("text", "label")), asked.training, asked.out
    sides = two_sides(records, "text", training.batch, asked.task)
    large, labels = load_tuned(words, asked.tuned)
    lesson = labelled_task(student, tokenizer, sides, training, asked.task, known=labels)
    small, learned = lesson.model, lesson.learned
    TinyBERT(large, config).begin(small)  # whatever it cannot teach is said now
    del small.projections
    about = {**describe_model(student), "stage": "distill", "recipe": "tinybert, task", "loss": config,
             "texts": augmentation, "training": training, "data": fingerprint(records)}
    with stage_run(RunFolder(out), tokenizer, **about, tuned=large, teacher=words, student=student) as run:
        if run.new:
            shutil.rmtree(out / STAGE, ignore_errors=True)  # of a run that failed with other settings
        if not run.finished:
            texts = more_texts(learned, words, augmentation, training)
            click.echo(f"tinybert, task: {len(learned.rows):,} texts became {len(texts.rows):,}; first the layers, "
                       f"then what is predicted")
            found = distil_task(small, large, texts, lesson.checked, training, RunFolder(out / STAGE), config)
            head = feature_based.wrap(Classifier(copy.deepcopy(student.body), small.head.out_features))
            head.head.load_state_dict(small.head.state_dict())
            saving.save(head, out / HEAD)
            write_json(out / HEAD / CONFIG, {"what": "tuned-model", "labels": labels})  # for whoever asks it
            run.finish(student, **found)
    result = {"labels": list(lesson.labels), **compare(asked, large, lesson)}
    write_json(out / "report.json", result)
    click.echo("\n" + table(result))
    click.echo(f"{out} is the body, a run like any other; {out / HEAD} its head, as finetune writes one")


def load_tuned(model: LanguageModel, folder: Path) -> tuple[Classifier, list[str]]:
    """The classifier that `finetune` made of a run, and the labels of its classes; the run's model is not changed."""
    if (how := saving.read_saved(folder)[0]["method"]) == "prompt-tuning":
        raise UserError("was made by prompt tuning, whose vectors before the text the student does not read; tune the "
                        "teacher by another method", folder)
    if not (labels := labels_of(folder)):
        raise UserError("was not tuned on labels; give --tuned what finetune made of lines with `text` and `label`",
                        folder)
    found = saving.load(Classifier(copy.deepcopy(model).body, len(labels)), folder)
    if how == "feature-based":
        found.body = found.body.base  # its layers are looked at
    return found.eval(), labels


def more_texts(data: LabelledTexts, model: LanguageModel, config: AugmentationConfig,
               training: TrainingConfig) -> LabelledTexts:
    """The texts and those made from them, each with the label of its original, which nobody looks at."""
    made = augment(data.rows, model, config, training.seed)
    classes = torch.cat([data.classes, data.classes.repeat_interleave(config.copies)]).tolist()
    return LabelledTexts([*data.rows, *made], classes, training.batch, training.seed)


def compare(asked: SimpleNamespace, large: Classifier, lesson: TuningTask) -> dict[str, list[float]]:
    """Loss, accuracy, parameters, bytes and latency of teacher and student, the student from its files."""
    small, checked = Classifier(load_model(asked.out, "language-model")[0].body, len(lesson.labels)), lesson.checked
    both = (large, saving.load(small, asked.out / HEAD).eval())
    batch = moved(checked.batch(list(range(min(32, len(checked.rows))))), large)
    found, rounds = [examine_classes(model, checked) for model in both], 3 if asked.fast else 9
    with torch.inference_mode():
        seconds = [latency(lambda model=model: model(batch.tokens, batch.mask), rounds) / len(batch.classes)
                   for model in both]
    folders = (asked.teacher, asked.tuned), (asked.out, asked.out / HEAD)
    return {
        "loss": [f["validation"] for f in found],
        "accuracy": [f["accuracy"] for f in found],
        "parameters": [sum(p.numel() for p in model.parameters()) for model in both],
        "bytes": [bytes_on_disk(run / MODEL) + bytes_on_disk(beside / saving.TENSORS) for run, beside in folders],
        "seconds": seconds,
        "texts": len(checked.rows),
    }


def table(result: dict) -> str:
    """Teacher and student, side by side."""
    times = [1000 * seconds for seconds in result["seconds"]]
    return comparison_table(["teacher", "student"], [
        (f"loss on {result['texts']:,} held-out texts, nats", result["loss"], ".3f", ""),
        ("accuracy", result["accuracy"], ".3f", ""),
        ("parameters", result["parameters"], ",", ""),
        ("bytes on the disk", result["bytes"], ",", ""),
        ("milliseconds a text", times, ".2f", f"   {times[0] / times[1]:.2f} times as fast"),
    ])
