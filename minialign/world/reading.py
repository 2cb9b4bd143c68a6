r"""Tasks that are answered by reading: who is there, how many, in which order, whom a pronoun means, where something
stands.

Each function turns a passage into examples, as those of `tasks.py` do: dictionaries with the passage's text, what is
asked, the `answer` and the `options` to choose from. Whatever the passage leaves open is not asked.

Read next: `judging.py` and `writing.py`, the other tasks, and `datasets.py`, where all of them stand in a list.
"""

from __future__ import annotations

import random

from minialign.world.parse import parse
from minialign.world.stories import CHILDREN, Story, say
from minialign.world.tasks import quotes, say_all
from minialign.world.templates import stands_in
from minialign.world.wordings import PLACES, PRONOUNS, WORDS, Event, choices, fill, finish

NUMBERS = ["one", "two", "three", "four", "five"]
YES_NO = ["yes", "no"]
NOUNS = [*WORDS["things"], *WORDS["animals"], *WORDS["foods"]]


def shuffled(options: list[str], rng: random.Random) -> list[str]:
    """The options in random order."""
    return rng.sample(options, len(options))


def nouns(story: Story) -> list[str]:
    """Things, animals and foods of a passage without their colours, in order."""
    named = (name.split(" ")[-1] for event in story.events for name in (event.what, event.other))
    return list(dict.fromkeys(noun for noun in named if noun in NOUNS))


def places(story: Story) -> list[str]:
    """Places of a passage, in order."""
    return list(dict.fromkeys(event.where for event in story.events if event.where))


def sentences(story: Story) -> list[str]:
    """The passage, sentence by sentence."""
    parts = story.text.split(". ")
    return [part.removesuffix(".") + "." for part in parts]


def named_person(story: Story, rng: random.Random) -> list[dict]:
    """Is this person in the passage?"""
    inside = rng.random() < 0.5
    others = [name for name in CHILDREN if name not in story.people]
    person = rng.choice(story.people if inside else others)
    return [{"story": story.text, "person": person, "answer": YES_NO[not inside], "options": YES_NO}]


def named_thing(story: Story, rng: random.Random) -> list[dict]:
    """Does the passage speak of this thing?"""
    found = nouns(story)
    inside = bool(found) and rng.random() < 0.5
    thing = rng.choice(found if inside else [noun for noun in NOUNS if noun not in found])
    return [{"story": story.text, "thing": thing, "answer": YES_NO[not inside], "options": YES_NO}]


def named_place(story: Story, rng: random.Random) -> list[dict]:
    """Does the passage go to this place?"""
    found = places(story)
    inside = bool(found) and rng.random() < 0.5
    place = rng.choice(found if inside else [place for place in PLACES if place not in found])
    return [{"story": story.text, "place": place, "answer": YES_NO[not inside], "options": YES_NO}]


def count_people(story: Story, rng: random.Random) -> list[dict]:
    """How many people are there? Two of three passages about two people are left out, since most are."""
    count = len(story.people)
    if count == 2 and rng.random() < 0.67:
        return []
    return [{"story": story.text, "answer": NUMBERS[count - 1], "options": NUMBERS[:4]}] if count <= 4 else []


def count_sentences(story: Story, rng: random.Random) -> list[dict]:
    """How many sentences are there?"""
    count = story.text.count(".")
    return [{"story": story.text, "answer": NUMBERS[count - 1], "options": NUMBERS[:4]}] if count <= 4 else []


def _two_in_order(story: Story, rng: random.Random) -> tuple[str, str] | None:
    """Two events of the passage in new words, the earlier one first; None if they cannot be told apart."""
    told = [event for event in story.events if choices(event, "summary")]
    if len(told) < 2:
        return None
    first, second = sorted(rng.sample(range(len(told)), 2))
    said = say(told[first], rng, "summary"), say(told[second], rng, "summary")
    return said if said[0] != said[1] else None


def came_first(story: Story, rng: random.Random) -> list[dict]:
    """Which of two events came first?"""
    pair = _two_in_order(story, rng)
    return [{"story": story.text, "answer": pair[0], "other": pair[1], "options":
             shuffled(list(pair), rng)}] if pair else []


def came_last(story: Story, rng: random.Random) -> list[dict]:
    """Which of two events came later?"""
    pair = _two_in_order(story, rng)
    return [{"story": story.text, "answer": pair[1], "options": shuffled(list(pair), rng)}] if pair else []


