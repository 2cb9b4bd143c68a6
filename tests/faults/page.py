"""The labelling page, killed while somebody labels as fast as it can: no confirmed label is lost, none counted
twice."""

import http.client
import json
import os
import random
import shutil
import signal
import threading
import time
import urllib.request
from pathlib import Path

from minialign.lab.labelling.page import LabelPage
from minialign.lab.labelling.reward import LiveReward
from minialign.lab.labelling.store import LabelStore, read_pairs
from minialign.rlhf.comparisons import read_comparisons
from minialign.runs.files import write_jsonl

NOBODY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
PAIRS = [{"prompt": f"Where is Mira at {i}?", "first": f" At home, {i}.", "second": " Go away.", "first_policy": "sft",
          "second_policy": "hot"} for i in range(400)]


def ask(url: str, path: str, body=None):
    """What the page at an address says."""
    origin, token = url.split("/?token=")
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{origin}{path}{'&' if '?' in path else '?'}token={token}", data,
                                     {"Content-Type": "application/json", "Origin": origin})
    with NOBODY.open(request, timeout=20) as answer:
        return json.load(answer)


def serve(folder: Path, place: int) -> None:
    """Serve the page until the process is killed; its address goes into a pipe."""
    store = LabelStore(folder / "labels.jsonl", read_pairs(folder / "pairs.jsonl"), "Ada", 0)
    served = LabelPage(store, LiveReward(folder, folder / "no-run", "Ada", store.pairs))
    os.write(place, served.url.encode() + b"\n")
    served.wait()


def label_until(url: str, moment: float, pid: int, confirmed: list, rng) -> None:
    """Label, and now and then take one back, until the process dies of a -9 that comes after some seconds."""
    threading.Timer(moment, os.kill, (pid, signal.SIGKILL)).start()
    try:
        state = ask(url, "/api/question?tab=t")
        while state["question"]:
            if confirmed and rng.random() < 0.1:
                state = ask(url, "/api/undo", {"tab": "t"})
                confirmed.pop()
                continue
            said = {"tab": "t", "key": state["question"]["key"],
                    "choice": rng.choice(["first", "second", "tie", "skip"])}
            state = ask(url, "/api/label", said)
            confirmed.append((said["key"], said["choice"]))
    except (OSError, ValueError, http.client.HTTPException):
        pass  # it was killed


def start(folder: Path) -> tuple[int, str]:
    """A process that serves the page, and its address."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(read)
            serve(folder, write)
        finally:
            os._exit(1)
    os.close(write)
    with os.fdopen(read) as pipe:
        return pid, pipe.readline().strip()


def trial(number: int, seed: int, work: Path) -> dict:
    """Three kills of one page, one after the other; whether its file is what was confirmed, but for the one label or
    undo that was on its way at each kill."""
    rng, folder, confirmed, kills, wrong = random.Random(f"{seed} page {number}"), work / "page", [], 0, []
    shutil.rmtree(folder, ignore_errors=True)
    write_jsonl(folder / "pairs.jsonl", PAIRS)
    for _ in range(3):
        pid, url = start(folder)
        label_until(url, rng.uniform(0, 0.4), pid, confirmed, rng)
        time.sleep(0)
        kills += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9
        store = LabelStore(folder / "labels.jsonl", read_pairs(folder / "pairs.jsonl"), "Ada", 0)
        kept = [(f"{label['pair']}{'b' if label['again'] else 'a'}", label["choice"]) for label in store.labels]
        store.close()
        # what was on its way may be there, or taken back
        if kept not in (confirmed, confirmed[:-1]) and kept[:-1] != confirmed:
            wrong.append(f"{len(kept)} labels, {len(confirmed)} confirmed")
        if len({key for key, _ in kept}) != len(kept):
            wrong.append("a label counts twice")
        confirmed = kept
    if confirmed:
        decided = [choice for key, choice in confirmed if choice in ("first", "second") and key.endswith("a")]
        if len(read_comparisons(folder / "labels.jsonl")[0]) != len(decided) and decided:
            wrong.append("the reader of comparisons counts otherwise")
    return {"stage": "labelling page", "number": number, "kills": kills, "status": 0, "different": wrong, "litter": [],
            "same": not wrong}
