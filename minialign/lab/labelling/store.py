r"""What the labelling page remembers: one line a label, on disk before the next pair shows, and never written twice.

    labels.jsonl   appended and fsynced, never rewritten; an undo is a line of its own: {"undo": id}

Everything else (which pair comes next, how far one is, agreement with oneself) follows from that file: killing the
process loses nothing, and starting again goes on where it stopped. Details that matter:
    1. A line that a power cut left half-written was never confirmed to anybody; it is cut off when the file is opened
       (test_a_line_that_was_cut_short_is_cut_off_and_asked_again).
    2. Which answer stands first is drawn for each pair, from a seed, and recorded
       (test_the_order_is_drawn_and_recorded).
    3. A tenth of the pairs comes back with the answers exchanged, at least GAP labels later: agreement with oneself, in
       which always choosing the first is a disagreement
       (test_some_pairs_come_back_swapped_and_measure_agreement_with_oneself).
    4. A tab keeps the pair that it shows until it answers; no other tab is given it, and a second answer to the same
       pair is refused (test_two_tabs_never_label_the_same_pair_twice).

Read next: page.py, rlhf/comparisons.py (which reads the file).
"""

import contextlib
import errno
import json
import os
import random
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from minialign.rlhf.comparisons import as_comparison, name_of
from minialign.runs.errors import UserError
from minialign.runs.files import check_fields, place_of, read_jsonl, unwritable

SHOWN = ("prompt", "first", "second", "first_policy", "second_policy")  # a pair's own `id` or `undo` is no label's
CHOICES = ("first", "second", "tie", "skip")
AGAIN_SHARE = 0.1  # of the labels are of pairs that were labelled before
GAP = 4  # labels, at least, between the two times that a pair is asked
LEASE = 1800.0  # seconds after which a pair that a tab shows may be given to another


class Refused(Exception):
    """An answer that cannot be taken as things stand: the pair is labelled already, or another tab shows it."""


@dataclass(frozen=True)
class Question:
    """One showing of a pair."""

    pair: int  # which
    again: bool  # whether it is asked a second time
    swapped: bool  # whether the pair's second answer is shown first

    @property
    def key(self) -> str:
        """Its name on the page."""
        return f"{self.pair}{'b' if self.again else 'a'}"


def read_pairs(path: Path) -> list[dict]:
    """Pairs to be judged, as `minialign compare` writes them. Raises UserError for a broken line, or two equal answers,
    with the line."""
    pairs = read_jsonl(path, ("prompt", "first", "second"))
    for pair in pairs:
        if pair["first"] == pair["second"]:
            raise UserError("both answers are equal; there is nothing to choose", *place_of(pair))
        names = {f"{side}_policy": pair.get(f"{side}_policy") or "unknown" for side in ("first", "second")}
        check_fields(names, tuple(names), str, *place_of(pair))
        pair.update(names)
    return pairs


def mend_last_line(path: Path) -> bool:
    """Cut off a last line that a fault left half-written, or end it if only its line break is missing; whether either
    was needed."""
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole == len(content):
        return False
    with open(path, "r+b") as file:
        try:
            json.loads(content[whole:])
        except (ValueError, RecursionError):  # half a line
            file.truncate(whole)
        else:
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
    return True


