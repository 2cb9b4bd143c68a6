"""The README.md of a shipped base, written from its card."""

from typing import Any


def readme(card: dict[str, Any]) -> str:
    """What it is, what it read, its controls and how they came, as a page for people."""
    shares = ", ".join(f"{share:.0%} {name}" for name, share in card["shares"].items())
    shape = card["shape"]
    began = f" It began with the weights of {card['start']}, which had read others." if card.get("start") else ""
    lines = [
        f"# {card['name']}", "",
        f"{'An' if card['kind'][0] == 'e' else 'A'} {card['kind']} of {card['parameters']:,} parameters (width "
        f"{shape['width']}, {shape['layers']} layers, {shape['heads']} heads, {shape['vocabulary']:,} tokens, context "
        f"{shape['context']}) that has read {card['tokens'] / 1e6:.1f} million tokens of the toy world: "
        f"{card['documents']:,} documents ({shares}), each once.{began}", "",
        f"{card['steps']:,} steps of {card['batch']} documents, learning rate up to {card['learning_rate']:g} (AdamW) "
        f"and {card['muon_rate']:g} (Muon, for the matrices of the blocks), about "
        f"{card['minutes']} minutes at {card['tokens_per_second']:,} tokens a second; seed {card['seed']}.", "",
        f"Made again, to the same bits on such a machine, by `python -m minialign bases {card['name']} --seed "
        f"{card['seed']} --processes {card.get('processes', 1)} --out runs/made`; weights in 16 bits, which change the "
        f"share of right answers by {card['lost_by_16_bits']:.4f} and no control by more than "
        f"{card['changed_by_16_bits']:.4f}. "
        f"Digest `{card['digest'][:16]}`.", "",
        "## Controls", "", "| control | value | needed | questions | |", "| --- | --- | --- | --- | --- |",
    ]
    for control in card["controls"]:
        needed = "" if control["threshold"] is None else f"{control['threshold']:.2f}"
        verdict = "" if control["threshold"] is None else "passed" if control["passed"] else "**failed**"
        lines.append(f"| {control['name']} | {control['value']:.3f} | {needed} | {control['count']:,} | {verdict} |")
    names = ("who", "what", "where", "feeling", "pairs", "honest")
    names = [name for name in names if card["kind"] != "encoder" or name != "honest"]  # which writes nothing
    lines += ["", "## How they came", "", "| step | loss of held-out documents | " + " | ".join(names) + " |",
              "| --- " * (len(names) + 2) + "|"]
    for look in card["curve"]:
        found = {name.replace(",", "").split()[0]: value for name, value in look["controls"].items()}
        lines.append(f"| {look['step']:,} | {look['validation']:.3f} | "
                     + " | ".join(f"{found[name]:.2f}" for name in names) + " |")
    if card["trials"]:
        lines += ["", "## What else was tried", "", *(f"- {trial}" for trial in card["trials"])]
    return "\n".join(lines) + "\n"
