"""`python -m minialign instruct [--style t0|t5|flan] [--tasks FILE.jsonl --templates FILE]`"""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click

from minialign.heads import LanguageModel, describe_model, load_model
from minialign.instruct.flan import question_rows
from minialign.instruct.mixture import (
    MixtureConfig,
    Split,
    draw_training_and_validation,
    question_ids,
    split_by_cluster,
)
from minialign.instruct.t0 import T0, tune_on_questions
from minialign.instruct.t5 import prefix_templates
from minialign.instruct.zero_shot import examine, examined, posed
from minialign.lab.bases.make import BASES, load_base
from minialign.lab.commands import options as cli
from minialign.lab.commands.inputs import fill_a_batch
from minialign.lab.demo import instruct as world
from minialign.lab.interchange.tasks_file import fill, is_yaml, read_tasks, read_templates
from minialign.lab.stages import stage_run
from minialign.runs.errors import UserError
from minialign.runs.files import fingerprint, typed, write_json
from minialign.runs.run_folder import RunFolder
from minialign.tokenizer import Tokenizer
from minialign.training import TrainingConfig
from minialign.world.datasets import CLUSTERS, HELD_OUT, PROMPTS
from minialign.world.templates import Template


@click.command(cls=cli.Command)
@cli.file_option("--base RUN", "The pretrained run to start from; without it one of data/bases, which can read.")
@cli.choice_option("--style", ["t0", "t5", "flan"], "t0", "Many wordings, one prefix a task, or a decoder.")
@cli.file_option("--tasks FILE.jsonl", "Your examples, one JSON object a line; without it the toy world's 65 datasets.")
@cli.file_option("--templates FILE", "Their wordings: JSON, a templates.yaml of the PromptSource collection, or a "
                                     "folder of these.")
@cli.option("--hold-out", multiple=True,
            text=f"A cluster that is examined and never trained on; may be repeated. [{', '.join(HELD_OUT)}]")
@cli.count_option("--fixed", 0, 0, 10**6, "Of the toy world: learn from so many examples of each dataset again and "
                                          "again. 0: every question is a new one.")
@cli.count_option("--turns", world.InstructConfig.turns, 1, 100, "Of the toy world: most questions on one passage that "
                                                                 "a decoder is asked in a row.")
@cli.count_option("--reread", world.InstructConfig.reread, 0, 10**6, "Of the toy world: every so many steps show what "
                                                                     "the base learned from. 0: none does.")
@cli.flag("--skip-long", text="Leave out questions that do not fit the context, and say how many, instead of stopping.")
@cli.flag("--mean-logprob", text="Rank options by the mean over their tokens instead of the sum.")
@cli.run_options(out="runs/instruct")
@cli.configured("Training", "training", T0, world.QUICK)
@cli.configured("Mixture", "mixture", MixtureConfig(manners=True), {"questions": 400},
                rename={"templates": "wordings_per_task"})
@cli.gather_options
def command(args, training, mixture):
    """Tune a model on many tasks in many wordings, and examine it on tasks that it never saw.

    Writes OUT/2-instructed (the model) and its examination.json: for each task that was held out the accuracy in every
    wording.

    \b
    Example:  python -m minialign instruct                                              the toy world's T0
    Example:  python -m minialign instruct --base runs/t5 --tasks mine.jsonl --templates mine.json --hold-out mail
    Then:     python -m minialign ask runs/instruct/2-instructed --prompt "…" --options yes,no
    """
    if (args.tasks is None) != (args.templates is None):
        raise UserError("--tasks and --templates belong together; give both, or neither for the toy world's")
    refuse_options(args.tasks is None)
    run = on_the_world(args, training, mixture) if args.tasks is None else on_own_tasks(args, training, mixture)
    click.echo(f'try it:  python -m minialign ask {typed(run.path)} --prompt "…" --options yes,no')


def refuse_options(world_s: bool) -> None:
    """Raise UserError for options that are for the other kind of tasks, the toy world's or one's own, and change
    nothing here."""
    other = "tasks of your own" if world_s else "the toy world"
    for name in ("questions", "cap", "skip_unfit") if world_s else ("fixed", "turns", "reread"):
        if cli.is_given(name):
            raise UserError(f"{cli.as_flag(name)} is for {other}, and changes nothing here; leave it out")


def on_the_world(args: SimpleNamespace, training: TrainingConfig, mixture: MixtureConfig) -> RunFolder:
    """Tune on the toy world's tasks and examine what was held out."""
    held_out = tuple(name for name in CLUSTERS if name in (args.hold_out or HELD_OUT))  # each once, in one order
    unknown = [name for name in args.hold_out if name not in CLUSTERS]
    if unknown:
        raise UserError(f"there is no cluster {unknown[0]!r} to hold out; known are {', '.join(CLUSTERS)}")
    quick = {"adapt_steps": world.FAST.adapt_steps, "examined": world.FAST.examined} if args.fast else {}
    config = world.InstructConfig(training, args.fixed, args.turns, args.reread, **quick)
    templates = world.trained_on(mixture, None, held_out)
    base = styled(args.base or BASES / world.STYLES[args.style], args.style)
    if args.base is None and args.style != "flan":
        base = world.adapt(config, args.seed, args.out / world.ADAPTED)
    count = len(templates) if args.style == "t5" else sum(map(len, templates.values()))  # T5: one prefix each
    click.echo(f"{count:,} instructions of {len(templates)} tasks; the clusters {', '.join(held_out)} are held out")
    asked = world.held_out_examples(config.examined, held_out)
    wordings = prefix_templates(asked) if args.style == "t5" else PROMPTS
    asked = that_fit(*load_model(base, "language-model"), asked, wordings, mixture, args.skip_long)
    tuned = world.tune(config, args.style, base, templates, args.seed, args.out / world.TUNED, held_out)
    run = RunFolder(tuned)
    model, tokenizer = load_model(run.path, "language-model")
    report(examine(model, tokenizer, asked, wordings, mean_logprob=args.mean_logprob), "held out", run.path)
    return run


