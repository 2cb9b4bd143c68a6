r"""The reward model beside the labelling page: trained on the labels so far whenever one asks, and judged on those that
it did not learn from.

A process of its own trains it, so that the page answers meanwhile. It leaves

    reward/               the reward model's run folder, as `minialign reward` leaves one; PPO can use it
    reward-scores.json    the scores of both completions of every pair, which pairs were learned from, how long it took

A fifth of the prompts is never learned from. The accuracy that is shown is over these and over prompts that were
labelled since: how well the model predicts this person, not how well it remembers
(test_the_live_accuracy_is_of_labels_that_were_not_learned).

Read next: rlhf/reward_model.py.
"""

import contextlib
import os
import shutil
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from minialign.evaluation import binary_accuracy
from minialign.heads import load_model
from minialign.lab.labelling.store import read_pairs
from minialign.rlhf.comparisons import key_of, read_comparisons, split_by_prompt
from minialign.rlhf.ranked import count_pairs, ranked_rows
from minialign.rlhf.reward_model import completion_rows, score_rows, train_reward_model
from minialign.runs.errors import UserError
from minialign.runs.files import read_json, write_json
from minialign.runs.process import keep_memory
from minialign.runs.processes import end_with_parent
from minialign.runs.run_folder import RunFolder
from minialign.runs.settings import to_dict
from minialign.training import TrainingConfig

PAIRS, LABELS, MODEL, SCORES = "pairs.jsonl", "labels.jsonl", "reward", "reward-scores.json"
HELD_OUT = 0.2  # share of the prompts that is only measured on
FEWEST = 4  # prompts with a decided label to learn from


