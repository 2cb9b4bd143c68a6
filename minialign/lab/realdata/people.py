r"""The ratings of real people as a whole experiment: texts, comparisons to learn from, and a held-out judge.

A policy reads the first words of a text and writes on; people's comparisons say which of two texts is the more
positive; a second set of ratings, of other texts, trains the judge that says in the end whether the policy's
continuations are liked better.

Everything is divided once, by text and by rater, into four parts that share neither:

    train .5    the language model and the reward model
    valid .1    choosing when to stop
    test  .1    prompts, and the comparisons that final numbers are about
    judge .3    a second reward model that nothing is optimised against

"By rater" means by position in the list of ratings. In movies that is a person of a batch, and whole batches go to one
part. In the other three it only means that no single rating is in two parts (`ratings.py`, detail 3). Texts that stand
in a source twice go to the same part.
"""

import random
from pathlib import Path

from minialign.lab.realdata.ratings import CITATION, LICENCE, STEMS, Rated, comparisons_from_ratings, read_ratings
from minialign.runs.files import write_atomic, write_jsonl

PARTS = ("train",) * 5 + ("valid",) + ("test",) + ("judge",) * 3
COUNTS = {"train": 8192, "valid": 1024, "test": 2048, "judge": 8192}  # comparisons in each file
PROMPT_WORDS = 4
LONG_ENOUGH = 8  # words that a text needs to give a prompt


def split_by_text(items: list[Rated], seed: int) -> dict[str, list[Rated]]:
    """The four parts, .5 .1 .1 .3 of the distinct texts; a batch of people (movies) is never divided."""
    unit_of = [item.text if item.batch is None else item.batch for item in items]
    units = sorted(set(unit_of))
    random.Random(f"{seed} texts").shuffle(units)
    part_of = {unit: PARTS[number % len(PARTS)] for number, unit in enumerate(units)}
    part_of_text, parts = {}, {part: [] for part in PARTS}
    for item, unit in zip(items, unit_of):
        if part_of_text.setdefault(item.text, part_of[unit]) == part_of[unit]:  # a text of two batches: the first's
            parts[part_of[unit]].append(item)
    return parts


def split_by_rater(positions: int, seed: int) -> dict[str, set[int]]:
    """The four parts of the positions 0 … positions − 1: five, one, one and three of every ten in a row."""
    rng, parts = random.Random(f"{seed} raters"), {part: set() for part in PARTS}
    for start in range(0, positions, len(PARTS)):
        for offset, part in enumerate(rng.sample(PARTS, len(PARTS))):
            parts[part] |= {start + offset} & set(range(positions))
    return parts


def ordered_by_all(rows: list[dict], items: list[Rated]) -> list[dict]:
    """The same pairs of texts, each once, in the order of the mean over all their ratings, without those that are even.
    """
    means = {item.id: sum(item.ratings) / len(item.ratings) for item in items}
    ordered = []
    for row in {frozenset((row["chosen_id"], row["rejected_id"])): row for row in rows}.values():
        difference = means[row["chosen_id"]] - means[row["rejected_id"]]
        swapped = {"chosen": row["rejected"], "rejected": row["chosen"],
                   "chosen_id": row["rejected_id"], "rejected_id": row["chosen_id"]} if difference < 0 else {}
        if difference:
            ordered.append(row | swapped | {"annotator": "all", "confidence": max(1, round(abs(difference)))})
    return ordered


def prompts_of(items: list[Rated]) -> list[dict]:
    """The first four words of every text of eight words or more, each once."""
    words = [item.text.split() for item in items]
    starts = dict.fromkeys(" ".join(w[:PROMPT_WORDS]) for w in words if len(w) >= LONG_ENOUGH)
    return [{"prompt": start} for start in starts]


def _write_texts(path: Path, texts: list[str]) -> int:
    """One text a line, an empty line between two; returns how many."""
    write_atomic(path, "\n\n".join(texts) + "\n")
    return len(texts)


