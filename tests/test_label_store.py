"""What the labelling page remembers: every confirmed label is on disk, in order, once; a fault costs nothing that was
confirmed."""

import json
import os
import random
import threading

import pytest

from minialign.lab.labelling import store as label_store
from minialign.lab.labelling.agreement import label_agreement, read_votes, show_label_agreement
from minialign.lab.labelling.store import GAP, LabelStore, Refused, mend_last_line, read_pairs
from minialign.lab.labelling.terminal import label_in_terminal, understand
from minialign.rlhf.comparisons import read_comparisons
from minialign.runs.errors import UserError

PAIRS = [
    {"prompt": f"story {i}", "first": f"good {i}", "second": f"bad {i}", "first_policy": "sft",
     "second_policy": "reference", "index": i} for i in range(30)
]


@pytest.fixture
def opened(tmp_path):
    stores = []

    def open_store(annotator="Ada", pairs=PAIRS, seed=0):
        stores.append(LabelStore(tmp_path / "labels.jsonl", pairs, annotator, seed))
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()


def prefer_good(store, tab="t", count=None):
    """Choose the good answer wherever it stands; returns the questions that were asked."""
    asked = []
    while (count is None or len(asked) < count) and (question := store.question(tab)) is not None:
        store.answer(tab, question.key, "first" if store.show(question)["first"].startswith("good") else "second", 7,
                     1.5)
        asked.append(question)
    return asked


def lines(store):
    return [json.loads(line) for line in store.path.read_text(encoding="utf-8").splitlines()]


def test_a_label_says_everything_that_is_known(opened):
    store = opened()
    prefer_good(store, count=1)
    (record,) = lines(store)
    assert record["prompt"] == "story 0" and record["chosen"] == "good 0" and record["rejected"] == "bad 0"
    assert record["chosen_policy"] == "sft" and record["rejected_policy"] == "reference"
    assert record["annotator"] == "Ada" and record["again"] is False
    assert record["confidence"] == 7 and record["seconds"] == 1.5 and record["time"].endswith("+00:00")
    assert record["shown_first"] == ("chosen" if record["choice"] == "first" else "rejected")


def test_what_the_page_writes_is_what_the_reader_of_comparisons_reads(opened):
    store = opened()
    for i in range(20):
        question = store.question("t")
        store.answer("t", question.key, ("tie", "skip")[i] if i < 2 else "first")
    store.undo("t")
    kept, left_out = read_comparisons(store.path)
    again = left_out.pop("asked again", 0)
    assert left_out == {"ties": 1, "skipped": 1, "taken back": 1} and len(kept) == 17 - again
    assert all(record[record["shown_first"]] in (f"good {record['pair']}", f"bad {record['pair']}") for record in kept)


def test_a_pair_s_own_fields_are_not_taken_for_a_label_s(opened, tmp_path):
    path = tmp_path / "pairs.jsonl"
    own = {"line": 77, "undo": 0, "id": "x", "pair": 9, "time": 5, "choice": "left", "again": True}
    path.write_text("\n".join(json.dumps(pair | own) for pair in PAIRS), encoding="utf-8")
    store = opened(pairs=read_pairs(path))
    assert store.pairs[0]["line"] == 77
    for choice in ("tie", "first", "skip"):
        store.answer("t", store.question("t").key, choice)
    assert [(r["id"], r["pair"], r["again"], r["choice"]) for r in lines(store)] == [
        (0, 0, False, "tie"), (1, 1, False, "first"), (2, 2, False, "skip")]
    assert not {"undo", "line"} & set().union(*lines(store)) and opened(pairs=read_pairs(path)).labels == store.labels


def test_the_order_is_drawn_and_recorded(opened):
    prefer_good(opened())
    first = [record["shown_first"] == "chosen" for record in lines(opened()) if not record["again"]]
    assert len(first) == 30 and 8 <= sum(first) <= 22
    other = LabelStore(opened().path.with_name("other.jsonl"), PAIRS, "Ada", seed=1)
    assert [other._ask(i, False).swapped for i in range(30)] != [opened()._ask(i, False).swapped for i in range(30)]
    other.close()


def test_some_pairs_come_back_swapped_and_measure_agreement_with_oneself(opened):
    store = opened()
    asked = prefer_good(store)
    again = [(place, question) for place, question in enumerate(asked) if question.again]
    assert len(asked) == 33 and len(again) == 3 and len({question.pair for _, question in again}) == 3
    for place, question in again:
        (before,) = [i for i, other in enumerate(asked) if other.pair == question.pair and not other.again]
        assert place - before > GAP and asked[before].swapped != question.swapped
    assert store.progress() == {"done": 30, "pairs": 30, "ties": 0, "skipped": 0, "again": 3, "agreed": 3}


def test_whoever_always_takes_the_first_disagrees_with_himself(opened):
    store = opened()
    while (question := store.question("t")) is not None:
        store.answer("t", question.key, "first")
    assert store.progress()["again"] == 3 and store.progress()["agreed"] == 0


