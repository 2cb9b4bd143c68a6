"""`distill` from texts: a student language model of a teacher language model."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import torch

from minialign.batching import Batches
from minialign.distill.minilm import train_assistant
from minialign.distill.recipe import distil, own_loss
from minialign.distill.soft_targets import SoftTargets
from minialign.distill.student import start_from, student_config
from minialign.evaluation import bytes_on_disk, latency
from minialign.heads import LanguageModel, describe_model, load_model, same_tokenizer
from minialign.lab.commands import options as cli
from minialign.lab.commands.distill_options import RECIPES, TINY, RecipeDefaults, changed, comparison_table
from minialign.lab.commands.inputs import given_context
from minialign.lab.commands.pretrain import read_both
from minialign.lab.stages import stage_run
from minialign.lab.teacher_cache import WRITTEN, CacheConfig, CachedSoftTargets, written_once
from minialign.pretrain.causal_lm import LabelledRows, NextToken, encode_documents, perplexity
from minialign.pretrain.masked_lm import MaskedLM, MaskingConfig
from minialign.runs.devices import default_device
from minialign.runs.errors import UserError
from minialign.runs.files import fingerprint, typed, write_json
from minialign.runs.run_folder import MODEL, RunFolder
from minialign.tokenizer import Tokenizer


def distil_from_texts(asked: SimpleNamespace) -> None:
    """Teach a new or an old student, write it as a run like any other, and compare it with its teacher."""
    teacher, tokenizer = load_model(asked.teacher, "language-model")
    name = asked.recipe or "soft-targets"
    defaults = recipe_for(name, teacher.config.kind)
    refuse_options(asked, name, defaults, teacher.config.kind)
    configs = changed(name, asked.changes)
    student = make_student(asked, name, defaults, teacher, tokenizer)
    split = asked.student.split or ("file" if defaults.reads == "texts" else "paragraphs")
    texts = read_both(asked.paths, asked.valid, split, teacher.config.context)
    about = {**describe_model(student), "stage": "distill", "recipe": name, "loss": configs[0],
             "training": asked.training, "packed": asked.student.packed, "masking": asked.masking,
             "assistant": asked.student.assistant, "data": fingerprint(list(texts))}
    if defaults.reads != "texts":
        writing = configs[1] if defaults.reads == "written" else None
        about |= {"prompt_tokens": prompt_length(asked), "writing": writing}
    if asked.cache.folder:
        about |= {"top_k": asked.cache.top_k}  # its 16 bits, or its k words, are what is learned
    with stage_run(RunFolder(asked.out), tokenizer, **about, teacher=teacher, student=student) as run:
        reader = min((student, teacher), key=lambda model: model.config.context)  # both read the rows
        data, held_out = make_batches(asked, defaults, tokenizer, reader, texts)
        if defaults.reads != "texts":
            check_prompts(reader, data, configs[-1].new_tokens)
        if not run.finished:
            click.echo(f"{name}: {size(teacher)} teach {size(student)}")
            if defaults.reads == "written":
                prompts = [row[:start] for row, start in data.rows]
                rows = written_once(teacher, prompts, configs[1], asked.training.seed, asked.out / WRITTEN)
                data = LabelledRows(rows, min(asked.training.batch, len(rows)), asked.training.seed)
            cache = [asked.cache] if asked.cache.folder else []
            recipe = (CachedSoftTargets if cache else defaults.loss)(teacher, configs[0], *cache)
            if asked.student.assistant:
                recipe = train_assistant(recipe, asked.student.width, tokenizer, data, held_out, asked.training, run)
            distil(student, recipe, data, held_out, asked.training, run)
            if cache:
                click.echo(f"{asked.cache.folder}: of {recipe.cache.asked:,} texts {recipe.cache.found:,} were known; "
                           f"{recipe.cache.bytes / 1e6:.1f} MB")
    result = {"recipe": name, **measure(asked, teacher, held_out)}
    write_json(asked.out / "report.json", result)
    click.echo("\n" + table(result))
    if not defaults.predicts_words and not getattr(configs[0], "prediction", 0):
        out = typed(asked.out)
        click.echo(f"{name} teaches how to read, no words. To read on: finetune --base {out}; for words: distill "
                   f"--recipe soft-targets --student {out}")
        return
    gap = " ___ …" if teacher.config.kind == "encoder" else ""
    click.echo(f'try it:  python -m minialign sample {typed(asked.out)} --prompt "…{gap}"')


def recipe_for(name: str, kind: str) -> RecipeDefaults:
    """A recipe for a teacher of some kind. Raises UserError where it is for other models; the message lists those there
    are."""
    for_kind = [other for other, recipe in RECIPES.items() if kind in recipe.kinds]
    if not for_kind:
        raise UserError(f"the teacher is an {kind}, and the recipes are for decoders and encoders; choose another "
                        f"--teacher")
    if name not in for_kind:
        kind = "an encoder" if kind == "encoder" else "a decoder"
        what = f"{name} is not for {kind}" if RECIPES[name].kinds else f"there is no recipe {name!r}"
        raise UserError(f"{what}; choose one of {', '.join(for_kind)}")
    return RECIPES[name]


def refuse_options(asked: SimpleNamespace, recipe: str, defaults: RecipeDefaults, kind: str) -> None:
    """Raise UserError for options that change nothing in a recipe."""
    of_a_task = [name for name in ("copies", "chance", "candidates") if name in asked.changes and recipe == TINY]
    cache, given = asked.cache.folder, defaults.reads == "texts"
    for refused, message in (
        (kind == "decoder" and asked.masking != MaskingConfig(), "--chosen, --masked and --replaced hide words from an "
         "encoder, and the teacher is a decoder; leave them out"),
        (given and asked.student.prompt_tokens, "--prompt-tokens is for sequence-level and on-policy, and the recipe "
         f"is {recipe}; leave it out"),
        (not given and cli.is_given("packed"), f"{recipe} reads one text a row, since each begins with a prompt; leave "
         "--packed and --no-packed out"),
        (of_a_task, f"--{''.join(of_a_task[:1])} makes more texts of a task's; give --task, --tuned and --student, or "
         "leave it out"),
        (not cache and asked.cache != CacheConfig(""), "--top-k and --most-gib say how --cache keeps what the teacher "
         "thinks; add --cache FOLDER, or leave them out"),
        (cache and kind == "encoder", "an encoder's words are hidden anew in each epoch, so that no text comes twice; "
         "leave --cache out"),
        (cache and defaults.loss is not SoftTargets, f"--cache keeps what a teacher thinks of given texts, which "
         f"{recipe} does not ask; leave it out"),
    ):
        if refused:
            raise UserError(message)


def make_student(asked: SimpleNamespace, recipe: str, defaults: RecipeDefaults, teacher: LanguageModel,
                 tokenizer: Tokenizer) -> LanguageModel:
    """The run that is there already, or a new model of the shape and start that the options describe."""
    shape, layers = asked.student, asked.student.chosen_layers()
    if shape.run:
        model, words = load_model(Path(shape.run), "language-model")
        same_tokenizer((Path(shape.run), words), (asked.teacher, tokenizer))
        return model
    if shape.assistant and (not recipe.startswith("minilm") or shape.heads or shape.start == "teacher" or layers):
        raise UserError("--assistant is for minilm and minilm-v2, and its student starts at random with the teacher's "
                        "heads; leave the other option out")
    from_teacher = shape.start == "teacher" or (defaults.from_teacher and not shape.start)
    if layers and not from_teacher:
        raise UserError(f"--layers-from is for a student that begins as layers of its teacher, and {recipe} starts at "
                        f"random; add --start teacher")
    config = student_config(teacher.config, shape.layers, shape.width, shape.heads)
    student = LanguageModel(config, asked.training.seed).to(default_device())
    return start_from(student, teacher, layers) if from_teacher else student


@given_context()
def make_batches(asked: SimpleNamespace, defaults: RecipeDefaults, tokenizer: Tokenizer, model: LanguageModel,
                 texts: tuple[list[str], list[str]]) -> tuple[Batches, list]:
    """Training data, and up to eight batches to validate on, always the same ones. Where the recipe needs prompts:
    texts, one a row and cut at the context, taught from where their prompts end (validation: from their first word)."""
    made, context, packed, prompt = [], model.config.context, asked.student.packed, prompt_length(asked)
    places = asked.paths[0], asked.valid or asked.paths[-1]
    for part, place, seed, length in zip(texts, map(str, places), (asked.training.seed, 0), (prompt, 1)):
        how = dataclasses.replace(asked.training, seed=seed)
        if defaults.reads != "texts":
            rows = [ids[: context + 1] for ids in encode_documents(tokenizer, part)]
            taught = [(row, min(length, len(row) - 1)) for row in rows]
            made.append(LabelledRows(taught, min(how.batch, len(rows)), seed))
        else:
            objective = NextToken(packed) if model.config.kind == "decoder" else MaskedLM(asked.masking, packed)
            made.append(objective.batches(tokenizer, part, model.config, how, place))
    data, valid = made
    return data, valid.first()


def prompt_length(asked: SimpleNamespace) -> int:
    """Tokens of a prompt, the begin token among them."""
    return asked.student.prompt_tokens or 8


def check_prompts(model: LanguageModel, data: LabelledRows, new_tokens: int) -> None:
    """Raise UserError when what is to be written after the longest prompt does not fit the model's context."""
    longest, context = max(start for _, start in data.rows), model.config.context
    if longest + new_tokens > context:
        raise UserError(f"prompts of {longest} tokens and {new_tokens} new ones do not fit the context of {context}; "
                        f"use a smaller --new-tokens or --prompt-tokens")


