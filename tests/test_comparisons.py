"""Comparisons as data: every form that people keep them in is read; what orders no two answers is left out, counted and
said."""

import json

import pytest

from minialign.rlhf.comparisons import read_comparisons, say_left_out, split_by_prompt
from minialign.rlhf.ranked import CUT, EQUAL, TOO_LONG, count_pairs, ranked_rows
from minialign.runs.errors import UserError


def said(role, content):
    return {"role": role, "content": content}


USER, GOOD, BAD = said("user", "Where is Mira?"), said("assistant", "At home."), said("assistant", "Go away.")
FACTS = {"annotator": "Priya", "chosen_policy": "sft", "rejected_policy": "reference", "confidence": 7,
         "shown_first": "rejected"}
FACTS["time"] = "2026-01-01T10:00:00Z"


@pytest.fixture
def write(tmp_path):
    def write(*records):
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8")
        return path

    return write


def fields(record):
    return tuple(record[name] for name in ("prompt", "chosen", "rejected"))


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "Where is Mira?", "chosen": "At home.", "rejected": "Go away."},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "Where is Mira?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "Where is Mira?", "chosen": [GOOD], "rejected": "Go away."},
    ],
    ids=["texts", "messages", "conversations after a prompt", "conversations", "mixed"],
)
def test_texts_messages_and_whole_conversations_are_read_alike(write, record):
    (found,), left_out = read_comparisons(write(record))
    assert fields(found) == ("Where is Mira?", "At home.", "Go away.") and not left_out


def test_in_a_longer_conversation_it_stays_known_who_speaks(write):
    more = [USER, GOOD, said("user", "Since when?")]
    (found,), _ = read_comparisons(write({"chosen": [*more, said("assistant", "Noon.")], "rejected": [*more, BAD]}))
    assert fields(found) == ("user: Where is Mira?\nassistant: At home.\nuser: Since when?\nassistant:", " Noon.",
                             " Go away.")


HI, HELLO, TELL = said("user", "Hi"), said("assistant", "Hello."), said("user", "Tell me more")
BE, YES, NO = said("system", "Be kind."), said("assistant", "Gladly."), said("assistant", "No.")
TURNS = "user: Hi\nassistant: Hello.\nuser: Tell me more\nassistant:"


@pytest.mark.parametrize("record", [
    {"chosen": [HI, HELLO, TELL, YES], "rejected": [HI, HELLO, TELL, NO]},
    {"prompt": None, "chosen": [HI, HELLO, TELL, YES], "rejected": [HI, HELLO, TELL, NO]},
    {"prompt": "Hi", "chosen": [HI, HELLO, TELL, YES], "rejected": [HI, HELLO, TELL, NO]},
    {"prompt": "Tell me more ", "chosen": [HI, HELLO, TELL, YES], "rejected": [HI, HELLO, TELL, NO]},
    {"prompt": [HI], "chosen": [HI, HELLO, TELL, YES], "rejected": [HI, HELLO, TELL, NO]},
    {"prompt": [HI, HELLO, TELL], "chosen": [HI, HELLO, TELL, YES], "rejected": [HI, HELLO, TELL, NO]},
    {"prompt": [HI, HELLO, TELL], "chosen": [YES], "rejected": [NO]},
    {"prompt": [HI, HELLO, TELL], "chosen": [HI, HELLO, TELL, YES], "rejected": [NO]},
    {"prompt": [HI, HELLO, TELL], "chosen": "Gladly.", "rejected": [NO]},
    {"prompt": [HI, HELLO], "chosen": [TELL, YES], "rejected": [TELL, NO]},
    {"prompt": "Hi", "chosen": [HELLO, TELL, YES], "rejected": [HELLO, TELL, NO]},
], ids=range(11))
def test_each_turn_is_a_line_with_its_role_read_once_and_the_judged_answer_too(record, write):
    (found,), _ = read_comparisons(write(record))
    assert fields(found) == (TURNS, " Gladly.", " No.")


@pytest.mark.parametrize("record, expected", [
    ({"prompt": [BE, HI], "chosen": [YES], "rejected": [NO]},
     ("system: Be kind.\nuser: Hi\nassistant:", " Gladly.", " No.")),
    ({"prompt": [HI], "chosen": [BE, HI, YES], "rejected": [BE, HI, NO]},
     ("system: Be kind.\nuser: Hi\nassistant:", " Gladly.", " No.")),
    ({"prompt": [HI], "chosen": [HELLO, TELL, YES], "rejected": [NO]},
     ("user: Hi\nassistant:", " Hello.\nuser: Tell me more\nassistant: Gladly.", " No.")),
    ({"prompt": [HI, HELLO], "chosen": [TELL], "rejected": [NO]},
     ("user: Hi\nassistant: Hello.", "\nuser: Tell me more", "\nassistant: No.")),
    ({"prompt": [HI], "chosen": [HI, YES], "rejected": [HI, NO]}, ("Hi", "Gladly.", "No.")),
    ({"prompt": "", "chosen": [YES], "rejected": [NO]}, ("", "Gladly.", "No.")),
    ({"prompt": "", "chosen": [{"content": "a"}, {"content": "b"}], "rejected": ""},
     ("", "somebody: a\nsomebody: b", "")),
], ids=range(7))
def test_prompt_and_answer_side_by_side_are_the_conversation(record, expected, write):
    (found,), _ = read_comparisons(write(record))
    assert fields(found) == expected


