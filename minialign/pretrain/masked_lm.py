r"""Masked language modelling, BERT's pretraining: some tokens are hidden, and an encoder says what stood there.

    text      Rosa lost the red kite in the barn .
    tokens    Rosa lost the <extra_0> kite with the barn .         the encoder reads this, both sides of every gap
    labels                  red            in   the                and is asked at these places only
    L = −Σ log π(xₜ | tokens) over the chosen places / their number              Devlin et al. 2019 (BERT), §3.1, Task 1

15 % of the tokens are chosen. Of these 80 % become the mask token, 10 % any token whatever, 10 % stay: since it is not
told which, the model must have an opinion of every token, masked or not.

Read next: span_corruption.py (the same idea for an encoder-decoder). Details that matter:
    1. Loss on the chosen tokens, on all of them, on nothing else (test_the_loss_falls_on_the_chosen_places_only).
    2. Special tokens are never chosen and never put in a token's place
       (test_special_tokens_are_never_hidden_and_never_made_up).
    3. Every epoch chooses others, as a pure function of seed, step and row (test_a_resumed_run_hides_the_same_tokens).
    4. The mask token is the first sentinel, which an encoder by itself has no other use for.
DEVIATION: the head is the table of token vectors alone (heads.LanguageModel); BERT puts one more layer and a bias
before it. DEVIATION: there is no next-sentence task (Devlin et al. 2019, Task 2), which later work found to be of no
use (Liu et al. 2019, §4.2).

Try it:  python -m minialign pretrain --text FILE.txt --objective masked-lm
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from minialign.batching import IGNORE, Batch, Order, pad, text_rows
from minialign.heads import LanguageModel
from minialign.logprobs import label_loss
from minialign.pretrain.causal_lm import train_and_validate
from minialign.runs.errors import UserError
from minialign.runs.run_folder import RunFolder
from minialign.runs.settings import check_ranges
from minialign.tokenizer import BEGIN, GREEN, PLAIN, RED, SPECIAL, Tokenizer
from minialign.training import TrainingConfig

MASK = SPECIAL.index("<extra_0>")


@dataclass(frozen=True)
class MaskingConfig:
    """Which tokens are asked for, and what the model reads in their places."""

    chosen: float = 0.15  # share of the tokens that the model is asked for
    masked: float = 0.8  # share of the chosen that become the mask token
    replaced: float = 0.1  # share of the chosen that become any token whatever; the rest stays as it is

    def __post_init__(self):
        check_ranges(self, {"chosen": (0.01, 0.9), "masked": (0, 1), "replaced": (0, 1)})
        if self.masked + self.replaced > 1:
            raise UserError(f"masked {self.masked} and replaced {self.replaced} are shares of the same tokens; "
                            f"together they must be at most 1")


def mask_tokens(ids: Sequence[int], config: MaskingConfig, vocabulary: int, chance: random.Random) -> tuple[list[int],
        list[int]]:
    """Hide some tokens of a text: Devlin et al. 2019, §3.1 and Appendix A.1.

    As many are chosen as the share says, rounded, and at least one, as in the released code; a text of special tokens
    alone has none.

    Args:
        ids: the text, with or without special tokens; vocabulary: V, ids to replace a token by are drawn from.
    Returns:
        what the model reads, and for each token its id if it was chosen, otherwise IGNORE.
    """
    tokens, labels = list(ids), [IGNORE] * len(ids)
    places = [place for place, token in enumerate(ids) if token >= len(SPECIAL)]
    for place in chance.sample(places, min(max(round(config.chosen * len(places)), 1), len(places))):
        labels[place], fate = ids[place], chance.random()
        if fate < config.masked:
            tokens[place] = MASK
        elif fate < config.masked + config.replaced:
            tokens[place] = chance.randrange(len(SPECIAL), vocabulary)
    return tokens, labels


def show_masking(tokenizer: Tokenizer, tokens: Sequence[int], labels: Sequence[int]) -> str:
    """One line for a terminal: what the model reads, at the chosen places in red, followed by what stood there in
    green."""
    def asked(token, label):
        return f"{RED}{tokenizer.name(token)}{GREEN}{tokenizer.name(label)}{PLAIN}"
    return "".join(tokenizer.name(token) if label == IGNORE else asked(token, label) for token,
                   label in zip(tokens, labels))


def masked_lm_loss(model: LanguageModel, batch: Batch) -> Tensor:
    """Sum of −log π(label) over the chosen places, nats. Logits are computed there, and nowhere else."""
    asked = batch.labels != IGNORE  # (B, T)
    hidden = model.body(batch.tokens, batch.mask)  # (B, T, D)
    return label_loss(model.logits(hidden[asked]), batch.labels[asked])


class MaskedText:
    """Rows of text as training data, masked anew in every epoch, and for the same seed, step and row always in the same
    way.

    Args:
        rows: ids of each text; batch: rows a step; seed: of their order and of what is hidden.
        vocabulary: V; config: how much is hidden.
    """

    def __init__(self, rows: Sequence[Sequence[int]], batch: int, seed: int, vocabulary: int,
                 config: MaskingConfig | None = None):
        self.rows, self.seed, self.vocabulary, self.config = rows, seed, vocabulary, config or MaskingConfig()
        self.order = Order([len(row) for row in rows], batch, seed)

    def microbatches(self, step: int, parts: int) -> list[Batch]:
        """The step's rows, in `parts` pieces, padded on the right."""
        chosen = self.order(step)
        return [self.batch(chosen[i::parts], step) for i in range(min(parts, len(chosen)))]

    def batch(self, names: list[int], step: int = 0) -> Batch:
        """The named rows as one batch, as a step shows them."""
        pairs = [mask_tokens(self.rows[name], self.config, self.vocabulary, random.Random(f"{self.seed} {step} {name}"))
                 for name in names]
        tokens, mask = pad([tokens for tokens, _ in pairs])
        return Batch(tokens, pad([labels for _, labels in pairs], value=IGNORE)[0], mask, names)


def pretrain_masked_lm(
    model: LanguageModel,
    tokenizer: Tokenizer,
    texts: list[str],
    valid: list[str],
    config: TrainingConfig,
    run: RunFolder,
    packed: bool = True,
    masking: MaskingConfig | None = None,
    places: tuple[str | None, str | None] = (None, None),
) -> dict[str, float]:
    """Teach an encoder to say what stood at hidden places of texts.

    Args:
        model: trained in place, saved in the run folder.
        texts: documents to learn from; valid: documents for the validation loss, always with the same places hidden.
        config: how; run: where; packed: see `text_rows`; masking: how much; places: where texts and valid come from,
            for errors.
    Returns:
        {"validation": nats per chosen token, "perplexity": its exponential, "steps": how many}.
    """
    # the begin token takes a place; a classifier reads the whole text there (heads.Classifier)
    length = model.config.context - 1
    learned, checked = (text_rows(tokenizer.encode_many(part), length, packed, place) for part,
                        place in zip((texts, valid), places))
    data, held_out = (
        MaskedText([[BEGIN, *row] for row in rows], min(config.batch, len(rows)), seed, model.config.vocabulary,
                   masking)
        for rows, seed in ((learned, config.seed), (checked, 0))
    )
    return train_and_validate(model, data, held_out, masked_lm_loss, config, run, "masked language modelling")
