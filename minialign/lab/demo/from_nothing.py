r"""A toy decoder from nothing, and its corpus: what chapters compress and distil that need no model that can read.

Passages are short (three to five events): what a small model learns is counted in passages, what a laptop does in
tokens.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from minialign.heads import LanguageModel, describe_model
from minialign.pretrain.causal_lm import NextToken
from minialign.pretrain.pretrain import pretrain
from minialign.runs.devices import default_device
from minialign.runs.errors import UserError
from minialign.runs.run_folder import RunFolder
from minialign.runs.settings import check_ranges, to_dict
from minialign.tokenizer import Tokenizer, train_tokenizer
from minialign.training import TrainingConfig
from minialign.transformer import TransformerConfig
from minialign.world.corpus import documents
from minialign.world.datasets import PROMPTS
from minialign.world.stories import write_scene

VALID = 300  # passages of the corpus that are kept for validation


@dataclass(frozen=True)
class ToyConfig:
    """Sizes of the decoder and of its training."""

    passages: int = 12_000  # documents of the corpus
    vocabulary: int = 1024  # tokens
    context: int = 384  # tokens that it reads
    width: int = 64  # D
    layers: int = 4  # N
    heads: int = 4  # H
    steps: int = 400  # of next-token prediction
    batch: int = 64  # texts a step

    def __post_init__(self):
        check_ranges(self, dict.fromkeys(("passages", "steps", "batch"), (1, 10**8)))
        if self.passages <= VALID:
            raise UserError(f"passages is {self.passages}; {VALID} of them are kept for validation, so give more")


FAST = {"passages": 600, "steps": 16, "batch": 16}


def corpus(config: ToyConfig, seed: int) -> tuple[list[str], list[str]]:
    """Documents to learn from and documents to validate on."""
    texts = passages(config.passages, seed)
    return list(texts[:-VALID]), list(texts[-VALID:])


@functools.lru_cache(maxsize=8)
def passages(count: int, seed: int) -> tuple[str, ...]:
    """The corpus, told once in a process: 12,000 passages take as long as eighty steps of training on them."""
    scenes = documents(count, seed, tell=functools.partial(write_scene, fewest=3, most=5))
    return tuple(document["text"] for document in scenes)


def tokenizer_of(config: ToyConfig, texts: list[str]) -> Tokenizer:
    """A tokenizer that knows the corpus and the templates' own words."""
    wordings = [template.input for found in PROMPTS.values() for template in found]
    return train_tokenizer([*texts, *wordings * 4], config.vocabulary)


def training(steps: int, config: ToyConfig, seed: int, learning_rate: float) -> TrainingConfig:
    """How a stage is trained."""
    return TrainingConfig(steps, config.batch, learning_rate, weight_decay=0.05, validate_every=max(1, steps // 4),
                          checkpoint_every=200, seed=seed)


def pretrain_decoder(config: ToyConfig, seed: int, folder: Path) -> Path:
    """The decoder in `folder`; one that is there is not made again."""
    texts, valid = corpus(config, seed)
    tokenizer = tokenizer_of(config, texts)
    shape = TransformerConfig(tokenizer.size, config.context, config.width, config.layers, config.heads,
                              activation="relu", initial_std=config.width**-0.5, short_convolution=4)
    model = LanguageModel(shape, seed).to(default_device())
    how, run = training(config.steps, config, seed, 2e-3), RunFolder(folder)
    with run.locked():
        run.begin({**describe_model(model), "stage": "pretrain", "training": to_dict(how), "toy": to_dict(config)},
                  tokenizer)
        if not run.finished:
            pretrain(model, tokenizer, texts, valid, how, run, NextToken(packed=False))
    return folder
