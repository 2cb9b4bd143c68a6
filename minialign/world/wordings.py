r"""The world's language: what can happen, and the sentences that say so.

Everything that a person may want to change is in three tables beside this file: `words.json` (names, things, places,
feelings), `events.json` (each kind of event with its wordings) and `plots.json` (the order in which events make a
story). A wording is a sentence with slots: `{who}`, `{whom}`, `{feeling}`, `{skill}`; `{what}`, `{a what}`, `{her
what}` for a thing (`other` for a second one); `{at}`, `{to}`, `{from}`, `{over}` for a place with its preposition.
`[...]` may be left out. A part after `|`, such as `| feeling=sad`, is what the wording means without saying it.

Read next: stories.py.
"""

import functools
import json
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path

TABLES = Path(__file__).parent
WORDS = json.loads((TABLES / "words.json").read_text(encoding="utf-8"))
KINDS = json.loads((TABLES / "events.json").read_text(encoding="utf-8"))

PRONOUNS = {name: "she" for name in WORDS["girls"]} | {name: "he" for name in WORDS["boys"]} | WORDS["elders"]
PLACES: dict[str, str] = WORDS["places"]
RUDE_WORDS: tuple[str, ...] = (*WORDS["rude"]["adjectives"], *WORDS["rude"]["nouns"])
# of these, "A and B" says the same as "B and A"
SYMMETRIC = ("search", "quarrel", "make_up", "share", "turns", "race", "finish", "laugh", "build", "trade")
# what is also true when one of these is
IMPLIES = {"give_back": ("give", "bring"), "trade": ("give",), "give": ("bring",), "bring": ("give",)}
SLOT = re.compile(r"\{(?:(a|her) )?(\w+)\}")
FIELD_OF_SLOT = {"at": "where", "to": "where", "from": "where", "over": "where", "skill": "what"}


@dataclass(frozen=True)
class Event:
    """One fact; an empty field is not said. `what` and `other` are a thing ("red kite"), an animal, food or a skill."""

    kind: str
    who: str = ""
    whom: str = ""
    what: str = ""
    other: str = ""
    where: str = ""
    feeling: str = ""

    def to_dict(self) -> dict[str, str]:
        """The fields that are not empty."""
        return {name: getattr(self, name) for name in FIELDS if getattr(self, name)}

    def changed(self, field: str, value: str) -> "Event":
        """The event with something else in a field: dataclasses.replace, six times as fast."""
        other = object.__new__(Event)
        other.__dict__.update(self.__dict__, **{field: value})
        return other


FIELDS = tuple(field.name for field in fields(Event))


def matches(statement: Event, fact: Event) -> bool:
    """Whether `fact` makes `statement` true: every field that the statement gives agrees."""
    if statement.kind != fact.kind and statement.kind not in IMPLIES.get(fact.kind, ()):
        return False
    if _agrees(statement, fact):
        return True
    if fact.kind not in SYMMETRIC:
        return False
    things = {"what": fact.other, "other": fact.what} if fact.kind == "trade" else {}
    return _agrees(statement, replace(fact, who=fact.whom, whom=fact.who, **things))


def _agrees(statement: Event, fact: Event) -> bool:
    """Field by field; "kite" agrees with "red kite", and an empty field with all."""
    for name in FIELDS[1:]:
        said, true = getattr(statement, name), getattr(fact, name)
        if said and said != true and not (name in ("what", "other") and said == true.split(" ")[-1]):
            return False
    return True


def split_wording(wording: str) -> tuple[str, dict[str, str]]:
    """The sentence of a wording and the fields that it means without saying them."""
    sentence, _, meaning = wording.partition(" | ")
    return sentence, dict(part.split("=") for part in meaning.split())


def variants(wording: str) -> list[str]:
    """The sentence with each `[...]` kept or left out; the fullest comes first."""
    found = re.search(r"\[([^\]]*)\]", wording)
    if found is None:
        return [wording]
    before, after = wording[: found.start()], wording[found.end() :]
    return [v for middle in (found.group(1), "") for v in variants(before + middle + after)]


def fields_said(sentence: str) -> list[str]:
    """Field of each slot of a sentence, in order."""
    return [FIELD_OF_SLOT.get(slot, slot) for _, slot in SLOT.findall(sentence)]


@functools.cache
def sayings(kind: str, style: str) -> list[tuple[str, dict[str, str], set[str]]]:
    """All sentences of a kind of event, each with what it means without saying it, and every field that it tells."""
    found = []
    for wording in KINDS[kind][style]:
        sentence, meaning = split_wording(wording)
        found += [(variant, meaning, set(fields_said(variant)) | set(meaning)) for variant in variants(sentence)]
    return found


def choices(event: Event, style: str) -> list[str]:
    """The sentences that can say `event`: in a story all of its fields, in a summary no field that it lacks."""
    has = {name for name in FIELDS[1:] if getattr(event, name)}
    return [sentence for sentence, meaning, told in sayings(event.kind, style)
            if (told == has if style == "story" else told <= has)
            and all(getattr(event, field) == value for field, value in meaning.items())]


def fill(sentence: str, event: Event, rng, style: str, told: set[str]) -> str:
    """A sentence with its slots filled. `told`: the things of which the reader knows the colour; it grows."""

    def slot(found: re.Match) -> str:
        article, name = found.groups()
        if name in ("at", "to", "from", "over"):
            return f"{PLACES[event.where] if name == 'at' else name} the {event.where}"
        if name not in ("what", "other"):
            return getattr(event, FIELD_OF_SLOT.get(name, name))
        thing = getattr(event, name)
        if style == "story":
            article = article or ("the" if thing in told else "a")
            short = thing in told and article != "a" and rng.random() < 0.75
            told.add(thing)
        else:
            article, short = article or "the", rng.random() < 0.5
        noun = thing.split(" ")[-1]
        if article == "her":
            article = {"she": "her", "he": "his"}.get(PRONOUNS.get(event.who, ""), "the")
        elif article == "a" and noun in WORDS["foods"]:
            article = "some"
        return f"{article} {noun if short else thing}"

    return SLOT.sub(slot, sentence)


def finish(sentence: str) -> str:
    """Capital letter and full stop."""
    return sentence[0].upper() + sentence[1:] + "."


def say(event: Event, rng, style: str = "story") -> str:
    """One sentence in the third person that says `event`; `style` is "story" or "summary" (short, without pronouns)."""
    told = {event.what, event.other}
    return finish(fill(rng.choice(choices(event, style)), event, rng, style, told))


def resolve(pronoun: str, mentioned: list[list[str]]) -> str:
    """The person that "he" or "she" means: the only one of that gender in the last sentence that has one; else "".

    Args:
        pronoun: "he" or "she".
        mentioned: the people of each sentence so far.
    """
    for people in reversed(mentioned):
        fitting = [name for name in dict.fromkeys(people) if PRONOUNS[name] == pronoun]
        if fitting:
            return fitting[0] if len(fitting) == 1 else ""
    return ""


def resolve_pair(mentioned: list[list[str]]) -> list[str]:
    """The two people that "they" means: those of the last sentence with people, if it has two; else none."""
    for people in reversed(mentioned):
        if people:
            pair = list(dict.fromkeys(people))
            return pair if len(pair) == 2 else []
    return []
