"""`python -m minialign finetune --method lora --base RUN --data FILE.jsonl`"""

from __future__ import annotations

import copy
import dataclasses
import time
import warnings
from pathlib import Path
from typing import Any

import click

from minialign.heads import Classifier, LanguageModel, describe_model
from minialign.lab.commands.inputs import is_named, open_base
from minialign.lab.commands.options import Command, Option, configured, file_option, run_options
from minialign.lab.commands.tuning_data import Lesson, labelled_lesson, two_sides, written_lesson
from minialign.lab.interchange.published import architecture
from minialign.lab.plotting import figure, legend, save_png, whiskers
from minialign.peft import lora
from minialign.peft.adapters import AdapterConfig
from minialign.peft.bitfit import BitFitConfig, biases_of
from minialign.peft.feature_based import CachedFeatures, examine_features, feature_loss
from minialign.peft.lora import LoRAConfig
from minialign.peft.methods import CONFIGS, METHODS
from minialign.peft.prompt_tuning import PromptConfig
from minialign.peft.saving import load
from minialign.peft.trainable import show
from minialign.peft.transfer import RATES, TunedRun, tune
from minialign.runs.errors import UserError
from minialign.runs.files import fingerprint, read_jsonl, write_json
from minialign.runs.run_folder import RunFolder
from minialign.runs.settings import to_dict
from minialign.runs.tensors import digest, tensors_of
from minialign.tokenizer import Tokenizer
from minialign.training import TrainingConfig

TUNING = TrainingConfig(steps=300, batch=32, learning_rate=3e-3, weight_decay=0.0, validate_every=100)
QUICK = {"steps": 20, "batch": 8, "validate_every": 10}


@click.command(cls=Command)
@file_option("--base", "The pretrained run to start from, a folder that others published, or smollm2.", required=True,
             metavar="RUN")
@file_option("--data", "One JSON object a line: `prompt` and `completion`, or `text` and `label`.", required=True,
             metavar="FILE.jsonl")
@click.option("--method", type=click.Choice([*METHODS, "all"]), default="lora", show_default=True, cls=Option,
              help="How; all compares them.")
@click.option("--targets", default="", cls=Option, help="LoRA: names or patterns of the layers, between commas. "
                                                        "[query,value]")
@click.option("--merged", is_flag=True, cls=Option, help="LoRA: also write OUT/lora-merged, a plain run that every "
                                                         "other command takes.")
@run_options(out="runs/finetune")
@configured("Training", "training", TUNING, QUICK)
@configured("LoRA", "update", LoRAConfig(), hide=("targets", "seed"))
@configured("Adapters", "bottleneck", AdapterConfig(), hide=("targets", "seed"))
@configured("BitFit", "biases", BitFitConfig(), hide=("names",))
@configured("Prompt tuning", "prompt", PromptConfig(), hide=("text_ids", "seed"))
@click.option("--prompt-text", default="", cls=Option, section="Prompt tuning",
              help="The words that the vectors start as, repeated or cut to their number.")
def command(base, data, method, targets, merged, prompt_text, out, seed, fast, training, update, bottleneck, biases,
            prompt):
    """Fine-tune a model on your data, all of it or a small part, and keep just that part.

    With `prompt` and `completion` a decoder or an encoder-decoder goes on learning to write; with `text` and `label` a
    head is put on the body of a decoder or an encoder. A published folder holds a GPT-2, BERT, T5 or Llama; smollm2
    learns in the marks of its chat template.

    A tenth of the lines is held out. For `--method feature-based` the frozen body reads each text once, and the head
    learns from what it said. Each method writes OUT/METHOD: tuned.safetensors, tuned.json, result.json, metrics.jsonl;
    `sample`, `ask`, `evaluate` and `chat` take that folder as --tuned. The learning rates of `--method all` are one for
    each method, fit for toy models; with one method it is --learning-rate.

    \b
    Example:  python -m minialign finetune --method lora --base runs/pretrain --data mine.jsonl --merged
    Example:  python -m minialign finetune --method all --base runs/pretrain --data labelled.jsonl
    Example:  python -m minialign finetune --base smollm2 --data mine.jsonl --steps 30 --batch 4 --learning-rate 5e-4       downloads 93 MB
    """
    if targets:
        update = dataclasses.replace(update, targets=tuple(name.strip() for name in targets.split(",")))
    if prompt_text and prompt.start == "random":
        raise UserError("--prompt-text says which words the vectors start as, and --start random that there are none; "
                        "leave one of them out")
    if merged and (is_named(base) or architecture(base) is not None):
        raise UserError("--merged writes a run of this project, and the base is none; leave it out, and give OUT/lora "
                        "as --tuned to what uses it")
    if merged and method not in ("lora", "all"):
        raise UserError(f"--merged is for lora, and the method is {method}; leave it out")
    model, tokenizer = open_base(base)
    if prompt_text:
        prompt = dataclasses.replace(prompt, start="text", text_ids=tuple(tokenizer.encode(prompt_text)))
    chosen = {"lora": update, "adapters": bottleneck, "bitfit": biases, "prompt-tuning": prompt}
    chosen = {name: chosen.get(name, CONFIGS[name]()) for name in METHODS}
    records = read_jsonl(data)
    labelled = bool(records) and "label" in records[0]
    records = read_jsonl(data, ("text", "label") if labelled else ("prompt", "completion"))
    if method == "feature-based" and not labelled:
        raise UserError("feature-based transfer trains a head, so it needs lines with `text` and `label`", data)
    names = [method] if method != "all" else [name for name in METHODS if name != "feature-based" or labelled]
    if method == "all" and not biases_of(model):
        names.remove("bitfit")
        click.echo("note: bitfit is left out, since the base has no biases", err=True)
    sides, results = two_sides(records, "text" if labelled else "prompt", training.batch, data), {}
    vectors = chosen["prompt-tuning"].length if "prompt-tuning" in names else 0
    if labelled:
        lesson = labelled_lesson(model, tokenizer, sides, training, data, vectors)
    else:
        lesson = written_lesson(model, tokenizer, sides, training, data, vectors, chat=is_named(base))
    for name in names:
        how = dataclasses.replace(training, learning_rate=RATES[name]) if method == "all" else training
        results[name] = one(name, chosen[name], lesson, tokenizer, how, fingerprint(records), out)
    if merged:
        write_merged(model, tokenizer, out, results["lora"])
    report(results, labelled, out)


