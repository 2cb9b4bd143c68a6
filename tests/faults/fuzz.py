"""Feed every reader with altered files until something else comes than a result or one line of complaint.

    python tests/faults/fuzz.py --runs 100000 --work runs/fuzz             alters good files at random, from a seed
    python tests/faults/fuzz.py --engine atheris --runs 100000 …           guided by the code that is reached
    python tests/faults/fuzz.py --table --work runs/fuzz                   what was done so far

A find is written to WORK/finds and becomes a line of test_fuzzing.py.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

HANG = 10.0  # seconds
ODD = [None, True, False, 0, -1, 1, 2, 10**6, 10**9, 2**31, 2**63, 10**30, 0.5, -1e308, float("nan"), float("inf")]
ODD += ["", " ", "\ud83d", "a" * 99, "\0", "../x", [], {}, [[]], {"": None}, ["a", "a"], [None], "decoder", "0a"]
WORDS = [b"null", b"true", b"-1", b"1e999", b"NaN", b"{}", b"[]", b'""', b"{{", b"}}", b"|||", b"{%", b"%}", b"\\ud83d"]
WORDS += [b"\x00", b"\xff", b"\xef\xbb\xbf", b"\r\n", b"\n\n", b"[" * 2000, b"&a", b"*a", b"9" * 5000, b"GGUF"]
WORDS += [b"!!python/object/apply:os.system", b"\xff\xff\xff\xff\xff\xff\xff\x7f", b"{text.__class__}"]


def places(value, path=()):
    """Where the values of JSON data stand."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inside in inner:
        yield from places(inside, (*path, key))


def altered_json(value, rng):
    """JSON data with one value exchanged, doubled or taken out."""
    path = rng.choice([*places(value)])
    if not path:
        return rng.choice(ODD)
    value = json.loads(json.dumps(value))
    inside = value
    for key in path[:-1]:
        inside = inside[key]
    what = rng.random()
    if what < 0.7:
        inside[path[-1]] = rng.choice(ODD)
    elif what < 0.85 or not isinstance(inside, dict):
        del inside[path[-1]]
    else:
        inside[rng.choice(["", "x", "what", "model", "label"])] = inside[path[-1]]
    return value


def altered_bytes(content: bytes, rng: random.Random) -> bytes:
    """Some bytes flipped, cut, doubled, exchanged or put in."""
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4, 8])):
        at, long = rng.randrange(len(content) + 1), rng.choice([1, 1, 2, 4, 16, 64])
        what = rng.randrange(5)
        if what == 0 and at < len(content):
            content[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            del content[at : at + long]
        elif what == 2:
            content[at:at] = content[at : at + long]
        elif what == 3:
            content[at : at + rng.choice([0, 1, 8])] = rng.choice(WORDS)
        else:
            content[at : at + 8] = rng.randrange(2**64).to_bytes(8, "little")
    return bytes(content)


def altered(seeds: list[bytes], rng: random.Random) -> bytes:
    """One input: a good file, altered as JSON or as a safetensors file where it is one, or byte by byte."""
    content = rng.choice(seeds)
    if rng.random() < 0.5:
        try:
            head = int.from_bytes(content[:8], "little")
            if content[8:9] == b"{" and head < len(content):  # safetensors: its header is JSON
                new = json.dumps(altered_json(json.loads(content[8 : 8 + head]), rng)).encode()
                return len(new).to_bytes(8, "little") + new + content[8 + head :]
            lines = content.split(b"\n")
            at = rng.randrange(len(lines))
            whole = [altered_json(json.loads(content), rng)] if len(lines) < 2 or rng.random() < 0.5 else None
            if whole is None:
                lines[at] = json.dumps(altered_json(json.loads(lines[at]), rng)).encode("utf-8", "surrogatepass")
                return b"\n".join(lines)
            return json.dumps(whole[0]).encode()
        except (ValueError, RecursionError, IndexError):
            pass
    return altered_bytes(content, rng)


class Hang(BaseException):
    """A reader that took too long."""


def give_up(*_) -> None:
    """What the alarm does."""
    raise Hang


class Fuzzer:
    """Feeds one reader and keeps what it finds."""

    def __init__(self, name: str, readers, work: Path):
        import readers as module

        self.name, self.module, self.read, self.work = name, module, readers.readers[name], work
        self.seen, self.runs, self.finds = set(), 0, 0

    def feed(self, content: bytes) -> str | None:
        """What went wrong with this input; None when nothing did."""
        self.runs += 1
        started, wrong = time.perf_counter(), None
        signal.signal(signal.SIGALRM, give_up)
        signal.alarm(int(HANG) + 1)
        try:
            with self.module.silence():
                self.read(content)
        except Hang:
            pass
        except Exception as error:
            if not self.module.expected(error):
                frames = [f for f in traceback.extract_tb(error.__traceback__) if "minialign" in f.filename]
                where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
                wrong = f"{type(error).__name__} at {where}: {str(error)[:200]}"
        finally:
            signal.alarm(0)
        if time.perf_counter() - started > HANG:
            wrong = "took more than 10 s"
        if wrong and wrong.split(": ")[0] not in self.seen:
            self.seen.add(wrong.split(": ")[0])
            self.keep(content, wrong)
        return wrong

    def keep(self, content: bytes, wrong: str) -> None:
        """Write a find down."""
        self.finds += 1
        place = self.work / "finds" / self.name.replace(":", "").replace(" ", "-")
        place.mkdir(parents=True, exist_ok=True)
        (place / hashlib.sha256(content).hexdigest()[:12]).write_bytes(content)
        print(f"{self.name}: {wrong}", file=sys.stderr, flush=True)


def note(work: Path, fuzzer: Fuzzer, engine: str, seconds: float) -> None:
    """A line of the log."""
    with open(work / "fuzz.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"reader": fuzzer.name, "engine": engine, "runs": fuzzer.runs, "finds": fuzzer.finds,
                               "seconds": round(seconds, 1)}) + "\n")


