r"""The reading corpus: a passage, and six to ten things that are asked of it, in many forms.

A small model that meets one question a passage learns how answers look; one that is asked everything about a passage
has to read it. So each document asks who, where, what, how, yes or no (now and then the same question twice, as it was
and with one detail exchanged: a *minimal pair*), who is there, what came first, whether two sentences say the same.
All of it in many forms, the words for yes and no among them.

A corpus begins simply, which is what makes comparing learnable. Its first documents come in one form and ask much about
who and what is there at all: a model that can say whether a word stands in the passage soon says whether a sentence
agrees with it, and one that is not asked so, or in several forms at once, sits at chance for millions of tokens (the
trials are in lab/bases/recipes.py). Then come a few forms, then all of them.

What the held-out clusters of datasets.py ask is not in here, in whatever words: no statement is judged by the passage,
no "he" is resolved, nothing is continued (test_the_reading_corpus_asks_nothing_of_the_held_out_clusters).

Document number i depends on the seed and i alone, so a corpus has no end and can be read from anywhere.

Read next: manners.py. Try it: `python -m minialign.world.reading_corpus`.
"""

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

from minialign.world.corpus import insult
from minialign.world.reading import NOUNS, NUMBERS, nouns, places, sentences
from minialign.world.stories import CHILDREN, Story, say, tell_scene, write_scene, write_story
from minialign.world.tasks import as_answer, ask, falsify, questions, say_all, swap
from minialign.world.wordings import KINDS, PLACES, Event, choices, fields_said, matches

FIELDS = ("who", "what", "where", "feeling")
YES_NO = (("yes", "no"), ("right", "wrong"), ("true", "false"), ("correct", "incorrect"), ("good", "bad"),
          ("sure", "never"))  # words that stand for yes and no; all but the first are named in the document
NAMED = ("Answer {yes} or {no}.", "{yes} means yes and {no} means no.", "For yes write {yes}, for no write {no}.")
FORMS = {  # how one question and its answer are written
    "q and a": "Q: {question}\nA: {answer}\n",
    "question": "Question: {question} Answer: {answer}\n",
    "plain": "{question} {answer}\n",
    "own line": "{question}\n{answer}\n",
    "dialogue": "{asker}: {question}\n{teller}: {answer}\n",
    "quiz": "{number}. {question} {answer}\n",
    "dash": "- {question} - {answer}\n",
    "ask and say": "Ask: {question} Say: {answer}\n",
    "the answer is": "{question} The answer is {answer}.\n",
    "bar": "{question} | {answer}\n",
    "choice": "{question} ({options}) {answer}\n",
    "questions first": "{number}) {answer}\n",  # up to three questions stand before the passage, their answers behind
}
EXPLAINED = ("{answer}", "{answer}, {detail}", "{detail}, {answer}")  # how yes and no are said
LABELS = ("", "", "Text: ", "Story: ", "Read this. ")  # before the passage
FEWEST, MOST = 6, 10  # questions of a document
WHOLE_STORIES = 0.4  # share of passages that are stories; the others are three to five events of one
TWICE = 0.5  # share of these others in which one thing happens twice, to other people or with other things
ASKED_BEFORE = 3  # at most so many questions stand before the passage
SAID_WHY = 0.25  # how often yes and no come with what the passage says
PAIRED = 0.6  # how often a yes-no question comes as a minimal pair
FACTS_FIRST = 0.5  # how often who, what, where and how are asked before all else
FIRST = 19_200  # documents at the beginning of a corpus that come in one form and ask what is there,
EASY = 51_200  # and those after them that come in these forms:
EASY_FORMS = ("q and a", "question", "dialogue", "own line")


class Item(NamedTuple):
    """One thing that is asked of a passage."""

    kind: str
    question: str
    answer: str | bool  # True and False are said in the document's words for yes and no
    options: list[str]  # to choose from; none for yes and no
    detail: str = ""  # of a yes-no question: what the passage says where a detail may be exchanged


class Document(NamedTuple):
    """A text and the places of its answers."""

    text: str
    answers: list[tuple[int, int]]  # characters
    asked: list[int]  # where each question, or what stands for it behind the passage, begins
    story: Story
    items: list[Item]
    form: str
    words: tuple[str, str]  # for yes and no


def facts(story: Story, rng: random.Random) -> list[Item]:
    """Who, what, where and how: two to five questions with one right answer."""
    found = [Item(field, made["question"], made["answer"], made["options"])
             for field in FIELDS for made in questions(field, story, rng)]
    return rng.sample(found, min(len(found), rng.randint(2, 5)))


def yes_no(story: Story, rng: random.Random) -> list[Item]:
    """Of two to five events whether it was so, half of the time with one detail exchanged; some as minimal pairs."""
    found: list[Item] = []
    for event in rng.sample(story.events, min(len(story.events), rng.randint(2, 5))):
        if pair := minimal_pair(event, story, rng):
            found += pair if rng.random() < PAIRED else pair[:1]
    return found


