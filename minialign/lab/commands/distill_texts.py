"""`distill` from texts: a student language model of a teacher language model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click
import torch
from click.core import ParameterSource

from minialign.batching import text_rows
from minialign.distill.minilm import train_assistant
from minialign.distill.recipe import distil, own_loss
from minialign.distill.recipes import RECIPES, RecipeDefaults
from minialign.distill.soft_targets import SoftTargets
from minialign.distill.student import start_from, student_config
from minialign.evaluation import bytes_on_disk, latency
from minialign.generation import check_room
from minialign.heads import LanguageModel, describe_model, load_model, same_tokenizer
from minialign.lab.commands.distill_options import TINY, Request, table_row
from minialign.lab.commands.inputs import read_documents
from minialign.lab.commands.pretrain import hold_out_the_end
from minialign.lab.teacher_cache import WRITTEN, CacheConfig, CachedSoftTargets, written_once
from minialign.pretrain.causal_lm import LabelledRows, encode_documents, perplexity, training_rows
from minialign.pretrain.masked_lm import MaskedText, MaskingConfig
from minialign.runs.errors import UserError
from minialign.runs.files import fingerprint, write_json
from minialign.runs.run_folder import MODEL, RunFolder
from minialign.runs.settings import to_dict
from minialign.runs.tensors import digest, tensors_of
from minialign.tokenizer import BEGIN, Tokenizer
from minialign.training import Data

PROMPT = 8  # tokens of a prompt, the begin token among them


def distil_from_texts(asked: Request) -> None:
    """Teach a new or an old student, write it as a run like any other, and compare it with its teacher."""
    teacher, tokenizer = load_model(asked.teacher, "language-model")
    recipe = asked.recipe or "soft-targets"
    defaults = recipe_for(recipe, teacher.config.kind)
    refuse_options(asked, recipe, defaults, teacher.config.kind)
    config, *writing = configs = asked.changed(recipe)
    student = make_student(asked, recipe, defaults, teacher, tokenizer)
    split = asked.reading.split or ("file" if defaults.reads == "texts" else "paragraphs")
    texts = read_both(asked, split, teacher.config.context)
    run, prompt = RunFolder(asked.out), asked.reading.prompt_tokens or PROMPT
    with run.locked():
        about = {**describe_model(student), "stage": "distill", "recipe": recipe, "loss": to_dict(config),
                 "training": to_dict(asked.training), "packed": asked.reading.packed, "masking": to_dict(asked.masking),
                 "assistant": asked.student.assistant, "data": fingerprint(list(texts))}
        if defaults.reads != "texts":
            about |= {"prompt_tokens": prompt, "writing": to_dict(writing[0]) if defaults.writing else None}
        if asked.cache.folder:
            about |= {"top_k": asked.cache.top_k}  # its 16 bits, or its k words, are what is learned
        about |= {name: digest(tensors_of(model))[:16] for name, model in (("teacher", teacher), ("student", student))}
        run.begin(about, tokenizer)
        if defaults.reads == "texts":
            data, held_out = batches(asked, tokenizer, student, *texts)
        else:
            data, held_out = prompted_batches(asked, tokenizer, *texts, teacher.config.context, prompt)
            check_prompts(teacher, data, configs[-1].new_tokens)
        if not run.finished:
            click.echo(f"{recipe}: {size(teacher)} teach {size(student)}")
            if defaults.reads == "written":
                prompts = [row[:start] for row, start in data.rows]
                rows = written_once(teacher, prompts, writing[0], asked.training.seed, asked.out / WRITTEN)
                data = LabelledRows(rows, min(asked.training.batch, len(rows)), asked.training.seed)
            teach(asked, defaults.loss, config, teacher, tokenizer, student, (data, held_out), run)
    result = {"recipe": recipe, **measure(asked, teacher, held_out)}
    write_json(asked.out / "report.json", result)
    click.echo("\n" + table(result))
    if not defaults.predicts_words and not getattr(config, "prediction", 0):
        click.echo(f"{recipe} teaches how to read, no words. To read on: finetune --base {asked.out}; for words: "
                   f"distill --recipe soft-targets --student {asked.out}")
    click.echo(f'try it:  python -m minialign sample {asked.out} --prompt "…"')


def teach(asked: Request, loss: type, config, teacher: LanguageModel, tokenizer: Tokenizer, student: LanguageModel,
          data: tuple[Data, list], run: RunFolder) -> None:
    """Train the student, after its assistant where one is asked for."""
    recipe = CachedSoftTargets(teacher, config, asked.cache) if asked.cache.folder else loss(teacher, config)
    if asked.student.assistant:
        recipe = train_assistant(recipe, asked.student.width, tokenizer, *data, asked.training, run)
    distil(student, recipe, *data, asked.training, run)
    if asked.cache.folder:
        known = recipe.cache
        click.echo(f"{asked.cache.folder}: of {known.asked:,} texts {known.found:,} were known; "
                   f"{known.bytes / 1e6:.1f} MB")


def recipe_for(name: str, kind: str) -> RecipeDefaults:
    """A recipe for a teacher of some kind. Raises UserError when there is none, or it is for other models; the message
    lists those there are."""
    for_kind = [other for other, recipe in RECIPES.items() if kind in recipe.kinds]
    if not for_kind:
        raise UserError(f"the teacher is an {kind}, and the recipes are for decoders and encoders; choose another "
                        f"--teacher")
    if name not in for_kind:
        what = (f"{name} is not for {'an' if kind[0] == 'e' else 'a'} {kind}" if name in RECIPES
                else f"there is no recipe {name!r}")
        raise UserError(f"{what}; choose one of {', '.join(for_kind)}")
    return RECIPES[name]


def refuse_options(asked: Request, recipe: str, defaults: RecipeDefaults, kind: str) -> None:
    """Raise UserError for options that change nothing in a recipe."""
    packed = click.get_current_context().get_parameter_source("packed") is ParameterSource.COMMANDLINE
    of_a_task, cache = [name for name in ("copies", "chance", "candidates") if name in asked.changes], asked.cache
    if kind == "decoder" and asked.masking != MaskingConfig():
        raise UserError("--chosen, --masked and --replaced hide words from an encoder, and the teacher is a decoder; "
                        "leave them out")
    if defaults.reads == "texts" and asked.reading.prompt_tokens:
        raise UserError(f"--prompt-tokens is for sequence-level and on-policy, and the recipe is {recipe}; leave it "
                        f"out")
    if defaults.reads != "texts" and packed:
        raise UserError(f"{recipe} reads one text a row, since each begins with a prompt; leave --packed and "
                        f"--no-packed out")
    if recipe == TINY and of_a_task:
        raise UserError(f"--{of_a_task[0]} makes more texts of a task's; give --task, --tuned and --student, or leave "
                        f"it out")
    if not cache.folder and cache != CacheConfig(""):
        raise UserError("--top-k and --most-gib say how --cache keeps what the teacher thinks; add --cache FOLDER, or "
                        "leave them out")
    if cache.folder and kind == "encoder":
        raise UserError("an encoder's words are hidden anew in each epoch, so that no text comes twice; leave --cache "
                        "out")
    if cache.folder and defaults.loss is not SoftTargets:
        raise UserError(f"--cache keeps what a teacher thinks of given texts, which {recipe} does not ask; leave it "
                        f"out")


def make_student(asked: Request, recipe: str, defaults: RecipeDefaults, teacher: LanguageModel,
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
    student = LanguageModel(config, asked.training.seed)
    return start_from(student, teacher, layers) if from_teacher else student


def read_both(asked: Request, split: str, context: int) -> tuple[list[str], list[str]]:
    """Documents to learn from, and to validate on."""
    documents = [document for path in asked.paths for document in read_documents(path, split)]
    return (documents, read_documents(asked.valid, split)) if asked.valid else hold_out_the_end(documents, context)


def batches(asked: Request, tokenizer: Tokenizer, student: LanguageModel, texts: list[str],
            valid: list[str]) -> tuple[Data, list]:
    """Training data, and up to eight batches that are always the same ones."""
    made, context, reading = [], student.config.context, asked.reading
    places = str(asked.paths[0]), str(asked.valid or asked.paths[-1])
    for part, place, seed in ((texts, places[0], asked.training.seed), (valid, places[1], 0)):
        if student.config.kind == "decoder":
            how = dataclasses.replace(asked.training, seed=seed)
            made.append(training_rows(encode_documents(tokenizer, part), context, how, reading.packed, place))
        else:
            rows = [[BEGIN, *row] for row in text_rows(tokenizer.encode_many(part), context - 1, reading.packed, place)]
            batch = min(asked.training.batch, len(rows))
            made.append(MaskedText(rows, batch, seed, student.config.vocabulary, asked.masking))
    return made[0], first_batches(made[1])


def prompted_batches(asked: Request, tokenizer: Tokenizer, texts: list[str], valid: list[str], context: int,
                     prompt: int) -> tuple[LabelledRows, list]:
    """Texts, one a row and cut at the context, taught from where their prompts end; and batches to validate on, taught
    from their first word on."""
    made = []
    for part, length, seed in ((texts, prompt, asked.training.seed), (valid, 1, 0)):
        rows = [ids[: context + 1] for ids in encode_documents(tokenizer, part)]
        taught = [(row, min(length, len(row) - 1)) for row in rows]
        made.append(LabelledRows(taught, min(asked.training.batch, len(rows)), seed))
    return made[0], first_batches(made[1])


def first_batches(data: Data) -> list:
    """Up to eight batches, always the same ones."""
    return [batch for step in range(min(8, data.order.steps_in_epoch)) for batch in data.microbatches(step, 1)]


def check_prompts(model: LanguageModel, data: LabelledRows, new_tokens: int) -> None:
    """Raise UserError when what is to be written after the longest prompt does not fit the model's context."""
    longest = max(start for _, start in data.rows)
    try:
        check_room(model.config, longest, new_tokens)
    except UserError:
        raise UserError(f"prompts of {longest} tokens and {new_tokens} new ones do not fit the context of "
                        f"{model.config.context}; use a smaller --new-tokens or --prompt-tokens") from None