def one(name: str, config: Any, lesson: Lesson, tokenizer: Tokenizer, training: TrainingConfig, data: str,
        out: Path) -> dict[str, Any]:
    """Tune a copy of the lesson's model by one method in a folder of its own, or find it done. `data` is the
    fingerprint of the lines."""
    model, run = copy.deepcopy(lesson.model), TunedRun(out / name)
    with run.locked():
        settings = {**describe_base(model), "stage": "finetune", "method": name, "tuning": to_dict(config),
                    "training": to_dict(training)}
        settings |= {"labels": lesson.labels} if lesson.labels else {}
        run.begin({**settings, "data": data, "base": digest(tensors_of(model))[:16]}, tokenizer)
        if not run.finished:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always", UserWarning)
                METHODS[name].wrap(model, config)
            for note in said:
                click.echo(f"note: {note.message}", err=True)
            click.echo(show(model).splitlines()[-1])
            if name == "feature-based":
                lesson = read_once(model, lesson, training)
            tune(model, lesson.learned, lesson.loss, lesson.validate, training, run)
    return run.facts() | {"file_bytes": (run.path / "tuned.safetensors").stat().st_size, "folder": str(run.path)}


def describe_base(model) -> dict[str, Any]:
    """What config.json says of the model below."""
    return {"what": "tuned-model", "model": to_dict(model.config)}


def read_once(model: Classifier, lesson: Lesson, training: TrainingConfig) -> Lesson:
    """The same for a head alone: the frozen body reads every text here, and never again. Says what that saves."""
    began = time.perf_counter()
    features, held = (CachedFeatures(model, part) for part in (lesson.learned, lesson.checked))
    seconds, texts = time.perf_counter() - began, len(features.classes) + len(held.classes)
    looks = -(-training.steps // training.validate_every)
    otherwise = training.steps * lesson.learned.order.batch + looks * len(held.classes)
    click.echo(
        f"feature-based: the body read {texts:,} texts once, in {seconds:.2f} s "
        f"({(features.bytes + held.bytes) / 1000:,.1f} kB of features); "
        f"{training.steps:,} steps without them would read {otherwise:,}, {otherwise / texts:.1f} times as many"
    )
    return dataclasses.replace(lesson, learned=features, checked=held, loss=feature_loss,
                               validate=lambda model: examine_features(model, held))


def write_merged(model: LanguageModel, tokenizer: Tokenizer, out: Path, result: dict[str, Any]) -> None:
    """The base with LoRA's update merged in, as a plain run. Raises UserError for a tuned head, which a language model
    has no place for."""
    if "accuracy" in result:
        raise UserError("a head on labels cannot be merged into a language model; leave --merged out")
    plain = lora.merged_plain(load(model, Path(result["folder"])))
    run = RunFolder(out / "lora-merged")
    with run.locked():
        run.begin({**describe_model(plain), "stage": "finetune", "of": result["folder"]}, tokenizer)
        if not run.finished:
            run.finish(plain, validation=result["validation"], perplexity=result["perplexity"], steps=result["steps"])
    click.echo(f'{run.path}: plain again; try  python -m minialign sample {run.path} --prompt "…"')


def report(results: dict[str, dict[str, Any]], labelled: bool, out: Path) -> None:
    """The table of what was tuned, and for more than one method the plot."""
    measure = "accuracy" if labelled else "perplexity"
    click.echo(f"{'method':<14} {'held-out loss':>13} {measure:>11} {'trained':>10} {'share':>8} {'file, kB':>9} "
               f"{'optimizer, kB':>13}")
    for name, r in results.items():
        numbers = (f"{r['trained']:>10,} {r['trained'] / r['parameters']:>8.2%} {r['file_bytes'] / 1000:>9.1f} "
                   f"{r['optimizer_bytes'] / 1000:>13.1f}")
        click.echo(f"{name:<14} {r['validation']:>13.4f} {r[measure]:>11.3f} {numbers}")
    if len(results) > 1:
        write_json(out / "comparison.json", results)
        fig, axes = figure("parameters that train", f"held-out {'accuracy' if labelled else 'loss, nats a token'}", 6,
                           3.8)
        for number, (name, r) in enumerate(results.items()):
            whiskers(axes, number, [r["trained"]], [r["accuracy" if labelled else "validation"]], name)
        axes.set_xscale("log")
        legend(axes)
        save_png(fig, out / "comparison.png")
        click.echo(f"{out / 'comparison.png'}: each method at its price")