def test_starting_again_goes_on_where_it_stopped(opened):
    before = opened()
    prefer_good(before, count=13)
    before.undo("t")
    again = opened()
    assert again.labels == before.labels
    assert again.question("new") == before.question("t")
    assert again.next_id == before.next_id and again.progress() == before.progress()
    prefer_good(again, "new")
    assert len({(r["pair"], r["again"]) for r in again.labels}) == len(again.labels) == 33


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_a_line_that_was_cut_short_is_cut_off_and_asked_again(opened, cut):
    store = opened()
    prefer_good(store, count=5)
    content = store.path.read_bytes()
    store.path.write_bytes(content[:-cut])
    again = opened()
    kept = 5 if cut == 1 else 4  # of a line that lacks only its break nothing is lost
    assert again.mended and len(again.labels) == kept and again.path.read_bytes().count(b"\n") == kept
    prefer_good(again)
    assert len(opened().labels) == 33 and not opened().mended


def test_a_disk_that_is_full_leaves_no_half_line_and_no_label(opened, monkeypatch):
    store = opened()
    prefer_good(store, count=2)
    before, question, write = store.path.read_bytes(), store.question("t"), os.write

    with monkeypatch.context() as patch:
        patch.setattr(label_store.os, "write", lambda file, data: write(file, data[:20]))
        with pytest.raises(UserError, match="free some space"):
            store.answer("t", question.key, "first")
    assert store.path.read_bytes() == before and store.progress()["done"] == 2 and store.question("t") == question
    store.answer("t", question.key, "first")
    assert len(opened().labels) == 3


def test_what_another_program_wrote_is_never_cut_off(opened):
    one, other = opened("Ada"), opened("Bob")
    prefer_good(one, count=1)
    with pytest.raises(UserError, match="labels.jsonl: another program has written to it"):
        prefer_good(other, count=1)
    assert len(lines(one)) == 1 and other.progress()["done"] == 0


def test_every_label_is_synced_before_it_is_confirmed(opened, monkeypatch):
    store, synced, sync = opened(), [], os.fsync
    monkeypatch.setattr(label_store.os, "fsync", lambda file: (synced.append(store.path.read_bytes().count(b"\n")),
        sync(file)))
    prefer_good(store, count=3)
    store.undo("t")
    assert synced == [1, 2, 3, 4]


def test_two_tabs_never_label_the_same_pair_twice(opened):
    store = opened()
    asked, refused, barrier = [], [], threading.Barrier(4)

    def work(tab):
        rng = random.Random(tab)
        barrier.wait()
        while (question := store.question(tab)) is not None:
            # twice, or one that somebody else has
            for key in (question.key, question.key if rng.random() < 0.5 else "3a"):
                try:
                    asked.append(store.answer(tab, key, "first")["pair"])
                except Refused:
                    refused.append(key)

    tabs = [threading.Thread(target=work, args=(f"tab{i}",)) for i in range(4)]
    for thread in tabs:
        thread.start()
    for thread in tabs:
        thread.join()
    written = [(record["pair"], record["again"]) for record in lines(store)]
    assert len(written) == len(set(written)) == len(asked) and {pair for pair,
        again in written if not again} == set(range(30)) and refused
    assert [record["id"] for record in lines(store)] == list(range(len(written)))


def test_a_tab_keeps_its_pair_until_it_answers_closes_or_is_forgotten(opened, monkeypatch):
    store = opened()
    assert store.question("a") == store.question("a") != store.question("b")
    with pytest.raises(Refused, match="another tab"):
        store.answer("b", store.question("a").key, "first")
    store.release("a")
    assert store.question("c").pair == 0
    monkeypatch.setattr(label_store, "LEASE", -1.0)
    assert store.question("d").pair == 0
    store.answer("x", "7a", "first")  # a page that outlived the program still saves what it shows
    assert store.progress()["done"] == 1


def test_undo_takes_back_the_tab_s_own_last_label_and_asks_it_again(opened):
    store = opened()
    prefer_good(store, "a", 2)
    prefer_good(store, "b", 1)
    assert store.undo("a")["pair"] == 1 and store.question("a").pair == 1 and store.progress()["done"] == 2
    assert store.undo("a")["pair"] == 0 and store.undo("a")["pair"] == 2  # then the last of all, as after a restart
    assert store.undo("a") is None and len(lines(store)) == 6 and opened().labels == []


def test_each_person_has_labels_of_her_own_in_the_same_file(opened):
    prefer_good(opened("Ada"), count=4)
    bob = opened("Bob")
    assert bob.progress()["done"] == 0 and bob.question("t").pair == 0 and bob.next_id == 4
    prefer_good(bob, count=1)
    assert [record["id"] for record in lines(bob)] == [0, 1, 2, 3, 4]


