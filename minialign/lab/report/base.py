"""What the run started from: the card of the base, with its controls."""

from __future__ import annotations

from minialign.lab.report.run import Run, escape, table


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
            f"that the instrument works.</p>")
    rows = [[escape(control["name"]), f"{control['value']:.3f}",
             "" if control["threshold"] is None else f"{control['threshold']:.2f}",
             "" if control["threshold"] is None else "passed" if control["passed"] else "<b>failed</b>"]
            for control in card["controls"]]
    return told + "<details><summary>Its controls</summary>" + table(
        "plain", ["control", "right", "needed", ""], rows) + "</details>"
