"""`python -m minialign distill --teacher RUN --recipe NAME --text FILES…`"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from click.core import ParameterSource
from torch import nn

from minialign.distill.minilm import distil_minilm
from minialign.distill.recipe import distil, own_loss
from minialign.distill.recipes import RECIPES, Named, recipe_named
from minialign.distill.soft_targets import SoftTargets
from minialign.distill.teacher_cache import CacheConfig
from minialign.distill.tinybert import AugmentationConfig
from minialign.evaluation import bytes_on_disk, latency
from minialign.heads import LanguageModel, describe_model, load_model
from minialign.lab.commands.distill_sentences import SENTENCES, distil_encoder, is_sentence_teacher
from minialign.lab.commands.distill_student import layer_list, new_student, old_student
from minialign.lab.commands.distill_task import distil_second_stage
from minialign.lab.commands.distill_texts import PROMPT, batches, begun, by_the_teacher, check_prompts, read_both
from minialign.lab.commands.options import TYPES, Command, Option, configured, file_option, run_options
from minialign.lab.pretrained.sentence_vectors import SentenceConfig
from minialign.pretrain.causal_lm import perplexity
from minialign.pretrain.masked_lm import MaskingConfig
from minialign.runs.errors import UserError
from minialign.runs.files import fingerprint, write_json
from minialign.runs.run_folder import MODEL, RunFolder
from minialign.runs.settings import describe, to_dict
from minialign.runs.tensors import digest, tensors_of
from minialign.training import TrainingConfig

DEFAULT = TrainingConfig(steps=1000, batch=16, learning_rate=2e-3)
FAST = {"steps": 40, "validate_every": 20}
TINY = "tinybert"
CONFIGS = {name: (recipe.config, *([recipe.writing] if recipe.writing else [])) for name, recipe in RECIPES.items()}
CONFIGS |= {TINY: (RECIPES[TINY].config, AugmentationConfig()), SENTENCES: (SentenceConfig(),)}
SIZE = click.IntRange(0, 100_000)


def weight_options(function: Callable) -> Callable:
    """One option for each field of any recipe's configuration; without it the recipe's own value stands."""
    fields: dict[str, tuple[str, dict[str, list[str]]]] = {}
    for name, config in ((name, config) for name, configs in CONFIGS.items() for config in configs):
        help_of = describe(type(config))
        for field in dataclasses.fields(config):
            fields.setdefault(field.name, (field.type, {}))[1].setdefault(help_of[field.name], []).append(name)
    for name, (kind, texts) in reversed(fields.items()):
        flag, text = "--" + name.replace("_", "-"), "; ".join(f"{text} [{', '.join(of)}]" for text, of in texts.items())
        flag, typed = (f"{flag}/--no-{flag[2:]}", None) if kind == "bool" else (flag, TYPES[kind])
        function = click.option(flag, name, default=None, type=typed, cls=Option, section="Instead of the recipe's own",
                                help=text)(function)
    return function


@click.command(cls=Command)
@click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="[FILES]…")
@file_option("--teacher", "A finished run; or `minilm`, or the folder of another BERT that gives vectors of sentences.",
             required=True, metavar="RUN")
@click.option("--recipe", type=click.Choice(list(CONFIGS)), default=None, cls=Option,
              help="How.  [default: soft-targets; sentence-vectors of a BERT]")
@file_option("--text", "Text to learn from: .txt files, or .jsonl files with a field `text`; more may follow.",
             multiple=True, metavar="FILES…")
@file_option("--valid", "A file to validate on; without it the last twentieth of the documents is held out.",
             metavar="FILE")
@click.option("--split", type=click.Choice(["file", "paragraphs", "lines"]),
              help="What is a document in a .txt file.  [default: by recipe]")
@click.option("--packed/--no-packed", default=True, show_default=True, help="Pack documents one after the other, or "
              "one a row (many short ones).")
@click.option("--prompt-tokens", default=0, type=SIZE, cls=Option, help="sequence-level, on-policy: how many of a "
              "text's first tokens are the prompt, the begin token among them.  [default: 8]")  # noqa: E501
@file_option("--task", "tinybert's second stage: lines with `text` and `label`, instead of --text.",
             metavar="FILE.jsonl")
@file_option("--tuned", "With --task: what `finetune --base TEACHER` wrote for these lines, OUT/METHOD.",
             metavar="FOLDER")
@click.option("--layers", default=0, type=SIZE, cls=Option, section="Student",
              help="How many.  [default: half the teacher's]")
@click.option("--width", default=0, type=SIZE, cls=Option, section="Student",
              help="Of its vectors.  [default: the teacher's]")
@click.option("--heads", default=0, type=SIZE, cls=Option, section="Student",
              help="Of its attention.  [default: the teacher's]")
@click.option("--start", type=click.Choice(["random", "teacher"]), cls=Option, section="Student",
              help="As the teacher's layers, or not.  [default: by recipe]")
@click.option("--layers-from", default="", cls=Option, section="Student", help="Which layers, from 0, between commas.  "
              "[default: spread evenly]")
@click.option("--student", type=click.Path(path_type=Path), cls=Option, section="Student",
              help="Go on with this run instead of a new model.", metavar="RUN")
@click.option("--assistant", is_flag=True, cls=Option, section="Student", help="minilm: first teach a model of the "
              "teacher's layers and the student's width.")
@run_options(out="runs/distill")
@configured("Training", "training", DEFAULT, FAST)
@configured("Masked language modelling", "masking", MaskingConfig())
@configured("Cache", "cache", CacheConfig(""), rename={"folder": "cache"})
@weight_options
def command(files, teacher, recipe, text, valid, split, packed, prompt_tokens, task, tuned, out, fast, training,
        masking, cache, student, assistant, seed, layers, width, heads, start, layers_from, **changes):  # noqa: E501
    """Teach a small model what a large one says and thinks, and compare the two.

    OUT is a run like any other: sample, finetune, evaluate and quantize take it.

    \b
    sequence-level   the teacher goes on from the beginning of each text, and the student learns what it wrote (OUT/written.jsonl)
    on-policy        the student goes on itself, and the teacher says what it would have said; begin with a student that can write
    tinybert         with --task and --tuned its second stage: a student of the first one (--student) learns from a teacher tuned on a task

    \b
    Example:  python -m minialign distill --teacher runs/pretrain --recipe distilgpt2 --text plays/*.txt
    Example:  python -m minialign distill --teacher runs/bert --recipe minilm --layers 2 --width 64 --text plays/*.txt
    Example:  python -m minialign distill --teacher runs/pretrain --recipe on-policy --student runs/distill --text plays/*.txt --out runs/on-policy
    Example:  python -m minialign distill --teacher runs/bert --tuned runs/finetune/full --student runs/tiny --task labels.jsonl --out runs/tiny-task
    Example:  python -m minialign distill --teacher minilm --layers 3 --text tweets.txt       a real model (downloads 84 MB)
    """
    shape = {"layers": layers, "width": width, "heads": heads, "start": start, "layers_from": layer_list(layers_from)}
    changes, paths = {name: value for name, value in changes.items() if value is not None}, [*text, *files]
    if task is not None or tuned is not None:
        beside = (paths or valid or split or prompt_tokens or assistant or any(shape.values())
                  or masking != MaskingConfig() or cache != CacheConfig(""))
        if recipe not in (None, TINY) or None in (task, tuned, student) or beside:
            raise UserError("the second stage of tinybert needs --task, --tuned and --student, and takes neither "
                            "--text nor what makes a new student")
        distil_second_stage((teacher, tuned), student, task, *changed(TINY, changes), training, out, fast)
        return
    if not paths:
        raise UserError("there is no text to learn from; name files with --text")
    if student is not None and (any(shape.values()) or assistant):
        raise UserError("--student is a model that is there already; leave --layers, --width, --heads, --start, "
                        "--layers-from and --assistant out")
    if is_sentence_teacher(teacher):
        if recipe not in (None,
                SENTENCES) or student is not None or assistant or masking != MaskingConfig() or cache != CacheConfig(""):
            raise UserError(f"{teacher} gives vectors of sentences; its recipe is {SENTENCES}, without --student, "
                            f"--assistant, masking and a cache")
        documents, held_out = read_both(paths, valid, split or "paragraphs", 64)
        distil_encoder(teacher, documents, held_out, shape, *changed(SENTENCES, changes), training, out, fast)
        return
    master, tokenizer = load_model(teacher, "language-model")
    recipe = recipe or "soft-targets"
    named = recipe_named(recipe, master.config.kind)
    if master.config.kind == "decoder" and masking != MaskingConfig():
        raise UserError("--chosen, --masked and --replaced hide words from an encoder, and the teacher is a decoder; "
                        "leave them out")
    refuse_what_has_no_say(recipe, named, master.config.kind, prompt_tokens, cache, changes)
    config = changed(recipe, changes)
    pupil = new_student(master, named, shape, assistant, recipe, seed) if student is None else old_student(student,
        (teacher, tokenizer))
    documents, held_out = read_both(paths, valid, split or ("file" if named.reads == "texts" else "paragraphs"),
                                    master.config.context)
    run = RunFolder(out)
    with run.locked():
        about = {**describe_model(pupil), "stage": "distill", "recipe": recipe, "loss": to_dict(config[0]),
                 "training": to_dict(training), "packed": packed}
        about |= {"masking": to_dict(masking), "assistant": assistant, "data": fingerprint([documents, held_out])}
        if named.reads != "texts":
            about |= {"prompt_tokens": prompt_tokens or PROMPT, "writing": to_dict(config[1]) if named.writing
                      else None}
        if cache.folder:
            about |= {"top_k": cache.top_k}  # its 16 bits, or its k words, are what is learned
        run.begin({**about, "teacher": digest(tensors_of(master))[:16], "student": digest(tensors_of(pupil))[:16]},
                  tokenizer)
        if named.reads == "texts":
            data, looked_at = batches(tokenizer, pupil, documents, held_out, training, packed, masking,
                                      (str(paths[0]), str(valid or paths[-1])))
        else:
            data, looked_at = begun(tokenizer, documents, held_out, master.config.context, prompt_tokens or PROMPT,
                                    training)
            check_prompts(master, data, config[-1].new_tokens)
        if not run.finished:
            click.echo(f"{recipe}: {size(master)} teach {size(pupil)}")
            if named.reads == "written":
                data = by_the_teacher(master, data, config[1], training, out)
            if assistant:
                distil_minilm(master, tokenizer, data, looked_at, training, run, layers, width, config[0], True)
            else:
                teaching = named.loss(master, config[0], *([cache] if cache.folder else []))
                distil(pupil, teaching, data, looked_at, training, run)
                if cache.folder:
                    known = teaching.cache
                    click.echo(f"{cache.folder}: of {known.asked:,} texts {known.found:,} were known; "
                               f"{known.bytes / 1e6:.1f} MB")
    report(recipe, master, looked_at, (Path(teacher), out), 3 if fast else 9)
    if not named.speaks and not config_speaks(config[0]):
        click.echo(f"{recipe} teaches how to read, no words. To read on: finetune --base {out}; for words: distill "
                   f"--recipe soft-targets --student {out}")
    click.echo(f'try it:  python -m minialign sample {out} --prompt "…"')


def report(recipe: str, teacher: LanguageModel, looked_at: list, folders: tuple[Path, Path], rounds: int) -> None:
    """Compare teacher and student, in OUT/report.json and on the screen."""
    result = {"recipe": recipe, **measure(teacher, load_model(folders[1], "language-model")[0], looked_at, folders,
                                          rounds)}
    write_json(folders[1] / "report.json", result)
    click.echo("\n" + table(result))


def refuse_what_has_no_say(recipe: str, named: Named, kind: str, prompt_tokens: int, cache: CacheConfig,
                           changes: dict[str, Any]) -> None:
    """Raise UserError for options that have no say in a recipe."""
    packed = click.get_current_context().get_parameter_source("packed") is ParameterSource.COMMANDLINE
    if named.reads == "texts" and prompt_tokens:
        raise UserError(f"--prompt-tokens is for sequence-level and on-policy, and the recipe is {recipe}; leave it out")
    if named.reads != "texts" and packed:
        raise UserError(f"{recipe} reads one text a row, since each begins with a prompt; leave --packed and "
                        f"--no-packed out")
    if recipe == TINY and (odd := [name for name in ("copies", "chance", "candidates") if name in changes]):
        raise UserError(f"--{odd[0]} makes more texts of a task's; give --task, --tuned and --student, or leave it out")
    if not cache.folder and cache != CacheConfig(""):
        raise UserError("--top-k and --most-gib say how --cache keeps what the teacher thinks; add --cache FOLDER, or "
                        "leave them out")
    if cache.folder and kind == "encoder":
        raise UserError("an encoder's words are hidden anew in each epoch, so that no text comes twice; leave --cache "
                        "out")
    if cache.folder and named.loss is not SoftTargets:
        raise UserError(f"--cache keeps what a teacher thinks of given texts, which {recipe} does not ask; leave it out")


def changed(name: str, changes: dict[str, Any]) -> tuple:
    """The recipe's configurations with what the user changed. Raises UserError for an option that it does not have."""
    known = [field.name for config in CONFIGS[name] for field in dataclasses.fields(config)]
    for option in changes:
        if option not in known:
            flags = ", ".join("--" + field.replace("_", "-") for field in known)
            raise UserError(f"--{option.replace('_', '-')} is not an option of {name}; it has {flags}")
    own = [{field.name for field in dataclasses.fields(config)} for config in CONFIGS[name]]
    return tuple(dataclasses.replace(config, **{key: changes[key] for key in changes if key in names}) for config,
                 names in zip(CONFIGS[name], own))


def config_speaks(config: Any) -> bool:
    """Whether a recipe that copies layers was told to copy predictions, too."""
    return getattr(config, "prediction", 0) > 0


def size(model: nn.Module) -> str:
    """Parameters and layers in words."""
    layers = model.config.layers
    return (f"{sum(p.numel() for p in model.parameters()):,} parameters in {layers} "
            f"{'layer' if layers == 1 else 'layers'}")


def measure(teacher: LanguageModel, student: LanguageModel, held_out: list, folders: tuple[Path, Path],
            rounds: int) -> dict[str, list[float]]:
    """Loss, parameters, bytes and latency of both."""
    both, tokens = (teacher, student), torch.full((1, student.config.context), student.config.vocabulary - 1)
    with torch.inference_mode():
        losses = [own_loss(model, held_out) for model in both]
        seconds = [latency(lambda model=model: model(tokens), rounds) for model in both]
    parameters, stored = [sum(p.numel() for p in model.parameters()) for model in both], [bytes_on_disk(folder / MODEL)
        for folder in folders]
    return {"loss": losses, "parameters": parameters, "bytes": stored, "seconds": seconds, "tokens": tokens.numel()}


def table(result: dict) -> str:
    """Teacher and student, side by side."""
    lines = [f"{'':<34}{'teacher':>14}{'student':>14}"]
    a, b = result["loss"]
    lines.append(f"{'loss on held-out text, nats':<34}{a:>14.3f}{b:>14.3f}   {b - a:+.3f}")
    lines.append(f"{'perplexity':<34}{perplexity(a):>14.2f}{perplexity(b):>14.2f}   "
                 f"{perplexity(b) / perplexity(a):.2f} times")
    for name, key in (("parameters", "parameters"), ("bytes on the disk", "bytes")):
        a, b = result[key]
        lines.append(f"{name:<34}{a:>14,}{b:>14,}   {b / a:.0%}")
    a, b = (1000 * s for s in result["seconds"])
    lines.append(f"{'milliseconds to read ' + str(result['tokens']) + ' tokens':<34}{a:>14.2f}{b:>14.2f}   {a / b:.2f} "
                 f"times as fast")
    return "\n".join(lines)
