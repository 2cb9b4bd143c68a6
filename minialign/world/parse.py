r"""Reading the world's language back: every sentence that `wordings.py` can write becomes the event that it says.

A sentence is reduced to its shape: names become P, things N, places L, feelings F, skills K, rude words disappear.
"Stupid Mira lost the red kite at the mill." has the shape "P lost N AT" and the entities Mira, red kite, mill. All
shapes of all wordings stand in one dictionary. What is not in it says nothing that can be judged. Details that matter:
1. a sentence without its final stop was cut off, and a question claims nothing: neither is a statement;
2. "he", "she" and "they" at the head of a clause are resolved only when the text so far leaves one choice
   (`wordings.resolve`);
3. "Mira lost the kite and was sad." is two statements, each with its own span;
4. articles and owners are not judged: "a kite", "the kite" and "her kite" are the same thing.

Read next: gold.py.
"""

import functools
import re
from dataclasses import dataclass

from minialign.world import wordings
from minialign.world.wordings import PLACES, PRONOUNS, RUDE_WORDS, WORDS, Event

SENTENCE = re.compile(r"[^.!?\n]+[.!?]*|[.!?]+")
TOKEN = re.compile(r"[A-Za-z]+|[^A-Za-z\s,]")
ARTICLES = frozenset(["the", "a", "an", "some", "his", "her"])
PREPOSITIONS = frozenset(["at", "in", "by", "on"])
COLOURS = frozenset(WORDS["colours"] + WORDS["coats"])
NOUNS = frozenset(WORDS["things"] + WORDS["animals"] + WORDS["foods"])
CLASSES = (
    {name.lower(): ("P", name) for name in PRONOUNS}
    | {word: ("F", word) for word in WORDS["feelings"]}
    | {word: ("K", word) for word in WORDS["skills"]}
    | {word: ("P", word) for word in ("he", "she")}
)
OPENERS = tuple(tuple(opener.replace(",", "").split()) for group in WORDS["openers"].values() for opener in group)
FIRST_OF_OPENER = frozenset(opener[0] for opener in OPENERS)
RUDE = frozenset(RUDE_WORDS)
ENTITIES = frozenset(["P", "N", "AT", "L", "F", "K", "P and P"])  # symbols that stand for an entity


@dataclass(frozen=True)
class Statement:
    """What one clause of a text says."""

    span: tuple[int, int]  # characters of the text
    text: str
    event: Event | None  # None: nothing that can be judged
    rude: bool
    remark: bool = False  # a rude exclamation that states no fact, such as "What a stupid story!"


def shape(words: list[str]) -> tuple[list[str], list[str], list[int]]:
    """The shape of a clause in lower case: its symbols, the entities among them, the index of each symbol's first word.
    """
    symbols, entities, places = [], [], []
    i, n = 0, len(words)
    while i < n:
        word, step = words[i], 1
        noun = i + 1 if word in ARTICLES else i
        if noun < n and words[noun] in COLOURS and noun + 1 < n and words[noun + 1] in NOUNS:
            symbol, entity, step = "N", f"{words[noun]} {words[noun + 1]}", noun + 2 - i
        elif noun < n and words[noun] in NOUNS:
            symbol, entity, step = "N", words[noun], noun + 1 - i
        elif word in PREPOSITIONS and i + 2 < n and words[i + 1] == "the" and words[i + 2] in PLACES:
            symbol, entity, step = "AT", words[i + 2], 3
        elif word == "the" and noun < n and words[noun] in PLACES:
            symbol, entity, step = "L", words[noun], 2
        elif word == "they":
            symbol, entity = "P and P", "they"
        else:
            symbol, entity = CLASSES.get(word, (word, ""))
        symbols.append(symbol)
        places.append(i)
        if entity:
            entities.append(entity)
        i += step
    return symbols, entities, places


def without_opener(words: list[str]) -> int:
    """Number of words of an opener such as "in the end" at the head of a clause."""
    if words and words[0] in FIRST_OF_OPENER:
        for opener in OPENERS:
            if tuple(words[: len(opener)]) == opener and len(words) > len(opener):
                return len(opener)
    return 0


def _shapes() -> dict[str, tuple[str, tuple[str, ...], dict[str, str]]]:
    """Shape -> kind, the field of each entity, and what the wording means without saying it."""
    samples = {"who": "Mira", "whom": "Tom", "what": "red kite", "other": "blue drum", "where": "mill",
               "feeling": "sad"}
    table = {}
    for kind, entry in wordings.KINDS.items():
        for wording in entry["story"] + entry["summary"]:
            sentence, meaning = wordings.split_wording(wording)
            for variant in wordings.variants(sentence):
                filled = variant.replace("{skill}", "swim").replace("{at}", "at the mill")
                filled = re.sub(r"\{(to|from|over)\}", r"\1 the mill", filled)
                filled = re.sub(r"\{(?:a |her )?(\w+)\}", lambda found: samples[found.group(1)], filled)
                words = [word.lower() for word in TOKEN.findall(filled)]
                symbols, entities, _ = shape(words[without_opener(words) :])
                key, said = " ".join(symbols), tuple(wordings.fields_said(variant))
                if len(said) != len(entities):
                    raise ValueError(f"events.json, {kind}: {wording!r} names {entities} outside of its slots")
                if table.setdefault(key, (kind, said, meaning)) != (kind, said, meaning):
                    raise ValueError(f"events.json: {wording!r} of {kind} can also be read as {table[key][0]}")
    return table


