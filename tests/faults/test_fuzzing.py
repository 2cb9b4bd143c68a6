"""The short form of fuzz.py: every find again, and some altered files for each reader.

The finds are made here from good files by one change each, so that they stay small and can be read.
"""

import contextlib
import json
import random
import time

import fuzz
import pytest
import readers as reading

RUNS = 20  # of each reader; fuzz.py does as many as it is told
pytestmark = pytest.mark.filterwarnings("ignore")  # adapters of tiny matrices


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    made = reading.Readers(folder)
    yield made
    made.store.close()


def changed(content, **settings):
    """A JSON file with some settings of its "model", or of itself, exchanged."""
    value = json.loads(content)
    (value["model"] if isinstance(value.get("model"), dict) else value).update(settings)
    return json.dumps(value).encode()


def far_id(content):
    """A tokenizer that gives one token an id that no table has a row for."""
    value = json.loads(content)
    vocabulary = value["model"]["vocab"]
    vocabulary[next(reversed(vocabulary))] = 10**9
    return json.dumps(value).encode()


FINDS = {  # reader -> what was done to a good file: each hung, filled the memory or ended with a traceback
    "run: config.json": [lambda c: changed(c, layers=10**30), lambda c: changed(c, layers=2**31),
                         lambda c: changed(c, width=10**30), lambda c: changed(c, feed_forward=10**30)],
    "quantized: config.json": [lambda c: changed(c, layers=10**30), lambda c: changed(c, width=10**30),
                               lambda c: changed(c, feed_forward=10**9)],
    "gpt2: config.json": [lambda c: c.replace(b'"n_head": 2', b'"n_head": ' + b"[" * 2000)],
    "labels": [lambda c: b"[" * 2000],
    "run: tokenizer.json": [far_id],
    "a tokenizer": [far_id],
    "llama: tokenizer.json": [far_id],
}
CASES = [(name, change) for name, changes in FINDS.items() for change in changes]


@pytest.mark.parametrize("name, change", CASES, ids=[f"{name} {i}" for i, (name, _) in enumerate(CASES)])
def test_what_fuzzing_found_is_refused_in_words_or_mended_and_at_once(readers, name, change):
    started = time.process_time()
    with reading.silence(), contextlib.suppress(reading.UserError):
        readers.readers[name](change(readers.seeds[name][0]))
    assert time.process_time() - started < 2


def test_good_files_are_read(readers):
    for name, seeds in readers.seeds.items():
        if ":" in name or name in ("GGUF", "tensors", "a tokenizer") or name.startswith("templates"):
            with reading.silence():
                readers.readers[name](seeds[0])


def test_altered_files_are_read_or_refused_in_words(readers, tmp_path):
    wrong = {}
    for name in readers.readers:
        fuzzer, rng = fuzz.Fuzzer(name, readers, tmp_path), random.Random(f"short {name}")
        for _ in range(RUNS):
            if problem := fuzzer.feed(fuzz.altered(readers.seeds[name], rng)):
                wrong[name] = problem
    assert wrong == {}


def test_the_fuzzer_tells_a_fault_from_a_refusal(readers, tmp_path):
    fuzzer = fuzz.Fuzzer("documents", readers, tmp_path)
    assert fuzzer.feed(b"") is None, "an empty file is refused in words"
    fuzzer.read = lambda content: {}[content]
    assert fuzzer.feed(b"x").startswith("KeyError") and [*tmp_path.glob("finds/documents/*")]
