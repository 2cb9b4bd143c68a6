"""What the run started from: the card of the base, with its controls."""

from minialign.lab.report.figures import curve
from minialign.lab.report.run import Run, escape, table

PAIRS = "minimal pairs"


def base_section(run: Run) -> str:
    """What the base read and whether it can read; one sentence for a run that pretrained a model of its own."""
    card = run.card
    if not card:
        return "<p>This run pretrained a model of its own, on dirty text alone.</p>"
    shares = " and ".join(f"{100 * share:.0f}\u00a0% {name}" for name, share in card["shares"].items())
    told = (f"<p>It started from <b>{escape(card['name'])}</b>, which was made once and is shipped: a "
            f"{escape(card['kind'])} of {card['parameters']:,} parameters that has read "
            f"{card['tokens'] / 1e6:.0f} million tokens of the toy world ({escape(shares)} documents, the dirty ones "
            f"as false, rude and repetitive as scraped text is) in about {card['minutes']} minutes. The questions "
            f"below are asked about passages that it never saw, one at a time. No claim is compared in them: they say "
            f"whether the instrument works. {outcome(card)}</p>")
    rows = [[escape(control["name"]), f"{control['value']:.3f}",
             "" if control["threshold"] is None else f"{control['threshold']:.2f}",
             "" if control["threshold"] is None else "passed" if control["passed"] else "<b>failed</b>"]
            for control in card["controls"]]
    listed = table("plain", ["control", "right", "needed", ""], rows)
    return (f'{told}<div class="grid wins">{how_it_learned(card)}'
            f"<details open><summary>Its controls</summary>{listed}</details></div>")


def outcome(card: dict) -> str:
    """How many of the demanded controls passed, in words."""
    demanded = [control for control in card["controls"] if control["threshold"] is not None]
    failed = [control["name"] for control in demanded if not control["passed"]]
    if not demanded:
        return "None is demanded of this base."
    return "All passed." if not failed else f"{len(demanded) - len(failed)} of {len(demanded)} passed."


def how_it_learned(card: dict) -> str:
    """The controls while it read, as a figure: what is copied comes first, what is compared later."""
    looks = [{"step": look["step"]} | {PAIRS if name.startswith("pairs") else name: value
                                       for name, value in look["controls"].items()} for look in card["curve"]]
    fields = ("who", "what", "where", PAIRS)
    return curve("How it learned to read", looks, dict(zip(fields, fields)), ("step", "share right"),
                 "What is copied comes first, then what takes comparing a sentence with the passage. Of a minimal "
                 "pair both questions must be answered rightly, so guessing gives a quarter at most.")