def retrain(folder: Path, base: Path, annotator: str) -> None:
    """Learn from one person's labels in a folder and write the scores of all pairs.

    Raises:
        UserError: too few labels, or a base that is no language model.
    """
    started, folder = time.perf_counter(), Path(folder)
    learned, checks = learnable_labels(folder / LABELS, annotator)
    model, tokenizer = load_model(base, "decoder")
    (ranked, _), (valid, _) = (ranked_rows(tokenizer, part, model.config.context, "cut") for part in (learned, checks))
    if len(ranked) < FEWEST or not count_pairs(valid):
        raise UserError("too few labelled completions fit the model's context to learn from", base)
    batch = min(16, len(ranked))
    settings = TrainingConfig(steps=max(24, min(400, 3 * len(ranked) // batch)), batch=batch, learning_rate=5e-4,
                              weight_decay=0.01)
    pairs = read_pairs(folder / PAIRS)
    rows = [completion_rows(tokenizer, [p["prompt"] for p in pairs], [p[side] for p in pairs], model.config.context)
            for side in ("first", "second")]
    fresh = folder / f"{MODEL}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    run = RunFolder(fresh)
    run.begin({"what": "scalar-model", "model": to_dict(model.config), "stage": "reward", "training": to_dict(settings),
               "labels": len(learned)}, tokenizer)
    reward, _ = train_reward_model(model, ranked, valid, [*rows[0], *rows[1]], settings, run)
    scores = [score_rows(reward, part).tolist() for part in rows]
    replace_folder(folder / MODEL, fresh)
    known = {key_of(c) for c in learned}
    keys = [key_of({"prompt": p["prompt"], "chosen": p["first"], "rejected": p["second"]}) for p in pairs]
    write_json(folder / SCORES, {
        "annotator": annotator, "learned": len(learned), "seen": [i for i, key in enumerate(keys) if key in known],
        "seconds": round(time.perf_counter() - started, 1), "scores": list(zip(*scores))})


def learnable_labels(file: Path, annotator: str) -> tuple[list[dict], list[dict]]:
    """One person's labels: to learn from, and to be judged on. Raises UserError for too few of either."""
    labels = []
    if file.exists() and file.stat().st_size:
        labels = [c for c in read_comparisons(file)[0] if c["annotator"] == annotator]
    learned, checks = split_by_prompt(labels, HELD_OUT)
    if len({key_of(c) for c in learned}) < FEWEST or not checks:
        few = f"{len({key_of(c) for c in labels})} labelled prompts are too few to learn from"
        raise UserError(f"{few}; a reward model needs {FEWEST}, and one more to be judged on: label a few more pairs")
    return learned, checks


def replace_folder(old: Path, new: Path) -> None:
    """Put a folder in another's place; at no moment is there neither of them."""
    before = old.with_name(f"{old.name}.before")
    shutil.rmtree(before, ignore_errors=True)
    if old.exists():
        os.replace(old, before)
    os.replace(new, old)
    shutil.rmtree(before, ignore_errors=True)


def retrain_quietly(folder: Path, base: Path, annotator: str) -> None:
    """What the other process does: leave a core to the page, say nothing, and leave a complaint where the page finds
    it."""
    end_with_parent()
    keep_memory()
    torch.set_num_threads(1)
    if hasattr(os, "nice"):
        os.nice(10)
    with (open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere),
          contextlib.redirect_stderr(nowhere)):
        try:
            retrain(folder, base, annotator)
        except UserError as error:
            found = {**read_scores(folder, annotator), "annotator": annotator, "error": str(error)}
            write_json(Path(folder) / SCORES, found)


def read_scores(folder: Path, annotator: str) -> dict[str, Any]:
    """What the last training left; empty when there is nothing, or it was of another person's labels."""
    path = Path(folder) / SCORES
    found = read_json(path) if path.exists() else {}
    return found if found.get("annotator") == annotator else {}


class LiveReward:
    """The reward model as the page sees it.

    Args:
        folder: of the labels; base: run of the language model that it starts from; annotator: whose labels; pairs: of
            what.
    """

    def __init__(self, folder: Path, base: Path, annotator: str, pairs: list[dict]):
        self.folder, self.base, self.annotator, self.pairs = Path(folder), Path(base), annotator, pairs
        self.process, self.read_at, self.found = None, 0, {}

    @property
    def training(self) -> bool:
        """Whether it learns at this moment."""
        return self.process is not None and self.process.is_alive()

    def start(self) -> bool:
        """Begin to learn from the labels so far; False when it is learning already."""
        if self.training:
            return False
        work = (self.folder, self.base, self.annotator)
        self.process = get_context("spawn").Process(target=retrain_quietly, args=work, daemon=True)
        self.process.start()
        return True

    def stop(self) -> None:
        """End the other process, if there is one; the model before stays."""
        if self.training:
            self.process.terminate()
            self.process.join()

    def status(self, labels: list[dict]) -> dict[str, Any]:
        """For the page: training or not, the accuracy on labels that were not learned from, with its interval, and a
        complaint if there was one."""
        path = self.folder / SCORES
        if path.exists() and path.stat().st_mtime_ns != self.read_at:
            self.read_at, self.found = path.stat().st_mtime_ns, read_scores(self.folder, self.annotator)
        status: dict[str, Any] = {"training": self.training}
        if not self.training and self.process is not None and self.process.exitcode not in (0, None):
            status["error"] = f"the training ended with status {self.process.exitcode}"
        elif "error" in self.found:
            status["error"] = self.found["error"]
        if "scores" in self.found:
            margins = self.margins(labels)
            status |= {"learned": self.found["learned"], "judged": len(margins), "seconds": self.found["seconds"]}
            if margins:
                status["accuracy"] = binary_accuracy(margins).to_dict()
        return status

    def margins(self, labels: list[dict]) -> list[float]:
        """By how much the chosen completion scored higher, for each decided label whose prompt was not learned from;
        what was asked again counts once."""
        seen, found = set(self.found["seen"]), []
        for label in labels:
            if label["pair"] not in seen and label["choice"] in ("first", "second") and label.get("again") is not True:
                first, second = self.found["scores"][label["pair"]]
                chose_first = label["chosen"] == self.pairs[label["pair"]]["first"]
                found.append(first - second if chose_first else second - first)
        return found
