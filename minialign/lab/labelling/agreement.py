r"""How far real labellers agree: with themselves on pairs that came back, with each other, with the majority. From
labels.jsonl files alone.

    agreement = share of the pairs that both decided (no tie, no skip) on which both chose the same answer

World annotators have the same table (world/annotators.py); papers report 73 % between labellers (Ouyang et al. 2022,
§3.4), 77 % between labellers and researchers (Stiennon et al. 2020, §3.3). Read next: store.py.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from minialign.evaluation import wilson_interval
from minialign.rlhf.comparisons import taken_back
from minialign.runs.errors import UserError
from minialign.runs.files import place_of, read_jsonl

Pair = tuple[str, frozenset[str]]  # the prompt, and the two answers in no order


def read_votes(paths: Sequence[Path]) -> dict[str, dict[bool, dict[Pair, str | None]]]:
    """Annotator -> asked again -> pair -> the chosen answer, None for a tie; what was skipped or taken back is not
    there.

    Raises:
        UserError: a line that is no label; names file and line.
    """
    votes: dict[str, dict[bool, dict[Pair, str | None]]] = {}
    for path in paths:
        records = read_jsonl(path)
        undone = taken_back(records)
        for place, record in enumerate(records):
            if type(record.get("undo")) is int or record.get("choice") == "skip" or place in undone:
                continue
            tie = record.get("choice") == "tie"
            texts = [record.get(name) for name in (("first", "second") if tie else ("chosen", "rejected"))]
            if not all(isinstance(text, str) for text in [*texts, record.get("prompt")]):
                raise UserError("no label: it needs prompt, chosen and rejected, each of them text", *place_of(record))
            own = votes.setdefault(str(record.get("annotator", "somebody")), {False: {}, True: {}})
            own[record.get("again") is True][record["prompt"], frozenset(texts)] = None if tie else texts[0]
    return votes


def agree(one: dict[Pair, str | None], other: dict[Pair, str | None]) -> tuple[int, int]:
    """On how many pairs both chose the same answer, and how many both decided."""
    both = [(one[pair], other[pair]) for pair in one.keys() & other.keys() if None not in (one[pair], other[pair])]
    return sum(a == b for a, b in both), len(both)


def majority(others: Sequence[dict[Pair, str | None]]) -> dict[Pair, str | None]:
    """What most of the others chose; None where they are even."""
    counts: dict[Pair, Counter[str]] = defaultdict(Counter)
    for votes in others:
        for pair, chosen in votes.items():
            if chosen is not None:
                counts[pair][chosen] += 1
    return {pair: max(n, key=n.get) if len(n) == 1 or len(set(n.values())) > 1 else None for pair, n in counts.items()}


def label_agreement(votes: dict[str, dict[bool, dict[Pair, str | None]]]) -> list[dict]:
    """One row a person: `name`, `labels`, `ties`, and (agreed, of) for `oneself`, `others`, `majority`."""
    rows = []
    for name, own in votes.items():
        others = [votes[other][False] for other in votes if other != name]
        each = [agree(own[False], other) for other in others]
        row = {"name": name, "labels": len(own[False]), "ties": sum(chosen is None for chosen in own[False].values())}
        row |= {"oneself": agree(own[False], own[True]), "others": (sum(a for a, _ in each), sum(n for _, n in each))}
        rows.append(row | {"majority": agree(own[False], majority(others))})
    return rows


def show_label_agreement(rows: list[dict]) -> str:
    """The table for people, with 95 % intervals."""

    def share(counts: tuple[int, int]) -> str:
        if not counts[1]:
            return "-"
        interval = wilson_interval(*counts)
        return f"{interval.mean:.0%} ({interval.low:.0%}-{interval.high:.0%})"

    lines = [f"{'':12}{'labels':>8}{'ties':>6}{'oneself':>17}{'others':>17}{'majority':>17}"]
    for row in rows:
        shares = "".join(f"{share(row[name]):>17}" for name in ("oneself", "others", "majority"))
        lines.append(f"{row['name'][:11]:12}{row['labels']:8}{row['ties']:6}{shares}")
    return "\n".join(lines)
