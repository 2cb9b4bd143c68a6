"""The reading corpus: what it asks, that its answers are right and marked, and what it must never ask."""

import os
import random
import re
from collections import Counter

import pytest

from minialign.lab.demo.instruct import TAUGHT
from minialign.world.corpus import documents
from minialign.world.datasets import CLUSTERS, HELD_OUT, PROMPTS
from minialign.world.parse import parse
from minialign.world.reading_corpus import (
    EASY,
    EASY_FORMS,
    FEWEST,
    FIRST,
    FORMS,
    MOST,
    YES_NO,
    happens_twice,
    minimal_pair,
    reading_document,
    reading_documents,
)
from minialign.world.stories import write_scene
from minialign.world.wordings import matches

ASKED = {"who": "questions", "what": "questions", "where": "questions", "feeling": "questions", "yes_no": "yes-no",
         "presence": "yes-no", "order": "order", "counting": "counting", "sameness": "paraphrase", "tone": "sentiment",
         "finding": "finding"}  # kind of question -> the trained cluster that asks for the same skill


DOCUMENTS = int(os.environ.get("DOCUMENTS", 6_000))  # that are read here; .ci/run reads 20,000
START = EASY - DOCUMENTS // 4


@pytest.fixture(scope="module")
def corpus():
    return list(reading_documents(DOCUMENTS, seed=3, first=START))


def test_document_number_i_depends_on_the_seed_and_i_alone(corpus):
    assert reading_document(3, START + 1234) == corpus[1234] == next(reading_documents(1, 3, first=START + 1234))
    assert reading_document(4, START + 1234) != corpus[1234]
    assert len({document.text for document in corpus}) == len(corpus)


