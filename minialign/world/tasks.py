r"""Tasks on a story: what can be asked about it, with the answer that the simulator knows to be right.

A task turns a story into examples: dictionaries with the fields `story`, `answer` or `summary`, `question`, and
`options` where there is a list of answers. A question is asked only when the story leaves one right answer.

Read next: corpus.py. Try it: `python -m minialign.world.tasks`.
"""

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass

from minialign.world.parse import parse, without_opener
from minialign.world.stories import CHILDREN, Story, say, write_story
from minialign.world.templates import TEMPLATES, render
from minialign.world.wordings import FIELDS, KINDS, PLACES, WORDS, Event, choices, fields_said, fill, matches

REFERENCE_WORDS = (10, 28)  # shortest and longest reference summary
SAME_STORY = 0.8  # how often what is put in a false statement is taken from the story, where it has one
QUOTED = 0.8  # how often a statement of a reference summary is the story's own sentence, where it has one
MINOR = 0.04  # weight that people give to what hardly matters; the more, the worse the references
REFERENCE_STATEMENTS = ((2, 0.25), (3, 0.55), (4, 0.2))  # how many statements a person writes, with probabilities


@dataclass(frozen=True)
class Task:
    """One thing to ask of a story."""

    name: str
    cluster: str
    examples: Callable[[Story, random.Random], list[dict]]


def quotes(story: Story) -> dict[int, str]:
    """Place of an event -> the story's own sentence for it, without opener; for events with one to themselves."""
    told = [statement for statement in parse(story.text) if statement.event is not None]
    found = {}
    for place, (statement, event) in enumerate(zip(told, story.events)):
        words = statement.text.split()
        sentence = " ".join(words[without_opener([word.strip(",").lower() for word in words]) :])
        alone = parse(sentence)
        said = alone[0].event if len(alone) == 1 and sentence.endswith(".") else None
        if said is not None and matches(said, event):
            found[place] = sentence[0].upper() + sentence[1:]
    return found


def reference_summary(story: Story, rng: random.Random) -> str:
    """A summary as a person writes it: honest and never rude, but sometimes the minor thing is told.

    Events are drawn without replacement with probability proportional to weight + MINOR, and said mostly in the story's
    own words, as people do; what comes out too short or too long is drawn again.
    """
    shortest, longest = REFERENCE_WORDS
    own = quotes(story)
    while True:
        sizes, chances = zip(*REFERENCE_STATEMENTS)
        left, kept = list(range(len(story.events))), []
        for _ in range(min(rng.choices(sizes, chances)[0], len(left))):
            kept.append(rng.choices(left, [story.weights[i] + MINOR for i in left])[0])
            left.remove(kept[-1])
        text = " ".join(own[i] if i in own and rng.random() < QUOTED else say(story.events[i], rng, "summary")
                        for i in sorted(kept))
        if shortest <= len(text.split()) <= longest:
            return text


def _summary(story: Story, rng: random.Random) -> list[dict]:
    return [{"story": story.text, "summary": reference_summary(story, rng)}]


def swap(event: Event, field: str, story: Story, rng: random.Random) -> Event | None:
    """`event` with another person, thing, place or feeling in `field`, so that the story does not say it, or None."""
    near, far = _rivals(field, getattr(event, field), story)
    taken = (event.who, event.whom, event.what, event.other, getattr(event, field))
    for names in (near, far) if rng.random() < SAME_STORY else (far, near):
        fitting = [event.changed(field, name) for name in names if name not in taken]
        fitting = [e for e in fitting if not any(matches(e, fact) for fact in story.events)]
        if fitting:
            return rng.choice(fitting)
    return None


def _rivals(field: str, value: str, story: Story) -> tuple[list[str], list[str]]:
    """What else could stand in a field: what the story mentions, and what the world has."""
    if field in ("who", "whom"):
        return list(story.people), CHILDREN
    if field == "where":
        return list(dict.fromkeys(e.where for e in story.events if e.where)), list(PLACES)
    if field == "feeling":
        return [], WORDS["feelings"]
    noun = value.split(" ")[-1]
    group = next((WORDS[name] for name in ("things", "animals", "foods", "skills") if noun in WORDS[name]), [])
    near = [n for e in story.events for n in (e.what, e.other) if n.split(" ")[-1] in group]
    colour = value[: -len(noun)]
    return list(dict.fromkeys(near)), [colour + other for other in group]


def as_answer(name: str, field: str) -> str:
    """What answers a question for a field: "the mill" for a place, "kite" for a red kite."""
    return f"the {name}" if field == "where" else name.split(" ")[-1]


def ask(event: Event, form: str, rng: random.Random) -> str | None:
    """The question of a form ("who", "where" ...) about an event, if its kind has one."""
    question = KINDS[event.kind].get("ask", {}).get(form)
    if question is None or not set(fields_said(question)) <= set(event.to_dict()):
        return None
    filled = fill(question, event, rng, "summary", set())
    return filled[0].upper() + filled[1:]


def questions(field: str, story: Story, rng: random.Random) -> list[dict]:
    """The task that asks for one field; each question has one right answer in the story."""
    found = []
    for event in story.events:
        question = ask(event, field, rng)
        if question is None or not getattr(event, field):
            continue
        told = [name for name in fields_said(KINDS[event.kind]["ask"][field]) if name != field]
        rest = Event(event.kind, **{name: getattr(event, name) for name in told})
        if len({as_answer(getattr(fact, field), field) for fact in story.events if matches(rest, fact)}) == 1:
            found.append({"story": story.text, "question": question, "answer": as_answer(getattr(event, field), field),
                          "options": _options(event, field, story, rng)})
    return found


