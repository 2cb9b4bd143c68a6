"""`python -m minialign finetune --method lora --base RUN --data FILE.jsonl`"""

from __future__ import annotations

import dataclasses
import time
import warnings
from pathlib import Path
from typing import Any

import click

from minialign.checkpoints import RunFolder, describe_model, load_model
from minialign.classification import LabelledTexts, class_loss, examine_classes
from minialign.commands.inputs import NAMED, open_base
from minialign.commands.options import Command, Option, configured, file_option, run_options
from minialign.commands.tuning_data import classification, two_sides, writing
from minialign.errors import UserError
from minialign.files import fingerprint, read_jsonl, write_json
from minialign.heads import Classifier
from minialign.peft import lora
from minialign.peft.adapters import AdapterConfig
from minialign.peft.bitfit import BitFitConfig
from minialign.peft.feature_based import CachedFeatures, examine_features, feature_loss
from minialign.peft.lora import LoRAConfig
from minialign.peft.methods import CONFIGS, METHODS
from minialign.peft.prompt_tuning import PromptConfig
from minialign.peft.trainable import show
from minialign.peft.transfer import RATES, TunedRun, tune
from minialign.plotting import figure, legend, save_png, whiskers
from minialign.pretrained.published import is_published
from minialign.settings import to_dict
from minialign.tensors import digest, tensors_of
from minialign.training import TrainingConfig

TUNING = TrainingConfig(steps=300, batch=32, learning_rate=3e-3, weight_decay=0.0, validate_every=100)
QUICK = {"steps": 20, "batch": 8, "validate_every": 10}


@click.command(cls=Command)
@file_option("--base", "The pretrained run to start from, a folder that others published, or smollm2.", required=True, metavar="RUN")
@file_option("--data", "One JSON object a line: `prompt` and `completion`, or `text` and `label`.", required=True, metavar="FILE.jsonl")
@click.option("--method", type=click.Choice([*METHODS, "all"]), default="lora", show_default=True, cls=Option, help="How; all compares them.")
@click.option("--targets", default="", cls=Option, help="LoRA: names or patterns of the layers, between commas. [query,value]")
@click.option("--merged", is_flag=True, cls=Option, help="LoRA: also write OUT/lora-merged, a plain run that every other command takes.")
@run_options(out="runs/finetune")
@configured("Training", "training", TUNING, QUICK)
@configured("LoRA", "update", LoRAConfig(), hide=("targets", "seed"))
@configured("Adapters", "bottleneck", AdapterConfig(), hide=("targets", "seed"))
@configured("BitFit", "biases", BitFitConfig(), hide=("names",))
@configured("Prompt tuning", "prompt", PromptConfig(), hide=("text_ids", "seed"))
@click.option("--prompt-text", default="", cls=Option, section="Prompt tuning", help="The words that the vectors start as, repeated or cut to their number.")
def command(base, data, method, targets, merged, prompt_text, out, seed, fast, training, update, bottleneck, biases, prompt):
    """Fine-tune a model on your data, all of it or a small part, and keep just that part.

    With `prompt` and `completion` a decoder or an encoder-decoder goes on learning to write; with `text` and `label` a head is put on the body of a
    decoder or an encoder. A published folder holds a GPT-2, BERT, T5 or Llama; smollm2 learns in the marks of its chat template.

    A tenth of the lines is held out. For `--method feature-based` the frozen body reads each text once, and the head learns from what it said. Each
    method writes OUT/METHOD: tuned.safetensors, tuned.json, result.json, metrics.jsonl; `sample`, `ask`, `evaluate` and `chat` take that folder as
    --tuned. The learning rates of `--method all` are one for each method, fit for toy models; with one method it is --learning-rate.

    \b
    Example:  python -m minialign finetune --method lora --base runs/pretrain --data mine.jsonl --merged
    Example:  python -m minialign finetune --method all --base runs/pretrain --data labelled.jsonl
    Example:  python -m minialign finetune --base smollm2 --data mine.jsonl --steps 30 --batch 4 --learning-rate 5e-4       downloads 93 MB
    """
    if targets:
        update = dataclasses.replace(update, targets=tuple(name.strip() for name in targets.split(",")))
    if prompt_text:
        if prompt.start == "random":
            raise UserError("--prompt-text says which words the vectors start as, and --start random that there are none; leave one of them out")
        prompt = dataclasses.replace(prompt, start="text", text_ids=words_of(base, prompt_text))
    chosen = {"lora": update, "adapters": bottleneck, "bitfit": biases, "prompt-tuning": prompt}
    chosen = {name: chosen.get(name, CONFIGS[name]()) for name in METHODS}
    records = read_jsonl(data)
    labelled = bool(records) and "label" in records[0]
    records = read_jsonl(data, ("text", "label") if labelled else ("prompt", "completion"))
    if merged and (str(base) in NAMED and not base.exists() or is_published(base)):
        raise UserError("--merged writes a run of this project, and the base is none; leave it out, and give OUT/lora as --tuned to what uses it")
    if merged and method not in ("lora", "all"):
        raise UserError(f"--merged is for lora, and the method is {method}; leave it out")
    if method == "feature-based" and not labelled:
        raise UserError("feature-based transfer trains a head, so it needs lines with `text` and `label`", data)
    names = [name for name in METHODS if name != "feature-based" or labelled] if method == "all" else [method]
    results = {}
    for name in names:
        how = dataclasses.replace(training, learning_rate=RATES[name]) if method == "all" else training
        try:
            results[name] = one(name, chosen[name], base, records, labelled, how, out, data)
        except UserError as error:
            if method != "all" or name != "bitfit" or "no biases" not in str(error):
                raise
            click.echo(f"note: bitfit is left out: {error}", err=True)
    if merged:
        write_merged(base, out, results["lora"])
    report(results, labelled, out)


