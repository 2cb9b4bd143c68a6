r"""What the claims on fine-tuning share: the shipped decoders, a near task, two far ones and a real one, one tuning run
of any method, and what is taken for granted of it.

    near     is it good or bad, what happens?    predicting the next word already needs it
    far      is the person who is named first a red one or a blue one?    names were dealt to the two teams by lot: no
             text ever needed that
    farther  are the two persons who are named first of one colour?    both teams have to be known, and compared
    real     do people find this tweet positive?    human ratings (Hutto & Gilbert 2014); left out when they cannot
             be fetched

The bases are one each, so seeds are of the texts, their order and what is added to a base. A tuning goes on until LOOKS
looks at validation data, EVERY steps apart, brought no loss that is lower by a hundredth of a nat, or to STEPS steps,
and ends with the weights of the best look; column "steps" says how long it took. What this rule was chosen by stands in
data/claims/transfer-distance/notes.md.

    full fine-tuning solves the task    .95 of texts that it never saw: else there is nothing that a smaller part of the
                                        model could lose

is fixed before anything is run, for the near and the far tasks and every size that a claim compares.

A method's learning rate is searched on validation data of the first seed and kept for the others: its usual rate and
three times that, then up or down by factors of three for as long as the best one is at an end, so that no method is
judged at a rate that happens to be the largest that was tried. All of it stands in the table. Accuracy is on texts that
neither training nor the search saw. What other batches and rates gave stands in
data/claims/transfer-distance/notes.md.

Read next: transfer_distance.py.
"""

import functools
import hashlib
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from minialign.classification import LabelledTexts, class_loss, examine_classes
from minialign.heads import Classifier, LanguageModel, describe_model
from minialign.lab.bases.make import BASES, digest_of, load_base
from minialign.lab.claims import Bench, Table, column, control, over_seeds
from minialign.lab.realdata.ratings import read_ratings
from minialign.peft.feature_based import CachedFeatures, examine_features, feature_loss
from minialign.peft.methods import CONFIGS, METHODS
from minialign.peft.trainable import fingerprint, freeze, note, train_also
from minialign.peft.transfer import RATES, TunedRun, tune
from minialign.runs.files import read_json, write_json
from minialign.runs.settings import to_dict
from minialign.tokenizer import Tokenizer
from minialign.training import TrainingConfig
from minialign.world.datasets import examples

SIZES = {"small": "decoder-0.1m", "middle": "decoder-0.4m", "large": "decoder-2m"}  # and its base
NEAR, FAR, FARTHER, REAL = "near", "far", "farther", "real"
BATCH = 16  # texts a step
STEPS, EVERY, LOOKS = 1440, 60, 6  # at most; between two looks at validation data; without a lower loss, to give up
SOLVED = 0.95  # threshold of the control
TRIED, FURTHEST = (0, 1), 4  # powers of three, times a method's usual rate, to begin with; as far as the search goes
FOUND = "found.json"
Texts = list[tuple[str, int]]  # texts and their classes


def base_of(size: str) -> tuple[LanguageModel, Tokenizer]:
    """The shipped decoder of a size."""
    return load_base(BASES / SIZES[size])[:2]


@functools.cache
def task(name: str, count: int, seed: int) -> Texts:
    """Texts of a toy task and their classes, each from a story of its own; made once in a process: it takes half as
    long as tuning a small model."""
    dataset, class_of = TASKS[name]
    return [(made["story"], class_of(made)) for made in examples([dataset], count, seed)[dataset]]


def team(person: str) -> int:
    """0 or 1, dealt by lot to each name."""
    return hashlib.sha256(person.encode()).digest()[0] % 2


def first_ones_team(made: dict) -> int:
    """0 or 1: of the person who is named first."""
    return team(made["answer"])


def one_team(made: dict) -> int:
    """1 if the two persons who are named first are of one team."""
    first, second = sorted(made["options"], key=made["story"].find)[:2]
    return int(team(first) == team(second))


TASKS = {NEAR: ("mood", lambda made: int(made["answer"] == "good")),  # -> dataset, class of an example
         FAR: ("person_named_first", first_ones_team), FARTHER: ("person_named_first", one_team)}


def parts(bench: Bench, name: str, seed: int) -> list[Texts] | None:
    """Training, validation and test texts of a task; None when the real one cannot be fetched, which is said."""
    train, check = (64, 32) if bench.fast else (1500, 400)
    if name != REAL:
        return [task(name, count, 1000 * seed + part) for part, count in enumerate((train, check, check))]
    if (rated := bench.fetched("the real task", rated_tweets)) is None:
        return None
    texts = [*rated]
    random.Random(seed).shuffle(texts)
    return [texts[:train], texts[train : train + check], texts[train + check : train + 2 * check]]


@functools.cache
def rated_tweets() -> Texts:
    """Tweets whose mean rating is at least half a step from the middle, and whether it is positive; in alphabetical
    order."""
    rated = [item for item in read_ratings("tweets") if abs(sum(item.ratings) / len(item.ratings)) >= 0.5]
    return sorted({item.text: int(sum(item.ratings) > 0) for item in rated}.items())


def rows_of(tokenizer: Tokenizer, texts: Texts, context: int, batch: int, seed: int) -> LabelledTexts:
    """Texts as training data; what is longer than the context is cut at its end."""
    ids = [[tokenizer.begin, *row][:context] for row in tokenizer.encode_many([text for text, _ in texts])]
    return LabelledTexts(ids, [label for _, label in texts], min(batch, len(ids)), seed)


