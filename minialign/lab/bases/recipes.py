"""Which bases there are: what each is, how it learns, and how long it reads.

Read next: texts.py.
"""

from dataclasses import dataclass, replace

from minialign.training import TrainingConfig
from minialign.transformer import TransformerConfig


@dataclass(frozen=True)
class Recipe:
    """One base."""

    width: int  # D
    layers: int  # N, of encoder and decoder each
    heads: int  # H
    chunks: int  # of documents that it reads
    minutes: int  # that it takes, about, on two cores of a shared machine
    kind: str = "decoder"
    start: str = ""  # the base that it grows out of
    first: int = 0  # chunk that it begins with: behind those that the other one has read
    feed_forward: int = 4  # inner width of the feed-forward layers, in units of D
    shared: bool = False  # an encoder-decoder's two parts are one set of weights
    rate: float = 1e-3  # peak of AdamW's learning rate; at 3e-3 nothing is ever compared (see trials.json)
    muon_rate: float = 0.005  # peak of Muon's, for the matrices of the blocks
    batch: int = 16  # documents a step
    demanded: bool = True  # whether the controls must be passed

    def shape(self, vocabulary: int) -> TransformerConfig:
        """Large initial weights and short convolutions let a small model learn to read early."""
        return TransformerConfig(vocabulary, 256, self.width, self.layers, self.heads, self.kind, activation="relu",
                                 feed_forward=self.feed_forward, initial_std=self.width**-0.5, short_convolution=4,
                                 shared=self.shared)

    @property
    def read(self) -> range:
        """The chunks of documents that it reads."""
        return range(self.first, self.first + self.chunks)

    def training(self, steps: int, seed: int) -> TrainingConfig:
        """From the first document to the last."""
        return TrainingConfig(steps, self.batch, self.rate, warmup=0.02, final=0.05,
                              validate_every=500 if self.start else 2000, checkpoint_every=250, seed=seed)

    @property
    def fast(self) -> "Recipe":
        """The same kind, too small and too short to read: seconds."""
        small = {"width": 32, "layers": 2, "heads": 2}
        if self.start:
            start = RECIPES[self.start]
            small = {part: getattr(start.fast, part) * getattr(self, part) // getattr(start, part) for part in small}
        return replace(self, **small, first=min(self.first, 1), chunks=1, batch=16, demanded=False)


RECIPES = {
    "decoder-0.1m": Recipe(48, 2, 2, 20, 10, demanded=False),
    "decoder-0.4m": Recipe(96, 3, 3, 72, 90),
    "encoder-decoder-0.4m": Recipe(96, 3, 3, 32, 40, kind="encoder-decoder", start="decoder-0.4m", first=72, rate=5e-4,
                                   muon_rate=0.0025, batch=32, shared=True),
    "encoder-0.4m": Recipe(96, 3, 3, 32, 50, kind="encoder", start="decoder-0.4m", first=72, rate=5e-4,
                           muon_rate=0.0025, batch=32),
    "decoder-1.3m": Recipe(192, 3, 6, 12, 30, start="decoder-0.4m", first=72, feed_forward=3),
    "decoder-2m": Recipe(192, 6, 6, 8, 50, start="decoder-1.3m", first=84, feed_forward=3, rate=5e-4,
                         muon_rate=0.0025),
}