def on_own_tasks(args: SimpleNamespace, training: TrainingConfig, mixture: MixtureConfig) -> RunFolder:
    """Tune on the user's tasks and examine what was held out."""
    if args.style == "t5" and is_yaml(args.templates):
        raise UserError("--style t5 asks for a task in one fixed way, made of the fields of its examples; templates in "
                        "YAML have no use there, so choose another --style", args.templates)
    split, wordings = own_side(args.tasks, args.templates, args.hold_out, mixture, args.seed)
    model, tokenizer = load_model(styled(args.base or BASES / world.STYLES[args.style], args.style), "language-model")
    if args.style == "t5":  # one way to ask for each task, and one to answer
        wordings, mixture = prefix_templates(split.train | split.held_out), replace(mixture, manners=False)
    questions, valid = draw_training_and_validation(split, wordings, mixture)
    fill_a_batch(len(questions), "questions to learn from", training.batch, args.tasks)
    learned = {question.task for question in questions}  # fewer than there are, with few --instructions
    examples = split.held_out or {task: found for task, found in split.validation.items() if task in learned}
    asked = that_fit(model, tokenizer, examples, wordings, mixture, args.skip_long)
    about = {**describe_model(model), "stage": args.style, "training": training, "mixture": mixture}
    about |= {"hold_out": list(args.hold_out), "data": fingerprint([[q.prompt, q.target] for q in questions])}
    with stage_run(RunFolder(args.out / world.TUNED), tokenizer, **about, base=model) as run:
        if not run.finished:
            click.echo(f"{len(questions):,} questions of {len(learned)} tasks; {len(split.held_out)} tasks are "
                       f"held out")
            result = tune_on_questions(model, tokenizer, questions, valid, training, run, args.skip_long)
            if result["skipped"]:
                click.echo(f"{result['skipped']:,} questions do not fit the context and are left out")
        model = load_model(run.path, "language-model")[0]
        side = "held out" if split.held_out else "trained, other examples"
        found = examine(model, tokenizer, asked, wordings, mean_logprob=args.mean_logprob,
                        skip_unfit=mixture.skip_unfit)
        report(found, side, run.path)
    return run


def that_fit(model: LanguageModel, tokenizer: Tokenizer, datasets: dict[str, list[dict]],
             wordings: dict[str, list[Template]], mixture: MixtureConfig, skip_long: bool) -> dict[str, list[dict]]:
    """The examples to examine, found to fit the context in every wording before anything is trained. With `skip_long`
    those that do not are left out, which is said; without it a UserError."""
    rows_of = question_rows if model.config.kind == "decoder" else question_ids
    kept: dict[str, list[dict]] = {}
    for task, found in datasets.items():
        for example in found:
            questions = [replace(question, target=option) for template in examined(wordings[task])
                         for question in posed(template, [example], mixture.skip_unfit) for option in question.options]
            if not rows_of(tokenizer, questions, model.config.context, skip_long)[1]:
                kept.setdefault(task, []).append(example)
    if left_out := sum(map(len, datasets.values())) - sum(map(len, kept.values())):
        click.echo(f"of the examples to be examined {left_out:,} do not fit the context and are left out")
    return kept


def styled(base: Path, style: str) -> Path:
    """The base, if it is whole and of the kind that the style needs. Raises UserError where it is not."""
    model = (load_base(base)[0] if base.parent == BASES else load_model(base, "language-model")[0])
    holds, needed = model.config.kind, "a decoder" if style == "flan" else "an encoder-decoder"
    if holds != needed.split()[1]:
        article = "a" if holds == "decoder" else "an"
        raise UserError(f"holds {article} {holds}, and --style {style} needs {needed}; choose another --base or "
                        f"--style", base)
    return base


def own_side(tasks: Path, templates: Path, hold_out: tuple[str, ...], mixture: MixtureConfig,
             seed: int) -> tuple[Split, dict[str, list]]:
    """The user's tasks and wordings, every one filled once, so that a fault is found before anything is trained."""
    datasets = read_tasks(tasks, plain=not is_yaml(templates))
    wordings, unusable = read_templates(templates, datasets)
    for name, why in unusable:
        click.echo(f"{templates}: template {name!r} is not used: {why}")
    questions, skipped = fill(datasets, wordings, mixture.skip_unfit)
    left_out = f"; {skipped:,} pairs are left out by the templates' own conditions" if skipped else ""
    click.echo(f"{len(questions):,} questions can be made{left_out}")
    return split_by_cluster(datasets, hold_out, seed=seed), wordings


def report(found: dict[str, Any], side: str, folder: Path) -> None:
    """Write examination.json and say what is in it; `side` says where its examples are from."""
    write_json(folder / "examination.json", {
        task: {"side": side, "median": r.median, "chance": r.chance, "spread": r.spread,
               "quartile_range": r.quartile_range, "templates": r.accuracies} for task, r in found.items()})
    if not found:
        click.echo("no example is left that has options to rank, so nothing was examined")
        return
    click.echo(f"{'task':<20} {'median':>7} {'chance':>7} {'spread':>7}   ({side}; spread over wordings)")
    for task, result in found.items():
        click.echo(f"{task:<20} {result.median:>7.3f} {result.chance:>7.3f} {result.spread:>7.3f}")