SHAPES = _shapes()


# every judge of a summary reads it: thirty thousand readings of some three thousand texts in one evaluation
@functools.lru_cache(maxsize=10_000)
def parse(text: str) -> tuple[Statement, ...]:
    """The statements of a text, in order; any text will do."""
    statements: list[Statement] = []
    mentioned: list[list[str]] = []
    for found in SENTENCE.finditer(text):
        sentence = found.group()
        if not sentence.strip():
            continue
        tokens = [(t.group().lower(), found.start() + t.start()) for t in TOKEN.finditer(sentence)]
        stops = [word for word, _ in tokens[-2:] if word in (".", "!", "?")]
        whole = stops in (["."], ["!"]) and tokens[-1][0] == stops[0]
        span = (found.start() + len(sentence) - len(sentence.lstrip()), found.start() + len(sentence.rstrip()))
        statements += _read(text, tokens[:-1] if whole else [], span, mentioned, sentence)
    return tuple(statements)


def _read(text: str, tokens: list[tuple[str, int]], span: tuple[int, int], mentioned: list[list[str]], sentence: str):
    """The statements of one sentence: one, or two that share a subject or are joined by "and"."""
    said = [("a" if word == "an" else word, at) for word, at in tokens if word not in RUDE]  # "an ugly storm"
    said = said[without_opener([word for word, _ in said]) :]
    if len(said) > 1 and said[0][0] == "the" and CLASSES.get(said[1][0], "-")[0] == "P":  # "the loser Tom"
        said = said[1:]
    symbols, entities, places = shape([word for word, _ in said])
    event = _event(symbols, entities, mentioned)
    if event is not None:
        mentioned.append(_people(entities, mentioned))
        return [Statement(span, text[span[0] : span[1]], event, any(word in RUDE for word, _ in tokens))]
    for cut in [i for i, symbol in enumerate(symbols) if symbol == "and"][:4]:
        count = sum(symbol in ENTITIES for symbol in symbols[:cut])
        left = _event(symbols[:cut], entities[:count], mentioned)
        if left is None:
            continue
        right = _event(symbols[cut + 1 :], entities[count:], mentioned)
        if right is None and left.who:
            right = _event(["P", *symbols[cut + 1 :]], [left.who, *entities[count:]], mentioned)
        if right is not None:
            mentioned.append(_people(entities, mentioned))
            middle = said[places[cut]][1]  # where "and" stands
            after = next(at for _, at in tokens if at > middle)
            spans = (span[0], span[0] + len(text[span[0] : middle].rstrip(" ,"))), (after, span[1])
            parts = [text[start:end] for start, end in spans]
            return [Statement(*each, _is_rude(each[1])) for each in zip(spans, parts, (left, right))]
    mentioned.append([])
    rude = _is_rude(sentence)
    return [Statement(span, text[span[0] : span[1]], None, rude, rude and is_remark(sentence))]


def _is_rude(text: str) -> bool:
    return any(word in RUDE for word in re.findall(r"[a-z]+", text.lower()))


def _resolved(entities: list[str], mentioned: list[list[str]]) -> list[str]:
    """The entities with names in the place of pronouns, "" for "he" or "she" that may mean two people."""
    names: list[str] = []
    for entity in entities:
        names += wordings.resolve_pair(mentioned) if entity == "they" else [entity]
    return [wordings.resolve(name, mentioned) if name in ("he", "she") else name for name in names]


def _people(entities: list[str], mentioned: list[list[str]]) -> list[str]:
    """The people among the entities."""
    return [name for name in _resolved(entities, mentioned) if name in PRONOUNS]


def _event(symbols: list[str], entities: list[str], mentioned: list[list[str]]) -> Event | None:
    """The event of a shape with its entities; None if there is none or if a pronoun may mean two people."""
    entry = SHAPES.get(" ".join(symbols))
    if entry is None:
        return None
    kind, said, meaning = entry
    names = _resolved(entities, mentioned)
    if len(names) != len(said) or "" in names:
        return None
    event = Event(kind, **dict(zip(said, names)), **meaning)
    return None if event.who and event.who == event.whom else event


def _remark_shape(sentence: str) -> str:
    words = ["R" if w in RUDE else "a" if w == "an" else w for w in re.findall(r"[a-z]+", sentence.lower())]
    return " ".join(CLASSES.get(word, (word,))[0] for word in words)


REMARKS = frozenset(_remark_shape(re.sub(r"\{(adjective|noun)\}", RUDE_WORDS[0], remark).replace("{person}", "Mira"))
                    for remark in WORDS["remarks"])


def is_remark(sentence: str) -> bool:
    """Whether a sentence is one of the rude remarks of `words.json`."""
    return _remark_shape(sentence) in REMARKS
