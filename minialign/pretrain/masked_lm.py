r"""Masked language modelling, BERT's pretraining: some tokens are hidden, and an encoder says what stood there.

    text      Rosa lost the red kite in the barn .
    tokens    Rosa lost the <mask> kite with the barn .            the encoder reads this, both sides of every gap
    labels                  red            in   the                and is asked at these places only
    L = −Σ log π(xₜ | tokens) over the chosen places / their number              Devlin et al. 2019 (BERT), §3.1, Task 1

15 % of the tokens are chosen. Of these 80 % become the mask token, 10 % any token whatever, 10 % stay: since it is not
told which, the model must have an opinion of every token, masked or not.

Read next: span_corruption.py (the same idea for an encoder-decoder). Details that matter:
    1. Loss on the chosen tokens, on all of them, on nothing else (test_the_loss_falls_on_the_chosen_places_only).
    2. Special tokens are never chosen and never put in a token's place
       (test_special_tokens_are_never_hidden_and_never_made_up).
    3. Every epoch chooses others, as a pure function of seed, step and row (test_a_resumed_run_hides_the_same_tokens).
    4. The mask token has the id of the first sentinel, which an encoder by itself has no other use for, so that every
       kind of model shares one tokenizer; people see it as <mask> (test_people_see_a_mask_and_no_sentinel).
DEVIATION: the head is the table of token vectors alone (heads.LanguageModel); BERT puts one more layer and a bias
before it.
DEVIATION: there is no next-sentence task (Devlin et al. 2019, Task 2), which later work found to be of no use (Liu et
al. 2019, §4.2).

Try it:  python -m minialign pretrain --text FILE.txt --objective masked-lm
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from minialign.batching import IGNORE, Batch, Batches, pad, text_rows
from minialign.heads import LanguageModel
from minialign.logprobs import label_loss
from minialign.runs.errors import UserError
from minialign.runs.settings import check_ranges
from minialign.tokenizer import BEGIN, SPECIAL, Tokenizer

MASK, MASK_NAME = SPECIAL.index("<extra_0>"), "<mask>"


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


def mask_tokens(ids: Sequence[int], config: MaskingConfig, vocabulary: int, chance: random.Random
                ) -> tuple[list[int], list[int]]:
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


def show_masked(tokenizer: Tokenizer, tokens: Sequence[int], labels: Sequence[int]) -> str:
    """A row for people: `[what the model reads←what it should say]` where it is asked, the text elsewhere."""
    names = [MASK_NAME if token == MASK else tokenizer.name(token) for token in tokens]
    return "".join(name if label == IGNORE else f" [{name.strip()}←{tokenizer.name(label).strip()}]"
                   for name, label in zip(names, labels))


def masked_lm_loss(model: LanguageModel, batch: Batch) -> Tensor:
    """Sum of −log π(label) over the chosen places, nats; logits are computed only there."""
    asked = batch.labels != IGNORE  # (B, T)
    hidden = model.body(batch.tokens, batch.mask)  # (B, T, D)
    return label_loss(model.logits(hidden[asked]), batch.labels[asked])


class MaskedText(Batches):
    """Rows of text as training data, masked anew in every epoch, as a pure function of seed, step and row.

    Args:
        rows: ids of each text; batch: rows a step; seed: of their order and of what is hidden.
        vocabulary: V; config: how much is hidden.
    """

    def __init__(self, rows: Sequence[Sequence[int]], batch: int, seed: int, vocabulary: int,
                 config: MaskingConfig = MaskingConfig()):
        super().__init__([len(row) for row in rows], batch, seed)
        self.rows, self.seed, self.vocabulary, self.config = rows, seed, vocabulary, config

    def batch(self, names: list[int], step: int = 0) -> Batch:
        """The named rows, masked as a step masks them and padded on the right."""
        pairs = [mask_tokens(self.rows[name], self.config, self.vocabulary, random.Random(f"{self.seed} {step} {name}"))
                 for name in names]
        tokens, mask = pad([tokens for tokens, _ in pairs])
        return Batch(tokens, pad([labels for _, labels in pairs], value=IGNORE)[0], mask, names)


@dataclass(frozen=True)
class MaskedLM:
    """BERT's objective; see pretrain.Objective."""

    masking: MaskingConfig = MaskingConfig()
    packed: bool = True
    name, loss = "masked language modelling", staticmethod(masked_lm_loss)

    def batches(self, tokenizer, texts, shape, config, place=None) -> MaskedText:
        """Texts as training data, each row after a begin token, where a classifier reads the whole text."""
        rows = text_rows(tokenizer.encode_many(texts), shape.context - 1, self.packed, place)
        return MaskedText([[BEGIN, *row] for row in rows], min(config.batch, len(rows)), config.seed, shape.vocabulary,
                          self.masking)
