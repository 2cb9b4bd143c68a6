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
    chunks: int  # of documents that it reads
    minutes: int  # that it takes, about, on two cores of a shared machine
    kind: str = "decoder"
    start: str = ""  # the base that it grows out of
    first: int = 0  # chunk that it begins with: behind those that the other one has read
    feed_forward: int = 4  # inner width of the feed-forward layers, in units of D
    shared: bool = False  # an encoder-decoder's two parts are one set of weights
    rate: float = 1e-3  # peak of AdamW's learning rate; at 3e-3 nothing is ever compared (see the trials)
    muon_rate: float = 0.005  # peak of Muon's, for the matrices of the blocks
    batch: int = 16  # documents a step
    demanded: bool = True  # whether the controls must be passed
    trials: tuple[str, ...] = ()  # what else was tried, for the card

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
    def fast(self) -> Recipe:
        """The same kind, too small and too short to read: seconds."""
        small = {"width": 32, "layers": 2, "heads": 2}
        if self.start:
            start = RECIPES[self.start]
            small = {part: getattr(start.fast, part) * getattr(self, part) // getattr(start, part) for part in small}
        return replace(self, **small, first=min(self.first, 1), chunks=1, batch=16, demanded=False)


TRIALS = (  # what was tried on the way to the decoder of .4 M, one seed each; tokens in millions
    "AdamW at 3e-3, all forms from the start, 21 tokens read: who .92, what 1.00, yes-no .50",
    "AdamW at 3e-3, one form, yes and no only: after 8, yes-no .50; all labels at a tenth of the weight instead of a "
    "tenth of the labels, six layers of width 72, six heads, batches of 8: no different after 2.5",
    "Muon at .02 for the matrices: who .93 after 3.8, where AdamW at 3e-3 has .70; yes-no .50 after 28",
    "a kernel of 8 positions instead of 4, with Muon at .03: who .64 after 2.6, where .02 and 4 positions have .80",
    "presence of things, people and places alone, one form: after 1.5, .52 with Muon at .02, .60 with AdamW at 1e-3, "
    ".87 with Muon at .005 and AdamW at 1e-3; without the convolution .55 (AdamW at 1e-3): rates that teach to copy "
    "quickly keep a model from learning to compare",
    "Muon at .006, batches of 32, presence in half of the documents, a tenth of the other tokens taught, 47: who .97, "
    "what .98, where .98, feeling .88, yes-no .85 to .87 in six forms, minimal pairs .76",
    "one form, three to five events, no presence asked, Muon at .005, batches of 16: yes-no .54 after 6.75; a "
    "fiftieth of the other tokens taught instead of a tenth: .57; five layers of width 72, or rates that fall to a "
    "tenth after 2.4: no different; Muon at .012 or AdamW at 2e-3: .50 after 5",
    "the same with presence asked about twice of every passage: yes-no .73 after 1.5, .79 after 2.25; details "
    "exchanged from outside of the story first, from within it later: no different after 3",
    "smeared keys instead of the convolution, three seeds, 3 tokens with the rates at their peak: who .90, .92, .76 "
    "where the convolution has .62, .59, .58; yes-no .54, .49, .52 where it has .52, .76, .79: the one finds sooner "
    "who did it, the other learns to compare",
    "43 tokens, nothing happening twice, all questions before the passage in the form that has them there: yes-no .89 "
    "to .90, minimal pairs .82, feeling .90; the errors are of two people who did the like",
)
TRIALS_OF_TWO = (  # on the way to the encoder-decoder, one seed each; yes-no in the words of the first documents
    "width 72, three layers in each part, up to three questions shown: yes-no .54 after 6,000 batches of 32, .51 after "
    "11,000, many forms and gaps among them",
    "the same with one question shown: .51 after 2,500, .68 after 4,000, .66 after 5,000",
    "width 96, two layers in each part, up to three questions: .59 after 2,000, .84 after 3,000, .81 after 4,000",
    "width 88, two layers in each part, four heads, up to two questions: .61 after 2,000, .74 after 4,000",
    "the same, each document three times instead of seven: .69 to .86 in its six best forms after 17,550, pairs .61",
    "the same, seven times, 34,550 batches: who .99, what .99, where .97, feeling .89, yes-no .89 to .90, pairs .81",
    "from the decoder's weights, up to two questions shown: pairs .81 after 500, .79 after 1,000, .75 after 1,500",
)
TRIALS_OF_AN_ENCODER = (
    "from nothing, at the decoder's rates: after 14,000 batches who .90, what .94, where .90, feeling .72, yes-no .51",
    "from the decoder's weights at its rates, up to two questions shown: after 500 batches who .80, yes-no .86; after "
    "1,500 .95, .78; after 5,000, the rates near 0, who .99, what .94, where .94, feeling .86, yes-no .91, pairs .84",
    "the base as it is, asked for all tokens of an answer at once (as in the curve above), where a decoder is asked "
    "for each given those before it: what .94, where .92, feeling .96",
)
TRIALS_OF_THE_LARGEST = (
    "width 208, four layers, from nothing, 36 million tokens in 88 minutes of two cores: who .99, what 1.00, where .94 "
    "(.88 on other passages), feeling .98, yes-no .97, pairs .95",
)
RECIPES = {
    "decoder-0.1m": Recipe(48, 2, 2, 20, 10, demanded=False),
    "decoder-0.4m": Recipe(96, 3, 3, 72, 90, trials=TRIALS),
    "encoder-decoder-0.4m": Recipe(96, 3, 3, 32, 40, kind="encoder-decoder", start="decoder-0.4m", first=72, rate=5e-4,
                                   muon_rate=0.0025, batch=32, shared=True, trials=TRIALS_OF_TWO),
    "encoder-0.4m": Recipe(96, 3, 3, 32, 50, kind="encoder", start="decoder-0.4m", first=72, rate=5e-4,
                           muon_rate=0.0025, batch=32, trials=TRIALS_OF_AN_ENCODER),
    "decoder-1.3m": Recipe(192, 3, 6, 12, 30, start="decoder-0.4m", first=72, feed_forward=3),
    "decoder-2m": Recipe(192, 6, 6, 8, 50, start="decoder-1.3m", first=84, feed_forward=3, rate=5e-4,
                         muon_rate=0.0025, trials=TRIALS_OF_THE_LARGEST),
}