def one(name: str, config: Any, base: Path, records: list[dict], labelled: bool, training: TrainingConfig, out: Path, file: Path) -> dict[str, Any]:
    """Tune by one method in a folder of its own, or find it done."""
    model, tokenizer = open_base(base)
    sides, about = two_sides(records, "text" if labelled else "prompt", training.batch, file), {}
    if labelled:
        (learned, checked), model, about["labels"] = classification(model, tokenizer, sides, training, file)
        validate, loss = lambda model: examine_classes(model, checked), class_loss
    else:
        learned, validate, loss = writing(model, tokenizer, sides, training, file, str(base) in NAMED and not base.exists())
    run = TunedRun(out / name)
    with run.locked():
        settings = {**describe_base(model), **about, "stage": "finetune", "method": name, "tuning": to_dict(config), "training": to_dict(training)}
        run.begin({**settings, "data": fingerprint(records), "base": digest(tensors_of(model))[:16]}, tokenizer)
        if not run.finished:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always", UserWarning)
                METHODS[name].wrap(model, config)
            for note in said:
                click.echo(f"note: {note.message}", err=True)
            click.echo(show(model).splitlines()[-1])
            if name == "feature-based":
                learned, validate, loss = read_once(model, learned, checked, training)
            tune(model, learned, loss, validate, training, run)
    return run.facts() | {"file_bytes": (run.path / "tuned.safetensors").stat().st_size, "folder": str(run.path)}


def words_of(base: Path, text: str) -> tuple[int, ...]:
    """The ids of the words that a prompt starts as."""
    return tuple(open_base(base)[1].encode_many([text])[0])


def describe_base(model) -> dict[str, Any]:
    """What config.json says of the model below."""
    return {"what": "tuned-model", "model": to_dict(model.config)}


def read_once(model: Classifier, learned: LabelledTexts, checked: LabelledTexts, training: TrainingConfig) -> tuple:
    """Data, validation and loss of a head alone: the frozen body reads every text here, and never again. Says what that saves."""
    began = time.perf_counter()
    features, held = (CachedFeatures(model, part) for part in (learned, checked))
    seconds, texts = time.perf_counter() - began, len(features.classes) + len(held.classes)
    looks = -(-training.steps // training.validate_every)
    otherwise = training.steps * learned.order.batch + looks * len(held.classes)
    click.echo(
        f"feature-based: the body read {texts:,} texts once, in {seconds:.2f} s ({(features.bytes + held.bytes) / 1000:,.1f} kB of features); "
        f"{training.steps:,} steps without them would read {otherwise:,}, {otherwise / texts:.1f} times as many"
    )
    return features, lambda model: examine_features(model, held), feature_loss


def write_merged(base: Path, out: Path, result: dict[str, Any]) -> None:
    """The base with LoRA's update merged in, as a plain run. Raises UserError for a tuned head, which a language model has no place for."""
    from minialign.peft.trainable import load

    model, tokenizer = load_model(base, "language-model")
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
    click.echo(f"{'method':<14} {'held-out loss':>13} {measure:>11} {'trained':>10} {'share':>8} {'file, kB':>9} {'optimizer, kB':>13}")
    for name, r in results.items():
        numbers = f"{r['trained']:>10,} {r['trained'] / r['parameters']:>8.2%} {r['file_bytes'] / 1000:>9.1f} {r['optimizer_bytes'] / 1000:>13.1f}"
        click.echo(f"{name:<14} {r['validation']:>13.4f} {r[measure]:>11.3f} {numbers}")
    if len(results) > 1:
        write_json(out / "comparison.json", results)
        fig, axes = figure("parameters that train", f"held-out {'accuracy' if labelled else 'loss, nats a token'}", 6, 3.8)
        for number, (name, r) in enumerate(results.items()):
            whiskers(axes, number, [r["trained"]], [r["accuracy" if labelled else "validation"]], name)
        axes.set_xscale("log")
        legend(axes)
        save_png(fig, out / "comparison.png")
        click.echo(f"{out / 'comparison.png'}: each method at its price")
