"""What is hidden from a model in pretraining: as much, and in the same ways, as in the libraries that professionals
use."""

import itertools
import math
import random

import numpy as np
import pytest
import tokenizers
import torch

from minialign.batching import IGNORE
from minialign.pretrain.masked_lm import MASK, MaskingConfig, mask_tokens
from minialign.pretrain.span_corruption import GAPS, SpanCorruptionConfig, corrupt, noise_budget, noise_spans
from minialign.tokenizer import END, SENTINELS, SPECIAL

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

VOCABULARY, ROWS, LENGTH = 400, 300, 200


@pytest.fixture
def peer_tokenizer():
    """A tokenizer of the library whose ids mean what ours mean."""
    names = [*SPECIAL, *(f"word{i}" for i in range(VOCABULARY - len(SPECIAL)))]
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({name: i for i, name in enumerate(names)},
        unk_token="<pad>"))
    special = {"pad_token": "<pad>", "mask_token": "<extra_0>", "bos_token": "<begin>", "eos_token": "<end>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=model, **special)


def rates(pairs):
    """Shares: of all tokens that are asked for; of these, that became the mask, another word, or stayed."""
    labels, tokens, words = (np.concatenate([row[i] for row in pairs]) for i in range(3))
    asked = labels != IGNORE
    fate = [tokens[asked] == MASK, (tokens[asked] != MASK) & (tokens[asked] != words[asked]),
            tokens[asked] == words[asked]]
    return [asked.mean(), *(f.mean() for f in fate)], asked.sum()


@pytest.mark.piece("masked words: shares chosen, masked, exchanged, kept", "transformers")
@pytest.mark.parametrize("share", [0.15, 0.4])
def test_masking_has_the_statistics_of_the_library_s_collator(share, peer_tokenizer, measured):
    chance = random.Random(0)
    texts = [[chance.randrange(len(SPECIAL), VOCABULARY) for _ in range(LENGTH)] for _ in range(ROWS)]
    ours = [(*reversed(mask_tokens(text, MaskingConfig(share), VOCABULARY, chance)), text) for text in texts]
    torch.manual_seed(0)
    collator = transformers.DataCollatorForLanguageModeling(peer_tokenizer, mlm_probability=share)
    theirs = collator([{"input_ids": text} for text in texts])
    theirs = [(labels.numpy(), tokens.numpy(), text) for labels, tokens, text in zip(theirs["labels"],
        theirs["input_ids"], texts)]
    (mine, n), (peer, m) = rates(ours), rates(theirs)
    measured.see(mine, peer)
    for name, a, b, count in zip(("chosen", "masked", "another", "same"), mine, peer, (ROWS * LENGTH, n, n, n)):
        std = math.sqrt(2 * b * (1 - b) / count)  # of the difference of two shares
        assert abs(a - b) < 4 * std, name
    assert abs(n - m) < 4 * math.sqrt(ROWS * LENGTH * share * (1 - share))


def peer_noise_mask(length, density, mean_span, chance):
    """T5's random spans, slowly: a list of true and false. Written from the description in Raffel et al.'s released
    code."""
    noise = min(max(int(np.round(length * density)), 1), length - 1)
    spans = max(int(np.round(noise / mean_span)), 1)

    def segments(items):
        begins = [True] * (spans - 1) + [False] * (items - spans)
        chance.shuffle(begins)
        return [len(list(group)) for _, group in itertools.groupby(itertools.accumulate([0, *begins]))]

    mask = []
    for kept, cut in zip(segments(length - noise), segments(noise)):
        mask += [False] * kept + [True] * cut
    return mask


def spans_of(mask):
    """Lengths of the runs of true."""
    return [len(list(group)) for value, group in itertools.groupby(mask) if value]


@pytest.mark.parametrize("density, mean_span", [(0.15, 3), (0.15, 8), (0.3, 3), (0.25, 2), (0.5, 3)])
def test_every_length_has_as_many_noise_tokens_in_as_many_spans_as_t5_gives_it(density, mean_span):
    chance, compared = random.Random(0), 0
    for length in range(2, 700):
        mask = peer_noise_mask(length, density, mean_span, chance)
        tokens, spans = noise_budget(length, SpanCorruptionConfig(density, mean_span))
        assert tokens == sum(mask), length
        # T5 itself computes in 32 bits, where an exact half may come out as a bit more
        single = np.float32(length) * np.float32(density)
        assert tokens == min(max(int(np.round(single)), 1), length - 1) or abs(length * density % 1
            - 0.5) < 1e-9, length
        if len(spans_of(mask)) <= SENTINELS:
            assert spans == len(spans_of(mask)), length
            compared += 1
        else:
            assert spans == SENTINELS
    assert compared > 50


def test_span_lengths_are_distributed_as_t5_s():
    length, n, config = 100, 4000, SpanCorruptionConfig()
    chance = random.Random(0)
    ours = [end - start for _ in range(n) for start, end in noise_spans(length, config, chance)]
    theirs = [size for _ in range(n) for size in spans_of(peer_noise_mask(length, 0.15, 3, chance))]
    for size in range(1, 8):
        a, b = ours.count(size), theirs.count(size)
        # spans of one text add up to the same number, which makes counts vary less, not more
        assert abs(a - b) < 4 * math.sqrt(a + b), size


def test_inputs_and_targets_are_those_of_t5_s_sentinels():
    chance, config = random.Random(0), SpanCorruptionConfig(0.3, 2)
    for length in range(2, 60):
        text = [chance.randrange(len(SPECIAL), VOCABULARY) for _ in range(length)]
        spans = noise_spans(length, config, chance)
        mask = [any(start <= i < end for start, end in spans) for i in range(length)]

        def replaced(hidden, text=text):
            """Each run of hidden tokens becomes the next sentinel, counted from 0: the rule of T5's
            noise_span_to_unique_sentinel."""
            runs = itertools.groupby(zip(hidden, text), key=lambda pair: pair[0])
            gaps = iter(GAPS)
            return [token for value, run in runs for token in ([next(gaps)] if value else [word for _, word in run])]

        inputs, targets = corrupt(text, spans)
        assert inputs == replaced(mask)
        others = replaced([not value for value in mask])  # T5's targets: what is kept becomes the sentinels
        if mask[0]:
            # ours always begin with one
            others = [GAPS[0], *(GAPS[GAPS.index(token) + 1] if token in GAPS else token for token in others)]
        # the end token closes the last span
        assert [*targets, END] == ([*others[:-1], END] if not mask[-1] else [*others, END])
