"""`python -m minialign finetune --method lora --base RUN --data FILE.jsonl`"""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import torch
from torch import nn

from minialign.lab.commands import options as cli
from minialign.lab.commands.inputs import is_named, open_base, read_lines, two_sides
from minialign.lab.finetuning import labelled_task, tune_once, write_merged, written_task
from minialign.lab.interchange.published import architecture
from minialign.lab.plotting import figure, legend, save_png, whiskers
from minialign.peft.adapters import AdapterConfig
from minialign.peft.bitfit import BitFitConfig, biases_of
from minialign.peft.lora import LoRAConfig
from minialign.peft.methods import CONFIGS, METHODS
from minialign.peft.prompt_tuning import PromptConfig
from minialign.peft.transfer import RATES
from minialign.runs.errors import UserError
from minialign.runs.files import fingerprint, write_json
from minialign.training import TrainingConfig

TUNING = TrainingConfig(steps=300, batch=32, learning_rate=3e-3, weight_decay=0.0, validate_every=100)
QUICK = {"steps": 20, "batch": 8, "validate_every": 10}


@click.command(cls=cli.Command, trains=True)
@cli.file_option("--base RUN", "The pretrained run to start from, a folder that others published, or smollm2.",
                 required=True)
@cli.file_option("--data FILE.jsonl", "One JSON object a line: `prompt` and `completion`, or `text` and `label`.",
                 required=True)
@cli.choice_option("--method", [*METHODS, "all"], "lora", "How; all compares them.")
@cli.option("--targets", default="", text="LoRA: names or patterns of the layers, between commas. [query,value]")
@cli.flag("--merged", text="LoRA: also write OUT/lora-merged, a plain run that every other command takes.")
@cli.flag("--checkpoints", text="Of a Llama: compute each block again in the backward pass, for less memory.")
@cli.run_options(out="runs/finetune")
@cli.configured("Training", "training", TUNING, QUICK)
@cli.configured("LoRA", "update", LoRAConfig(), hide=("targets", "seed"))
@cli.configured("Adapters", "bottleneck", AdapterConfig(), hide=("targets", "seed"))
@cli.configured("BitFit", "biases", BitFitConfig(), hide=("names",))
@cli.configured("Prompt tuning", "prompt", PromptConfig(), hide=("text_ids", "seed"))
@cli.option("--prompt-text", default="", section="Prompt tuning",
            text="The words that the vectors start as, repeated or cut to their number.")
@cli.gather_options
def command(args, training, update, bottleneck, biases, prompt):
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
    Example:  python -m minialign finetune --base smollm2 --data mine.jsonl --steps 30 --batch 4 --learning-rate 5e-4
              (downloads 93 MB)
    """
    check(args, prompt)
    model, tokenizer = open_base(args.base, device=torch.device("cpu"))  # it is moved when what trains is known
    if args.checkpoints:
        model.body.checkpoints = True
    if args.targets:
        update = dataclasses.replace(update, targets=tuple(name.strip() for name in args.targets.split(",")))
    if args.prompt_text:
        prompt = dataclasses.replace(prompt, start="text", text_ids=tuple(tokenizer.encode(args.prompt_text)))
    chosen = {"lora": update, "dora": update, "adapters": bottleneck, "bitfit": biases, "prompt-tuning": prompt}
    records, labelled = read_lines(args.data)
    if labelled and args.merged:
        raise UserError("a head on labels cannot be merged into a language model; leave --merged out")
    names = methods_for(args, model, labelled)
    sides = two_sides(records, "text" if labelled else "prompt", training.batch, args.data)
    vectors = prompt.length if "prompt-tuning" in names else 0
    if labelled:
        task = labelled_task(model, tokenizer, sides, training, args.data, vectors)
    else:
        task = written_task(model, tokenizer, sides, training, args.data, vectors, chat=is_named(args.base))
    data, results = fingerprint(records), {}
    for name in names:
        how = dataclasses.replace(training, learning_rate=RATES[name]) if args.method == "all" else training
        results[name] = tune_once(name, chosen.get(name, CONFIGS[name]()), task, tokenizer, how, data, args.out)
    if args.merged:
        write_merged(model, tokenizer, args.out, results["lora" if args.method == "all" else args.method])
    report(results, labelled, args.out)


def check(args: SimpleNamespace, prompt: PromptConfig) -> None:
    """Raise UserError for options that do not belong together."""
    if args.prompt_text and prompt.start == "random":
        raise UserError("--prompt-text says which words the vectors start as, and --start random that there are none; "
                        "leave one of them out")
    for option, given, methods in (("--targets", args.targets, ("lora", "dora")),
                                   ("--prompt-text", args.prompt_text, ("prompt-tuning",))):
        if given and args.method not in (*methods, "all"):
            raise UserError(f"{option} is for {' and '.join(methods)}, and the method is {args.method}; leave it out")
    if args.checkpoints and not is_named(args.base) and architecture(args.base) != "llama":
        raise UserError("--checkpoints is for a Llama, which may be large, and the base is none; leave it out")
    if args.merged and (is_named(args.base) or architecture(args.base) is not None):
        raise UserError("--merged writes a run of this project, and the base is none; leave it out, and give OUT/lora "
                        "as --tuned to what uses it")
    if args.merged and args.method not in ("lora", "dora", "all"):
        raise UserError(f"--merged is for lora and dora, and the method is {args.method}; leave it out")


def methods_for(args: SimpleNamespace, model: nn.Module, labelled: bool) -> list[str]:
    """The methods that are asked for and can be had with this base and these lines."""
    if args.method != "all":
        if args.method == "feature-based" and not labelled:
            raise UserError("feature-based transfer trains a head, so it needs lines with `text` and `label`",
                            args.data)
        return [args.method]
    names = [name for name in METHODS if name != "feature-based" or labelled]
    if not biases_of(model):
        names.remove("bitfit")
        click.echo("note: bitfit is left out, since the base has no biases", err=True)
    return names


def report(results: dict[str, dict[str, Any]], labelled: bool, out: Path) -> None:
    """The table of what was tuned, and for more than one method the plot."""
    measure = "accuracy" if labelled else "perplexity"
    click.echo(f"{'method':<14} {'held-out loss':>13} {measure:>11} {'trained':>10} {'share':>8} {'file, kB':>9} "
               f"{'optimizer, kB':>13}")
    for name, r in results.items():
        click.echo(f"{name:<14} {r['validation']:>13.4f} {r[measure]:>11.3f} {r['trained']:>10,} "
                   f"{r['trained'] / r['parameters']:>8.2%} {r['file_bytes'] / 1000:>9.1f} "
                   f"{r['optimizer_bytes'] / 1000:>13.1f}")
    if len(results) < 2:
        return
    write_json(out / "comparison.json", results)
    height, says = ("accuracy", "accuracy") if labelled else ("validation", "loss, nats a token")
    fig, axes = figure("parameters that train", f"held-out {says}", 6, 3.8)
    for number, (name, r) in enumerate(results.items()):
        whiskers(axes, number, [r["trained"]], [r[height]], name)
    axes.set_xscale("log")
    legend(axes)
    save_png(fig, out / "comparison.png")
    click.echo(f"{out / 'comparison.png'}: each method at its price")
