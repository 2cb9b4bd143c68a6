r"""Span corruption, T5's pretraining: stretches of a text are cut out, and an encoder-decoder writes what was cut.

    text      Rosa lost the red kite in the barn .
    inputs    Rosa lost <extra_0> in the <extra_1> .           the encoder reads this
    targets   <extra_0> the red kite <extra_1> barn <end>      the decoder writes this
    L = −Σₜ log π(yₜ | inputs, y₍<t₎) / T                      Raffel et al. 2020 (T5), §3.1.4, §3.3.4, Fig. 2

15 % of the tokens are cut out, in spans of 3 on average; how many of both is a function of the text's length alone,
where the spans stand is chance. The decoder writes only what is missing, which is short, so a step is cheap.

LM adaptation comes afterwards: such a model has never seen a text without sentinels and never written one; it answers
with sentinels. A short time of going on from where a text stops makes it the "T5+LM" that T0 starts from (Sanh et al.
2022, §5), with the same loss:

    inputs    Rosa lost the <end>                              Raffel et al. 2020, §3.2.1 (prefix LM);
    targets   red kite in the barn . <end>                     Lester et al. 2021, §3.1

Read next: gap_filling.py. Details that matter:
    1. Inputs and targets together are the whole text, token for token
       (test_targets_and_inputs_rebuild_the_text_exactly).
    2. Every epoch cuts other spans, as a pure function of seed, step and row (test_a_resumed_run_reads_the_same_noise).
    3. The end token is taught, and closes the last span (test_the_decoder_is_taught_every_target_and_the_end).
    4. A text that needs more sentinels than the tokenizer has gets fewer and longer spans, as much noise
       (test_a_long_text_gets_longer_spans_not_less_noise).
    5. LM adaptation: beginning and rest together are the text, the rest is never empty
       (test_the_beginning_and_the_rest_are_the_text), every place to cut is likely (test_every_place_to_cut_comes_up).
DEVIATION: T5's mask begins with a kept token and ends with a cut one. On text chopped anywhere that means nothing; on
whole documents it would cut out every last word, so here all places for the spans are equally likely
(test_every_placing_of_the_spans_is_equally_likely).
DEVIATION: inputs begin with the begin token, as whatever a model of this project reads. T5's end with the end token;
here those of span corruption do not, since the gaps say what is missing. Those that are gone on from do: without that
mark a decoder hardly ever finds the place (test_the_beginning_is_ended_for_the_encoder; the figures are in
data/claims/t0-unseen-tasks/notes.md).
DEVIATION: LM adaptation cuts all texts of a step at the same share of their lengths, so that beginnings and rests are
about equally long and little is padding (test_texts_cut_at_the_same_share_need_little_padding).

Try it:  python -m minialign pretrain --text FILE.txt --objective span-corruption [--lm-adaptation-steps 300]
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from minialign.batching import IGNORE, Batch, Batches, text_rows, text_to_text_batch
from minialign.heads import LanguageModel
from minialign.logprobs import label_loss
from minialign.runs.settings import check_ranges
from minialign.tokenizer import BEGIN, END, SENTINELS, SPECIAL, SpecialIds

GAPS = range(SPECIAL.index("<extra_0>"), SPECIAL.index("<extra_0>") + SENTINELS)  # ids of the sentinels


@dataclass(frozen=True)
class SpanCorruptionConfig:
    """How much of a text is cut out, and in pieces of what size."""

    noise: float = 0.15  # share of the tokens that is cut out
    mean_span: float = 3.0  # tokens in a cut span, on average

    def __post_init__(self):
        check_ranges(self, {"noise": (0.01, 0.9), "mean_span": (1, 100)})


def noise_budget(length: int, config: SpanCorruptionConfig) -> tuple[int, int]:
    """(tokens, spans) to cut out of `length` tokens: Raffel et al. 2020, released code (random_spans_noise_mask).

    At least one token, never all; one token stays whole. No more spans than sentinels, or gaps between kept tokens.
    """
    if length < 2:
        return 0, 0
    tokens = min(max(round(length * config.noise), 1), length - 1)
    spans = max(round(tokens / config.mean_span), 1)
    return tokens, min(spans, SENTINELS, length - tokens + 1)


def cut(total: int, parts: int, chance: random.Random) -> list[int]:
    """`total` things in a row as `parts` pieces of at least one; all ways are equally likely."""
    places = [0, *sorted(chance.sample(range(1, total), parts - 1)), total]
    return [end - start for start, end in zip(places, places[1:])]


def noise_spans(length: int, config: SpanCorruptionConfig, chance: random.Random) -> list[tuple[int, int]]:
    """(start, end) of each span that is cut out of a text, in order; a kept token stands between any two of them."""
    tokens, spans = noise_budget(length, config)
    if spans == 0:
        return []
    noise = cut(tokens, spans, chance)
    kept = cut(length - tokens + 2, spans + 1, chance)  # + 2: before the first span and after the last may be none
    found, place = [], -1
    for before, inside in zip(kept, noise):
        found.append((place + before, place + before + inside))
        place += before + inside
    return found


def corrupt(ids: Sequence[int], spans: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """A text with sentinels for its spans, and the spans, each after its sentinel."""
    inputs, targets, place = [], [], 0
    for i, (start, end) in enumerate(spans):
        inputs += [*ids[place:start], GAPS[i]]
        targets += [GAPS[i], *ids[start:end]]
        place = end
    return [*inputs, *ids[place:]], targets


def rebuild(inputs: Sequence[int], targets: Sequence[int], marks: Sequence[int] = GAPS) -> list[int]:
    """The text that `corrupt` made these of. A gap that a model's own targets leave out stays empty; `marks` are the
    ids of the sentinels."""
    gaps: dict[int, list[int]] = {}
    inside: list[int] = []
    for token in targets:
        if token in marks:
            inside = gaps.setdefault(token, [])
        else:
            inside.append(token)
    return [token for place in inputs for token in (gaps.get(place, []) if place in marks else [place])]


def text_to_text_loss(model: LanguageModel, batch: Batch) -> Tensor:
    """Sum of −log π(label) over the batch's labels, nats; logits are computed only where there is a label."""
    taught = batch.labels != IGNORE  # (B, T)
    hidden = model.body(batch.tokens, batch.inputs, batch.input_mask)  # (B, T, D)   nobody looks at pads on the right
    return label_loss(model.logits(hidden[taught]), batch.labels[taught])


