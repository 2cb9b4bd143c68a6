"""What many tests share: a few documents of the world, a tokenizer that has read them, and models small enough to run
in milliseconds."""

import dataclasses
import os

os.environ["PYTHONPATH"] = os.pathsep.join([os.path.dirname(os.path.dirname(__file__)),
                                            os.environ.get("PYTHONPATH", "")])  # for the processes that tests start
# before torch is imported: threads that spin while they wait are 60 times slower on busy cores
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from typed import type_in, write_records

from minialign.heads import LanguageModel, describe_model
from minialign.runs.run_folder import RunFolder
from minialign.tokenizer import train_tokenizer
from minialign.transformer import TransformerConfig
from minialign.world.corpus import documents

TINY = TransformerConfig(vocabulary=320, context=48, width=32, layers=2, heads=2, initial_std=0.1)


def pytest_sessionstart(session):
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


def build(seed=0, **changes):
    """A model of the tiny shape with some of its settings changed, in evaluation mode; short convolutions, which change
    nothing when they are new, do something here."""
    model = LanguageModel(dataclasses.replace(TINY, **changes), seed).eval()
    for name, weight in model.named_parameters():
        if "convolutions" in name:
            weight.data.normal_(0, 0.5, generator=torch.Generator().manual_seed(5))
    return model


@pytest.fixture(scope="session")
def texts():
    """Sixty documents of the world's dirty corpus."""
    return [document["text"] for document in documents(60, seed=0)]


@pytest.fixture(scope="session")
def tokenizer(texts):
    """320 tokens: 20 special ones, 256 bytes, 44 merges."""
    return train_tokenizer(texts, vocabulary=320)


@pytest.fixture
def decoder():
    """A fresh decoder: 2 layers, width 32, vocabulary 320, context 48; its weights are large enough for its opinions to
    differ."""
    return build()


@pytest.fixture
def tokens():
    """(3, 12) ids without special tokens."""
    return torch.randint(20, 320, (3, 12), generator=torch.Generator().manual_seed(0))


# Defects that a test shows and the code still has: each is to be mended, then its line removed. A test that passes
# again is an error.
KNOWN_DEFECTS: tuple[str, ...] = ()


def pytest_collection_modifyitems(items):
    for item in items:
        if any(known in item.nodeid for known in KNOWN_DEFECTS):
            item.add_marker(pytest.mark.xfail(reason="known defect, see conftest.py", strict=True))


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A folder with a small decoder, a small encoder-decoder and files to learn from, as the current one."""
    tokenizer = train_tokenizer(["Mira lost the kite. Tom found it. yes no happy sad good bad proud angry"] * 4, 320)
    shape = dataclasses.replace(TINY, vocabulary=tokenizer.size)
    for name, kind in (("sft", "decoder"), ("t5", "encoder-decoder")):
        model = LanguageModel(dataclasses.replace(shape, kind=kind), 0)
        run = RunFolder(tmp_path / name)
        run.begin({**describe_model(model), "stage": "sft"}, tokenizer)
        run.finish(model)
    words = ["happy", "sad", "proud", "angry"]
    write_records(tmp_path / "pairs.jsonl", [{"prompt": f"Mira {i // 2}", "chosen": f" {words[i % 4]} yes",
                                              "rejected": f" {words[(i + 1) % 4]} no"} for i in range(80)])
    write_records(tmp_path / "demos.jsonl", [{"prompt": f"{words[i % 4]} {i}?", "completion": " good" * (1 + i % 5)}
                                             for i in range(400)])
    write_records(tmp_path / "thumbs.jsonl", [{"prompt": f"Mira {i}", "completion": "yes" if i % 2 else "no",
                                               "liked": i % 2 == 1} for i in range(60)])
    write_records(tmp_path / "prompts.jsonl", [{"prompt": f"Mira {i}"} for i in range(40)])
    (tmp_path / "text.txt").write_text("happy sad proud angry good bad " * 100)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def trained_runs(tmp_path_factory, texts):
    """A folder with decoders of two contexts (r64, r128), an encoder (enc), tuned (ft) and distilled (tiny), and the
    files that they learned from (text.txt, lab.jsonl); lines for `type_in` name it {d}."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "text.txt").write_text("\n\n".join(text.replace("\n", " ") for text in texts))
    write_records(folder / "lab.jsonl", [{"text": f"the kite {i}", "label": "yn"[i % 2]} for i in range(80)])
    shape = "--vocabulary 320 --width 16 --heads 2 --layers 2 --steps 2 --batch 2 --split paragraphs"
    for line in (f"pretrain --text {{d}}/text.txt {shape} --context 64 --out {{d}}/r64",
                 f"pretrain --text {{d}}/text.txt {shape} --context 128 --out {{d}}/r128",
                 f"pretrain --text {{d}}/text.txt {shape} --context 64 --objective masked-lm --out {{d}}/enc",
                 "finetune --base {d}/enc --data {d}/lab.jsonl --method full --steps 2 --batch 4 --out {d}/ft",
                 "distill --teacher {d}/enc --recipe tinybert --text {d}/text.txt --split paragraphs --steps 2 "
                 "--batch 2 --out {d}/tiny"):
        assert type_in(line, folder) == 0
    return folder