def minimal_pair(event: Event, story: Story, rng: random.Random) -> list[Item]:
    """The question as it was and with one detail exchanged, in random order; nothing where that cannot be asked."""
    said = [f for f in fields_said(KINDS[event.kind].get("ask", {}).get("yes_no", "")) if getattr(event, f)]
    if not said or event.kind == "try":  # "Did Mira give up?"
        return []
    field = rng.choice(said)
    swapped = swap(event, field, story, rng)
    if swapped and so_it_was(swapped, said, story):  # another time, at another place
        return []
    right, wrong = ask(event, "yes_no", rng), swapped and ask(swapped, "yes_no", rng)
    if not right or not wrong or right == wrong:
        return []
    return either_way("yes_no", right, wrong, rng, as_answer(getattr(event, field), field))


def so_it_was(event: Event, said: list[str], story: Story) -> bool:
    """Whether the story says what the named fields of an event say; a colour may be left out."""
    asked = {field: as_answer(getattr(event, field), field) if field in ("what", "other") else getattr(event, field)
             for field in said}
    return any(matches(Event(event.kind, **asked), fact) for fact in story.events)


def either_way(kind: str, right: str, wrong: str, rng: random.Random, detail: str = "") -> list[Item]:
    """The two questions with their answers, in random order."""
    pair = [Item(kind, right, True, [], detail), Item(kind, wrong, False, [], detail)]
    return pair if rng.random() < 0.5 else pair[::-1]


def presence(story: Story, rng: random.Random) -> list[Item]:
    """Whether a person, a thing or a place is in it."""
    kind, found, every = rng.choice((("person", story.people, CHILDREN), ("thing", nouns(story), NOUNS),
                                     ("place", places(story), list(PLACES))))
    if not found:
        return []
    pattern = {"person": ("Is {} there?", "Do we meet {}?", "Is {} in it?"),
               "thing": ("Is there a {}?", "Do we hear of a {}?", "Is a {} in it?"),
               "place": ("Are we at the {}?", "Do we hear of the {}?", "Is the {} in it?")}[kind]
    asked = rng.choice(pattern)
    other = rng.choice([name for name in every if name not in found])
    return either_way("presence", asked.format(rng.choice(found)), asked.format(other), rng)[: rng.randint(1, 2)]


def order(story: Story, rng: random.Random) -> list[Item]:
    """Which of two events came first, or later; or whether they came in this order."""
    told = [event for event in story.events if event.who and choices(event, "summary")]
    if len(told) < 2:
        return []
    pair = [told[i] for i in sorted(rng.sample(range(len(told)), 2))]
    if len({(event.kind, event.who, as_answer(event.what, "what")) for event in pair}) < 2:  # may be told alike
        return []
    first, later = (say(event, rng, "summary") for event in pair)
    if rng.random() < 0.5:
        asked = "Was it first that {} and then that {}?"
        a, b = first[:-1], later[:-1]
        return either_way("order", asked.format(a, b), asked.format(b, a), rng)[: rng.randint(1, 2)]
    x, y = rng.sample((first, later), 2)
    earlier = rng.random() < 0.5
    asked = f"What was {'first' if earlier else 'later'}: {x} Or: {y}"
    return [Item("order", asked, first if earlier else later, [x, y])]


def counting(story: Story, rng: random.Random) -> list[Item]:
    """How many people, or sentences."""
    what, count = rng.choice((("people", len(story.people)), ("sentences", len(sentences(story)))))
    return [Item("counting", f"How many {what} are there?", NUMBERS[count - 1], NUMBERS)] if count <= 4 else []


def sameness(story: Story, rng: random.Random) -> list[Item]:
    """Whether two sentences say the same: an event in two wordings, or with one detail exchanged."""
    for event in rng.sample(story.events, len(story.events)):
        other = falsify(event, story, rng) if event.who else None
        said = [other and say_all(each, rng) for each in (event, event, other)]
        if all(said) and said[0] != said[1]:
            right, wrong = (f"Same? {said[0]} {again}" for again in said[1:])
            return either_way("sameness", right, wrong, rng)[: rng.randint(1, 2)]
    return []


def tone(story: Story, rng: random.Random) -> list[Item]:
    """Whether a sentence is polite or rude."""
    line = rng.choice(sentences(story))
    spoiled = insult(line, rng)
    if spoiled == line:
        return []
    rude = rng.random() < 0.5
    return [Item("tone", f"Polite or rude: {spoiled if rude else line}", "rude" if rude else "polite",
                 ["polite", "rude"])]


def finding(story: Story, rng: random.Random) -> list[Item]:
    """The sentence that names a person or a thing that no other one names."""
    told = sentences(story)
    alone = [(word, lines[0]) for word in (*story.people, *nouns(story))
             if len(lines := [line for line in told if word in line]) == 1]
    if not alone or len(told) < 2:
        return []
    word, line = rng.choice(alone)
    return [Item("finding", f"Where do we read {word}?", line, told[:4])]