def at_random(fuzzer: Fuzzer, seeds: list[bytes], runs: int, seed: int) -> None:
    """So many altered files."""
    rng = random.Random(f"{seed} {fuzzer.name}")
    for content in seeds:
        fuzzer.feed(content)
    while fuzzer.runs < runs:
        fuzzer.feed(altered(seeds, rng))


def guided(name: str, runs: int, work: Path) -> None:
    """The same by atheris, which ends the process."""
    import atheris

    with atheris.instrument_imports(include=["minialign", "json"]):
        import readers as module
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        readers = module.Readers(Path(folder))
        fuzzer, started = Fuzzer(name, readers, work), time.perf_counter()
        place = Path(folder) / "seeds"
        place.mkdir()
        for i, content in enumerate(readers.seeds[name]):
            (place / str(i)).write_bytes(content)

        def one(content):
            fuzzer.feed(content)
            if fuzzer.runs >= runs:  # libFuzzer leaves without saying good-bye
                note(work, fuzzer, "atheris", time.perf_counter() - started)
                os._exit(0)

        largest = max(map(len, readers.seeds[name])) + 4096
        atheris.Setup([sys.argv[0], "-verbosity=0", f"-max_len={largest}", "-rss_limit_mb=0", str(place)], one)
        atheris.Fuzz()


def table(work: Path) -> str:
    """Markdown: executions of each reader by each engine, and what was found."""
    lines = [json.loads(line) for line in (work / "fuzz.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = ["| reader | at random | guided | found |", "| --- | ---: | ---: | ---: |"]
    for name in dict.fromkeys(line["reader"] for line in lines):
        each = {engine: sum(line["runs"] for line in lines if (line["reader"], line["engine"]) == (name, engine))
                for engine in ("random", "atheris")}
        found = sum(line["finds"] for line in lines if line["reader"] == name)
        rows.append(f"| {name} | {each['random']:,} | {each['atheris']:,} | {found} |")
    rows.append(f"| all | {sum(line['runs'] for line in lines):,} in all | | {sum(line['finds'] for line in lines)} |")
    return "\n".join(rows) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=10_000, help="of each reader")
    parser.add_argument("--readers", nargs="*", help="all of them without it")
    parser.add_argument("--engine", choices=["random", "atheris"], default="random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1e9, help="most of each reader")
    parser.add_argument("--work", type=Path, default=Path("runs/fuzz"))
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.table:
        print(table(args.work))
        return
    if args.engine == "atheris" and len(args.readers or []) == 1:
        guided(args.readers[0], args.runs, args.work)
        return
    import readers as module

    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        readers = module.Readers(Path(folder))
        for name in args.readers or readers.readers:
            if args.engine == "atheris":
                line = [sys.executable, __file__, "--engine", "atheris", "--runs", str(args.runs), "--readers", name]
                subprocess.run([*line, "--work", str(args.work)])
                continue
            fuzzer, started = Fuzzer(name, readers, args.work), time.perf_counter()
            at_random(fuzzer, readers.seeds[name], args.runs, args.seed)
            note(args.work, fuzzer, "random", time.perf_counter() - started)


if __name__ == "__main__":
    main()