def write_people_data(out: str | Path, name: str = "tweets", seed: int = 0,
                      folder: str | Path | None = None) -> dict[str, int]:
    """Write texts, comparisons, prompts and a README of one source.

    Args:
        out: folder, created if it is not there; files of the same name are replaced.
        name: tweets, amazon, movies or nyt.
        seed: of the split and of the pairs; the same seed writes the same bytes.
        folder: of the two files of the source, if they are not to be fetched.
    Returns:
        file name -> how many texts, comparisons or prompts it holds.
    """
    out, items, written = Path(out), read_ratings(name, folder), {}
    texts = split_by_text(items, seed)
    raters = split_by_rater(max(len(item.ratings) for item in items), seed)
    for part in ("train", "valid"):
        distinct = list(dict.fromkeys(item.text for item in texts[part]))
        written[f"texts.{part}.txt"] = _write_texts(out / f"texts.{part}.txt", distinct)
    files = {}
    for part, count in COUNTS.items():
        rows = comparisons_from_ratings(texts[part], count, seed, raters[part], source=name)
        files[f"comparisons.{part}.jsonl"] = rows
        if part == "test":
            files["comparisons.majority.jsonl"] = ordered_by_all(rows, texts[part])
    files["prompts.jsonl"] = prompts_of(texts["test"])
    for file, rows in files.items():
        write_jsonl(out / file, rows)
        written[file] = len(rows)
    write_atomic(out / "README.txt", _readme(name, seed, written))
    return written


def write_people_texts(out: str | Path, seed: int = 0, folder: str | Path | None = None) -> dict[str, int]:
    """Write the texts of all four sources, to pretrain on: texts.train.txt (train and judge parts, no ratings) and
    texts.valid.txt.

    The parts are those of `write_people_data` with the same seed, and its test part, from which prompts come, is in
    neither file. Arguments and result as there.
    """
    out, lines, written = Path(out), {"train": [], "valid": []}, {}
    parts = [split_by_text(read_ratings(name, folder), seed) for name in STEMS]
    held_out = {item.text for split in parts for part in ("valid", "test") for item in split[part]}
    for split in parts:
        learned = [item.text for part in ("train", "judge") for item in split[part]]
        lines["train"] += [text for text in learned if text not in held_out]
        lines["valid"] += [item.text for item in split["valid"]]
    for part, texts in lines.items():
        distinct = list(dict.fromkeys(texts))
        random.Random(f"{seed} order").shuffle(distinct)
        written[f"texts.{part}.txt"] = _write_texts(out / f"texts.{part}.txt", distinct)
    write_atomic(out / "README.txt", _readme("all four sources", seed, written))
    return written


MEANING = {
    "texts.train.txt": "one text a line, an empty line between two: to learn to write",
    "texts.valid.txt": "other texts, the same way: to measure perplexity",
    "comparisons.train.jsonl": "chosen and rejected by one rater: for the reward model",
    "comparisons.valid.jsonl": "other texts, other raters: to choose when to stop",
    "comparisons.test.jsonl": "other texts, other raters again: for the number that is reported",
    "comparisons.majority.jsonl": "the pairs of comparisons.test.jsonl in the order of the mean of all ratings",
    "comparisons.judge.jsonl": "other texts, other raters again: for a judge that nothing is optimised against",
    "prompts.jsonl": f"the first {PROMPT_WORDS} words of texts of the test part: for the policy to go on from",
}


def _readme(name: str, seed: int, written: dict[str, int]) -> str:
    """What the files are, what they are not, and whose they are."""
    files = "".join(f"  {file:26}{count:7,}  {MEANING[file]}\n" for file, count in written.items())
    person = ("one person of a batch of 30 texts" if name == "movies" else "a position in the lists of ratings:\n"
              "nobody knows whether it is the same person for two texts, so a comparison is a pair of draws")
    return (
        f"Human ratings of {name}, seed {seed}\n\n{files}\n"
        "The parts share no text and no rater. `confidence` is the difference of the two ratings, 1 to 8;\n"
        f"`prompt` is always empty. A rater is {person}.\n"
        "Absolute ratings of sentiment (-4 to 4) turned into pairs: \"chosen\" is the more positive text, not the "
        "better one.\n"
        "The texts are what people wrote: some are rude. HTML entities are decoded and white space is made single.\n\n"
        f"Licence: {LICENCE}.\nCite: {CITATION}\n"
    )
