"""`python -m minialign distill --teacher RUN --recipe NAME --text FILES…`"""

from pathlib import Path
from types import SimpleNamespace

import click

from minialign.lab.commands import options as cli
from minialign.lab.commands.distill_options import RECIPES, StudentConfig, recipe_fields
from minialign.lab.commands.distill_sentences import distil_encoder, is_sentence_teacher
from minialign.lab.commands.distill_task import distil_second_stage
from minialign.lab.commands.distill_texts import distil_from_texts
from minialign.lab.teacher_cache import CacheConfig
from minialign.pretrain.masked_lm import MaskingConfig
from minialign.runs.errors import UserError
from minialign.training import TrainingConfig

DEFAULT = TrainingConfig(steps=1000, batch=16, learning_rate=2e-3)
FAST = {"steps": 40, "validate_every": 20}


@click.command(cls=cli.Command, trains=True)
@click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="[FILES]…")
@cli.file_option("--teacher RUN", required=True,
                 text="A finished run; or `minilm`, or the folder of another BERT that gives vectors of sentences.")
@cli.option("--recipe", type=click.Choice(list(RECIPES)), default=None,
            text="How.  [default: soft-targets; sentence-vectors of a BERT]")
@cli.file_option("--text FILES…", "Text to learn from: .txt files, or .jsonl files with a field `text`; more may "
                 "follow.", multiple=True)
@cli.file_option("--valid FILE", "A file to validate on; without it the last twentieth of the documents is held out.")
@cli.file_option("--task FILE.jsonl", "tinybert's second stage: lines with `text` and `label`, instead of --text.")
@cli.file_option("--tuned FOLDER", "With --task: what `finetune --base TEACHER` wrote for these lines, OUT/METHOD.")
@cli.run_options(out="runs/distill")
@cli.configured("Student and texts", "student", StudentConfig(), rename={"run": "student"})
@cli.overrides("Instead of the recipe's own", "changes", recipe_fields())
@cli.configured("Training", "training", DEFAULT, FAST)
@cli.configured("Masked language modelling", "masking", MaskingConfig())
@cli.configured("Cache", "cache", CacheConfig(""), rename={"folder": "cache"})
def command(**options):
    """Teach a small model what a large one says and thinks, and compare the two.

    OUT is a run like any other: sample, finetune, evaluate and quantize take it.

    \b
    sequence-level   the teacher goes on from the beginning of each text, and the student learns what it wrote
                     (OUT/written.jsonl)
    on-policy        the student goes on itself, and the teacher says what it would have said; begin with a student that
                     can write
    tinybert         with --task and --tuned its second stage: a student of the first one (--student) learns from a
                     teacher tuned on a task

    \b
    Example:  python -m minialign distill --teacher runs/pretrain --recipe distilgpt2 --text plays/*.txt
    Example:  python -m minialign distill --teacher runs/bert --recipe minilm --layers 2 --width 64 --text plays/*.txt
    Example:  python -m minialign distill --teacher runs/gpt --recipe on-policy --student runs/small --text plays/*.txt
    Example:  python -m minialign distill --teacher runs/bert --tuned runs/tuned/full --student runs/tiny --task a.jsonl
    Example:  python -m minialign distill --teacher minilm --layers 3 --text tweets.txt       (downloads 84 MB)
    """
    asked = SimpleNamespace(**options, paths=[*options["text"], *options["files"]])
    if asked.task is not None or asked.tuned is not None:
        distil_second_stage(asked)
        return
    if not asked.paths:
        raise UserError("there is no text to learn from; name files with --text")
    if asked.student.run and asked.student.makes_one():
        raise UserError("--student is a model that is there already; leave --layers, --width, --heads, --start, "
                        "--layers-from and --assistant out")
    (distil_encoder if is_sentence_teacher(asked.teacher) else distil_from_texts)(asked)
