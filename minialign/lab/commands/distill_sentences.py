r"""`distill` for a teacher that gives vectors of sentences: MiniLM-L6, or any BERT in its folder."""

import copy
import dataclasses
from pathlib import Path
from types import SimpleNamespace

import click

from minialign.evaluation import latency
from minialign.lab.commands import options as cli
from minialign.lab.commands.distill_options import SENTENCES, StudentConfig, changed, comparison_table
from minialign.lab.commands.inputs import fill_a_batch
from minialign.lab.commands.pretrain import read_both
from minialign.lab.interchange.folder import PretrainedTokenizer
from minialign.lab.interchange.published import architecture, load_published, write_bert
from minialign.lab.pretrained import sentence_vectors
from minialign.lab.pretrained.bert import Bert, row_vectors, sentence_rows
from minialign.lab.pretrained.minilm import load_minilm
from minialign.lab.stages import stage_run
from minialign.lab.teacher_cache import CacheConfig
from minialign.pretrain.masked_lm import MaskingConfig
from minialign.runs.devices import default_device
from minialign.runs.errors import UserError
from minialign.runs.files import fingerprint, write_json
from minialign.runs.run_folder import MODEL, RunFolder
from minialign.runs.tensors import load_into, read_tensors, tensors_of
from minialign.training import TrainingConfig

MINILM, BERT = "minilm", "bert"  # the teacher's name; folder for other libraries, inside the run's
OWN = {"steps": 500, "batch": 32, "learning_rate": 3e-4, "weight_decay": 0.01}  # in place of the command's defaults
QUICK = {"steps": 10, "batch": 8}  # with --fast
# tokens of a text; texts to validate on, for the table, and for both together
LONGEST, LOOKED_AT, TESTED, FEWEST = 128, 256, 1000, 8


def is_sentence_teacher(teacher: Path) -> bool:
    """Whether this is MiniLM's name, the folder of a BERT, or a run of ours that left one."""
    named = str(teacher) == MINILM and not teacher.exists()
    return named or "bert" in (architecture(teacher), architecture(teacher / BERT))


def load_teacher(teacher: Path) -> tuple[Bert, PretrainedTokenizer]:
    """The teacher and its tokenizer."""
    if not teacher.exists():
        model, tokenizer = load_minilm()
    else:
        model, tokenizer = load_published(teacher if architecture(teacher) == "bert" else teacher / BERT)
    return model.to(default_device()), tokenizer


