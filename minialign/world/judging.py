r"""Tasks that are answered by judging: does it follow, does it say the same, how does it sound, how does it go on.

Same form as `reading.py`: a passage becomes examples with an `answer` and its `options`. Those of inference and
completion are the ones that T0 never trained on (Sanh et al. 2022, §3), and neither do the project's claims.

Read next: writing.py.
"""

import random
from collections import defaultdict
from dataclasses import replace

from minialign.world.corpus import insult, rude_remark
from minialign.world.reading import among, nouns, places, restated, sentences, statements, yes_or_no
from minialign.world.stories import CHILDREN, PLOTS, Story, say, write_scene
from minialign.world.tasks import falsify, say_all
from minialign.world.wordings import PRONOUNS, WORDS, Event, choices, matches

GOOD = ("find", "give_back", "give", "make_up", "mend", "win", "prize", "can", "well", "laugh", "turns", "share",
        "thank", "fetch")
BAD = ("lose", "break", "quarrel", "storm", "run_away", "get_lost", "fall", "ill", "eat_up", "stuck", "leave")
MOODS = {"happy": "good", "proud": "good", "sad": "bad", "angry": "bad", "lonely": "bad", "scared": "bad"}


def follows(story: Story, rng: random.Random) -> list[dict]:
    """Does the statement follow from the passage? yes | no | not said, where the passage does not tell."""
    event = rng.choice(story.events)
    options = ["yes", "no", "not said"]
    answer = rng.choice(options)
    if answer == "yes":
        said = say(event, rng, "summary") if choices(event, "summary") else None
    else:
        other = falsify(event, story, rng) if answer == "no" else _elsewhere(story, rng)
        said = say_all(other, rng) if other else None
    return [{"story": story.text, "statement": said, "answer": answer, "options": options}] if said else []


def contradicts(story: Story, rng: random.Random) -> list[dict]:
    """Does the statement name somebody or something wrongly?"""
    found = statements(story)
    if not found:
        return []
    event, _ = rng.choice(found)
    wrong = rng.random() < 0.5
    stated = falsify(event, story, rng) if wrong else event
    said = say_all(stated, rng) if stated else None
    return yes_or_no(wrong, story=story.text, statement=said) if said else []


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


def recast(event: Event, story: Story, rng: random.Random) -> Event:
    """The event with the passage's people in its roles, and other children where there are too few."""
    roles = [field for field in ("who", "whom") if getattr(event, field)]
    if not roles:
        return event
    people = [name for name in story.people if name in PRONOUNS]
    if len(people) < len(roles):
        people += [name for name in CHILDREN if name not in people]
    chosen = people if len(people) < 2 else rng.sample(people[: max(2, len(roles))], len(roles))
    return replace(event, **dict(zip(roles, chosen)))


def same_meaning(story: Story, rng: random.Random) -> list[dict]:
    """Do two sentences say the same?"""
    event = rng.choice(story.events)
    first = say_all(event, rng)
    same = rng.random() < 0.5
    other = event if same else falsify(event, story, rng)
    second = restated(other, first, rng) if first and other else None
    return yes_or_no(same, first=first, second=second) if second else []


def means_the_same(story: Story, rng: random.Random) -> list[dict]:
    """Which sentence says the same as the first one?"""
    event = rng.choice(story.events)
    first = say_all(event, rng)
    right = restated(event, first, rng) if first else None
    other = falsify(event, story, rng)
    wrong = say_all(other, rng) if other else None
    return among(right, [wrong], rng, sentence=first) if right and wrong and right != wrong else []


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


