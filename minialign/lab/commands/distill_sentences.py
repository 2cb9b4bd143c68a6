r"""The command `distill` for a teacher that gives vectors of sentences: MiniLM-L6, or any BERT in its folder."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from minialign.evaluation import latency
from minialign.lab.commands.inputs import fill_a_batch
from minialign.lab.interchange.bert_folder import write_bert
from minialign.lab.interchange.folder import PretrainedTokenizer
from minialign.lab.interchange.published import architecture, load_published
from minialign.lab.pretrained.bert import Bert, row_vectors, sentence_rows
from minialign.lab.pretrained.minilm import load_minilm
from minialign.lab.pretrained.sentence_vectors import SentenceConfig, distil_sentences, kept, random_student, sentence_config, sentence_student
from minialign.runs.errors import UserError
from minialign.runs.files import fingerprint, write_json
from minialign.runs.run_folder import MODEL, RunFolder
from minialign.runs.settings import to_dict
from minialign.runs.tensors import digest, load_into, read_tensors, tensors_of
from minialign.training import TrainingConfig

SENTENCES, MINILM = "sentence-vectors", "minilm"
OWN = {"steps": 500, "batch": 32, "learning_rate": 3e-4, "weight_decay": 0.01}  # in place of the command's defaults
QUICK = {"steps": 10, "batch": 8}  # with --fast
BERT = "bert"  # folder for other libraries, inside the run's
# tokens of a text; texts to validate on, for the table, and for both together
LONGEST, LOOKED_AT, TESTED, FEWEST = 128, 256, 1000, 8


def is_sentence_teacher(teacher: Path) -> bool:
    """Whether this is MiniLM's name, the folder of a BERT, or a run of ours that left one."""
    return _is_minilm(teacher) or architecture(teacher) == "bert" or architecture(teacher / BERT) == "bert"


def _is_minilm(teacher: Path) -> bool:
    return str(teacher) == MINILM and not teacher.exists()


def load_teacher(teacher: Path) -> tuple[Bert, PretrainedTokenizer]:
    """The teacher and its tokenizer."""
    if _is_minilm(teacher):
        return load_minilm()
    return load_published(teacher if architecture(teacher) == "bert" else teacher / BERT)


def distil_encoder(
    teacher: Path, texts: list[str], held_out: list[str], shape: dict[str, Any], config: SentenceConfig,
    training: TrainingConfig, out: Path, fast: bool
) -> None:
    """Teach a small BERT the vectors of sentences, write it as a folder that other libraries read, and say what it
    keeps."""
    training, known = own_defaults(training, fast), set(texts)
    fill_a_batch(len(texts), "texts to learn from", training.batch, None)
    held_out = [text for text in dict.fromkeys(held_out) if text not in known]
    if len(held_out) < FEWEST:
        raise UserError(f"{len(held_out)} held-out texts that are not learned from are too few for similarities; give "
                        f"{FEWEST} or more with --valid")
    model, tokenizer = load_teacher(teacher)
    student, untrained = new_student(model, shape, training.seed)
    if untrained is None:
        config = dataclasses.replace(config, frozen_words=False)  # a random table must learn
    rows, valid = (sentence_rows(tokenizer, part, min(LONGEST, model.config.context)) for part in (texts, held_out))
    half = min(LOOKED_AT, len(valid) // 2)
    looked_at, tested = valid[:half], valid[half:][:TESTED]
    run = RunFolder(out)
    with run.locked():
        about = {"what": "sentence-encoder", "model": to_dict(student.config), "stage": "distill", "recipe": SENTENCES,
                 "loss": to_dict(config)}
        about |= {"training": to_dict(training), "data": fingerprint([texts, held_out]),
                  "teacher": digest(tensors_of(model))[:16]}
        run.begin({**about, "student": digest(tensors_of(student))[:16]}, tokenizer)
        if not run.finished:
            click.echo(f"{len(rows):,} texts; the teacher first reads those that will be shown; {model.config.layers} "
                       f"layers teach {student.config.layers}")
            distil_sentences(student, model, rows, looked_at, training, run, config)
        load_into(student, read_tensors(out / MODEL)[0], out / MODEL)
        write_bert(student, tokenizer, out / BERT)
    result = measure({"teacher": model, **({"cut off": untrained} if untrained else {}), "student": student}, tested,
                     2 if fast else 7)
    write_json(out / "report.json", result)
    click.echo("\n" + table(result, len(tested)))
    click.echo(f"{out / BERT} is a folder that the transformers library reads, and `distill --teacher`")


def own_defaults(training: TrainingConfig, fast: bool) -> TrainingConfig:
    """The settings with this recipe's values in place of those that were not given on the command line."""
    context = click.get_current_context()
    ours = OWN | (QUICK if fast else {})
    return dataclasses.replace(training, **{name: value for name, value in ours.items()
                                            if context.get_parameter_source(name) is ParameterSource.DEFAULT})


def new_student(teacher: Bert, shape: dict[str, Any], seed: int) -> tuple[Bert, Bert | None]:
    """The student; and the same untrained, for comparison, when it begins as layers of the teacher, which it does if it
    can and is not told otherwise."""
    layers = shape["layers"] or max(1, teacher.config.layers // 2)
    config = sentence_config(teacher.config, layers, shape["width"], shape["heads"])
    same = (config.width, config.heads) == (teacher.config.width, teacher.config.heads)
    if shape["start"] == "random" or (shape["start"] is None and not same and shape["layers_from"] is None):
        if shape["layers_from"] is not None:
            raise UserError("--layers-from is for a student that begins as layers of its teacher; leave --start random "
                            "out")
        return random_student(config, seed), None
    student = sentence_student(teacher, layers, shape["width"], shape["heads"], shape["layers_from"])
    return student, copy.deepcopy(student).eval()


def measure(models: dict[str, Bert], rows: list[list[int]], rounds: int) -> dict[str, dict[str, float]]:
    """What each keeps of the teacher's similarities, its parameters and bytes, and the time for a batch of texts."""
    found, goal, some = {}, row_vectors(models["teacher"], rows), rows[:32]
    for name, model in models.items():
        numbers = kept(goal if name == "teacher" else row_vectors(model, rows), goal)
        numbers["parameters"] = sum(p.numel() for p in model.parameters())
        numbers["layers alone"] = sum(p.numel() for p in model.body.blocks.parameters())
        numbers["bytes"] = sum(t.numel() * t.element_size() for t in tensors_of(model).values())
        numbers["milliseconds"] = 1000 * latency(lambda model=model: row_vectors(model, some), rounds) / len(some)
        found[name] = numbers
    return found


def table(result: dict[str, dict[str, float]], texts: int) -> str:
    """All models side by side."""
    lines = [f"{'':<36}" + "".join(f"{name:>14}" for name in result)]
    rows = {"Pearson's r of the similarities": "pearson", "Spearman's ρ": "spearman", "same nearest text": "nearest",
            "squared difference": "validation"}
    for title, key in rows.items():
        lines.append(f"{title:<36}" + "".join(f"{numbers[key]:>14.4f}" for numbers in result.values()))
    for key in ("parameters", "layers alone", "bytes"):
        lines.append(f"{key:<36}" + "".join(f"{numbers[key]:>14,}" for numbers in result.values()))
    lines.append(f"{'milliseconds a text':<36}" + "".join(f"{numbers['milliseconds']:>14.2f}"
                                                          for numbers in result.values()))
    return "\n".join([*lines, f"all pairs of {texts:,} held-out texts"])
