r"""Tasks that are answered by writing, and tasks about words: summaries, questions, politeness, and what a word means.

Same form as `reading.py`; where there is no list of answers, `options` is missing.

Read next: editing.py.
"""

import random

from minialign.world.corpus import insult, rude_remark
from minialign.world.reading import among, restated, sentences, statements, yes_or_no
from minialign.world.stories import CHILDREN, Story, say
from minialign.world.tasks import TASKS, falsify, say_all
from minialign.world.templates import stands_in
from minialign.world.wordings import PLACES, PRONOUNS, WORDS, choices

GROUPS = {"animal": WORDS["animals"], "food": WORDS["foods"], "thing": WORDS["things"], "place": list(PLACES),
          "person": CHILDREN}


def short_summary(story: Story, rng: random.Random) -> list[dict]:
    """Two sentences that say what matters, not simply two of the passage."""
    told = [event for event in story.events if event.who and choices(event, "summary")]
    if len(told) < 2:
        return []
    summary = " ".join(say(told[i], rng, "summary") for i in sorted(rng.sample(range(len(told)), 2)))
    return [] if stands_in(summary, story.text) else [{"story": story.text, "answer": summary}]


def right_summary(story: Story, rng: random.Random) -> list[dict]:
    """Which summary is true?"""
    events = [event for event in story.events if event.who]
    rng.shuffle(events)
    for event in events:
        other = falsify(event, story, rng)
        right, wrong = say_all(event, rng), say_all(other, rng) if other else None
        if right and wrong:
            return among(right, [wrong], rng, story=story.text)
    return []


def ask_for(story: Story, rng: random.Random) -> list[dict]:
    """The question to which this is the answer."""
    task = rng.choice(["who", "where", "what", "feeling"])
    found = TASKS[task].examples(story, rng)
    return [{"story": story.text, "reply": example["answer"], "answer": example["question"]} for example in found[:1]]


def which_question(story: Story, rng: random.Random) -> list[dict]:
    """Which of two questions does the answer answer?"""
    found = [example for task in ("who", "where", "what", "feeling") for example in TASKS[task].examples(story, rng)]
    pairs = [(a, b) for a in found for b in found if a["answer"] != b["answer"] and a["question"] != b["question"]]
    if not pairs:
        return []
    right, wrong = rng.choice(pairs)
    return among(right["question"], [wrong["question"]], rng, story=story.text, reply=right["answer"])


def polite(story: Story, rng: random.Random) -> list[dict]:
    """The rude sentence without its rude words."""
    line = rng.choice(sentences(story))
    spoiled = insult(line, rng)
    if spoiled == line:
        return []
    if rng.random() < 0.3:
        spoiled = f"{line} {rude_remark(story, rng)}"
    return [{"sentence": spoiled, "answer": line}]


def politer(story: Story, rng: random.Random) -> list[dict]:
    """Which of two sentences is the polite one?"""
    line = rng.choice(sentences(story))
    spoiled = insult(line, rng)
    return among(line, [spoiled], rng) if spoiled != line else []


def restate(story: Story, rng: random.Random) -> list[dict]:
    """The same in other words."""
    found = statements(story)
    if not found:
        return []
    event, sentence = rng.choice(found)
    other = restated(event, sentence, rng)
    return [{"sentence": sentence, "answer": other}] if other else []


def kind_of(story: Story, rng: random.Random) -> list[dict]:
    """What kind of thing is it?"""
    group = rng.choice(list(GROUPS))
    return [{"word": rng.choice(GROUPS[group]), "answer": group, "options": list(GROUPS)}]


def is_a(story: Story, rng: random.Random) -> list[dict]:
    """Is it one of these?"""
    group, right = rng.choice(list(GROUPS)), rng.random() < 0.5
    other = group if right else rng.choice([name for name in GROUPS if name != group])
    return yes_or_no(right, word=rng.choice(GROUPS[other]), group=group)


def same_group(story: Story, rng: random.Random) -> list[dict]:
    """Are two words of one kind?"""
    same, (group, other) = rng.random() < 0.5, rng.sample(list(GROUPS), 2)
    first, second = rng.sample(GROUPS[group], 2) if same else (rng.choice(GROUPS[group]), rng.choice(GROUPS[other]))
    return yes_or_no(same, word=first, other=second)


def odd_one_out(story: Story, rng: random.Random) -> list[dict]:
    """Which of three words does not belong?"""
    group, other = rng.sample(list(GROUPS), 2)
    odd = rng.choice(GROUPS[other])
    return among(odd, rng.sample(GROUPS[group], 2), rng)


def he_or_she(story: Story, rng: random.Random) -> list[dict]:
    """Which pronoun does a person have?"""
    person = rng.choice(list(PRONOUNS))
    return [{"person": person, "answer": PRONOUNS[person], "options": ["he", "she"]}]
