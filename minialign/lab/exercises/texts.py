r"""The words of the exercises, in markdown files that are pleasant to read and to edit: texts/quantization.md and its
siblings.

    ## absmax           the task
    ### right           what is said when the answer is right: what to take along
    ### levels_128      the hint for whoever made this mistake

Every mistake has its hint and every hint its mistake (test_every_mistake_has_words_and_the_words_a_mistake).
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

TEXTS = Path(__file__).parent / "texts"


@lru_cache(maxsize=64)
def words_of(chapter: str) -> dict[str, dict[str, str]]:
    """Exercise -> {"task", "right", mistake ...} -> its words, of one chapter's file; a paragraph is one line."""
    found: dict[str, dict[str, str]] = {}
    for section in re.split(r"^## ", (TEXTS / f"{chapter}.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        task, *parts = re.split(r"^### ", section, flags=re.MULTILINE)
        name, _, task = task.partition("\n")
        found[name.strip()] = {"task": _paragraphs(task)} | {part.partition("\n")[0].strip():
            _paragraphs(part.partition("\n")[2]) for part in parts}
    return found


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.strip().split("\n\n"))
