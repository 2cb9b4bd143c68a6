"""Which bases there are: what each is, how it learns, and how long it reads.

Read next: texts.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from minialign.training import TrainingConfig
from minialign.transformer import TransformerConfig


@dataclass(frozen=True)
class Recipe:
    """One base."""

    width: int  # D
    layers: int  # N, of encoder and decoder each
    heads: int  # H
    chunks: int  # of documents that it reads, each once
    minutes: int  # that it took on two cores of a shared machine
    kind: str = "decoder"
    rate: float = 3e-3  # peak of AdamW's learning rate
    muon_rate: float = 0.02  # peak of Muon's, for the matrices of the blocks
    batch: int = 32  # documents a step
    demanded: bool = True  # whether the controls must be passed
    trials: tuple[str, ...] = ()  # what else was tried, for the card

    def shape(self, vocabulary: int) -> TransformerConfig:
        """Large initial weights and short convolutions let a small model learn to read early."""
        return TransformerConfig(vocabulary, 256, self.width, self.layers, self.heads, self.kind, activation="relu",
                                 initial_std=self.width**-0.5, short_convolution=4)

    def training(self, steps: int, seed: int) -> TrainingConfig:
        """One pass over the documents."""
        return TrainingConfig(steps, self.batch, self.rate, warmup=0.02, final=0.05, validate_every=1000,
                              checkpoint_every=250, seed=seed)


    @property
    def fast(self) -> Recipe:
        """The same kind, too small and too short to read: seconds."""
        return replace(self, width=32, layers=2, heads=2, chunks=1, demanded=False)


RECIPES = {
    "decoder-0.1m": Recipe(48, 2, 2, 20, 10, demanded=False),
    "decoder-0.4m": Recipe(96, 3, 3, 40, 35),
    "encoder-decoder-0.4m": Recipe(80, 2, 4, 40, 60, kind="encoder-decoder"),
    "encoder-0.4m": Recipe(96, 3, 3, 40, 40, kind="encoder"),
    "decoder-1.2m": Recipe(160, 3, 5, 40, 90, rate=2e-3, muon_rate=0.015),
    "decoder-2m": Recipe(192, 4, 6, 40, 180, rate=2e-3, muon_rate=0.015),
}
