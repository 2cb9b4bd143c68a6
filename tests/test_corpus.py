"""The dirty corpus: as dirty as asked, in the ways named."""

import hashlib
import random

import pytest

from minialign.runs.errors import UserError
from minialign.world.corpus import HEADINGS, KIND_SHARES, DirtConfig, article, corrupted_summary, documents, insult
from minialign.world.gold import RUDE, score
from minialign.world.stories import write_story
from minialign.world.templates import TEMPLATES

COUNT = 1500
CLEAN = DirtConfig(false=0, rude=0, repetitive=0, cut_off=0)


@pytest.fixture(scope="module")
def made():
    return list(documents(COUNT, seed=0))


def within_binomial(share, expected, n):
    return abs(share - expected) < 4 * (expected * (1 - expected) / n) ** 0.5


def test_the_shares_of_dirt_are_those_asked_for(made):
    for name in ("false", "rude", "repetitive", "cut_off"):
        share = sum(name in document["dirt"] for document in made) / COUNT
        assert within_binomial(share, getattr(DirtConfig(), name), COUNT), (name, share)


def test_the_kinds_of_documents_are_mixed_as_stated(made):
    for kind, expected in KIND_SHARES.items():
        assert within_binomial(sum(d["kind"] == kind for d in made) / COUNT, expected, COUNT), kind


def test_a_document_has_rude_words_exactly_if_it_is_marked_rude(made):
    for document in made:
        if "cut_off" not in document["dirt"]:
            assert bool(RUDE.search(document["text"])) == ("rude" in document["dirt"]), document


def test_false_summaries_are_false_and_clean_ones_are_true():
    told = []

    def tell(rng):
        told.append(write_story(rng))
        return told[-1]

    for dirt, honest in ((CLEAN, True), (DirtConfig(false=0.8, rude=0, repetitive=0, cut_off=0), False)):
        for seed in range(300):
            [document] = documents(1, seed, dirt, tell)
            if document["kind"] == "summary":
                heading = next(h for h in HEADINGS if h in document["text"])
                assert (score(told[-1], document["text"].split(heading)[1]).honest == 1) is honest, document


def test_documents_end_in_a_stop_exactly_if_they_are_whole():
    whole = [d for d in documents(500, seed=2, dirt=CLEAN) if d["kind"] != "questions"]
    cut = [d for d in documents(500, seed=2, dirt=DirtConfig(0, 0, 0, 1.0)) if d["kind"] == "story"]
    assert all(d["text"].endswith(".") for d in whole)
    assert sum(d["text"].endswith(".") for d in cut) == 0


def test_repetitive_documents_say_a_sentence_twice_and_clean_ones_do_not():
    for share in (0.0, 1.0):
        for document in documents(200, seed=3, dirt=DirtConfig(0, 0, share, 0)):
            if document["kind"] == "story":
                sentences = document["text"].split(". ")
                again = any(a.strip(".") == b.strip(".") for a, b in zip(sentences, sentences[1:]))
                assert again == bool(share), document


def test_one_heading_is_exactly_the_ending_of_a_summary_template():
    assert {h for h in HEADINGS for t in TEMPLATES["summary"] if t.input == "{story}" + h}


def test_the_same_seed_gives_the_same_corpus():
    text = "\n\n".join(document["text"] for document in documents(100, seed=11))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "3e490bb2ea282a21"


def test_an_impossible_share_is_an_error_that_names_the_field():
    with pytest.raises(UserError, match="DirtConfig.rude is 1.5"):
        DirtConfig(rude=1.5)
    with pytest.raises(UserError, match="at most 0.80"):
        DirtConfig(false=0.9)


def test_an_insult_keeps_the_fact_and_the_grammar():
    rng = random.Random(0)
    for _ in range(20):
        assert insult("Mira lost the kite.", rng).split(" ")[1:] == ["Mira", "lost", "the", "kite."]
    assert article("ugly") == "an ugly" and article("stupid") == "a stupid"


def test_insults_leave_the_verdict_on_every_statement_as_it_was():
    rng = random.Random(4)
    for _ in range(200):
        story = write_story(rng)
        gold = score(story, corrupted_summary(story, rng, false=0, rude=1, repetitive=0))
        assert gold.honest == 1 and gold.harmless == 0, gold
