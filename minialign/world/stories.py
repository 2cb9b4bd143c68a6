r"""Stories that are told and remembered: the text, and every fact in it.

A plot (`plots.json`) is a list of beats such as `find who=E what=T where=M weight=3`. Roles (`E`, `T`, `M`) are cast by
lot; a beat with `maybe=` may be left out, a list of beats is a choice of one, `if=mend:B` keeps a beat only when B was
the one who mended. `weight` is how much the event matters to a reader; scenery, which has none, weighs 0.

Read next: parse.py. Try it: `python -m minialign.world.stories`.
"""

import json
import random
from dataclasses import dataclass

from minialign.world.wordings import PRONOUNS, TABLES, WORDS, Event, choices, fill, finish, resolve, resolve_pair, say

__all__ = ["PLOTS", "Event", "Story", "say", "tell_scene", "write_scene", "write_story"]

_TABLE = json.loads((TABLES / "plots.json").read_text(encoding="utf-8"))
PLOTS: dict[str, list] = _TABLE["plots"]
ROLES: dict[str, str] = _TABLE["roles"]
SCENERY: dict[str, list[str]] = _TABLE["scenery"]
CHILDREN = WORDS["girls"] + WORDS["boys"]
SHORTEST, LONGEST = 40, 75  # words in a story
FEWEST, MOST = 4, 9  # sentences
STATES = ("have", "want", "need", "fear", "feel", "breakfast", "weather", "pass_by", "wave")  # they take no "then"


@dataclass(frozen=True)
class Story:
    """A story and all that is true in it."""

    text: str  # one paragraph
    events: tuple[Event, ...]  # in the order told
    weights: tuple[float, ...]  # how much each event matters; they sum to 1
    people: tuple[str, ...]
    plot: str

    def to_dict(self) -> dict:
        """Plain lists and strings, ready for JSON."""
        return {"text": self.text, "events": [event.to_dict() for event in self.events],
                "weights": list(self.weights), "people": list(self.people), "plot": self.plot}

    @classmethod
    def from_dict(cls, record: dict) -> "Story":
        """The inverse of `to_dict`."""
        events = tuple(Event(**event) for event in record["events"])
        return cls(record["text"], events, tuple(record["weights"]), tuple(record["people"]), record["plot"])


class Cast:
    """Who and what fills each role of one story; nobody and nothing twice."""

    def __init__(self, rng: random.Random):
        self.rng, self.filled = rng, {}

    def __getitem__(self, role: str) -> str:
        if role not in self.filled:
            taken = {word for name in self.filled.values() for word in name.split(" ")}
            name = self.rng.choice([name for name in self._group(ROLES[role]) if name not in taken])
            if name in WORDS["things"]:
                name = self.rng.choice([c for c in WORDS["colours"] if c not in taken]) + " " + name
            elif name in WORDS["animals"]:
                name = self.rng.choice(WORDS["coats"]) + " " + name
            self.filled[role] = name
        return self.filled[role]

    def _group(self, group: str) -> list[str]:
        """The names to choose from; a group that is not known is the name itself."""
        elders = list(WORDS["elders"])
        groups = {"child": CHILDREN, "elder": elders, "helper": elders if self.rng.random() < 0.3 else CHILDREN,
                  "place": [place for place in WORDS["places"] if place != "kitchen"]}
        return groups.get(group) or WORDS.get(f"{group}s") or WORDS.get(group) or [group]


def write_story(rng: random.Random) -> Story:
    """One story of 4 to 9 sentences and 40 to 75 words; the same `rng` state gives the same story."""
    while True:
        plot = rng.choice(list(PLOTS))
        beats = _scenery(_beats(PLOTS[plot], rng), rng)
        cast = Cast(rng)
        events, weights = zip(*(_event(beat, cast, rng) for beat in beats))
        text = _tell(events, rng)
        if SHORTEST <= len(text.split()) <= LONGEST and FEWEST <= text.count(".") <= MOST:
            return Story(text, events, tuple(round(w / sum(weights), 4) for w in weights), _people(events), plot)


def write_scene(rng: random.Random, fewest: int = 2, most: int = 4) -> Story:
    """A short passage for a task: `fewest` to `most` events that follow one another in some story, told anew."""
    while True:
        story = write_story(rng)
        count = min(rng.randint(fewest, most), len(story.events))
        start = rng.randint(0, len(story.events) - count)
        events = story.events[start : start + count]
        if _people(events):
            return tell_scene(events, story.plot, rng)


def tell_scene(events: tuple[Event, ...], plot: str, rng: random.Random) -> Story:
    """The events told, all of them mattering alike."""
    return Story(_tell(events, rng), events, (round(1 / len(events), 4),) * len(events), _people(events), plot)


