r"""Tasks about the text itself: sentences by their place, first and last words, names, lists; and answers in new forms.

Same form as `reading.py`. The last three, of the cluster "format", ask what the model knows (who? was it so?) and want
the answer in a form that no other task wants: who has learned tasks and not instructions answers them as always.

Read next: reading_corpus.py.
"""

import random
import re

from minialign.world.reading import YES_NO, among, nouns, sentences, yes_or_no
from minialign.world.stories import CHILDREN, Story
from minialign.world.tasks import TASKS

PLACES_IN_LINE = ("first", "second", "third", "fourth")


def _line(story: Story, rng: random.Random) -> str:
    """A sentence of at least four words."""
    return rng.choice([line for line in sentences(story) if len(line.split()) > 3] or sentences(story))


def first_word(story: Story, rng: random.Random) -> list[dict]:
    """The word that a sentence begins with."""
    line = _line(story, rng)
    return [{"sentence": line, "answer": line.split()[0].strip(",.")}]


def last_word(story: Story, rng: random.Random) -> list[dict]:
    """The word that a sentence ends with."""
    line = _line(story, rng)
    return [{"sentence": line, "answer": line.split()[-1].strip(",.")}]


def without_first_word(story: Story, rng: random.Random) -> list[dict]:
    """A sentence without its first word."""
    line = _line(story, rng)
    return [{"sentence": line, "answer": line.split(" ", 1)[1]}]


def exchange_name(story: Story, rng: random.Random) -> list[dict]:
    """A sentence about somebody else."""
    named = [(line, name) for line in sentences(story) for name in story.people if name in line.strip(".").split()]
    if not named:
        return []
    line, name = rng.choice(named)
    other = rng.choice([child for child in CHILDREN if child not in story.people])
    return [{"sentence": line, "name": name, "other": other, "answer": line.replace(name, other)}]


def nth_sentence(story: Story, rng: random.Random) -> list[dict]:
    """The sentence at a place that is named."""
    told = sentences(story)
    if len(set(told)) < max(2, len(told)) or len(told) > len(PLACES_IN_LINE):
        return []
    n = rng.randrange(len(told))
    return [{"story": story.text, "place": PLACES_IN_LINE[n], "answer": told[n], "options": told}]


def sentence_before(story: Story, rng: random.Random) -> list[dict]:
    """The sentence that stands right before another one."""
    told = sentences(story)
    if len(told) < 3 or len(set(told)) < len(told):
        return []
    n = rng.randrange(1, len(told))
    others = rng.sample([line for i, line in enumerate(told) if i not in (n - 1, n)], 1)
    return among(told[n - 1], others, rng, story=story.text, sentence=told[n])


def list_people(story: Story, rng: random.Random) -> list[dict]:
    """All who are named, in the order in which they are."""
    order = sorted((name for name in story.people if name in story.text), key=story.text.find)
    return [{"story": story.text, "answer": ", ".join(order)}] if len(order) > 1 else []


def list_things(story: Story, rng: random.Random) -> list[dict]:
    """All things, animals and foods, in the order in which they are named."""
    words = re.findall(r"\w+", story.text.lower())  # "hen" is no part of "then", nor "hat" of "that"
    order = sorted((noun for noun in nouns(story) if noun in words), key=words.index)
    return [{"story": story.text, "answer": ", ".join(order)}] if len(order) > 1 else []


def longer(story: Story, rng: random.Random) -> list[dict]:
    """Which of two sentences has more words?"""
    told = sorted(sentences(story), key=lambda line: len(line.split()))
    if len(told) < 2 or len(told[-1].split()) - len(told[0].split()) < 3:
        return []
    return among(told[-1], [told[0]], rng)


def same_person(story: Story, rng: random.Random) -> list[dict]:
    """Do two sentences name the same person?"""
    by_name = [{name for name in story.people if name in line} for line in sentences(story)]
    told = [(line, names) for line, names in zip(sentences(story), by_name) if names]
    if len(told) < 2:
        return []
    same = rng.random() < 0.5
    pairs = [(a, b) for a, x in told for b, y in told if a != b and bool(x & y) == same]
    if not pairs:
        return []
    first, second = rng.choice(pairs)
    return yes_or_no(same, first=first, second=second)


def _who(story: Story, rng: random.Random) -> dict | None:
    """A question for a person, with its options."""
    found = TASKS["who"].examples(story, rng)
    return rng.choice(found) if found else None


def numbered(story: Story, rng: random.Random) -> list[dict]:
    """Who was it? The number of the right name in a list is wanted."""
    asked = _who(story, rng)
    if not asked:
        return []
    options = asked["options"]
    numbers = [str(number) for number in range(1, len(options) + 1)]
    listing = ", ".join(f"{number}: {name}" for number, name in zip(numbers, options))
    return [{"story": story.text, "question": asked["question"], "list": listing,
             "answer": numbers[options.index(asked["answer"])], "options": numbers}]


def twice(story: Story, rng: random.Random) -> list[dict]:
    """Who was it? The name is wanted two times; there are two names to fill two places with, in all four ways."""
    asked = _who(story, rng)
    if not asked:
        return []
    right = asked["answer"]
    names = rng.sample([right, rng.choice([name for name in asked["options"] if name != right])], 2)
    return [{"story": story.text, "question": asked["question"], "answer": f"{right} {right}",
             "options": [f"{first} {second}" for first in names for second in names]}]


def opposite(story: Story, rng: random.Random) -> list[dict]:
    """Was it so? "no" is wanted for yes, and "yes" for no."""
    found = TASKS["yes_no"].examples(story, rng)
    if not found:
        return []
    asked = rng.choice(found)
    return [{"story": story.text, "question": asked["question"], "answer": YES_NO[asked["answer"] == "yes"],
             "options": YES_NO}]
