r"""What real people said: the ratings behind VADER (Hutto & Gilbert 2014), as comparisons, and how far they agree.

Four sources of short texts; 15 to 99 people each gave every text a number from −4 (very negative) to 4 (very positive).
In the source distribution of `vaderSentiment` 3.3.2 (MIT), and only there, an inner archive holds two files a source
(tab-separated, CRLF, no header): `*_anonDataRatings.txt` (id, mean, sd, [every rating]) and `*_GroundTruth.txt` (id,
mean, text). Details that matter:

1. the two are joined on the id; their order differs (amazon), and one starts with a byte-order mark (amazon);
2. the mean of a text in GroundTruth is rescaled for about 200 tweets: only the raw ratings are used
   (test_ratings_not_means_are_read_and_joined_on_the_id_through_bom_crlf_and_another_order);
3. who a rating is from. In movies, a batch of 30 rows was rated by the same people in the same order: two ratings at
   one position, without their texts' means, correlate .28 in a batch and .01 in the next. In the other three it is .00:
   there "one person" means one draw from the list of each text, which is noisier than a person who compares;
4. these are absolute ratings of sentiment turned into pairs, with no shared prompt.
"""

import html
import json
import random
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from minialign.lab.realdata.packages import cache_folder, fetch, unpack
from minialign.runs.errors import UserError

REQUIREMENT = "vaderSentiment==3.3.2"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
STEMS = {"tweets": "tweets", "amazon": "amazonReviewSnippets", "movies": "movieReviewSnippets",
         "nyt": "nytEditorialSnippets"}
MOVIE_BATCH = 30  # rows in the file that the same people rated
LICENCE = "MIT (package vaderSentiment 3.3.2)"
CITATION = ("Hutto, C.J. & Gilbert, E.E. (2014). VADER: A Parsimonious Rule-based Model for Sentiment Analysis of "
            "Social Media Text. Eighth International Conference on Weblogs and Social Media (ICWSM-14). Ann Arbor, MI, "
            "June 2014.")


class Rated(NamedTuple):
    """A text and what every one of its raters said."""

    id: str
    text: str
    ratings: tuple[int, ...]  # −4 … 4
    batch: int | None = None  # number of the group of people; None where that is not known


def ratings_folder() -> Path:
    """The folder with the two files of every source, fetched the first time."""
    [inner] = fetch(REQUIREMENT, SHA256, "*/additional_resources/hutto_ICWSM_2014.tar.gz")
    folder = cache_folder() / f"vaderSentiment-3.3.2-{SHA256[:12]}" / "ratings"
    if not folder.is_dir():
        unpack(inner, "hutto_ICWSM_2014/*.txt", folder)
    return folder / "hutto_ICWSM_2014"


