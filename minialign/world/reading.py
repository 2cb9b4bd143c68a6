r"""Tasks that are answered by reading: who is there, how many, in which order, whom a pronoun means.

Each function turns a passage into examples, as those of `tasks.py` do: dictionaries with the passage's text, what is
asked, the `answer` and the `options` to choose from. Whatever the passage leaves open is not asked.

Read next: judging.py.
"""

import random
from collections.abc import Sequence

from minialign.world.parse import parse
from minialign.world.stories import CHILDREN, Story, say, write_scene
from minialign.world.tasks import TASKS, quotes, say_all
from minialign.world.templates import stands_in
from minialign.world.wordings import PLACES, PRONOUNS, WORDS, Event, choices, fill, finish

NUMBERS = ["one", "two", "three", "four"]
YES_NO = ["yes", "no"]
NOUNS = [*WORDS["things"], *WORDS["animals"], *WORDS["foods"]]


def yes_or_no(right: bool, **fields: str) -> list[dict]:
    """The example whose answer is yes if `right`."""
    return [{**fields, "answer": YES_NO[not right], "options": YES_NO}]


def shuffled(options: Sequence[str], rng: random.Random) -> list[str]:
    """The options in random order."""
    return rng.sample(options, len(options))


def among(answer: str, others: list[str], rng: random.Random, **fields: str) -> list[dict]:
    """The example whose answer stands in random order among others."""
    return [{**fields, "answer": answer, "options": shuffled([answer, *others], rng)}]


def nouns(story: Story) -> list[str]:
    """Things, animals and foods of a passage without their colours, in order."""
    named = (name.split(" ")[-1] for event in story.events for name in (event.what, event.other))
    return list(dict.fromkeys(noun for noun in named if noun in NOUNS))


def places(story: Story) -> list[str]:
    """Places of a passage, in order."""
    return list(dict.fromkeys(event.where for event in story.events if event.where))


def sentences(story: Story) -> list[str]:
    """The passage, sentence by sentence."""
    return [part.removesuffix(".") + "." for part in story.text.split(". ")]


def named_person(story: Story, rng: random.Random) -> list[dict]:
    """Is this person in the passage?"""
    inside = rng.random() < 0.5
    others = [name for name in CHILDREN if name not in story.people]
    return yes_or_no(inside, story=story.text, person=rng.choice(story.people if inside else others))


def named_thing(story: Story, rng: random.Random) -> list[dict]:
    """Does the passage speak of this thing?"""
    inside, thing = _inside_or_not(nouns(story), NOUNS, rng)
    return yes_or_no(inside, story=story.text, thing=thing)


def named_place(story: Story, rng: random.Random) -> list[dict]:
    """Does the passage go to this place?"""
    inside, place = _inside_or_not(places(story), list(PLACES), rng)
    return yes_or_no(inside, story=story.text, place=place)


def _inside_or_not(found: list[str], every: list[str], rng: random.Random) -> tuple[bool, str]:
    """Whether a word is among those that were found, and the word; about half are."""
    inside = bool(found) and rng.random() < 0.5
    return inside, rng.choice(found if inside else [word for word in every if word not in found])


def count_people(story: Story, rng: random.Random) -> list[dict]:
    """How many people are there? Two of three passages about two people are left out, since most are."""
    if len(story.people) == 2 and rng.random() < 0.67:
        return []
    return _count(story, len(story.people))


def count_sentences(story: Story, rng: random.Random) -> list[dict]:
    """How many sentences are there?"""
    return _count(story, story.text.count("."))


def _count(story: Story, count: int) -> list[dict]:
    if count > len(NUMBERS):
        return []
    return [{"story": story.text, "answer": NUMBERS[count - 1], "options": NUMBERS}]


def count_things(story: Story, rng: random.Random) -> list[dict]:
    """How many things, animals and foods are there? Two of three passages with one are left out, since most are."""
    count = len(nouns(story))
    return [] if count == 0 or count == 1 and rng.random() < 0.67 else _count(story, count)


def count_name(story: Story, rng: random.Random) -> list[dict]:
    """How often does a name stand there?"""
    counts = {name: story.text.replace(".", " ").replace(",", " ").split().count(name) for name in story.people}
    wanted = rng.randint(1, 4)
    found = [name for name, count in counts.items() if count == wanted]
    if not found:
        return []
    return [{"story": story.text, "person": rng.choice(found), "answer": NUMBERS[wanted - 1], "options": NUMBERS}]


def which_of_two(story: Story, rng: random.Random) -> list[dict]:
    """Who of two people of the passage was it?"""
    found = [(asked, [name for name in story.people if name != asked["answer"]])
             for asked in TASKS["who"].examples(story, rng)]
    found = [(asked, others) for asked, others in found if others]
    if not found:
        return []
    asked, others = rng.choice(found)
    return among(asked["answer"], [rng.choice(others)], rng, story=story.text, question=asked["question"])


def colour(story: Story, rng: random.Random) -> list[dict]:
    """Which colour does a thing have?"""
    named = {name for event in story.events for name in (event.what, event.other) if " " in name and name in story.text}
    coloured = [name.split(" ") for name in sorted(named) if name.split(" ")[0] in WORDS["colours"]]
    once = [(shade, noun) for shade, noun in coloured if sum(noun == other for _, other in coloured) == 1]
    if not once:
        return []
    shade, noun = rng.choice(once)
    return [{"story": story.text, "thing": noun, "answer": shade, "options": list(WORDS["colours"])}]