def _people(events: tuple[Event, ...]) -> tuple[str, ...]:
    """Everybody in the events, in order."""
    return tuple(dict.fromkeys(name for event in events for name in (event.who, event.whom) if name))


def _beat(line: str) -> dict[str, str]:
    """find who=E what=T -> {"kind": "find", "who": "E", "what": "T"}."""
    kind, *parts = line.split()
    return {"kind": kind} | dict(part.split("=") for part in parts)


def _beats(plot: list, rng: random.Random) -> list[dict[str, str]]:
    """The beats that this telling keeps, in order."""
    kept: list[dict[str, str]] = []
    for entry in plot:
        beat = _beat(rng.choice(entry) if isinstance(entry, list) else entry)
        condition = beat.pop("if", None)
        if condition and condition not in {f"{b['kind']}:{b.get('who')}" for b in kept}:
            continue
        if rng.random() < float(beat.pop("maybe", 1)):
            kept.append(beat)
    return kept


def _scenery(beats: list[dict[str, str]], rng: random.Random) -> list[dict[str, str]]:
    """The beats with up to three details that nobody would miss."""
    if rng.random() < 0.35:
        beats.insert(rng.randint(2, len(beats) - 1), _beat(rng.choice(SCENERY["middle"])))
    if rng.random() < 0.5:
        beats.insert(0, _beat(rng.choice(SCENERY["first"])))
    if rng.random() < 0.25:
        beats.append(_beat(rng.choice(SCENERY["last"])))
    return beats


def _event(beat: dict[str, str], cast: Cast, rng: random.Random) -> tuple[Event, float]:
    """The event of a beat and its weight."""
    roles = {field: role if field == "feeling" else cast[role]
             for field, role in beat.items() if field not in ("kind", "weight")}
    if beat["kind"] == "weather":
        roles["what"] = rng.choice(["sun", "wind", "rain"])
    return Event(beat["kind"], **roles), float(beat.get("weight", 0))


def _tell(events: tuple[Event, ...], rng: random.Random) -> str:
    """The text: a wording for each event, with openers, pronouns and now and then two events in one sentence."""
    told: set[str] = set()
    mentioned: list[list[str]] = []
    sentences: list[str] = []
    openers: list[str] = []
    begun = False  # whether anything has happened yet
    rest = list(events)
    while rest:
        event = rest.pop(0)
        first_kind = event.kind
        pattern = rng.choice(choices(event, "story"))
        clause = fill(_with_pronoun(pattern, event, mentioned, rng), event, rng, "story", told)
        people = [name for name in (event.who, event.whom) if name]
        if rest and _joins(pattern, event, rest[0]) and rng.random() < 0.4:
            second = [p for p in choices(rest[0], "story") if _simple(p)]
            if second:
                event = rest.pop(0)
                clause += " and " + fill(rng.choice(second).removeprefix("{who} "), event, rng, "story", told)
                people += [event.whom] if event.whom else []
        where = "first" if not sentences else "middle" if rest else "last"
        left = [opener for opener in WORDS["openers"][where] if opener not in openers]
        fits = pattern.startswith("{wh") and first_kind not in STATES and (begun or where == "first")
        opener = rng.choice(left) if left and fits and openers[-1:] in ([], [""]) and rng.random() < 0.4 else ""
        openers.append(opener)
        begun = begun or first_kind not in STATES
        mentioned.append(people)
        sentences.append(finish(f"{opener} {clause}".strip()))
    return " ".join(sentences)


def _with_pronoun(pattern: str, event: Event, mentioned: list[list[str]], rng: random.Random) -> str:
    """The pattern with "he", "she" or "they" as its subject when a reader cannot mistake it, sometimes."""
    if not mentioned or rng.random() < 0.4:
        return pattern
    if pattern.startswith("{who} and {whom}"):
        known = set(resolve_pair(mentioned[-1:])) == {event.who, event.whom}
        return "they" + pattern.removeprefix("{who} and {whom}") if known else pattern
    if pattern.startswith("{who} ") and event.who in mentioned[-1]:
        pronoun = PRONOUNS[event.who]
        same = event.whom and PRONOUNS[event.whom] == pronoun
        if resolve(pronoun, mentioned[-1:]) == event.who and not same:
            return pronoun + pattern.removeprefix("{who}")
    return pattern


def _simple(pattern: str) -> bool:
    return pattern.startswith("{who} ") and " and " not in pattern and "," not in pattern


def _joins(pattern: str, event: Event, following: Event) -> bool:
    """Whether the two can share a subject: "Mira lost the kite and was sad."."""
    steps = event.kind not in STATES and (following.kind == "feel" or following.kind not in STATES)
    return _simple(pattern) and event.who == following.who and steps


if __name__ == "__main__":
    for seed in range(10):
        print(write_story(random.Random(seed)).text, end="\n\n")
