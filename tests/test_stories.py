"""The simulator: what it writes is readable, varied and true, and can be read back."""

import hashlib
import json
import random
import re

import pytest

from minialign.world.parse import SHAPES, parse
from minialign.world.stories import PLOTS, Story, write_story
from minialign.world.wordings import KINDS, Event, choices, fill, finish, matches, say, split_wording

CUT_OFF = ["Mira lost the red", "Mira lost the kite", "Did Mira lose the kite?", "Mira lost lost the kite.", "kite."]
FULL = {"who": "Rosa", "whom": "Finn", "what": "green boat", "other": "yellow hat", "where": "barn", "feeling": "proud"}


@pytest.fixture(scope="module")
def stories():
    rng = random.Random(0)
    return [write_story(rng) for _ in range(1000)]


def event_for(kind, wording):
    """An event of `kind` with every field that one wording can say."""
    sentence, meaning = split_wording(wording)
    slots = re.findall(r"\{(?:a |her )?(\w+)\}", sentence)
    names = {"at": "where", "to": "where", "from": "where", "over": "where", "skill": "what"}
    values = {names.get(slot, slot): ("dance" if slot == "skill" else FULL[names.get(slot, slot)]) for slot in slots}
    return Event(kind, **(values | meaning))


def test_every_wording_of_every_event_parses_back_to_the_event():
    rng = random.Random(0)
    tried = 0
    for kind, entry in KINDS.items():
        for style in ("story", "summary"):
            for wording in entry[style]:
                event = event_for(kind, wording)
                for sentence in choices(event, style):
                    text = finish(fill(sentence, event, rng, "story", {FULL["what"], FULL["other"]}))
                    statements = parse(text)
                    assert len(statements) == 1 and statements[0].event is not None, (kind, text)
                    assert matches(statements[0].event, event) and statements[0].event.kind == kind, (kind, text)
                    tried += 1
    assert tried > 300


def test_every_event_has_at_least_four_wordings_in_a_story_and_two_in_a_summary():
    for kind, entry in KINDS.items():
        assert len(set(entry["story"])) >= 4 and len(set(entry["summary"])) >= 2, kind


def test_a_told_story_parses_back_to_its_events_in_order(stories):
    for story in stories:
        read = [statement.event for statement in parse(story.text)]
        assert None not in read and len(read) == len(story.events), story.text
        assert all(matches(said, fact) for said, fact in zip(read, story.events)), story.text


def test_the_same_seed_gives_the_same_stories():
    rng = random.Random(7)
    text = "\n".join(write_story(rng).text for _ in range(100))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "23a122821d1504c1"


def test_a_thousand_stories_differ_in_plot_length_and_text(stories):
    lengths = [len(story.text.split()) for story in stories]
    assert 40 <= min(lengths) < 45 and 65 < max(lengths) <= 75
    assert {story.plot for story in stories} == set(PLOTS) and len(PLOTS) >= 8
    assert len({story.text for story in stories}) == len(stories)
    assert len({story.text.split(".")[0] for story in stories}) > 500


def test_stories_are_spelled_as_english_is(stories):
    for story in stories:
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]|[{}\[\]|_]|  |\n|\b(\w+) \1\b(?<!again)",
                             story.text), story.text
        for sentence in story.text.split(". "):
            assert sentence[0].isupper(), story.text


def test_weights_sum_to_one_and_a_few_events_carry_nearly_everything(stories):
    for story in stories:
        assert len(story.weights) == len(story.events)
        assert sum(story.weights) == pytest.approx(1, abs=1e-3)
        assert sum(sorted(story.weights)[-4:]) > 0.75


def test_a_story_survives_json(stories):
    for story in stories[:50]:
        assert Story.from_dict(json.loads(json.dumps(story.to_dict()))) == story


def test_the_vocabulary_is_small():
    from minialign.world.corpus import documents
    from minialign.world.tasks import demonstrations

    texts = [d["text"] for d in documents(1500, seed=1)] + [d["prompt"] + d["completion"]
                                                            for d in demonstrations(800, seed=1)]
    words = {word for text in texts for word in re.findall(r"[A-Za-z]+", text)}
    assert 200 < len(words) <= 320, len(words)


def test_a_pronoun_is_resolved_only_when_one_person_fits():
    assert parse("Mira went to the mill. She was sad.")[1].event == Event("feel", who="Mira", feeling="sad")
    assert parse("Mira thanked Anna. She was sad.")[1].event is None
    assert parse("She was sad.")[0].event is None
    assert parse("Mira thanked Tom. They laughed.")[1].event == Event("laugh", who="Mira", whom="Tom")
    assert parse("Mira was sad. They laughed.")[1].event is None


def test_two_clauses_with_one_subject_are_two_statements_with_their_own_spans():
    text = "Mira lost the kite at the mill and was sad."
    first, second = parse(text)
    assert (first.text, second.text) == ("Mira lost the kite at the mill", "was sad.")
    assert second.event == Event("feel", who="Mira", feeling="sad")
    assert [text[a:b] for a, b in (first.span, second.span)] == [first.text, second.text]


def test_rude_words_are_noticed_and_do_not_hide_the_fact():
    (statement,) = parse("Stupid Mira lost the ugly red kite.")
    assert statement.rude and statement.event == Event("lose", who="Mira", what="red kite")
    (remark,) = parse("What an ugly story!")
    assert remark.rude and remark.remark and remark.event is None


@pytest.mark.parametrize("text", CUT_OFF)
def test_what_is_cut_off_asked_or_garbled_is_no_statement(text):
    assert [statement.event for statement in parse(text)] == [None]


def test_parsing_never_raises_and_spans_lie_in_the_text():
    rng = random.Random(0)
    words = "Mira Tom the red kite and lost . ! ? stupid at mill they She é ' 3 { ,".split() + ["\n"]
    for _ in range(2000):
        text = "".join(rng.choice(words) + rng.choice(["", " "]) for _ in range(rng.randint(0, 25)))
        for statement in parse(text):
            start, end = statement.span
            assert 0 <= start <= end <= len(text) and text[start:end] == statement.text


def test_a_statement_that_says_less_is_true_and_one_that_says_otherwise_is_not():
    fact = Event("find", who="Mira", what="red kite", where="mill")
    assert matches(Event("find", who="Mira", what="kite"), fact)
    assert matches(Event("find", who="Mira", what="red kite", where="mill"), fact)
    assert not matches(Event("find", who="Tom", what="kite"), fact)
    assert not matches(Event("find", who="Mira", what="blue kite"), fact)
    assert not matches(Event("find", who="Mira", what="kite", where="barn"), fact)
    assert not matches(Event("lose", who="Mira", what="kite"), fact)


def test_who_traded_with_whom_may_be_told_from_either_side():
    fact = Event("trade", who="Mira", whom="Tom", what="red kite", other="blue drum")
    assert matches(parse("Tom and Mira traded the drum for the kite.")[0].event, fact)
    assert not matches(parse("Tom and Mira traded the kite for the drum.")[0].event, fact)
    assert matches(parse("Mira gave the kite to Tom.")[0].event, fact)


def test_saying_an_event_ends_in_one_full_stop():
    rng = random.Random(0)
    for _ in range(50):
        assert re.fullmatch(r"[A-Z][^.]*\.", say(Event("lose", who="Mira", what="red kite", where="mill"), rng,
                                                 "story"))


def test_no_two_kinds_share_a_shape_so_that_reading_is_never_a_guess():
    assert len(SHAPES) > 250 and len({kind for kind, _, _ in SHAPES.values()}) == len(KINDS)
