r"""The same documents for an encoder-decoder and for an encoder: their completions are what is missing.

    text         …in the barn.\nWho lost the kite? Rosa\nDid Max? no
    inputs       …in the barn.\nWho lost the kite?<extra_0>\nDid Max?<extra_1>      the encoder reads this
    targets      <extra_0> Rosa <extra_1> no <end>                                  the decoder writes this
    masked       …Who lost the kite?<mask>\nDid Max?<mask>                          the encoder by itself

A document without completions, and every fifth of the others, is corrupted as the chapter on pretraining does it, so
that these bases are T5's and BERT's pupils and not only examinees. Not at the beginning: what nobody can predict hides
the little that there is to learn of comparing.

Once adapted to go on from where a text stops, an encoder-decoder is shown the same documents up to an answer.

Read next: controls.py.
"""

import random

import numpy as np

from minialign.batching import IGNORE, Batch, pad, text_to_text_batch
from minialign.lab.bases.texts import ASKED, MARK, MarkedRows
from minialign.pretrain.masked_lm import MASK, MaskingConfig, mask_tokens
from minialign.pretrain.span_corruption import SpanCorruptionConfig, corrupt, noise_spans
from minialign.tokenizer import BEGIN, END, SENTINELS

PLAIN = 0.2  # share of the documents that are corrupted without regard to their completions
LONGEST = 4  # tokens of a completion that an encoder is asked for: it says each without knowing of the others
MOST = 4  # questions of a document that are shown together: 2 to a model that has to learn to compare from nothing


def completion_spans(codes: np.ndarray) -> list[tuple[int, int]]:
    """(start, end) of each run of marked tokens, the last SENTINELS of them."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], codes // MARK, [0]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist()))[-SENTINELS:]


def few_questions(codes: np.ndarray, chance: random.Random) -> np.ndarray:
    """The document with up to MOST of its questions. Who reads to both sides cannot tell by a word's standing
    elsewhere whether the passage has it, where ten questions speak of the same things."""
    head, *questions = np.split(codes, np.flatnonzero(codes & ASKED))
    kept = sorted(chance.sample(range(len(questions)), min(len(questions), chance.randint(1, MOST))))
    return np.concatenate([head, *(questions[i] for i in kept)])


class ReadInPart(MarkedRows):
    """Documents of which few questions are shown at a time; arguments as for `MarkedRows`."""

    def pair(self, name: int, chance: random.Random) -> tuple[list[int], list[int]]:
        """What is read of one document, and what is asked for."""
        raise NotImplementedError

    @property
    def tokens(self) -> int:
        """About how many tokens are read, from a sample of the documents."""
        sample = random.Random(0).choices(range(len(self.lengths)), k=1000)
        read = sum(sum(map(len, self.pair(name, random.Random(name)))) for name in sample) / len(sample)
        return round(read * len(self.lengths))


class GappedDocuments(ReadInPart):
    """Documents for an encoder-decoder; arguments as for `MarkedRows`."""

    def batch(self, names: list[int], step: int = 0) -> Batch:
        """The named documents with their completions, or other stretches, cut out."""
        pairs = [self.pair(name, random.Random(f"{self.seed} {step} {name}")) for name in names]
        return text_to_text_batch([inputs for inputs, _ in pairs], [targets for _, targets in pairs], names)

    def pair(self, name: int, chance: random.Random) -> tuple[list[int], list[int]]:
        """Inputs and targets of one document."""
        whole = self.codes_of(name)
        codes = few_questions(whole, chance)
        spans = completion_spans(codes)
        if not spans or self.begun(name) and chance.random() < PLAIN:
            codes, spans = whole, noise_spans(len(whole), SpanCorruptionConfig(), chance)
        inputs, targets = corrupt((codes % ASKED).tolist(), spans)
        return [BEGIN, *inputs], targets


class ContinuedDocuments(GappedDocuments):
    """Documents that an encoder-decoder reads up to one of their completions, and goes on with from there."""

    def pair(self, name: int, chance: random.Random) -> tuple[list[int], list[int]]:
        """Inputs and targets of one document."""
        codes = few_questions(self.codes_of(name), chance)
        ids, spans = (codes % ASKED).tolist(), completion_spans(codes)
        start = chance.choice(spans)[0] if spans else chance.randrange(len(ids))
        return [BEGIN, *ids[:start], END], ids[start:]


class MaskedDocuments(ReadInPart):
    """Documents for an encoder; arguments as for `MarkedRows`."""

    def batch(self, names: list[int], step: int = 0) -> Batch:
        """The named documents with short completions, and some tokens besides, hidden."""
        pairs = [self.pair(name, random.Random(f"{self.seed} {step} {name}")) for name in names]
        tokens, mask = pad([tokens for tokens, _ in pairs])
        return Batch(tokens, pad([labels for _, labels in pairs], value=IGNORE)[0], mask, names)

    def pair(self, name: int, chance: random.Random) -> tuple[list[int], list[int]]:
        """What is read of one document, and what is asked for."""
        codes, plain = self.codes_of(name), self.begun(name) and chance.random() < PLAIN
        codes = codes if plain else few_questions(codes, chance)
        ids, spans = (codes % ASKED).tolist(), completion_spans(codes)
        asked = [] if plain else [span for span in spans if span[1] - span[0] <= LONGEST]
        share = MaskingConfig().chosen if not asked else MaskingConfig().chosen / 3
        tokens, labels = mask_tokens(ids, MaskingConfig(share), self.tokenizer.size, chance)
        for start, end in asked:
            tokens[start:end], labels[start:end] = [MASK] * (end - start), ids[start:end]
        return [BEGIN, *tokens], [IGNORE, *labels]