def distil_encoder(asked: SimpleNamespace) -> None:
    """Teach a small BERT the vectors of sentences, write it as a folder that other libraries read, and say what it
    keeps."""
    of_words = asked.masking != MaskingConfig() or asked.cache != CacheConfig("")
    if asked.recipe not in (None, SENTENCES) or asked.student.run or asked.student.assistant or of_words:
        raise UserError(f"{asked.teacher} gives vectors of sentences; its recipe is {SENTENCES}, without --student, "
                        f"--assistant, masking and a cache")
    texts, held_out = read_both(asked.paths, asked.valid, asked.student.split or "paragraphs", 64)
    (config,), training, out = changed(SENTENCES, asked.changes), own_defaults(asked), asked.out
    held_out = check_texts(texts, held_out, training)
    teacher, tokenizer = load_teacher(asked.teacher)
    student, untrained = new_student(teacher, asked.student, training.seed)
    if untrained is None:
        config = dataclasses.replace(config, frozen_words=False)  # a random table must learn
    rows, valid = (sentence_rows(tokenizer, part, min(LONGEST, teacher.config.context)) for part in (texts, held_out))
    half = min(LOOKED_AT, len(valid) // 2)
    looked_at, tested = valid[:half], valid[half:][:TESTED]
    about = {"what": "sentence-encoder", "model": student.config, "stage": "distill", "recipe": SENTENCES,
             "loss": config, "training": training, "data": fingerprint([texts, held_out])}
    with stage_run(RunFolder(out), tokenizer, **about, teacher=teacher, student=student) as run:
        if not run.finished:
            click.echo(f"{len(rows):,} texts; the teacher first reads those that will be shown; "
                       f"{teacher.config.layers} layers teach {student.config.layers}")
            sentence_vectors.distil_sentences(student, teacher, rows, looked_at, training, run, config)
        load_into(student, read_tensors(out / MODEL)[0], out / MODEL)
        write_bert(student, tokenizer, out / BERT)
    models = {"teacher": teacher, **({"cut off": untrained} if untrained else {}), "student": student}
    result = measure(models, tested, 2 if asked.fast else 7)
    write_json(out / "report.json", result)
    click.echo("\n" + table(result, len(tested)))
    click.echo(f"{out / BERT} is a folder that the transformers library reads, and `distill --teacher`")


def own_defaults(asked: SimpleNamespace) -> TrainingConfig:
    """The settings with this recipe's values in place of those that were not given on the command line."""
    ours = OWN | (QUICK if asked.fast else {})
    return dataclasses.replace(asked.training, **{k: v for k, v in ours.items() if not cli.is_given(k)})


def check_texts(texts: list[str], held_out: list[str], training: TrainingConfig) -> list[str]:
    """The held-out texts that are not learned from. Raises UserError for too few texts."""
    fill_a_batch(len(texts), "texts to learn from", training.batch, None)
    known = set(texts)
    held_out = [text for text in dict.fromkeys(held_out) if text not in known]
    if len(held_out) < FEWEST:
        raise UserError(f"{len(held_out)} held-out texts that are not learned from are too few for similarities; give "
                        f"{FEWEST} or more with --valid")
    return held_out


def new_student(teacher: Bert, shape: StudentConfig, seed: int) -> tuple[Bert, Bert | None]:
    """The student; and the same untrained, for comparison, when it begins as layers of the teacher, which it does if it
    can and is not told otherwise."""
    layers = shape.chosen_layers()
    config = sentence_vectors.sentence_config(teacher.config, shape.layers, shape.width, shape.heads)
    same = (config.width, config.heads) == (teacher.config.width, teacher.config.heads)
    if shape.start == "random" and layers:
        raise UserError("--layers-from is for a student that begins as layers of its teacher; leave --start random out")
    if shape.start == "random" or not (shape.start or same or layers):
        return sentence_vectors.random_student(config, seed), None
    student = sentence_vectors.sentence_student(teacher, shape.layers, shape.width, shape.heads, layers)
    return student, copy.deepcopy(student).eval()


def measure(models: dict[str, Bert], rows: list[list[int]], rounds: int) -> dict[str, dict[str, float]]:
    """What each keeps of the teacher's similarities, its parameters and bytes, and the time for a batch of texts."""
    found, goal, some = {}, row_vectors(models["teacher"], rows), rows[:32]
    for name, model in models.items():
        found[name] = sentence_vectors.kept(goal if name == "teacher" else row_vectors(model, rows), goal) | {
            "parameters": sum(p.numel() for p in model.parameters()),
            "layers alone": sum(p.numel() for p in model.body.blocks.parameters()),
            "bytes": sum(t.numel() * t.element_size() for t in tensors_of(model).values()),
            "milliseconds": 1000 * latency(lambda model=model: row_vectors(model, some), rounds) / len(some),
        }
    return found


def table(result: dict[str, dict[str, float]], texts: int) -> str:
    """All models side by side."""
    rows = [("Pearson's r of the similarities", "pearson", ".4f"), ("Spearman's ρ", "spearman", ".4f"),
            ("same nearest text", "nearest", ".4f"), ("squared difference", "validation", ".4f"),
            ("parameters", "parameters", ","), ("layers alone", "layers alone", ","), ("bytes", "bytes", ","),
            ("milliseconds a text", "milliseconds", ".2f")]
    found = [(title, [numbers[key] for numbers in result.values()], form, "") for title, key, form in rows]
    return comparison_table(list(result), found, 36) + f"\nall pairs of {texts:,} held-out texts"