def test_texts_that_all_repeat_their_prompts_are_refused_and_one_may(write):
    pairs = [{"prompt": p, "chosen": f"{p} a", "rejected": f"{p} b"} for p in ("one", "two")]
    with pytest.raises(UserError, match="pairs.jsonl: every chosen and rejected begins with its prompt.*cut it off"):
        read_comparisons(write(*pairs))
    (first, second), _ = read_comparisons(write(pairs[0], pairs[1] | {"rejected": "b"}))
    assert fields(first) == ("one", "one a", "one b") and fields(second) == ("two", "two a", "b")


def test_what_is_known_about_a_comparison_is_kept(write):
    (found,), _ = read_comparisons(write({"prompt": "p", "chosen": "a", "rejected": "b", "weather": "rain", **FACTS}))
    assert {name: found[name] for name in FACTS} == FACTS and found["weather"] == "rain" and found.place[1] == 1


def test_one_person_s_undo_takes_back_nobody_else_s_label(write, tmp_path):
    """Ids count from 0 for each person, so two people's files in one would otherwise take back each other's."""
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    kept, left_out = read_comparisons(write({**pair, "id": 3, "annotator": "Ada"}, {"undo": 3, "annotator": "Ada"},
                                            {**pair, "id": 3, "annotator": "Ben"}))
    assert [record["annotator"] for record in kept] == ["Ben"] and left_out == {"taken back": 1}


def test_what_teaches_nothing_is_left_out_and_counted(write):
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    records = [
        {**pair, "id": 0},
        {**pair, "id": 1},
        {"prompt": "p", "first": "a", "second": "b", "choice": "tie", "id": 2},
        {"prompt": "p", "first": "a", "second": "b", "choice": "skip", "id": 3},
        {**pair, "id": 4, "again": True},
        {"undo": 1},
        {**pair, "rejected": "a"},
    ]
    kept, left_out = read_comparisons(write(*records))
    assert [record["id"] for record in kept] == [0]
    assert left_out == {"taken back": 1, "ties": 1, "skipped": 1, "asked again": 1, "of two equal answers": 1}
    assert say_left_out(left_out) == "1 asked again, 1 of two equal answers, 1 skipped, 1 taken back, 1 ties"


@pytest.mark.parametrize(
    "wrong, complaint",
    [
        ({"rejected": None}, "'rejected' is NoneType, not text or list"),
        ({"chosen": [1]}, "neither text nor a list of chat messages"),
        ({"chosen": "\ud83d"}, "half a character"),
        ({"chosen": [said("user", "\ud83d")]}, "half a character"),
        ({"confidence": "high"}, "'confidence' is 'high', not a number"),
        ({"annotator": 7}, "'annotator' is '7', not text"),
        ({"shown_first": "left"}, "'shown_first' is 'left'; it must be chosen or rejected"),
        ({"time": []}, "'time' is"),
        ({"source": "chat \ud83d"}, "field 'source' holds half a character"),
        ({"prompt": None, "chosen": [{"from": "gpt", "value": "a"}], "rejected": [{"from": "gpt", "value": "b"}]},
         "neither text nor a list of chat messages with role and content"),
        ({"prompt": "Other", "chosen": [HI, YES], "rejected": [HI, NO]}, "begin alike, and without the prompt"),
        ({"prompt": None, "chosen": [YES], "rejected": [NO]}, "'prompt' is NoneType"),
        ({"chosen": None, "completion": "c", "label": True}, "as in KTO; a comparison needs two completions"),
        ({"prompt": None, "chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "\n\nHuman: Hi\n\nAssistant: No"},
         "whole dialogues, as in hh-rlhf, without a prompt; cut both"),
    ],
)
def test_a_line_that_cannot_be_meant_so_is_named(write, wrong, complaint):
    with pytest.raises(UserError, match=f"pairs.jsonl, line 2: .*{complaint}"):
        read_comparisons(write({"prompt": "p", "chosen": "a", "rejected": "b"},
                               {"prompt": "p", "chosen": "a", "rejected": "b", **wrong}))


def test_splits_look_at_the_prompt_whatever_form_it_was_in(write):
    records = [{"prompt": f"story {i}", "chosen": "a", "rejected": "b"} for i in range(60)]
    records += [{"chosen": [said("user", f"story {i}"), GOOD], "rejected": [said("user", f"story {i}"), BAD]}
                for i in range(60)]
    learned, held_out = split_by_prompt(read_comparisons(write(*records))[0], 0.3)
    assert len(learned) + len(held_out) == 120 and held_out and not {r["prompt"] for r in learned} & {r["prompt"]
        for r in held_out}


def test_pairs_that_become_equal_when_cut_are_dropped_and_counted(tokenizer):
    long = "kite " * 60
    pairs = [("p", long + "a", long + "b"), ("p", "a", long), ("p", "a", "b"), ("kite " * 200, "a", "b")]
    ranked, left_out = ranked_rows(tokenizer, [dict(zip(("prompt", "chosen", "rejected"), pair)) for pair in pairs], 48,
                                   "cut")
    assert left_out == {CUT: 2, EQUAL: 1, TOO_LONG: 1} and count_pairs(ranked) == 2
    (group,) = ranked
    assert max(len(group.prompt) + len(answer) for answer in group.completions) == 48 and {answer[-1]
        for answer in group.completions} == {tokenizer.end}
