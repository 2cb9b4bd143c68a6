r"""Span corruption, T5's pretraining: short stretches of a text are cut out, and an encoder-decoder writes what was
cut.

    text      Rosa lost the red kite in the barn .
    inputs    Rosa lost <extra_0> in the <extra_1> .           the encoder reads this
    targets   <extra_0> the red kite <extra_1> barn <end>      the decoder writes this
    L = −Σₜ log π(yₜ | inputs, y₍<t₎) / T                      Raffel et al. 2020 (T5), §3.1.4, §3.3.4, Fig. 2

15 % of the tokens are cut out, in spans of 3 on average; how many of both is a function of the text's length alone,
where the spans stand is chance. The decoder writes only what is missing, which is short, so a step is cheap.

Read next: lm_adaptation.py (what T5 lacks before it can be asked in words). Details that matter:
    1. Inputs and targets together are the whole text, token for token
       (test_targets_and_inputs_rebuild_the_text_exactly).
    2. Every epoch cuts other spans, as a pure function of seed, step and row (test_a_resumed_run_reads_the_same_noise).
    3. The end token is taught, and closes the last span (test_the_decoder_is_taught_every_target_and_the_end).
    4. A text that needs more sentinels than the tokenizer has gets fewer and longer spans, as much noise
       (test_a_long_text_gets_longer_spans_not_less_noise).
DEVIATION: T5's mask begins with a kept token and ends with a cut one. On text chopped anywhere that means nothing; on
whole documents it
    would cut out every last word, so here all places for the spans are equally likely
    (test_every_placing_of_the_spans_is_equally_likely).
DEVIATION: inputs begin with the begin token, as whatever a model of this project reads; T5's end with the end token.

Try it:  python -m minialign pretrain --text FILE.txt --objective span-corruption
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from minialign.batching import IGNORE, Order, TextToTextBatch, text_rows, text_to_text_batch
from minialign.heads import LanguageModel
from minialign.logprobs import label_loss
from minialign.pretrain.causal_lm import train_and_validate
from minialign.runs.run_folder import RunFolder
from minialign.runs.settings import check_ranges
from minialign.tokenizer import BEGIN, GREEN, GREY, PLAIN, SENTINELS, SPECIAL, SpecialIds, Tokenizer
from minialign.training import TrainingConfig

GAPS = range(SPECIAL.index("<extra_0>"), SPECIAL.index("<extra_0>") + SENTINELS)  # ids of the sentinels


@dataclass(frozen=True)
class SpanCorruptionConfig:
    """How much of a text is cut out, and in pieces of what size."""

    noise: float = 0.15  # share of the tokens that is cut out
    mean_span: float = 3.0  # tokens in a cut span, on average

    def __post_init__(self):
        check_ranges(self, {"noise": (0.01, 0.9), "mean_span": (1, 100)})


def noise_budget(length: int, config: SpanCorruptionConfig) -> tuple[int, int]:
    """(tokens, spans) that are cut out of a text of `length` tokens: Raffel et al. 2020, released code
    (random_spans_noise_mask).

    At least one token, never all; a text of one token stays whole. No more spans than there are sentinels, or gaps
    between kept tokens.
    """
    if length < 2:
        return 0, 0
    tokens = min(max(round(length * config.noise), 1), length - 1)
    spans = max(round(tokens / config.mean_span), 1)
    return tokens, min(spans, SENTINELS, length - tokens + 1)


def cut(total: int, parts: int, chance: random.Random) -> list[int]:
    """`total` things in a row as `parts` pieces of at least one; all ways are equally likely."""
    places = sorted(chance.sample(range(1, total), parts - 1))
    return [end - start for start, end in zip([0, *places], [*places, total])]


def noise_spans(length: int, config: SpanCorruptionConfig, chance: random.Random) -> list[tuple[int, int]]:
    """(start, end) of each span that is cut out of a text, in order; a kept token stands between any two of them."""
    tokens, spans = noise_budget(length, config)
    if spans == 0:
        return []
    noise = cut(tokens, spans, chance)
    # two more than there are: before the first span and after the last may be none
    kept = cut(length - tokens + 2, spans + 1, chance)
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


def rebuild(inputs: Sequence[int], targets: Sequence[int]) -> list[int]:
    """The text that `corrupt` made these of; of a model's own targets, whatever they make of it (a gap it left out
    stays empty)."""
    gaps: dict[int, list[int]] = {}
    inside: list[int] = []
    for token in targets:
        if token in GAPS:
            inside = gaps.setdefault(token, [])
        else:
            inside.append(token)
    return [token for place in inputs for token in (gaps.get(place, []) if place in GAPS else [place])]


def show_corruption(tokenizer: Tokenizer, inputs: Sequence[int], targets: Sequence[int]) -> str:
    """Two lines for a terminal: what the encoder reads and what the decoder shall write; text in green, special tokens
    in grey."""
    colours = [[(GREY if i < len(SPECIAL) else GREEN) + tokenizer.name(i) for i in ids] for ids in (inputs, targets)]
    return "\n".join(f"{name:9}{''.join(names)}{PLAIN}" for name, names in zip(("inputs", "targets"), colours))


def text_to_text_loss(model: LanguageModel, batch: TextToTextBatch) -> Tensor:
    """Sum of −log π(label) over the batch's labels, nats. Logits are computed where there is a label, and nowhere
    else."""
    taught = batch.labels != IGNORE  # (B, T)
    # (B, T, D)   the decoder's pads stand on the right: nobody looks there
    hidden = model.body(batch.tokens, batch.inputs, batch.input_mask)
    return label_loss(model.logits(hidden[taught]), batch.labels[taught])


class TextToTextRows:
    """(inputs, targets) pairs as training data for an encoder-decoder; pairs of similar input length stand together.

    Args:
        pairs: ids of the inputs, begin token included, and of the targets, without begin and end token, of each
            example.
        batch: pairs a step; seed: of their order.
        special: what begins and ends a target; real weights have ids of their own.
    """

    special = SpecialIds()

    def __init__(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], batch: int, seed: int,
                 special: SpecialIds = special):
        self.pairs, self.special, self.order = pairs, special, Order([len(inputs) for inputs, _ in pairs], batch, seed)

    def microbatches(self, step: int, parts: int) -> list[TextToTextBatch]:
        """The step's pairs, in `parts` pieces, padded on the right."""
        chosen = self.order(step)
        return [self.batch(chosen[i::parts], step) for i in range(min(parts, len(chosen)))]

    def batch(self, names: list[int], step: int = 0) -> TextToTextBatch:
        """The named pairs as one batch, as a step shows them."""
        pairs = [self.pair(name, step) for name in names]
        return text_to_text_batch([inputs for inputs, _ in pairs], [targets for _, targets in pairs], names,
                                  self.special)

    def pair(self, name: int, step: int) -> tuple[Sequence[int], Sequence[int]]:
        """One pair: the same at every step."""
        return self.pairs[name]