def size(model: LanguageModel) -> str:
    """Parameters and layers in words."""
    layers = model.config.layers
    return (f"{sum(p.numel() for p in model.parameters()):,} parameters in {layers} "
            f"{'layer' if layers == 1 else 'layers'}")


def measure(asked: Request, teacher: LanguageModel, held_out: list) -> dict[str, list[float]]:
    """Loss, parameters, bytes and latency of both."""
    student = load_model(asked.out, "language-model")[0]
    both, tokens = (teacher, student), torch.full((1, student.config.context), student.config.vocabulary - 1)
    with torch.inference_mode():
        losses = [own_loss(model, held_out) for model in both]
        seconds = [latency(lambda model=model: model(tokens), 3 if asked.fast else 9) for model in both]
    return {"loss": losses, "parameters": [sum(p.numel() for p in model.parameters()) for model in both],
            "bytes": [bytes_on_disk(folder / MODEL) for folder in (asked.teacher, asked.out)], "seconds": seconds,
            "tokens": tokens.numel()}


def table(result: dict) -> str:
    """Teacher and student, side by side."""
    losses, times = result["loss"], [1000 * s for s in result["seconds"]]
    perplexities = [perplexity(loss) for loss in losses]
    lines = [
        table_row("", ["teacher", "student"], ""),
        table_row("loss on held-out text, nats", losses, ".3f", f"{losses[1] - losses[0]:+.3f}"),
        table_row("perplexity", perplexities, ".2f", f"{perplexities[1] / perplexities[0]:.2f} times"),
    ]
    for title, (a, b) in (("parameters", result["parameters"]), ("bytes on the disk", result["bytes"])):
        lines.append(table_row(title, [a, b], ",", f"{b / a:.0%}"))
    title = f"milliseconds to read {result['tokens']} tokens"
    return "\n".join([*lines, table_row(title, times, ".2f", f"{times[0] / times[1]:.2f} times as fast")])