def test_six_to_ten_things_are_asked_of_each_passage_in_at_least_twelve_forms(corpus):
    assert all(FEWEST <= len(document.items) <= MOST for document in corpus) and (FEWEST, MOST) == (6, 10)
    easy, others = corpus[:DOCUMENTS // 4], corpus[DOCUMENTS // 4:]
    assert {(document.form, document.words) for document in easy} == {(form, YES_NO[0]) for form in EASY_FORMS}
    forms = Counter(document.form for document in others)
    assert len(forms) == len(FORMS) >= 12 and min(forms.values()) > 0.9 * len(others) / len(FORMS)
    words = Counter(document.words for document in others)
    assert set(words) == set(YES_NO) and 0.55 < words[YES_NO[0]] / len(others) < 0.62
    assert all(document.words[0] in document.text for document in corpus if document.words != YES_NO[0])


def test_a_corpus_begins_in_one_form_and_asks_what_is_there():
    documents = [*reading_documents(400, 3), *reading_documents(400, 3, first=FIRST - 400)]
    assert {(document.form, document.words) for document in documents} == {(EASY_FORMS[0], YES_NO[0])}
    kinds = Counter(item.kind for document in documents for item in document.items)
    assert set(kinds) == {"who", "what", "where", "feeling", "presence", "yes_no"}
    assert kinds["presence"] / sum(kinds.values()) > 0.2 and kinds["yes_no"] / sum(kinds.values()) > 0.3
    assert all(len(document.story.events) <= 5 for document in documents)
    assert all(FEWEST <= len(document.items) <= MOST for document in documents)
    assert len({document.form for document in reading_documents(100, 3, first=FIRST)}) == len(EASY_FORMS)


def test_the_shares_of_what_is_asked(corpus):
    kinds = Counter(item.kind for document in corpus for item in document.items)
    asked = sum(kinds.values())
    assert set(kinds) == set(ASKED)
    assert kinds["yes_no"] / asked == pytest.approx(0.46, abs=0.02)
    assert sum(kinds[name] for name in ("who", "what", "where", "feeling")) / asked == pytest.approx(0.37, abs=0.02)
    assert min(kinds.values()) / asked > 0.006
    yes = [item.answer for document in corpus for item in document.items if item.kind == "yes_no"]
    assert sum(yes) / len(yes) == pytest.approx(0.5, abs=0.01)
    paired = sum(len({i.answer for i in items}) == 2 for document in corpus[:2000]
                 for items in [[i for i in document.items if i.kind == "yes_no"]])
    assert paired > 1000  # in most documents both answers are right somewhere


def test_answers_stand_where_they_are_marked(corpus):
    for document in corpus[:3000]:
        said = [document.text[start:end] for start, end in document.answers]
        for text, item in zip(said, document.items):
            answer = document.words[not item.answer] if isinstance(item.answer, bool) else item.answer
            assert text == answer or item.detail and text in (f"{answer}, {item.detail}", f"{item.detail}, {answer}")
        assert document.text.count(document.story.text) == 1


def test_the_answers_are_right(corpus):
    """A yes-no question turned into a statement is true of the story or not, by the reader that the gold score uses."""
    checked = 0
    for document in corpus[:2000]:
        for event in document.story.events:
            for item in minimal_pair(event, document.story, random.Random(0)):
                who = re.fullmatch(r"Did (\w+) (find|lose|want|make) (the|a) (.+)\?", item.question)
                if who:
                    verb = {"find": "found", "lose": "lost", "want": "wanted", "make": "made"}[who[2]]
                    told = parse(f"{who[1]} {verb} {who[3]} {who[4]}.")[0].event
                    assert any(matches(told, fact) for fact in document.story.events) is item.answer
                    checked += 1
    assert checked > 500


def test_a_minimal_pair_differs_in_one_detail(corpus):
    for document in corpus[:300]:
        for event in document.story.events:
            pair = minimal_pair(event, document.story, random.Random(1))
            if pair:
                (a, b), rights = (item.question.split() for item in pair), {item.answer for item in pair}
                assert rights == {True, False} and a != b
                assert abs(len(a) - len(b)) <= 1  # a colour may be left out


def fixed_parts(template):
    """The words of a template between its slots, three or more in a row."""
    return [part.strip() for part in re.split(r"\{\w+\}|\n", template) if len(part.split()) >= 3]


def test_the_reading_corpus_asks_nothing_of_the_held_out_clusters(corpus):
    """No wording of inference, completion or coreference, and none of their tasks in other words, in any
    document."""
    assert not set(ASKED.values()) & set(HELD_OUT)
    trained = {part for name, templates in PROMPTS.items() if not any(name in CLUSTERS[c] for c in HELD_OUT)
               for template in templates for part in fixed_parts(template.input)}
    held_out = {part for cluster in HELD_OUT for name in CLUSTERS[cluster] for template in PROMPTS[name]
                for part in fixed_parts(template.input)} - trained
    assert len(held_out) > 20
    whole = "\n".join(document.text for document in corpus)
    assert [part for part in held_out if part in whole] == []
    for word in ("True?", "Is that true", "wrong?", "follow", "mean \"", "\"he\"", "\"she\"", "Why", "How so", "next"):
        assert word not in whole
    for document in corpus:
        for item in document.items:
            statements = [s for s in parse(item.question.split(": ")[-1]) if s.event is not None]
            if isinstance(item.answer, bool):  # a statement by itself is never judged by the passage
                assert len(statements) != 1 or item.kind != "yes_no"
            if item.kind in ("sameness", "order") and isinstance(item.answer, bool):
                assert item.question.startswith(("Same? ", "Was it first that "))
            assert not re.search(r"\b(he|she)\b[^.?]*\?$", item.question)  # nobody is asked whom a pronoun means


def test_held_out_wordings_use_words_that_a_model_has_met(corpus):
    """In the corpora, or in an instruction of a cluster that is taught: of another word nobody can know the meaning."""
    def words(text):
        return set(re.findall(r"[a-z]+", re.sub(r"\{\w+\}", " ", text).lower()))

    met = words(" ".join(document.text for document in corpus) + " ".join(d["text"] for d in documents(2_000, seed=3)))
    met |= {word for cluster in TAUGHT for name in CLUSTERS[cluster] for each in PROMPTS[name]
            for word in words(each.input)}
    assert "number" not in met and "why" not in met  # which stood in such wordings once
    strange = {(name, each.name): unmet for cluster in HELD_OUT for name in CLUSTERS[cluster] for each in PROMPTS[name]
               if (unmet := words(each.input) - met)}
    assert strange == {}


def test_in_some_scenes_a_thing_happens_twice_with_one_detail_exchanged():
    twice = 0
    for number in range(400):
        rng = random.Random(number)
        scene = write_scene(rng, 3, 5)
        story = happens_twice(scene, rng)
        added = [event for event in story.events if event not in scene.events]
        assert len(story.events) - len(scene.events) == len(added) <= 1
        for event in added:
            assert any(event.kind == other.kind for other in scene.events)
            told = [statement.event for statement in parse(story.text) if statement.event is not None]
            assert sum(matches(statement, event) for statement in told) >= 1
        twice += len(added)
    assert twice > 250
