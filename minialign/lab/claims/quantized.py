r"""What the claims on quantization share: a toy decoder, the text that it is judged on, and what a scheme costs it.

The decoder is the small one of the claims on instruction tuning: it has read the dirty corpus and nothing else. It is
judged on the beginnings of documents that it never saw, 64 tokens each, so that no row is padded. Differences are seed
by seed, each seed a model of its own.

Read next: int8_outliers.py.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from minialign.heads import LanguageModel, load_model
from minialign.lab.claims import Bench
from minialign.lab.claims.toys import toy, toy_gpt
from minialign.lab.demo.from_nothing import corpus
from minialign.lab.fidelity import Fidelity, fidelity
from minialign.pretrain.causal_lm import encode_documents
from minialign.quant.ptq import quantize
from minialign.quant.scheme import SchemeConfig
from minialign.tokenizer import Tokenizer

LENGTH = 64  # tokens of each document that are read
ROWS = 160  # documents that a model is judged on, at most: short ones are left out


@dataclass
class Subject:
    """A trained toy decoder and its texts."""

    model: LanguageModel
    tokenizer: Tokenizer
    texts: list[str]  # what it was trained on: calibration and further training
    rows: Tensor  # (ROWS, LENGTH) ids that it never saw


def beginnings(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """(≤ n, LENGTH): the first ids of each text that has as many."""
    rows = [ids[:LENGTH] for ids in encode_documents(tokenizer, texts) if len(ids) >= LENGTH]
    return torch.tensor(rows).view(-1, LENGTH)


def subject(bench: Bench, seed: int) -> Subject:
    """The toy decoder of a seed, made once for all claims."""
    config = toy(bench)
    model, tokenizer = load_model(toy_gpt(bench, config, seed))
    texts, held_out = corpus(config, seed)
    return Subject(model.eval(), tokenizer, texts, beginnings(tokenizer, held_out)[: 16 if bench.fast else ROWS])


def cost(model: LanguageModel, scheme: SchemeConfig, rows: Tensor, batches: list[Tensor] | None = None,
         reference: LanguageModel | None = None) -> Fidelity:
    """What a scheme does to a copy of a model.

    Args:
        model: stays as it is; scheme: what to do to its linear layers; rows: (R, T) ids to judge on.
        batches: calibration set, for schemes that need one.
        reference: what to compare with; the model itself when None.
    """
    return fidelity(reference or model, quantize(copy.deepcopy(model), scheme, batches)[0], rows, batch=32)
