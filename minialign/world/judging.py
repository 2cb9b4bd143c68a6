r"""Tasks that are answered by judging: does it follow, does it say the same, how does it sound, what is it about, how
does it go on.

Same form as `reading.py`: a passage becomes examples with an `answer` and its `options`. Those of inference and
completion are the ones that T0 never trained on (Sanh et al. 2022, §3), and neither do the project's claims.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace

from minialign.world.corpus import insult, rude_remark
from minialign.world.reading import YES_NO, nouns, places, restated, sentences, shuffled, statements
from minialign.world.stories import CHILDREN, PLOTS, Story, say, write_scene
from minialign.world.tasks import falsify, say_all
from minialign.world.wordings import PRONOUNS, WORDS, Event, choices, matches

GOOD = ("find", "give_back", "give", "make_up", "mend", "win", "prize", "can", "well", "laugh", "turns", "share",
        "thank", "fetch")
BAD = ("lose", "break", "quarrel", "storm", "run_away", "get_lost", "fall", "ill", "eat_up", "stuck", "leave")
MOODS = {"happy": "good", "proud": "good", "sad": "bad", "angry": "bad", "lonely": "bad", "scared": "bad"}


def follows(story: Story, rng: random.Random) -> list[dict]:
    """Does the statement follow from the passage? yes | no | maybe, of which "maybe" is about something that the
    passage does not tell."""
    event = rng.choice(story.events)
    answer = rng.choice(["yes", "no", "maybe"])
    if answer == "yes":
        said = say(event, rng, "summary") if choices(event, "summary") else None
    elif answer == "no":
        swapped = falsify(event, story, rng)
        said = say_all(swapped, rng) if swapped else None
    else:
        other = _elsewhere(story, rng)
        said = say_all(other, rng) if other else None
    return [{"story": story.text, "statement": said, "answer": answer, "options":
             ["yes", "no", "maybe"]}] if said else []


def contradicts(story: Story, rng: random.Random) -> list[dict]:
    """Does the statement name somebody or something wrongly?"""
    found = statements(story)
    if not found:
        return []
    event, sentence = rng.choice(found)
    wrong = rng.random() < 0.5
    swapped = falsify(event, story, rng) if wrong else event
    said = say_all(swapped, rng) if swapped else None
    return [{"story": story.text, "statement": said, "answer": YES_NO[not wrong], "options": YES_NO}] if said else []


def _elsewhere(story: Story, rng: random.Random) -> Event | None:
    """Something else that happened to the passage's people: of a kind that the passage does not tell of."""
    told = {event.kind for event in story.events}
    for _ in range(8):
        other = rng.choice(write_scene(rng).events)
        if other.kind not in told and other.who and other.kind != "weather":
            cast = recast(other, story, rng)
            if cast is not None and not any(matches(without_colours(cast), fact) for fact in story.events):
                return cast
    return None


def without_colours(event: Event) -> Event:
    """The event as a sentence may tell it: "the kite" for "the red kite"."""
    return replace(event, what=event.what.split(" ")[-1], other=event.other.split(" ")[-1])


def recast(event: Event, story: Story, rng: random.Random) -> Event | None:
    """The event with the passage's people in its roles; None if there are too few."""
    roles = [field for field in ("who", "whom") if getattr(event, field)]
    people = [name for name in story.people if name in PRONOUNS]
    if len(people) < len(roles):
        people = people + [name for name in CHILDREN if name not in people]
    if not roles:
        return event
    return replace(event, **dict(zip(roles, rng.sample(people[: max(2, len(roles))], len(roles)) if len(people) > 1
                                     else people)))


def same_meaning(story: Story, rng: random.Random) -> list[dict]:
    """Do two sentences say the same?"""
    event = rng.choice(story.events)
    first = say_all(event, rng)
    same = rng.random() < 0.5
    swapped = event if same else falsify(event, story, rng)
    second = restated(swapped, first, rng) if first and swapped else None
    return [{"first": first, "second": second, "answer": YES_NO[not same], "options": YES_NO}] if second else []


def means_the_same(story: Story, rng: random.Random) -> list[dict]:
    """Which sentence says the same as the first one?"""
    event = rng.choice(story.events)
    first = say_all(event, rng)
    right = restated(event, first, rng) if first else None
    swapped = falsify(event, story, rng)
    wrong = say_all(swapped, rng) if swapped else None
    return [{"sentence": first, "answer": right, "options": shuffled([right, wrong],
        rng)}] if right and wrong and right != wrong else []


def mood(story: Story, rng: random.Random) -> list[dict]:
    """Is it good or bad, what happened? Of passages whose events all point the same way."""
    signs = {"good" for event in story.events if event.kind in GOOD or MOODS.get(event.feeling) == "good"}
    signs |= {"bad" for event in story.events if event.kind in BAD or MOODS.get(event.feeling) == "bad"}
    return [{"story": story.text, "answer": signs.pop(), "options": ["good", "bad"]}] if len(signs) == 1 else []


