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

from minialign.heads import LanguageModel
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