def test_labels_of_other_pairs_are_refused_with_their_line(opened):
    prefer_good(opened(), count=2)
    with pytest.raises(UserError, match="labels.jsonl, line 2: a label of other pairs"):
        opened(pairs=PAIRS[:1])
    with pytest.raises(UserError, match="labels.jsonl, line 1: a label of other pairs"):
        opened(pairs=PAIRS[::-1])


def test_pairs_are_checked_when_they_are_read(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "p", "first": "a", "second": "b"}\n{"prompt": "p", "first": "a", "second": "a"}\n')
    with pytest.raises(UserError, match="pairs.jsonl, line 2: both answers are equal"):
        read_pairs(path)
    path.write_text('{"prompt": "p", "first": "a", "second": "b", "first_policy": 3}\n')
    with pytest.raises(UserError, match="line 1: field 'first_policy' is int"):
        read_pairs(path)


def test_agreement_is_counted_from_the_files_alone(opened):
    ada, bob, eve = opened("Ada"), opened("Bob"), opened("Eve")
    prefer_good(ada)
    for store, good in ((bob, 20), (eve, 30)):
        while (question := store.question("t")) is not None:
            first = store.show(question)["first"].startswith("good") == (question.pair < good)
            store.size = os.path.getsize(store.path)  # in earnest a folder is locked, and one person writes at a time
            store.answer("t", question.key, "tie" if store is eve and question.pair < 5 else "first" if first
                         else "second")
    rows = {row["name"]: row for row in label_agreement(read_votes([ada.path]))}
    assert rows["Ada"]["oneself"] == (3, 3) and rows["Ada"]["others"] == (20 + 25, 30 + 25) and rows["Eve"]["ties"] == 5
    # where Bob and Eve are even there is none
    assert rows["Bob"]["majority"] == (20, 30) and rows["Ada"]["majority"] == (20, 20)
    assert rows["Eve"]["oneself"] == (0, 0)  # the first pairs came back, and she called them ties
    shown = show_label_agreement(list(rows.values()))
    assert "67% (49%-81%)" in shown and len(shown.splitlines()) == 4
    bob.path.write_text('{"prompt": "p", "chosen": 3}\n')
    with pytest.raises(UserError, match="labels.jsonl, line 1: no label"):
        read_votes([bob.path])


# without a browser


def test_the_terminal_asks_the_same_and_writes_the_same(opened):
    store, said = opened(), []
    typed = iter(["1 7", "x", "2", "0", "s", "u", "s", "1 10", "1 1", "q"])
    label_in_terminal(store, lambda prompt: next(typed), said.append)
    found = [(r.get("choice"), r.get("confidence"), r.get("undo")) for r in lines(store)]
    expected = [("first", 7, None), ("second", None, None), ("tie", None, None), ("skip", None, None)]
    assert found == [*expected, (None, None, 3), ("skip", None, None), ("first", 1, None)]
    assert "5 of 30 pairs labelled, 1 equally good, 1 skipped" in said[-1] and "story 0" in said[1]


def test_the_terminal_shows_an_empty_answer_as_one(opened):
    said = []
    label_in_terminal(opened(pairs=[{**PAIRS[0], "second": " \n"}]), lambda prompt: "q", said.append)
    assert "(an empty answer)" in said[1] and "good 0" in said[1]


def test_the_terminal_ends_with_its_input_and_after_the_last_pair(opened):
    def nothing(prompt):
        raise EOFError

    said = []
    label_in_terminal(opened(), nothing, said.append)
    assert "0 of 30" in said[-1]
    label_in_terminal(opened(), lambda prompt: "1", said.append)
    assert "That was the last pair" in said[-1] and "0 of 3 asked again" in said[-1]


def test_what_somebody_types_is_understood_or_asked_again():
    assert understand(" 2 9 ") == ("second", 9) and understand("S") == ("skip", None) and understand("0") == ("tie",
        None)
    assert [understand(line) for line in ("", "3", "1 0", "1 x", "0 4", "1 2 3", "١")] == [None] * 7


def test_labels_are_bytes_on_every_system(opened, monkeypatch):
    flags, binary, opens = [], 1 << 28, os.open
    monkeypatch.setattr(os, "O_BINARY", binary, raising=False)  # as on Windows, which else writes \r\n for \n
    monkeypatch.setattr(os, "open", lambda path, flag, *rest: flags.append(flag) or opens(path, flag & ~binary, *rest))
    prefer_good(opened(), count=2)
    assert [bool(flag & binary) for flag in flags if flag & os.O_APPEND] == [True]


def test_a_whole_last_line_without_its_break_is_never_off_the_disk(tmp_path, monkeypatch):
    """A kill while the file is mended must not cost the label that it ends with."""
    path = tmp_path / "labels.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": 2}')
    monkeypatch.setattr("builtins.open", lambda *args, opened=open: Watched(opened(*args)))
    assert mend_last_line(path) and path.read_bytes() == b'{"a": 1}\n{"b": 2}\n'


class Watched:
    """A file that may not become shorter."""

    def __init__(self, file):
        self.file = file

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def truncate(self, size):
        raise AssertionError("cut off")