def _options(event: Event, field: str, story: Story, rng: random.Random) -> list[str]:
    """In random order all feelings, or the right answer and three other people, places or things, the story's first."""
    if field == "feeling":
        return list(WORDS["feelings"])
    near, far = _rivals(field, getattr(event, field), story)
    others = [as_answer(name, field) for name in near + rng.sample(far, len(far))]
    right = as_answer(getattr(event, field), field)
    options = [right, *[other for other in dict.fromkeys(others) if other != right][:3]]
    rng.shuffle(options)
    return options


def _yes_no(story: Story, rng: random.Random) -> list[dict]:
    """True and false questions, about as many of each."""
    found = []
    for event in story.events:
        answer, asked = "yes", event
        if rng.random() < 0.5:
            said = [f for f in fields_said(KINDS[event.kind].get("ask", {}).get("yes_no", "")) if getattr(event, f)]
            answer, asked = "no", swap(event, rng.choice(said), story, rng) if said else None
        question = ask(asked, "yes_no", rng) if asked else None
        if question and asked.kind == "try":  # "Did Mira give up?"
            answer = "no" if answer == "yes" else None
        if question and answer:
            found.append({"story": story.text, "question": question, "answer": answer, "options": ["yes", "no"]})
    return found


def falsify(event: Event, story: Story, rng: random.Random) -> Event | None:
    """The event with one entity swapped so that the story does not say it; None if that cannot be done."""
    if event.kind == "weather":
        return None
    names = [name for name in FIELDS if name != "kind" and getattr(event, name)]
    swapped = (swap(event, field, story, rng) for field in rng.sample(names, len(names)))
    return next((other for other in swapped if other is not None), None)


def exchange_detail(story: Story, summary: str, rng: random.Random) -> str | None:
    """A true summary with one detail of one statement exchanged, all other words kept, so that the statement is false;
    None if no statement allows it."""
    told = [statement for statement in parse(summary) if statement.event is not None]
    for statement in rng.sample(told, len(told)):
        event = statement.event
        other = falsify(event, story, rng) if any(matches(event, fact) for fact in story.events) else None
        if other is None:
            continue
        before, after = next((getattr(event, field), getattr(other, field)) for field in FIELDS
                             if getattr(event, field) != getattr(other, field))
        words = [(before, after), (before.split(" ")[-1], after.split(" ")[-1])]
        if before in PLACES:
            words.insert(0, (f"{PLACES[before]} the {before}", f"{PLACES[after]} the {after}"))
        words += [(old.capitalize(), new.capitalize()) for old, new in words]
        for old, new in words:
            sentence = statement.text.replace(old, new)
            read = [found.event for found in parse(sentence)]
            if sentence != statement.text and len(read) == 1 and read[0] is not None and not any(
                    matches(read[0], fact) for fact in story.events):
                return summary.replace(statement.text, sentence, 1)
    return None


def say_all(event: Event, rng: random.Random) -> str | None:
    """A sentence that says every field of `event`; None if no wording does."""
    for _ in range(8):
        text = say(event, rng, "summary")
        read = parse(text)[0].event
        if read is not None and len(read.to_dict()) == len(event.to_dict()):
            return text
    return say(event, rng, "story") if choices(event, "story") else None


def _check(story: Story, rng: random.Random) -> list[dict]:
    """Statements, about half of them false, and whether the story says so."""
    found, own = [], quotes(story)
    for place, event in enumerate(story.events):
        false = rng.random() < 0.5
        if false:
            swapped = falsify(event, story, rng)
            statement = say_all(swapped, rng) if swapped else None
        else:
            quoted = place in own and rng.random() < QUOTED
            statement = own[place] if quoted else say(event, rng, "summary")
        if statement is not None:
            found.append({"story": story.text, "statement": statement, "answer": "no" if false else "yes",
                          "options": ["yes", "no"]})
    return found


TASKS: dict[str, Task] = {
    "summary": Task("summary", "summarise", _summary),
    **{field: Task(field, "questions", functools.partial(questions, field))
       for field in ("who", "where", "what", "feeling")},
    "yes_no": Task("yes_no", "questions", _yes_no),
    "check": Task("check", "inference", _check),
}


def demonstrations(count: int, seed: int, summary_share: float = 0.75, check_share: float = 0.0) -> list[dict]:
    """Prompts with good completions for supervised fine-tuning, each from a story of its own.

    Args:
        summary_share: share of summaries; check_share: of statements to be checked against the story. The rest are
            questions, each task as often as the others.
    Returns:
        `count` records {"prompt", "completion", "task", "story"}; `story` is `Story.to_dict()`.
    """
    rng = random.Random(seed)
    others = [name for name in TASKS if name not in ("summary", "check")]
    shares = (summary_share, check_share, 1 - summary_share - check_share)
    found: list[dict] = []
    while len(found) < count:
        task = rng.choices(("summary", "check", rng.choice(others)), shares)[0]
        examples: list[dict] = []
        while not examples:
            story = write_story(rng)
            examples = TASKS[task].examples(story, rng)
        prompt, completion = render(rng.choice(TEMPLATES[task]), rng.choice(examples))
        found.append({"prompt": prompt, "completion": completion, "task": task, "story": story.to_dict()})
    return found


if __name__ == "__main__":
    for record in demonstrations(8, seed=0, summary_share=0.4):
        print(record["prompt"] + record["completion"], end="\n\n")
