r"""How fast the labelling page answers while a reward model learns beside it: milliseconds, for a person to read; no
test.

The aim is under 50 ms. The page is served as `minialign label` serves it; the base is a model of the demo's size with
random weights, 400 pairs are labelled, "retrain now" is pressed, and the page is asked for its next question again and
again until the training ends.

Run it:  python tests/speed/label_page.py
"""

# ruff: noqa: E402, I001    the imports' order decides how threads wait
from __future__ import annotations

import json
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from statistics import quantiles

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from minialign.runs.process import prepare_process

prepare_process()

from minialign.heads import describe_model

from minialign.runs.run_folder import RunFolder
from minialign.runs.files import write_jsonl
from minialign.heads import LanguageModel
from minialign.lab.labelling.page import LabelPage
from minialign.lab.labelling.store import LabelStore, read_pairs
from minialign.tokenizer import train_tokenizer
from minialign.transformer import TransformerConfig
from minialign.world.corpus import documents

PAIRS = 400


def ask(page: LabelPage, path: str, body: dict | None = None) -> tuple[dict, float]:
    """What the page says, and in how many milliseconds."""
    origin, token = page.url.split("/?token=")
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{origin}{path}{'&' if '?' in path else '?'}token={token}", data,
                                     {"Content-Type": "application/json", "Origin": origin})
    started = time.perf_counter()
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        return json.load(answer), 1000 * (time.perf_counter() - started)


def measure(folder: Path) -> None:
    """Label, retrain, ask."""
    texts = [document["text"] for document in documents(2 * PAIRS, 0)]
    tokenizer = train_tokenizer(texts, 1024)
    run = RunFolder(folder / "base")
    model = LanguageModel(TransformerConfig(tokenizer.size, 256, 128, 2, 4), 0)
    run.begin(describe_model(model), tokenizer)
    run.finish(model)
    pairs = [{"prompt": f"{i}: {texts[2 * i][:200]}", "first": texts[2 * i][-90:], "second": texts[2 * i + 1][-90:]}
             for i in range(PAIRS)]
    write_jsonl(folder / "pairs.jsonl", pairs)
    store = LabelStore(folder / "labels.jsonl", read_pairs(folder / "pairs.jsonl"), "me", 0)
    while (question := store.question("t")) is not None:
        store.answer("t", question.key, "first", 5)
    store.close()
    page = LabelPage.open(folder, run.path)
    try:
        ask(page, "/api/retrain", {})
        found = []
        while True:
            state, milliseconds = ask(page, "/api/question?tab=t")
            if not state["reward"]["training"]:
                break
            found.append(milliseconds)
            time.sleep(0.02)
    finally:
        page.stop()
    cuts = quantiles(found, n=100)
    print(f"{len(found)} answers while a reward model learned: half within {cuts[49]:.1f} ms, 95 % within "
          f"{cuts[94]:.1f} ms, the slowest {max(found):.1f} ms")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        measure(Path(name))