def _asked_of(story: Story, rng: random.Random) -> list[str]:
    """Who, where and what can be asked of a passage."""
    return [each["question"] for field in ("who", "where", "what") for each in TASKS[field].examples(story, rng)]


def answerable(story: Story, rng: random.Random) -> list[dict]:
    """Does the passage answer a question?"""
    inside = rng.random() < 0.5
    asked, own = _asked_of(story, rng), nouns(story) + list(story.people)
    if not inside:  # what names nobody and nothing of the passage, and what is not asked of the passage itself
        asked = [question for question in _asked_of(write_scene(rng), rng)
                 if question not in asked and not any(name in question for name in own)]
    return yes_or_no(inside, story=story.text, question=rng.choice(asked)) if asked else []


def _two_in_order(story: Story, rng: random.Random) -> list[tuple[str, str]]:
    """Two events of the passage in new words, the earlier one first; no pair if they cannot be told apart."""
    told = [event for event in story.events if choices(event, "summary")]
    if len(told) < 2:
        return []
    first, second = (say(told[i], rng, "summary") for i in sorted(rng.sample(range(len(told)), 2)))
    return [(first, second)] if first != second else []


def came_first(story: Story, rng: random.Random) -> list[dict]:
    """Which of two events came first?"""
    return [{"story": story.text, "answer": pair[0], "other": pair[1], "options": shuffled(pair, rng)}
            for pair in _two_in_order(story, rng)]


def came_last(story: Story, rng: random.Random) -> list[dict]:
    """Which of two events came later?"""
    pairs = _two_in_order(story, rng)
    return [{"story": story.text, "answer": pair[1], "options": shuffled(pair, rng)} for pair in pairs]


def before(story: Story, rng: random.Random) -> list[dict]:
    """Did the first of two events happen before the second?"""
    for pair in _two_in_order(story, rng):
        right = rng.random() < 0.5
        first, second = pair if right else pair[::-1]
        return yes_or_no(right, story=story.text, first=first, second=second)
    return []


def find_sentence(story: Story, rng: random.Random) -> list[dict]:
    """The sentence of the passage that speaks of a thing that no other sentence names."""
    told = sentences(story)
    alone = []
    for word in [*NOUNS, *WORDS["feelings"]]:
        lines = [line for line in told if word in _words(line)]
        alone += [(word, lines[0])] if len(lines) == 1 else []
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


def _pronoun_pair(story: Story, rng: random.Random) -> list[tuple[str, str, str, str]]:
    """A sentence about two people, one that goes on with "he" or "she", whom that means, and the other; or nothing."""
    about_two = [e for e in story.events
                 if e.who and e.whom and PRONOUNS[e.who] != PRONOUNS[e.whom] and choices(e, "story")]
    if not about_two:
        return []
    event = rng.choice(about_two)
    person, other = rng.sample([event.who, event.whom], 2)
    following = rng.choice([Event("feel", who=person, feeling=rng.choice(WORDS["feelings"])),
                            Event("go", who=person, where=rng.choice(list(PLACES)))])
    wordings = [w for w in choices(following, "story") if w.startswith("{who} ") and "{who}" not in w[6:]]
    second = finish(PRONOUNS[person] + fill(rng.choice(wordings).removeprefix("{who}"), following, rng, "story", set()))
    return [(say(event, rng, "story"), second, person, other)]


def pronoun(story: Story, rng: random.Random) -> list[dict]:
    """Whom does "he" or "she" mean?"""
    for first, second, person, other in _pronoun_pair(story, rng):
        return among(person, [other], rng, story=f"{first} {second}", pronoun=second.split(" ")[0])
    return []


def pronoun_means(story: Story, rng: random.Random) -> list[dict]:
    """Does "he" or "she" mean this person?"""
    for first, second, person, other in _pronoun_pair(story, rng):
        right = rng.random() < 0.5
        name = person if right else other
        return yes_or_no(right, story=f"{first} {second}", pronoun=second.split(" ")[0], person=name)
    return []


def without_pronoun(story: Story, rng: random.Random) -> list[dict]:
    """The second sentence, told with the name that the pronoun stands for."""
    for first, second, person, other in _pronoun_pair(story, rng):
        right, wrong = (f"{name} {second.split(' ', 1)[1]}" for name in (person, other))
        return among(right, [wrong], rng, story=f"{first} {second}", sentence=second)
    return []


def statements(story: Story) -> list[tuple[Event, str]]:
    """Events of the passage with the passage's own sentence for each that has one to itself."""
    return [(story.events[place], text) for place, text in quotes(story).items()]


def restated(event: Event, sentence: str, rng: random.Random) -> str | None:
    """Another sentence for the same event that says all of it and is no part of the first; None if there is none."""
    for _ in range(6):
        other = say_all(event, rng)
        part = other is None or stands_in(" ".join(_words(other)), " ".join(_words(sentence)))
        if not part and parse(other)[0].event is not None:
            return other
    return None