def read_ratings(name: str, folder: str | Path | None = None) -> list[Rated]:
    """Every text of one source with all of its ratings, in the order of the file of ratings.

    Args:
        name: tweets, amazon, movies or nyt.
        folder: where the two files are; `ratings_folder()` without it.
    Raises:
        UserError: an unknown name, or a line that is not in the layout, by file and line.
    """
    if name not in STEMS:
        raise UserError(f"no ratings are called {name!r}; there are {', '.join(STEMS)}")
    folder = Path(folder) if folder is not None else ratings_folder()
    texts_file, ratings_file = (folder / f"{STEMS[name]}_{kind}.txt" for kind in ("GroundTruth", "anonDataRatings"))
    texts = {}
    for line, (key, _, text) in _rows(texts_file, columns=3):
        if key in texts:
            raise UserError(f"the id {key!r} stands here a second time; delete one of the two lines", texts_file, line)
        texts[key] = " ".join(html.unescape(text).split())
    items, seen = [], set()
    for line, (key, _, _, listed) in _rows(ratings_file, columns=4):
        if key not in texts or key in seen:
            why = "stands here a second time" if key in seen else f"is not in {texts_file.name}"
            raise UserError(f"the id {key!r} {why}; the two files do not belong together", ratings_file, line)
        seen.add(key)
        ratings = _whole_numbers(listed, ratings_file, line)
        items.append(Rated(key, texts[key], ratings, len(items) // MOVIE_BATCH if name == "movies" else None))
    if len(items) != len(texts):
        raise UserError(f"has {len(items)} ids, {texts_file.name} has {len(texts)}; one is cut off: fetch again",
                        ratings_file)
    return items


def _rows(path: Path, columns: int) -> Iterable[tuple[int, list[str]]]:
    """(line number, fields) of a tab-separated file, CRLF or not, with or without a byte-order mark."""
    try:
        lines = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").removesuffix("\n").split("\n")
    except FileNotFoundError:
        raise UserError("does not exist; fetch the ratings again", path) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"byte {error.object[error.start]:#x} is not UTF-8; save the file as UTF-8", path,
                        line) from error
    for number, line in enumerate(lines, start=1):
        fields = line.split("\t")
        if len(fields) != columns:
            raise UserError(f"{len(fields)} tab-separated fields, expected {columns}: {line[:60]!r}", path, number)
        yield number, fields


def _whole_numbers(listed: str, path: Path, line: int) -> tuple[int, ...]:
    """[3, -1, 0] as a tuple of at least two whole numbers from −4 to 4."""
    try:
        ratings = json.loads(listed)
    except json.JSONDecodeError:
        ratings = None
    if not isinstance(ratings, list) or len(ratings) < 2 or any(type(r) is not int or abs(r) > 4 for r in ratings):
        raise UserError(f"{listed[:60]!r} is not a list of two or more whole numbers from -4 to 4", path, line)
    return tuple(ratings)


def ensemble_agreement(items: list[Rated], k: int, clear: float | None = None, pairs: int = 100_000,
                       seed: int = 0) -> float:
    r"""How often k people together put two texts in the order that the other people put them in.

    Two different texts i, j are drawn at random, and k raters of each without replacement. With d = mean of the k drawn
    ratings of i − that of j, and g = mean of *all the ratings of i that were not drawn* − that of j:

        agreement = E[ 1 if d·g > 0,  ½ if d = 0,  0 otherwise  |  g ≠ 0 ],      or given |g| ≥ clear

    Nobody is ever compared with a mean that contains their own rating, and people who see no difference count as a fair
    coin. With k = 1 it is (any difference / clear ≥ 1): tweets .828 / .926, amazon .860 / .948, movies .829 / .934, nyt
    .751 / .881.

    Args:
        items: the texts; those with k raters or fewer are left out.
        k: size of the ensemble, people.
        clear: only pairs whose others differ by this much, points of the scale; None: by anything.
        pairs: pairs drawn; the standard error is about 0.35 / √pairs, .0011 at 100,000.
        seed: of the draw; the same seed gives the same number.
    """
    items = [item for item in items if len(item.ratings) > k]
    if k < 1 or len(items) < 2:
        raise UserError(f"an ensemble of {k} people needs k ≥ 1 and two texts with more than k ratings; there are "
                        f"{len(items)}")
    counts = torch.tensor([len(item.ratings) for item in items])  # (N,)
    ratings = pad_sequence([torch.tensor(item.ratings) for item in items], batch_first=True)  # (N, raters)
    absent = torch.arange(ratings.shape[1]) >= counts[:, None]  # (N, raters)
    generator = torch.Generator().manual_seed(seed)

    def ensemble_and_others(texts: Tensor) -> tuple[Tensor, Tensor]:  # (P,) -> (P,), (P,)
        lots = torch.rand(len(texts), ratings.shape[1], generator=generator).masked_fill(absent[texts], 2.0)
        drawn = ratings[texts].gather(1, lots.topk(k, dim=1, largest=False).indices).sum(dim=1)  # (P,)
        rest = ratings[texts].sum(dim=1) - drawn
        return drawn.double() / k, rest.double() / (counts[texts] - k)

    points = kept = 0.0
    for start in range(0, pairs, 20_000):  # slices, to stay small in memory
        size = min(20_000, pairs - start)
        i = torch.randint(len(items), (size,), generator=generator)
        j = (i + torch.randint(1, len(items), (size,), generator=generator)) % len(items)  # never i itself
        (mine_i, others_i), (mine_j, others_j) = ensemble_and_others(i), ensemble_and_others(j)
        d, g = mine_i - mine_j, others_i - others_j
        asked = g.abs() > 1e-9 if clear is None else g.abs() >= clear - 1e-9
        points += torch.where(d.abs() < 1e-9, 0.5, (d * g > 0).double())[asked].sum().item()
        kept += asked.sum().item()
    if not kept:
        least = "anything" if clear is None else clear
        raise UserError(f"no pair of texts differs by {least}; ask for a smaller difference")
    return points / kept


def comparisons_from_ratings(items: list[Rated], count: int, seed: int, positions: Collection[int] | None = None,
                             source: str = "ratings") -> list[dict]:
    """Pairs of two texts ordered by one rater: the rating at the same position of both lists, where the two differ.

    Where batches of people are known (movies), both texts are from one batch and the rater is one real person;
    elsewhere the "rater" is a pair of draws (see above). No (pair, rater) comes twice.

    Args:
        count: how many comparisons, at most: fewer come back if the texts do not give more.
        positions: the positions in the lists (raters) that may judge; None: all.
        source: prefix of the annotator's name, and the field `source`.
    Returns:
        dicts: prompt (always ""), chosen, rejected (whole texts), annotator, confidence (difference of the two ratings,
        1 … 8), source, chosen_id, rejected_id.
    """
    rng = random.Random(seed)
    groups: dict[int | None, list[Rated]] = {}
    for item in items:
        groups.setdefault(item.batch, []).append(item)
    found, seen = [], set()
    for _ in range(50 * count if len(items) > 1 else 0):
        if len(found) == count:
            break
        one = rng.choice(items)
        other = rng.choice(groups[one.batch])
        position = rng.randrange(min(len(one.ratings), len(other.ratings)))
        difference = one.ratings[position] - other.ratings[position]
        key = (*sorted((one.id, other.id)), position)
        allowed = positions is None or position in positions
        if not difference or one.text == other.text or key in seen or not allowed:
            continue
        seen.add(key)
        chosen, rejected = (one, other) if difference > 0 else (other, one)
        group = "" if one.batch is None else f"batch{one.batch:03d}-"
        found.append({
            "prompt": "", "chosen": chosen.text, "rejected": rejected.text,
            "annotator": f"{source}-{group}rater{position:02d}",
            "confidence": abs(difference), "source": source, "chosen_id": chosen.id, "rejected_id": rejected.id,
        })
    return found


def raters_on(pairs: list[dict], rated: dict[str, tuple[int, ...]], count: int, rng: random.Random,
              rounds: int = 20) -> float:
    """How often some raters of each text order a pair as the mean of all its other raters, where these are not even.

    Args:
        pairs: with "chosen_id" and "rejected_id"; rated: id -> all ratings of a text; count: raters; rounds: draws for
            each pair. Even raters count one half.
    """
    points = asked = 0.0
    for pair in pairs * rounds:
        means = []  # of those drawn and of the others, for each text
        for id in (pair["chosen_id"], pair["rejected_id"]):
            drawn_ones = rng.sample(rated[id], count)
            means.append((sum(drawn_ones) / count, (sum(rated[id]) - sum(drawn_ones)) / (len(rated[id]) - count)))
        ours, others = (means[0][i] - means[1][i] for i in range(2))
        if others:
            points += 0.5 if ours == 0 else float((ours > 0) == (others > 0))
            asked += 1
    return points / asked


def two_raters(items: list[Rated], pairs: int, rng: random.Random) -> float:
    """How often a second rater orders two texts as a first one who sees a difference; even for the second: one half."""
    points = asked = 0.0
    for _ in range(pairs):
        (a, b), (c, d) = (rng.sample(item.ratings, 2) for item in rng.sample(items, 2))
        if a != c:
            points += 0.5 if b == d else float((a > c) == (b > d))
            asked += 1
    return points / asked
