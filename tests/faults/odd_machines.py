"""Every stage on a disk that is full from its n-th write on, for every n; on one that became read-only; under a clock
that jumps; and twice in one folder at once.

    python tests/faults/odd_machines.py --work runs/odd        --every 1 tries each write; goes on where it was stopped

A fault must end in one line that says what to do, never a traceback, and the same command afterwards must end with the
bits of a run that was left alone.
"""

import argparse
import builtins
import errno
import io
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
import kills  # noqa: E402
from stages import STAGES, command, in_a_fork, left, prepare  # noqa: E402

ALWAYS = 10**9
tempfile.gettempdir()  # found once; it writes to find it


class FailingFile:
    """A file that is open for writing on a disk that fills up."""

    def __init__(self, file, disk):
        self.file, self.disk = file, disk

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def __iter__(self):
        return iter(self.file)

    def write(self, content):
        """Write, unless the disk is full."""
        self.disk.use()
        return self.file.write(content)


class Disk:
    """A disk that takes so many writes and then refuses all with this error; counts them."""

    def __init__(self, room: int, number: int):
        self.room, self.number, self.used = room, number, 0

    def use(self) -> None:
        """One write. Raises OSError when there is no more room."""
        self.used += 1
        if self.used > self.room:
            raise OSError(self.number, os.strerror(self.number))

    def install(self) -> None:
        """Let this process write to this disk only: opening, writing, syncing, renaming, making folders."""
        opened = builtins.open

        def open_file(file, mode="r", *rest, **named):
            writes = set("wax+") & set(mode) and not str(file).startswith(os.devnull)
            if writes:
                self.use()
            found = opened(file, mode, *rest, **named)
            return FailingFile(found, self) if writes else found

        builtins.open = io.open = open_file
        for name in ("fsync", "replace", "mkdir", "write"):
            def first(*arguments, original=getattr(os, name), **named):  # noqa: B008
                if not (arguments and arguments[0] in (1, 2)):
                    self.use()
                return original(*arguments, **named)

            setattr(os, name, first)


def on_a_disk(stage: str, work: Path, out: Path, room: int, number: int) -> tuple[int, int, str]:
    """Status, writes that were tried, and what was said, of a stage on such a disk."""
    counted = work / "writes.txt"

    def run() -> int:
        writing = os.open(counted, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        disk, write = Disk(room, number), os.write
        disk.install()
        try:
            return command(stage, work / "d", out)
        finally:
            write(writing, str(disk.used).encode())

    status, _ = in_a_fork(run, work / "said.txt")
    return status, int(counted.read_text()), (work / "said.txt").read_text(encoding="utf-8", errors="replace")


def same_afterwards(stage: str, work: Path, out: Path) -> bool:
    """Whether the same command ends as if nothing had been, and leaves no litter."""
    status, _ = in_a_fork(lambda: command(stage, work / "d", out), work / "said.txt")
    said = (work / "said.txt").read_text(encoding="utf-8", errors="replace")
    done = status == 0 or (status == 2 and "choose another --out" in said)
    return done and left(out) == kills.alone(stage, work)[1] and not [*out.rglob("*.tmp")]


def full_disk(stage: str, work: Path, every: int, number: int = errno.ENOSPC) -> tuple[int, list[str]]:
    """How many faults were tried, and what went wrong in which."""
    kills.alone(stage, work)
    out, wrong, tried = work / "out", [], 0
    shutil.rmtree(out, ignore_errors=True)
    status, writes, said = on_a_disk(stage, work, out, ALWAYS, number)
    assert status == 0, said
    remedies = ("free some space" if number == errno.ENOSPC else "choose another --out", "mend that")
    for room in range(0, writes, every):
        shutil.rmtree(out, ignore_errors=True)
        status, _, said = on_a_disk(stage, work, out, room, number)
        tried += 1
        lines = [line for line in said.splitlines() if line.startswith("error: ")]
        told = len(lines) == 1 and any(remedy in lines[0] for remedy in remedies)
        if "Traceback" in said or status not in (0, 2) or (status == 2 and not told):
            wrong.append(f"write {room + 1} of {writes}: status {status}, {said[-300:]!r}")
        elif not same_afterwards(stage, work, out):
            wrong.append(f"write {room + 1} of {writes}: other bits afterwards")
    return tried, wrong


def jumping_clock(stage: str, work: Path) -> tuple[int, list[str]]:
    """The stage while the clock on the wall is set forward and back by years at every look."""
    expected, out, rng, clock = kills.alone(stage, work)[1], work / "out", random.Random(0), time.time
    shutil.rmtree(out, ignore_errors=True)

    def run() -> int:
        time.time = lambda: clock() + rng.choice([-3e8, -3600, 0, 3600, 3e8])
        return command(stage, work / "d", out)

    status, _ = in_a_fork(run, work / "said.txt")
    return 1, [] if status == 0 and left(out) == expected else [f"status {status}"]


def two_at_once(stage: str, work: Path, delay: float) -> tuple[int, list[str]]:
    """The stage in two processes and one folder: one ends well, the other too or with one line, the bits are the same.
    """
    expected, out, found = kills.alone(stage, work)[1], work / "out", {}
    shutil.rmtree(out, ignore_errors=True)

    def start(number: int) -> None:
        time.sleep(number * delay)
        found[number] = in_a_fork(lambda: command(stage, work / "d", out), work / f"said-{number}.txt")[0]

    both = [threading.Thread(target=start, args=(number,)) for number in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    said = [(work / f"said-{number}.txt").read_text(encoding="utf-8", errors="replace") for number in range(2)]
    fine = 0 in found.values() and set(found.values()) <= {0, 2} and not any("Traceback" in text for text in said)
    return 1, [] if fine and left(out) == expected else [f"{found}: {said[0][-200:]!r} {said[1][-200:]!r}"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stages", nargs="+", default=[s for s in STAGES if s != "demo"], choices=[*STAGES])
    parser.add_argument("--every", type=int, default=1, help="try every such write")
    parser.add_argument("--work", type=Path, default=Path("runs/odd"))
    args = parser.parse_args()
    prepare(args.work / "d")
    log, failed = args.work / "odd.jsonl", False
    known = [json.loads(line)["stage"] for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
    for stage in [stage for stage in args.stages if stage not in known]:
        found = [full_disk(stage, args.work, args.every), full_disk(stage, args.work, 4 * args.every, errno.EROFS),
                 jumping_clock(stage, args.work)]
        pairs = [two_at_once(stage, args.work, delay) for delay in (0.0, 0.1, 0.3)]
        found.append((sum(tried for tried, _ in pairs), [line for _, wrong in pairs for line in wrong]))
        wrong = [line for _, lines in found for line in lines]
        failed |= bool(wrong)
        one = {"stage": stage, "tried": [each for each, _ in found], "wrong": wrong}
        print(json.dumps(one), flush=True)
        with open(log, "a", encoding="utf-8") as file:
            file.write(json.dumps(one) + "\n")
    sys.exit(failed)


if __name__ == "__main__":
    main()