class TextPairs(Batches):
    """Training data of an encoder-decoder; a subclass gives the pair (inputs, targets) of an example at a step."""

    special = SpecialIds()  # what begins and ends a target; real weights have ids of their own

    def batch(self, names: list[int], step: int = 0) -> Batch:
        """The named pairs, as a step shows them, padded on the right."""
        inputs, targets = zip(*(self.pair(name, step) for name in names))
        return text_to_text_batch(inputs, targets, names, self.special)


class TextToTextRows(TextPairs):
    """Pairs of texts as training data, the same at every step; pairs of similar input length stand together.

    Args:
        pairs: ids of the inputs, begin token included, and of the targets, without begin and end token.
        batch: pairs a step; seed: of their order; special: see TextPairs.
    """

    def __init__(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], batch: int, seed: int,
                 special: SpecialIds = TextPairs.special):
        super().__init__([len(inputs) for inputs, _ in pairs], batch, seed)
        self.pairs, self.special = pairs, special

    def pair(self, name: int, step: int) -> tuple[Sequence[int], Sequence[int]]:
        """One pair."""
        return self.pairs[name]


class SpanCorruptedText(TextPairs):
    """Rows of text as training data, corrupted anew in every epoch.

    Args:
        rows: ids of each text, without begin and end token, at most `longest_text` of them.
        batch: rows a step; seed: of their order and of the noise; config: how much noise.
    """

    def __init__(self, rows: Sequence[Sequence[int]], batch: int, seed: int,
                 config: SpanCorruptionConfig = SpanCorruptionConfig()):
        super().__init__([len(row) for row in rows], batch, seed)
        self.rows, self.seed, self.config = rows, seed, config

    def pair(self, name: int, step: int) -> tuple[list[int], list[int]]:
        """One row with the noise of a step; in another epoch the row stands in another step."""
        chance = random.Random(f"{self.seed} {step} {name}")
        inputs, targets = corrupt(self.rows[name], noise_spans(len(self.rows[name]), self.config, chance))
        return [BEGIN, *inputs], targets


class DividedText(SpanCorruptedText):
    """Rows of text as training data, each divided into a beginning and the rest, anew in every epoch; see there."""

    def pair(self, name: int, step: int) -> tuple[list[int], list[int]]:
        """One row, divided as a step divides all of its rows."""
        row, share = self.rows[name], random.Random(f"{self.seed} {step}").random()
        place = int(share * len(row))  # 0 to length − 1: the rest has at least one token
        return [BEGIN, *row[:place], END], list(row[place:])


def longest_text(context: int, config: SpanCorruptionConfig) -> int:
    """Most tokens of a text whose inputs and targets both fit a context: more than the context, since they share it."""
    length = 0
    while True:
        tokens, spans = noise_budget(length + 1, config)
        if 1 + max(length + 1 - tokens, tokens) + spans > context:  # 1 for the begin token
            return length
        length += 1


@dataclass(frozen=True)
class SpanCorruption:
    """T5's objective; see pretrain.Objective."""

    noise: SpanCorruptionConfig = SpanCorruptionConfig()
    packed: bool = True
    name, loss = "span corruption", staticmethod(text_to_text_loss)

    def batches(self, tokenizer, texts, shape, config, place=None) -> SpanCorruptedText:
        """Texts as training data."""
        rows = text_rows(tokenizer.encode_many(texts), longest_text(shape.context, self.noise), self.packed, place)
        return SpanCorruptedText(rows, min(config.batch, len(rows)), config.seed, self.noise)


@dataclass(frozen=True)
class LMAdaptation:
    """The objective of an encoder-decoder after span corruption; see pretrain.Objective."""

    packed: bool = True
    name, loss = "LM adaptation", staticmethod(text_to_text_loss)

    def batches(self, tokenizer, texts, shape, config, place=None) -> DividedText:
        """Texts as training data; begin and end token take a place each of the context."""
        rows = text_rows(tokenizer.encode_many(texts), shape.context - 1, self.packed, place)
        return DividedText(rows, min(config.batch, len(rows)), config.seed)