def size(model: LanguageModel) -> str:
    """Parameters and layers in words."""
    layers = model.config.layers
    return f"{sum(p.numel() for p in model.parameters()):,} parameters in {layers} layer{'s' if layers > 1 else ''}"


def measure(asked: SimpleNamespace, teacher: LanguageModel, held_out: list) -> dict[str, Any]:
    """Loss, parameters, bytes and latency of both."""
    both = teacher, load_model(asked.out, "language-model")[0]
    context = min(model.config.context for model in both)
    tokens = torch.full((1, context), both[1].config.vocabulary - 1, device=default_device())
    with torch.inference_mode():
        losses = [own_loss(model, held_out) for model in both]
        seconds = [latency(lambda model=model: model(tokens), 3 if asked.fast else 9) for model in both]
    return {"loss": losses, "parameters": [sum(p.numel() for p in model.parameters()) for model in both],
            "bytes": [bytes_on_disk(folder / MODEL) for folder in (asked.teacher, asked.out)], "seconds": seconds,
            "tokens": tokens.numel()}


def table(result: dict[str, Any]) -> str:
    """Teacher and student, side by side."""
    loss, times = result["loss"], [1000 * seconds for seconds in result["seconds"]]
    perplexities = [perplexity(x) for x in loss]
    return comparison_table(["teacher", "student"], [
        ("loss on held-out text, nats", loss, ".3f", f"   {loss[1] - loss[0]:+.3f}"),
        ("perplexity", perplexities, ".2f", f"   {perplexities[1] / perplexities[0]:.2f} times"),
        *((title, result[key], ",", f"   {result[key][1] / result[key][0]:.0%}")
          for title, key in (("parameters", "parameters"), ("bytes on the disk", "bytes"))),
        (f"milliseconds to read {result['tokens']} tokens", times, ".2f",
         f"   {times[0] / times[1]:.2f} times as fast"),
    ])