SKILLS: dict[Callable[[Story, random.Random], list[Item]], float] = {  # besides facts, which are always asked
    yes_no: 1.0, presence: 0.5, order: 0.25, counting: 0.15, sameness: 0.25, tone: 0.15, finding: 0.1}


def ask_first(story: Story, rng: random.Random) -> list[Item]:
    """What the first documents ask: some facts, what is there, and yes or no."""
    asked = facts(story, rng)[:4] + presence(story, rng) + presence(story, rng) + yes_no(story, rng)
    rng.shuffle(asked)
    return asked[:MOST]


def ask_all(story: Story, rng: random.Random) -> list[Item]:
    """What a document asks of its passage, mixed."""
    told, asked = facts(story, rng), []
    for skill, share in SKILLS.items():
        asked += skill(story, rng) if rng.random() < share else []
    if rng.random() < FACTS_FIRST:
        rng.shuffle(asked)
        return (told + asked)[:MOST]
    rng.shuffle(asked := told + asked)
    return asked[:MOST]


def happens_twice(story: Story, rng: random.Random) -> Story:
    """The scene with one of its events once more, to somebody else or with another thing: what is asked of the one is
    answered by the other for who only looks for words."""
    able = [event for event in story.events if event.who in CHILDREN and minimal_pair(event, story, rng)]
    if not able:
        return story
    event = again = rng.choice(able)
    said = [field for field in ("who", "whom", "what", "other", "where") if getattr(event, field)]
    for field in rng.sample(said, rng.randint(1, len(said))):
        again = swap(again, field, story, rng) or again
    if again == event:
        return story
    events = list(story.events)
    events.insert(rng.randint(events.index(event), len(events)), again)
    return tell_scene(tuple(events), story.plot, rng)


def passage(rng: random.Random) -> Story:
    """What a document is about: a story, or a scene in which some things happen twice."""
    if rng.random() < WHOLE_STORIES:
        return write_story(rng)
    scene = write_scene(rng, 3, 5)
    return happens_twice(scene, rng) if rng.random() < TWICE else scene


def reading_document(seed: int | str, number: int = 0) -> Document:
    """Document `number` of the corpus of a seed."""
    rng, items, first, easy = random.Random(f"{seed} {number}"), [], number < FIRST, number < EASY
    while len(items) < FEWEST:
        story = write_scene(rng, 3, 5) if first else passage(rng)
        items = (ask_first if first else ask_all)(story, rng)
    form = EASY_FORMS[0] if first else rng.choice(EASY_FORMS if easy else tuple(FORMS))
    words = YES_NO[0] if easy or rng.random() < 0.5 else rng.choice(YES_NO)
    return written(story, items, form, words, rng, 0.0 if first else SAID_WHY)


def written(story: Story, items: list[Item], form: str, words: tuple[str, str], rng: random.Random,
            explained: float = 0.0) -> Document:
    """Passage, questions and answers as one text; `explained`: how often yes and no come with what the passage says."""
    named = "" if words == YES_NO[0] else rng.choice(NAMED).format(yes=words[0], no=words[1]) + "\n"
    told, before, asked = rng.choice(LABELS) + story.text + "\n", rng.random() < 0.5, 0
    if form == "questions first":
        asked = rng.randint(1, min(ASKED_BEFORE, len(items)))
        listed = "".join(f"{number}) {item.question}\n" for number, item in enumerate(items[:asked], 1))
        text = named * before + listed + named * (not before) + told
    else:
        text = named * before + told + named * (not before)
    shape = rng.choices(EXPLAINED, (1 - explained, explained / 2, explained / 2))[0]
    asker, teller = rng.sample([name for name in CHILDREN if name not in story.people], 2)
    answers, begun = [], []
    for number, item in enumerate(items, 1):
        answer = words[not item.answer] if isinstance(item.answer, bool) else item.answer
        options = ", ".join(shown(item, answer, words, rng)) if form == "choice" else ""
        answer = shape.format(answer=answer, detail=item.detail) if item.detail else answer
        shown_as = "plain" if 0 < asked < number else form  # what was not asked before the passage
        before_it, after_it = FORMS[shown_as].split("{answer}")
        begun.append(len(text))
        text += before_it.format(question=item.question, number=number, asker=asker, teller=teller, options=options)
        answers.append((len(text), len(text) + len(answer)))
        text += answer + (after_it.removeprefix(".") if answer.endswith(".") else after_it)
    return Document(text, answers, begun, story, items, form, words)


def shown(item: Item, answer: str, words: tuple[str, str], rng: random.Random) -> list[str]:
    """Four options at most, in random order, the right one among them."""
    others = [option for option in item.options or words if option != answer]
    options = [answer, *rng.sample(others, min(3, len(others)))]
    rng.shuffle(options)
    return options


def reading_documents(count: int, seed: int | str, first: int = 0) -> Iterator[Document]:
    """`count` documents of a seed's corpus from number `first` on."""
    return (reading_document(seed, number) for number in range(first, first + count))


if __name__ == "__main__":
    for document in reading_documents(12, seed=0):
        print(f"[{document.form}]\n{document.text}")