def now() -> str:
    """The time, as a label records it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class LabelStore:
    """The labels of one person on one list of pairs; safe to use from several threads.

    Args:
        path: labels.jsonl; other people's labels of the same pairs may stand in it.
        pairs: from `read_pairs`.
        annotator: who labels.
        seed: of the order in which the two answers are shown.
    """

    def __init__(self, path: Path, pairs: list[dict], annotator: str, seed: int = 0):
        self.path, self.pairs, self.annotator, self.seed = Path(path), pairs, annotator, seed
        self.lock = threading.RLock()
        self.shown: dict[str, tuple[Question, float]] = {}  # tab -> what it shows, and since when
        self.labels: list[dict] = []  # this person's, in order, without those taken back
        self.next_id = 0
        self.mended = mend_last_line(self.path)
        for record in read_jsonl(self.path) if self.path.exists() and self.path.stat().st_size else []:
            self._remember(record)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            plain = getattr(os, "O_BINARY", 0)  # else Windows writes \r\n for \n
            self.file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | plain, 0o644)
            self.size = os.fstat(self.file).st_size
        except OSError as error:
            raise unwritable(self.path, error) from None

    def _remember(self, record: dict) -> None:
        """Take a line of the file into account."""
        if type(record.get("undo")) is int:
            if name_of(record)[0] == self.annotator:  # each person counts from 0
                self._forget(record["undo"])
            return
        check_fields(record, ("id", "pair"), int, *place_of(record))
        check_fields(record, ("prompt", "choice", "annotator"), str, *place_of(record))
        pair = self.pairs[record["pair"]] if 0 <= record["pair"] < len(self.pairs) else {}
        if record["prompt"] != pair.get("prompt") or record["choice"] not in CHOICES:
            raise UserError("a label of other pairs; choose another --out, or put the pairs back that were labelled "
                            "here", *place_of(record))
        self.next_id = max(self.next_id, record["id"] + 1)
        if record["annotator"] == self.annotator:
            self.labels.append(record)

    def _forget(self, id: int) -> None:
        self.labels = [label for label in self.labels if label["id"] != id]

    def _append(self, record: dict[str, Any]) -> None:
        """Put a line on disk. Raises UserError, with the file as before, when that fails."""
        line = (json.dumps(record, ensure_ascii=False) + "\n").encode()
        # or cutting a failed line off below would cut off somebody's label
        if os.fstat(self.file).st_size != self.size:
            raise UserError("another program has written to it; end that one and start this one again", self.path)
        try:
            if os.write(self.file, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self.file)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self.file, self.size)
            raise unwritable(self.path, error) from None
        self.size += len(line)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self.file)

    def answered(self) -> dict[tuple[int, bool], dict]:
        """(pair, asked again) -> its label."""
        return {(label["pair"], label.get("again") is True): label for label in self.labels}

    def question(self, tab: str) -> Question | None:
        """What a tab shows: what it showed before if that is still open, else the next pair that no other tab shows;
        None at the end."""
        with self.lock:
            answered, moment = self.answered(), time.monotonic()
            self.shown = {t: (q, since) for t, (q, since) in self.shown.items()
                          if (q.pair, q.again) not in answered and moment - since < LEASE
                          and (not q.again or (q.pair, False) in answered)}  # another tab took the first label back
            if tab not in self.shown:
                found = self._next(answered, {(q.pair, q.again) for q, _ in self.shown.values()})
                if found is None:
                    return None
                self.shown[tab] = (found, moment)
            return self.shown[tab][0]

    def _next(self, answered: dict, taken: set) -> Question | None:
        """The oldest label that is due a second time, else the first pair without one."""
        closed = {*answered, *taken}
        place = {label["pair"]: i for i, label in enumerate(self.labels)}
        decided = [pair for (pair, again), label in answered.items() if not again and label["choice"] != "skip"]
        if sum(again for _, again in closed) < int(len(decided) * AGAIN_SHARE):
            for pair in decided:
                if (pair, True) not in closed and len(self.labels) - place[pair] > GAP:
                    return self._ask(pair, True)
        fresh = next((pair for pair in range(len(self.pairs)) if (pair, False) not in closed), None)
        return None if fresh is None else self._ask(fresh, False)

    def _ask(self, pair: int, again: bool) -> Question:
        swapped = random.Random(f"{self.seed} {self.annotator} {pair}").random() < 0.5
        return Question(pair, again, swapped != again)

    def show(self, question: Question) -> dict[str, Any]:
        """The pair with its answers in the order in which they are shown."""
        pair = {name: self.pairs[question.pair][name] for name in SHOWN}
        if question.swapped:
            pair |= {"first": pair["second"], "second": pair["first"], "first_policy": pair["second_policy"],
                     "second_policy": pair["first_policy"]}
        return pair

    def answer(self, tab: str, key: str, choice: str, confidence: int | None = None,
               seconds: float | None = None) -> dict:
        """Put one label on disk and return it.

        Args:
            tab: who answers; key: of the question; choice: one of CHOICES, as the answers were shown.
            confidence: 1 to 9, or None; seconds: taken.
        Raises:
            Refused: the pair is labelled already, or another tab shows it. UserError: the disk refuses; nothing was
                written.
        """
        with self.lock:
            answered, pair, again = self.answered(), int(key[:-1]), key[-1] == "b"
            if (pair, again) in answered:
                raise Refused("this pair is labelled already")
            if any(q.key == key for t, (q, _) in self.shown.items() if t != tab):
                raise Refused("another tab shows this pair")
            if not 0 <= pair < len(self.pairs) or (again and (pair, False) not in answered):
                raise Refused("there is no such pair")
            shown = self.show(self._ask(pair, again))
            body = as_comparison(shown, choice) if choice in ("first", "second") else shown
            record = {"id": self.next_id, "pair": pair, "again": again, **body, "choice": choice,
                      "annotator": self.annotator, "time": now(), "tab": tab}
            given = {"confidence": confidence, "seconds": seconds}
            record |= {name: value for name, value in given.items() if value is not None}
            self._append(record)
            self.next_id += 1
            self.labels.append(record)
            self.shown.pop(tab, None)
            return record

    def undo(self, tab: str) -> dict | None:
        """Take back this tab's last label, or the last of all when it gave none, and show its pair again; None when
        there is nothing."""
        with self.lock:
            if not self.labels:
                return None
            last = next((label for label in reversed(self.labels) if label.get("tab") == tab), self.labels[-1])
            self._append({"undo": last["id"], "annotator": self.annotator, "time": now()})
            self._forget(last["id"])
            self.shown[tab] = (self._ask(last["pair"], last.get("again") is True), time.monotonic())
            return last

    def release(self, tab: str) -> None:
        """A tab was closed: what it showed may be given to another."""
        with self.lock:
            self.shown.pop(tab, None)

    def progress(self) -> dict[str, int]:
        """Counts: `done` of `pairs`, `ties` and `skipped` among them, pairs asked `again`, and on how many of these one
        `agreed` with oneself."""
        with self.lock:
            answered = self.answered()
            first = [label["choice"] for (_, again), label in answered.items() if not again]
            twice = [(label, answered[pair, False]) for (pair, again), label in answered.items()
                     if again and (pair, False) in answered]
            decided = [(a, b) for a, b in twice if "skip" not in (a["choice"], b["choice"])]
            agreed = sum(a.get("chosen") == b.get("chosen") for a, b in decided)  # two ties have none, and agree
            return {"done": len(first), "pairs": len(self.pairs), "ties": first.count("tie"),
                    "skipped": first.count("skip"), "again": len(decided), "agreed": agreed}