def before(story: Story, rng: random.Random) -> list[dict]:
    """Did the first of two events happen before the second?"""
    pair = _two_in_order(story, rng)
    if pair is None:
        return []
    right = rng.random() < 0.5
    first, second = pair if right else pair[::-1]
    return [{"story": story.text, "first": first, "second": second, "answer": YES_NO[not right], "options": YES_NO}]


def find_sentence(story: Story, rng: random.Random) -> list[dict]:
    """The sentence of the passage that speaks of a thing that no other sentence names."""
    told = sentences(story)
    alone = [(noun, line) for noun in [*NOUNS, *WORDS["feelings"]] for line in told if noun in _words(line)
             and sum(noun in _words(x) for x in told) == 1]
    if len(told) < 2 or not alone:
        return []
    word, line = rng.choice(alone)
    return [{"story": story.text, "word": word, "answer": line, "options": told}]


def _words(text: str) -> list[str]:
    return text.lower().replace(",", "").replace(".", "").split()


def last_sentence(story: Story, rng: random.Random) -> list[dict]:
    """The sentence that the passage ends with."""
    told = sentences(story)
    return [{"story": story.text, "answer": told[-1], "options": told}] if len(told) > 1 else []


def person_named_first(story: Story, rng: random.Random) -> list[dict]:
    """Whose name stands first in the passage?"""
    order = sorted((story.text.find(name), name) for name in story.people)
    if len(order) < 2 or order[0][0] < 0:
        return []
    return [{"story": story.text, "answer": order[0][1], "options": shuffled(list(story.people), rng)}]


def _pronoun_pair(story: Story, rng: random.Random) -> tuple[str, str, str, str] | None:
    """A sentence about two people, one that goes on with "he" or "she", whom that means, and the other one."""
    about_two = [e for e in story.events if e.who and e.whom and PRONOUNS[e.who] != PRONOUNS[e.whom]
                 and choices(e, "story")]
    if not about_two:
        return None
    event = rng.choice(about_two)
    person, other = rng.sample([event.who, event.whom], 2)
    following = rng.choice([Event("feel", who=person, feeling=rng.choice(WORDS["feelings"])),
                            Event("go", who=person, where=rng.choice(list(PLACES)))])
    wordings = [w for w in choices(following, "story") if w.startswith("{who} ") and "{who}" not in w[6:]]
    second = finish(PRONOUNS[person] + fill(rng.choice(wordings).removeprefix("{who}"), following, rng, "story", set()))
    return say(event, rng, "story"), second, person, other


def pronoun(story: Story, rng: random.Random) -> list[dict]:
    """Whom does "he" or "she" mean?"""
    pair = _pronoun_pair(story, rng)
    if pair is None:
        return []
    first, second, person, other = pair
    passage = {"story": f"{first} {second}", "pronoun": second.split(" ")[0]}
    return [passage | {"answer": person, "options": shuffled([person, other], rng)}]


def pronoun_means(story: Story, rng: random.Random) -> list[dict]:
    """Does "he" or "she" mean this person?"""
    pair = _pronoun_pair(story, rng)
    if pair is None:
        return []
    first, second, person, other = pair
    right = rng.random() < 0.5
    passage = {"story": f"{first} {second}", "pronoun": second.split(" ")[0], "person": person if right else other}
    return [passage | {"answer": YES_NO[not right], "options": YES_NO}]


def without_pronoun(story: Story, rng: random.Random) -> list[dict]:
    """The second sentence, told with the name that the pronoun stands for."""
    pair = _pronoun_pair(story, rng)
    if pair is None:
        return []
    first, second, person, other = pair
    rest = second.split(" ", 1)[1]
    return [{"story": f"{first} {second}", "sentence": second, "answer": f"{person} {rest}",
             "options": shuffled([f"{person} {rest}", f"{other} {rest}"], rng)}]


def statements(story: Story) -> list[tuple[Event, str]]:
    """Events of the passage with the passage's own sentence for each that has one to itself."""
    return [(story.events[place], text) for place, text in quotes(story).items()]


def restated(event: Event, sentence: str, rng: random.Random) -> str | None:
    """Another sentence for the same event that says all of it and is no part of the first; None if there is none."""
    for _ in range(6):
        other = say_all(event, rng)
        if other is not None and not stands_in(" ".join(_words(other)),
                                               " ".join(_words(sentence))) and parse(other)[0].event is not None:
            return other
    return None
