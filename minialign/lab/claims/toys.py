r"""The toy decoder from nothing that the encoder of the claim on distillation is made after, made once and kept."""

from __future__ import annotations

from pathlib import Path

from minialign.lab.claims import Bench
from minialign.lab.demo.from_nothing import FAST, ToyConfig, pretrain_decoder
from minialign.runs.settings import to_dict


def toy(bench: Bench) -> ToyConfig:
    """Its sizes, or the quick ones."""
    return ToyConfig(**FAST) if bench.fast else ToyConfig()


def toy_gpt(bench: Bench, config: ToyConfig, seed: int) -> Path:
    """Its folder."""
    return bench.cached("toy-gpt", [to_dict(config), seed], lambda folder: pretrain_decoder(config, seed, folder))