class SpanCorruptedText(TextToTextRows):
    """Rows of text as training data, corrupted anew in every epoch, and for the same seed, step and row always in the
    same way.

    Args:
        rows: ids of each text, without begin and end token, at most `longest_text` of them.
        batch: rows a step; seed: of their order and of the noise.
        config: how much noise.
    """

    def __init__(self, rows: Sequence[Sequence[int]], batch: int, seed: int,
                 config: SpanCorruptionConfig | None = None):
        self.rows, self.seed, self.config = rows, seed, config or SpanCorruptionConfig()
        self.order = Order([len(row) for row in rows], batch, seed)

    def pair(self, name: int, step: int) -> tuple[list[int], list[int]]:
        """One row with the noise of a step; in another epoch the row stands in another step."""
        chance = random.Random(f"{self.seed} {step} {name}")
        inputs, targets = corrupt(self.rows[name], noise_spans(len(self.rows[name]), self.config, chance))
        return [BEGIN, *inputs], targets


def longest_text(context: int, config: SpanCorruptionConfig) -> int:
    """Most tokens of a text whose inputs and targets both fit a context, begin token included: more than the context,
    since they share it."""
    length = 0
    while True:
        tokens, spans = noise_budget(length + 1, config)
        if 1 + max(length + 1 - tokens, tokens) + spans > context:
            return length
        length += 1


def pretrain_span_corruption(
    model: LanguageModel,
    tokenizer: Tokenizer,
    texts: list[str],
    valid: list[str],
    config: TrainingConfig,
    run: RunFolder,
    packed: bool = True,
    noise: SpanCorruptionConfig | None = None,
    places: tuple[str | None, str | None] = (None, None),
) -> dict[str, float]:
    """Teach an encoder-decoder to fill the gaps of texts.

    Args:
        model: trained in place, saved in the run folder.
        texts: documents to learn from; valid: documents for the validation loss, always with the same gaps.
        config: how; run: where; packed: see `text_rows`; noise: how much; places: where texts and valid come from, for
            errors.
    Returns:
        {"validation": nats per target token, "perplexity": its exponential, "steps": how many}.
    """
    noise = noise or SpanCorruptionConfig()
    length = longest_text(model.config.context, noise)
    learned, checked = (text_rows(tokenizer.encode_many(part), length, packed, place) for part,
                        place in zip((texts, valid), places))
    data = SpanCorruptedText(learned, min(config.batch, len(learned)), config.seed, noise)
    return train_text_to_text(model, data, SpanCorruptedText(checked, min(config.batch, len(checked)), 0, noise),
                              config, run, "span corruption")


def train_text_to_text(
    model: LanguageModel, data: TextToTextRows, valid: TextToTextRows, config: TrainingConfig, run: RunFolder,
    label: str
) -> dict[str, float]:
    """Train an encoder-decoder on pairs of texts; see `train_and_validate`."""
    return train_and_validate(model, data, valid, text_to_text_loss, config, run, label)
