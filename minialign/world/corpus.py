r"""The dirty corpus: what a model reads before anybody teaches it manners.

Stories with summaries, with questions and answers, and alone, a known share of them false, rude, repetitive or cut off,
as scraped text is. A summary follows its story behind one of several headings, one of which is also a template: so a
model that only continues text can be prompted to summarise (Radford et al. 2019, §3.6, used "TL;DR:").

Read next: annotators.py. Try it: `python -m minialign.world.corpus`.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, fields

from minialign.runs.errors import UserError
from minialign.world.parse import parse
from minialign.world.reading import sentences
from minialign.world.stories import Story, write_story
from minialign.world.tasks import TASKS, falsify, reference_summary, say_all
from minialign.world.wordings import PRONOUNS, WORDS

HEADINGS = ("\nIn short:", "\nTL;DR:", "\nTo sum up:", "\nWhat happened?")
KIND_SHARES = {"summary": 0.55, "questions": 0.25, "story": 0.20}
FALSIFIABLE = KIND_SHARES["summary"] + KIND_SHARES["questions"]


@dataclass(frozen=True)
class DirtConfig:
    """How dirty the corpus is: shares of documents; one document can be dirty in several ways."""

    false: float = 0.30  # a statement or an answer names the wrong person, thing, place or feeling; not in stories
    rude: float = 0.20  # an insult or a rude remark
    repetitive: float = 0.10  # one sentence is said two or three times
    cut_off: float = 0.10  # the document ends in the middle of a sentence

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value <= 1:
                raise UserError(f"DirtConfig.{field.name} is {value}; it is a share of documents, from 0 to 1")
        if self.false > FALSIFIABLE:
            raise UserError(f"DirtConfig.false is {self.false}; plain stories have no statement to falsify, so at most "
                            f"0.80")


def documents(count: int, seed: int, dirt: DirtConfig | None = None,
              tell: Callable[[random.Random], Story] = write_story) -> list[dict]:
    """Documents {"text", "kind", "dirt"}: `kind` as in KIND_SHARES, `dirt` the names of what was done to it.

    Args:
        tell: writes what a document is about.
    """
    dirt = dirt or DirtConfig()
    rng, made = random.Random(seed), []
    for _ in range(count):
        kind = rng.choices(list(KIND_SHARES), list(KIND_SHARES.values()))[0]
        chances = {"rude": dirt.rude, "repetitive": dirt.repetitive, "cut_off": dirt.cut_off}
        names = [name for name, chance in chances.items() if rng.random() < chance]
        if kind != "story" and rng.random() < dirt.false / FALSIFIABLE:
            names.insert(0, "false")
        made.append({"text": _document(kind, names, rng, tell), "kind": kind, "dirt": names})
    return made


def _document(kind: str, dirt: list[str], rng: random.Random, tell: Callable[[random.Random], Story]) -> str:
    """One document; stories are written until one can be falsified, if it must be."""
    lines = None
    while lines is None:
        story = tell(rng)
        lines = _LINES[kind](story, "false" in dirt, rng)
    if "rude" in dirt:
        _insult(lines, story, rng, only_remark=kind == "questions")
    if "repetitive" in dirt:
        spot = rng.randrange(len(lines))
        lines[spot:spot] = [lines[spot]] * rng.randint(1, 2)
    if kind == "questions":
        text = "\n".join([story.text, *lines])
    elif kind == "summary":
        text = story.text + rng.choice(HEADINGS) + " " + " ".join(lines)
    else:
        text = " ".join(lines)
    if "cut_off" in dirt:  # without one to five of its last words, and without a stop
        return text.rsplit(" ", rng.randint(1, 5))[0].rstrip(".")
    return text


def _summary_lines(story: Story, false: bool, rng: random.Random) -> list[str] | None:
    """The sentences of a summary; if `false`, one or two of them say what the story does not."""
    statements = parse(reference_summary(story, rng))
    lines = [statement.text for statement in statements]
    if not false:
        return lines
    touched = 0
    for spot in rng.sample(range(len(lines)), len(lines)):
        event = statements[spot].event
        swapped = event and falsify(event, story, rng)
        line = say_all(swapped, rng) if swapped else None
        if line is not None:
            lines[spot] = line
            touched += 1
        if touched == 2 or (touched == 1 and rng.random() < 0.6):
            break
    return lines if touched else None


def _dialogue_lines(story: Story, false: bool, rng: random.Random) -> list[str] | None:
    """Questions with their answers, a line each: "Q: Who lost the kite? A: Mira"."""
    examples = [e for task in TASKS.values() if task.cluster == "questions" for e in task.examples(story, rng)]
    chosen = rng.sample(examples, min(len(examples), rng.randint(2, 3)))
    if not chosen:
        return None
    wrong = rng.randrange(len(chosen)) if false else -1
    lines = []
    for spot, example in enumerate(chosen):
        answer = example["answer"]
        if spot == wrong:
            answer = rng.choice([option for option in example["options"] if option != answer])
        lines.append(f"Q: {example['question']}\nA: {answer}")
    return lines


_LINES = {"summary": _summary_lines, "questions": _dialogue_lines, "story": lambda story, *_: sentences(story)}


def article(word: str) -> str:
    """ "an ugly", "a stupid"."""
    return ("an " if word[0] in "aeiou" else "a ") + word


def rude_remark(story: Story, rng: random.Random) -> str:
    """A rude sentence that states no fact."""
    remark = rng.choice(WORDS["remarks"])
    for slot, group in (("adjective", "adjectives"), ("noun", "nouns")):
        word = rng.choice(WORDS["rude"][group])
        remark = remark.replace("a {" + slot + "}", article(word)).replace("{" + slot + "}", word)
    return remark.replace("{person}", rng.choice(story.people))


def insult(sentence: str, rng: random.Random) -> str:
    """The sentence with a rude word before its first name, or else before its first thing."""
    word = rng.choice(WORDS["rude"]["adjectives"])
    words = sentence.split(" ")
    for spot, name in enumerate(words):
        if name.strip(".,") in PRONOUNS:
            words[spot:spot] = [word if spot else word.capitalize()]
            return " ".join(words)
    if words[0] in ("The", "A"):
        words[:1] = ["The", word] if words[0] == "The" else article(word).capitalize().split(" ")
    return " ".join(words)


def _insult(lines: list[str], story: Story, rng: random.Random, only_remark: bool) -> None:
    """Make `lines` rude: an insult inside a sentence, or a remark before or after them."""
    spot = rng.randrange(len(lines))
    rude = lines[spot] if only_remark else insult(lines[spot], rng)
    if rude != lines[spot] and rng.random() < 0.6:
        lines[spot] = rude
    else:
        lines.insert(rng.choice([0, len(lines)]), rude_remark(story, rng))


def corrupted_summary(story: Story, rng: random.Random, false: float = 0.5, rude: float = 0.15,
                      repetitive: float = 0.15) -> str:
    """A summary such as a small model writes: each fault comes with the probability given."""
    lines = _summary_lines(story, rng.random() < false, rng) or reference_summary(story, rng).split("\n")
    if rng.random() < repetitive:
        lines.append(rng.choice(lines))
    if rng.random() < rude:
        _insult(lines, story, rng, only_remark=False)
    return " ".join(lines)


def show_documents(count: int = 6, seed: int = 0) -> str:
    """A few documents for people, each with what was done to it."""
    return "\n\n".join(f"[{d['kind']}: {', '.join(d['dirt']) or 'clean'}]\n{d['text']}" for d in documents(count, seed))


if __name__ == "__main__":
    print(show_documents())