def tuned(bench: Bench, size: str, name: str, method: str, rate: float, seed: int, config: Any = None,
          wrap: Callable | None = None) -> Path | None:
    """The folder of one method on one task, from the shipped decoder of a size.

    Args:
        method: of `METHODS`, or any name with `wrap`; rate: times the method's usual learning rate; config: the
            method's, its default when None.
        wrap: (model) -> model, for what is no method of its own.
    Returns:
        a folder with what was tuned and FOUND: "accuracy" on the test part, "validation" loss and accuracy, "trained",
        "parameters", "optimizer_bytes", "file_bytes"; None without data.
    """
    texts = parts(bench, name, seed)
    if texts is None:
        return None
    steps, every = (10, 10) if bench.fast else (STEPS, EVERY)
    training = TrainingConfig(steps, BATCH, rate * RATES.get(method, RATES["full"]), weight_decay=0.01,
                              validate_every=every, patience=LOOKS, checkpoint_every=every, seed=seed)
    config = config or (CONFIGS[method]() if method in CONFIGS else None)
    facts = {"method": method, "tuning": to_dict(config) if config else None, "training": to_dict(training),
             "task": name, "base": digest_of(SIZES[size]), "seed": seed}

    def make(folder: Path) -> None:
        model, tokenizer = base_of(size)
        learned, valid, test = (rows_of(tokenizer, part, model.config.context, BATCH, seed) for part in texts)
        classifier, run = Classifier(model.body, 2, seed), TunedRun(folder)
        run.begin({**describe_model(model), **facts}, tokenizer)
        classifier = wrap(classifier) if wrap else METHODS[method].wrap(classifier, config)
        loss, examine = class_loss, examine_classes
        # the frozen body reads each text once; the numbers are those of reading it in every step
        if method == "feature-based":
            loss, examine = feature_loss, examine_features
            learned, valid, test = (CachedFeatures(classifier, part) for part in (learned, valid, test))

        def look(model: nn.Module) -> dict[str, float]:
            seen = examine(model, valid)
            return seen | {"validation": round(seen["validation"], 2)}  # less is no reason to go on

        found = tune(classifier, learned, loss, look, training, run)
        found["validation_accuracy"] = found.pop("accuracy")
        write_json(folder / FOUND, found | {"accuracy": examine(classifier.eval(), test)["accuracy"]})

    return bench.cached("tuned", [facts, "fast" if bench.fast else "full"], make)


def searched(bench: Bench, size: str, name: str, method: str, config: Any = None, wrap: Callable | None = None,
             **columns: Any) -> Table:
    """Rows of a claim's table: the search on the first seed, and every seed at the rate that was found. Empty without
    data."""
    if parts(bench, name, 0) is None:
        return []

    def found_at(power: int, seed: int) -> dict[str, Any]:
        return read_json(tuned(bench, size, name, method, 3.0**power, seed, config, wrap) / FOUND)

    return at_the_best_rate(bench, found_at, {"size": size, "task": name, "method": method, **columns})


def at_the_best_rate(bench: Bench, found_at: Callable[[int, int], dict[str, Any]], columns: dict[str, Any]) -> Table:
    """Rows of a claim's table: each seed at the rate that was best on the first one, with the rates that were tried.

    Args:
        found_at: (power of three times the usual rate, seed) -> what was found, its "validation" loss with it.
        columns: first ones of every row.
    """
    found = best_of_powers(lambda power: found_at(power, 0), (0,) if bench.fast else TRIED)
    best = min(found, key=lambda power: found[power]["validation"])
    tried = {f"validation at {3.0**power:.2g}": found[power]["validation"] for power in sorted(found)}
    return [columns | {"seed": seed, "rate": 3.0**best} | (found_at(best, seed) if seed else found[best]) | tried
            for seed in range(bench.seeds)]


def solved(table: Table) -> Table:
    """The control of the rows of full fine-tuning, for each task and size in them."""
    return [control(f"full fine-tuning of {SIZES[row['size']]} solves the {row['task']} task", row["accuracy"], SOLVED,
                    row["seed"]) for row in table if row["method"] == "full" and row["task"] != REAL]


def best_of_powers(run: Callable[[int], dict[str, Any]], powers: Sequence[int]) -> dict[int, dict[str, Any]]:
    """What was found at each power that was tried: the given ones, and more at an end for as long as the least
    "validation" is there."""
    found = {power: run(power) for power in powers}
    while len(found) > 1:
        best = min(found, key=lambda power: found[power]["validation"])
        further = best + 1 if best == max(found) else best - 1
        if further in found or abs(further) > FURTHEST:
            break
        found[further] = run(further)
    return found


def top_layers(count: int) -> Callable[[nn.Module], nn.Module]:
    """Full tuning of the last `count` blocks, the last norm and the head; everything below stays."""

    def wrap(model: nn.Module) -> nn.Module:
        base, layers = fingerprint(model), model.config.layers
        freeze(model)
        patterns = [f"body.blocks.{i}.*" for i in range(layers - count, layers)] + ["body.norm", "head"]
        train_also(model, patterns)
        return note(model, "full", CONFIGS["full"](), base, patterns)

    return wrap


def accuracies(table: Table, **which: Any) -> list[float]:
    """Accuracy of the rows that match, in the order of the seeds."""
    return column(table, "accuracy", **which)


def accuracy(table: Table, **which: Any) -> Any:
    """The same over the seeds, as the figures take it; its interval ends where accuracies do."""
    return over_seeds(accuracies(table, **which), 0.0, 1.0)