def feeling_sign(story: Story, rng: random.Random) -> list[dict]:
    """Is a person's feeling a good or a bad one?"""
    person, feeling = rng.choice(story.people), rng.choice(list(MOODS))
    line = say(Event("feel", who=person, feeling=feeling), rng, "summary")
    return [{"story": line, "answer": MOODS[feeling], "options": ["good", "bad"]}]


def rude(story: Story, rng: random.Random) -> list[dict]:
    """Is the text polite or rude?"""
    lines = sentences(story)
    bad = rng.random() < 0.5
    if bad and rng.random() < 0.5:
        lines.insert(rng.randint(0, len(lines)), rude_remark(story, rng))
    elif bad:
        spot = rng.randrange(len(lines))
        lines[spot], plain = insult(lines[spot], rng), lines[spot]
        if lines[spot] == plain:
            return []
    return [{"story": " ".join(lines), "answer": ["polite", "rude"][bad], "options": ["polite", "rude"]}]


def main_thing(story: Story, rng: random.Random) -> list[dict]:
    """What is the passage about? The one thing that most of its events are about."""
    counts = {noun: sum(noun in (event.what.split(" ")[-1], event.other.split(" ")[-1]) for event in story.events)
              for noun in nouns(story)}
    ordered = sorted(counts.values(), reverse=True)
    if not ordered or (len(ordered) > 1 and ordered[0] == ordered[1]):
        return []
    right = max(counts, key=counts.get)
    others = [noun for noun in counts if noun != right]
    more = [noun for noun in WORDS["things"] + WORDS["animals"] if noun not in counts]
    return [{"story": story.text, "answer": right, "options": shuffled([right, *others, *rng.sample(more, 3)][:4],
        rng)}]


def _telling() -> dict[str, str]:
    """Kinds of events that only one plot has -> that plot."""
    plots = defaultdict(set)
    for name, beats in PLOTS.items():
        for beat in beats:
            for line in beat if isinstance(beat, list) else [beat]:
                plots[line.split()[0]].add(name)
    return {kind: names.pop() for kind, names in plots.items() if len(names) == 1}


TELLING = _telling()


def title(story: Story, rng: random.Random) -> list[dict]:
    """Which title fits? Of passages in which something happens that happens in one plot only."""
    if not any(TELLING.get(event.kind) == story.plot for event in story.events):
        return []
    others = rng.sample([plot for plot in PLOTS if plot != story.plot], 2)
    return [{"story": story.text, "answer": story.plot, "options": shuffled([story.plot, *others], rng)}]


def place(story: Story, rng: random.Random) -> list[dict]:
    """Where does the passage happen? Of passages with one place."""
    found = places(story)
    if len(found) != 1:
        return []
    others = rng.sample([name for name in WORDS["places"] if name not in found], 3)
    return [{"story": story.text, "answer": found[0], "options": shuffled([*found, *others], rng)}]


def ending(story: Story, rng: random.Random) -> list[dict]:
    """How does the passage end? Its own last event, or one of another passage with other people and things."""
    return _completion(story, rng, lambda other: other)


def goes_on(story: Story, rng: random.Random) -> list[dict]:
    """What comes next? Its own next event, or one of another passage that happens to the same people."""
    return _completion(story, rng, lambda other: recast(other, story, rng))


def _completion(story: Story, rng: random.Random, change) -> list[dict]:
    told = sentences(story)
    last = story.events[-1]
    if len(told) < 2 or not last.who or len(statements(story)) < 2 or statements(story)[-1][0] != last:
        return []
    other = change(rng.choice(write_scene(rng).events))
    right, wrong = say_all(last, rng), say_all(other, rng) if other and other.who and other.kind != last.kind else None
    if not right or not wrong or right == wrong or any(matches(other, fact) for fact in story.events):
        return []
    return [{"story": " ".join(told[:-1]), "answer": right, "options": shuffled([right, wrong], rng)}]


def why(story: Story, rng: random.Random) -> list[dict]:
    """Why does somebody feel so? What happened just before, or something of the other sort (good for bad)."""
    feelings = [(i, event) for i, event in enumerate(story.events) if event.kind == "feel" and event.feeling in MOODS
                and i]
    if not feelings:
        return []
    i, feeling = rng.choice(feelings)
    cause, sign = story.events[i - 1], MOODS[feeling.feeling]
    fitting, unfit = (GOOD, BAD) if sign == "good" else (BAD, GOOD)
    if cause.kind not in fitting or not choices(cause, "summary"):
        return []
    for _ in range(12):
        other = rng.choice(write_scene(rng).events)
        if other.kind in unfit and other.who and len(story.people) > 1:
            wrong = say_all(recast(other, story, rng), rng)
            right = say_all(cause, rng)
            if right and wrong:
                return [{"story": say(feeling, rng, "summary"), "person": feeling.who, "answer": right,
                         "options": shuffled([right, wrong], rng)}]
    return []
