"""Labelling without a browser: the same questions, keys and file as the page (page.py), a line at a time."""

import time
from collections.abc import Callable

from minialign.lab.labelling.store import LabelStore, Question

KEYS = {"1": "first", "2": "second", "0": "tie", "s": "skip"}
HELP = "1 or 2: which is better, then how sure, 1 to 9 (as in “1 7”) · 0 equally good · s skip · u undo · q stop"
TAB = "terminal"


def show_question(store: LabelStore, question: Question) -> str:
    """A pair as text."""
    shown, progress = store.show(question), store.progress()
    first, second = (shown[side] if shown[side].strip() else "(an empty answer)" for side in ("first", "second"))
    rule, place = "─" * 72, f"{progress['done'] + 1 - question.again} of {progress['pairs']}"
    return "\n".join([rule, place, shown["prompt"], rule, f"1  {first}", "", f"2  {second}", ""])


def understand(line: str) -> tuple[str, int | None] | None:
    """("first" | "second" | "tie" | "skip", confidence) of what somebody typed; None when it cannot be understood."""
    words = line.lower().split()
    if not words or words[0] not in KEYS or len(words) > 2:
        return None
    choice = KEYS[words[0]]
    if len(words) == 1:
        return choice, None
    if choice not in ("first", "second") or words[1] not in list("123456789"):
        return None
    return choice, int(words[1])


def label_in_terminal(store: LabelStore, ask: Callable[[str], str], say: Callable[[str], None]) -> None:
    """Ask until there is no pair left or somebody types q; every label is on disk before the next pair shows.

    Args:
        ask: shows a prompt and returns the line that was typed, or raises EOFError at the end of the input.
        say: shows a text.
    """
    say(HELP)
    while (question := store.question(TAB)) is not None:
        say(show_question(store, question))
        started = time.monotonic()
        while True:
            try:
                line = ask("your choice: ").strip().lower()
            except EOFError:
                line = "q"
            if line == "q":
                say(summary(store))
                return
            if line == "u":
                say("nothing to take back" if store.undo(TAB) is None else "taken back; here it is again")
                break
            if (understood := understand(line)) is not None:
                store.answer(TAB, question.key, *understood, round(time.monotonic() - started, 1))
                break
            say(HELP)
    say("That was the last pair. Thank you.\n" + summary(store))


def summary(store: LabelStore) -> str:
    """One line on what was done."""
    p = store.progress()
    agreement = f", {p['agreed']} of {p['again']} asked again were answered alike" if p["again"] else ""
    return (f"{p['done']} of {p['pairs']} pairs labelled, {p['ties']} equally good, {p['skipped']} skipped{agreement}; "
            f"all of it is in {store.path}")
