"""What many tests share: a few documents of the world, a tokenizer that has read them, and models small enough to run in milliseconds."""

import dataclasses
import os

os.environ["PYTHONPATH"] = os.pathsep.join([os.path.dirname(os.path.dirname(__file__)), os.environ.get("PYTHONPATH", "")])  # for the processes that tests start
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported: threads that spin while they wait are 60 times slower on busy cores

import pytest
import torch

from minialign.heads import LanguageModel
from minialign.tokenizer import train_tokenizer
from minialign.transformer import TransformerConfig
from minialign.world.corpus import documents

TINY = TransformerConfig(vocabulary=320, context=48, width=32, layers=2, heads=2, initial_std=0.1)


def pytest_sessionstart(session):
    torch.set_num_threads(2)


def build(seed=0, **changes):
    """A model of the tiny shape with some of its settings changed, in evaluation mode."""
    return LanguageModel(dataclasses.replace(TINY, **changes), seed).eval()


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
    """A fresh decoder: 2 layers, width 32, vocabulary 320, context 48; its weights are large enough for its opinions to differ."""
    return build()


@pytest.fixture
def tokens():
    """(3, 12) ids without special tokens."""
    return torch.randint(20, 320, (3, 12), generator=torch.Generator().manual_seed(0))


# Defects that a test shows and the code still has: each is to be mended, then its line removed. A test that passes again is an error,
# except in test_training, whose processes are killed at chosen moments.
KNOWN_DEFECTS = (
    "test_causal_lm.py::test_a_hopeless_model_has_an_infinite_perplexity_and_no_crash",
    "test_causal_lm.py::test_no_documents_at_all_are_an_error_without_packing_too",
    "test_causal_lm.py::test_every_seed_is_validated_on_the_same_text",
    "test_checkpoints.py::test_weights_that_were_altered_are_refused",
    "test_checkpoints.py::test_a_config_that_was_edited_wrongly_is_an_error_and_no_crash[b'[]']",
    "test_checkpoints.py::test_a_config_that_was_edited_wrongly_is_an_error_and_no_crash[b'3']",
    "test_checkpoints.py::test_a_config_that_was_edited_wrongly_is_an_error_and_no_crash[model0]",
    "test_files.py::test_a_bad_line_is_an_error_that_names_file_line_and_reason[{\"prompt\": \"\\\\ud83d\", \"co-prompt]",
    "test_files.py::test_an_empty_field_is_an_error_as_the_docstring_says",
    "test_files.py::test_fields_can_be_of_other_kinds_than_text",
    "test_house.py::test_no_file_is_longer_than_one_sitting[minialign/checkpoints.py]",
    "test_house.py::test_no_file_is_longer_than_one_sitting[minialign/demo.py]",
    "test_house.py::test_no_file_is_longer_than_one_sitting[minialign/rlhf/ppo.py]",
    "test_house.py::test_no_file_is_longer_than_one_sitting[minialign/training.py]",
    "test_house.py::test_no_file_is_longer_than_one_sitting[minialign/transformer.py]",
    "test_training.py::test_the_validation_that_is_reported_is_that_of_the_weights_that_are_kept",
    "test_training.py::test_kill_and_restart_leaves_no_temporary_file_for_ever",
)


def pytest_collection_modifyitems(items):
    for item in items:
        if any(known in item.nodeid for known in KNOWN_DEFECTS):
            item.add_marker(pytest.mark.xfail(reason="known defect, see conftest.py", strict="test_training" not in item.nodeid))
