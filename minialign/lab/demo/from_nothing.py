r"""The toy world's T5, T0 and GPT-3: what the chapter on instruction tuning compares, made from nothing.

    dirty passages → tokenizer →  span corruption → LM adaptation → T5+LM  →  mixture in many words      → T0
                                                                           →  mixture, one prefix a task → T5
                               →  next token, at least four times the parameters and as many tokens  → GPT-3

Passages are short (three to five events): what a small model learns is counted in passages, what a laptop does in
tokens.

The claims of the chapter are still measured on these; `instruct` starts from bases that read (instruct.py).

Try it:  python -m minialign claims t0-unseen-tasks
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minialign.heads import LanguageModel, describe_model, load_model
from minialign.instruct.mixture import Split, split_by_cluster
from minialign.pretrain.causal_lm import NextToken
from minialign.pretrain.pretrain import pretrain
from minialign.pretrain.span_corruption import LMAdaptation, SpanCorruption
from minialign.runs.devices import default_device
from minialign.runs.errors import UserError
from minialign.runs.run_folder import RunFolder
from minialign.runs.settings import check_ranges, to_dict
from minialign.tokenizer import Tokenizer, train_tokenizer
from minialign.training import TrainingConfig
from minialign.transformer import TransformerConfig
from minialign.world.corpus import documents
from minialign.world.datasets import DATASETS, HELD_OUT, PROMPTS, examples
from minialign.world.stories import write_scene

CORRUPTED, ADAPTED, TUNED = "1-span-corruption", "2-lm-adaptation", "3-instructed"
VALID = 300  # passages of the corpus that are kept for validation
EXAMINED = 1_000_003  # seed of the held-out examples: the same for every seed of a model


@dataclass(frozen=True)
class ToyConfig:
    """Sizes of the chapter's models and of their training."""

    passages: int = 12_000  # documents of the corpus
    vocabulary: int = 1024  # tokens
    context: int = 192  # tokens that a model reads
    width: int = 64  # D of the encoder-decoder
    layers: int = 2  # N of its encoder and of its decoder
    heads: int = 4  # H
    pretrain_steps: int = 300  # of span corruption
    adapt_steps: int = 100  # of LM adaptation; 0 leaves it out
    tune_steps: int = 1400  # on the mixture
    batch: int = 64  # texts a step
    examples: int = 1000  # of each training dataset
    examined: int = 100  # of each held-out dataset
    questions: int = 90_000  # drawn from the mixture
    gpt_width: int = 128  # D of the decoder
    gpt_layers: int = 6  # N of the decoder

    def __post_init__(self):
        counts = ("passages", "pretrain_steps", "tune_steps", "batch", "examples", "examined", "questions")
        check_ranges(self, dict.fromkeys(counts, (1, 10**8)))
        if self.passages <= VALID:
            raise UserError(f"passages is {self.passages}; {VALID} of them are kept for validation, so give more")


FAST = {"passages": 600, "pretrain_steps": 12, "adapt_steps": 4, "tune_steps": 20, "batch": 16, "examples": 12,
        "examined": 8, "questions": 400, "gpt_width": 96, "gpt_layers": 4}


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


def split_of(config: ToyConfig, seed: int, held_out: tuple[str, ...] = HELD_OUT) -> Split:
    """The world's datasets, whole clusters held out; the examples that are examined are the same for every seed."""
    told = learned_and_asked(config.examples, config.examined, seed, held_out)
    return split_by_cluster({task: list(found) for task, found in told.items()}, held_out, seed=seed)


@functools.lru_cache(maxsize=8)
def learned_and_asked(learn: int, ask: int, seed: int, held_out: tuple[str, ...]) -> dict[str, list[dict]]:
    """Examples of every dataset, made once in a process: they are read and never changed."""
    told: set[str] = set()
    asked = examples([name for name in DATASETS if DATASETS[name].cluster in held_out], ask, EXAMINED, told)
    learned = examples([name for name in DATASETS if DATASETS[name].cluster not in held_out], learn, seed, told)
    return learned | asked


def training(steps: int, config: ToyConfig, seed: int, learning_rate: float) -> TrainingConfig:
    """How each stage is trained."""
    return TrainingConfig(steps, config.batch, learning_rate, weight_decay=0.05, validate_every=max(1, steps // 4),
                          checkpoint_every=200, seed=seed)


def shape_for_copying(width: int) -> dict[str, Any]:
    """What lets a small model learn to copy words of its prompt: short convolutions and large initial weights."""
    return {"activation": "relu", "initial_std": width**-0.5, "short_convolution": 4}


def pretrain_t5(config: ToyConfig, seed: int, folder: Path) -> Path:
    """The toy T5 in folders under `folder`; returns that of the last stage. A stage that is there is not done again."""
    texts, valid = corpus(config, seed)
    tokenizer = tokenizer_of(config, texts)
    shape = TransformerConfig(tokenizer.size, config.context, config.width, config.layers, config.heads,
                              "encoder-decoder", **shape_for_copying(config.width))
    model = LanguageModel(shape, seed).to(default_device())
    stages = [(CORRUPTED, SpanCorruption(packed=False), config.pretrain_steps, 2e-3),
              (ADAPTED, LMAdaptation(packed=False), config.adapt_steps, 1e-3)]
    for name, objective, steps, rate in stages:
        run, how = RunFolder(folder / name), training(max(1, steps), config, seed, rate)
        if steps == 0:
            continue
        with run.locked():
            run.begin({**describe_model(model), "stage": name[2:], "training": to_dict(how), "toy": to_dict(config)},
                      tokenizer)
            if not run.finished:
                pretrain(model, tokenizer, texts, valid, how, run, objective)
        model = load_model(run.path, "language-model")[0]
    return run.path


def pretrain_gpt(config: ToyConfig, seed: int, folder: Path) -> Path:
    """The toy GPT-3 in `folder`: larger, with the toy T5's corpus and tokenizer, and as many steps as its stages."""
    texts, valid = corpus(config, seed)
    tokenizer = tokenizer_of(config, texts)
    shape = TransformerConfig(tokenizer.size, 2 * config.context, config.gpt_width, config.gpt_layers, config.heads,
                              **shape_for_copying(config.gpt_width))
    model = LanguageModel(shape, seed).to(default_device())
    how = training(config.pretrain_steps + config.adapt_steps, config, seed, 2e-3)
    run = RunFolder(folder)
    with run.locked():
        run.begin({**describe_model(model), "stage": "pretrain", "training": to_dict(how), "toy": to_dict(config)},
                  tokenizer)
        if not run.finished:
            pretrain(model, tokenizer, texts, valid, how, run, NextToken(packed=False))
    return folder