def feels_good(story: Story, rng: random.Random) -> list[dict]:
    """Does a person of the passage feel good?"""
    felt = [event for event in story.events if event.kind == "feel" and event.feeling in MOODS]
    if not felt or len({event.who for event in felt}) < len(felt):
        return []
    event = rng.choice(felt)
    return yes_or_no(MOODS[event.feeling] == "good", story=story.text, person=event.who)


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
    named = [(event.what.split(" ")[-1], event.other.split(" ")[-1]) for event in story.events]
    counts = {noun: sum(noun in pair for pair in named) for noun in nouns(story)}
    ordered = sorted(counts.values(), reverse=True)
    if not ordered or (len(ordered) > 1 and ordered[0] == ordered[1]):
        return []
    right = max(counts, key=counts.get)
    others = [noun for noun in counts if noun != right]
    more = rng.sample([noun for noun in WORDS["things"] + WORDS["animals"] if noun not in counts], 3)
    return among(right, [*others, *more][:3], rng, story=story.text)


def main_person(story: Story, rng: random.Random) -> list[dict]:
    """Who does most of what happens?"""
    counts = {name: sum(event.who == name for event in story.events) for name in story.people}
    ordered = sorted(counts.values(), reverse=True)
    if len(ordered) < 2 or ordered[0] == ordered[1]:
        return []
    right = max(counts, key=counts.get)
    return among(right, [name for name in counts if name != right], rng, story=story.text)


def _kinds_of_one_plot() -> dict[str, str]:
    """Kinds of events that only one plot has -> that plot."""
    plots = defaultdict(set)
    for name, beats in PLOTS.items():
        for beat in beats:
            for line in beat if isinstance(beat, list) else [beat]:
                plots[line.split()[0]].add(name)
    return {kind: names.pop() for kind, names in plots.items() if len(names) == 1}


KINDS_OF_ONE_PLOT = _kinds_of_one_plot()


def title(story: Story, rng: random.Random) -> list[dict]:
    """Which title fits? Of passages in which something happens that happens in one plot only."""
    if not any(KINDS_OF_ONE_PLOT.get(event.kind) == story.plot for event in story.events):
        return []
    others = rng.sample([plot for plot in PLOTS if plot != story.plot], 2)
    return among(story.plot, others, rng, story=story.text)


def place(story: Story, rng: random.Random) -> list[dict]:
    """Where does the passage happen? Of passages with one place."""
    found = places(story)
    if len(found) != 1:
        return []
    others = rng.sample([name for name in WORDS["places"] if name not in found], 3)
    return among(found[0], others, rng, story=story.text)


def ending(story: Story, rng: random.Random) -> list[dict]:
    """How does the passage end? Its own last event, or one of another passage with other people and things."""
    return _completion(story, rng, same_people=False)


def goes_on(story: Story, rng: random.Random) -> list[dict]:
    """What comes next? Its own next event, or one of another passage that happens to the same people."""
    return _completion(story, rng, same_people=True)


def _completion(story: Story, rng: random.Random, same_people: bool) -> list[dict]:
    told, found, last = sentences(story), statements(story), story.events[-1]
    if len(told) < 2 or not last.who or len(found) < 2 or found[-1][0] != last:
        return []
    other = rng.choice(write_scene(rng).events)
    other = recast(other, story, rng) if same_people else other
    right, wrong = say_all(last, rng), say_all(other, rng) if other.who and other.kind != last.kind else None
    if not right or not wrong or right == wrong or any(matches(other, fact) for fact in story.events):
        return []
    return among(right, [wrong], rng, story=" ".join(told[:-1]))


def why(story: Story, rng: random.Random) -> list[dict]:
    """Why does somebody feel so? What happened just before, or something of the other sort (good for bad)."""
    pairs = [(cause, event) for cause, event in zip(story.events, story.events[1:])
             if event.kind == "feel" and event.feeling in MOODS]
    if not pairs:
        return []
    cause, feeling = rng.choice(pairs)
    fitting, unfit = (GOOD, BAD) if MOODS[feeling.feeling] == "good" else (BAD, GOOD)
    if cause.kind not in fitting or not choices(cause, "summary"):
        return []
    for _ in range(12):
        other = rng.choice(write_scene(rng).events)
        if other.kind in unfit and other.who and len(story.people) > 1:
            wrong, right = say_all(recast(other, story, rng), rng), say_all(cause, rng)
            if right and wrong:
                return among(right, [wrong], rng, story=say(feeling, rng, "summary"), person=feeling.who)
    return []
