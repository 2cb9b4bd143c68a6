r"""LM adaptation: an encoder-decoder that can fill gaps learns to go on from where a text stops.

    text  Rosa lost the red kite in the barn .     inputs  Rosa lost the     targets  red kite in the barn . <end>
    L = −Σₜ log π(yₜ | beginning, y₍<t₎) / T       Raffel et al. 2020 (T5), §3.2.1 (prefix LM); Lester et al. 2021, §3.1

After span corruption alone a model has never seen a text without sentinels and never written one; it answers with
sentinels. A short time of this makes it the "T5+LM" that T0 starts from (Sanh et al. 2022, §5).

Read next: span_corruption.py (what comes before; the loss is the same). Details that matter:
    1. Beginning and rest together are the text, the rest is never empty (test_the_beginning_and_the_rest_are_the_text).
    2. Where a text is cut is chance, every share of it equally likely, and a pure function of seed and step
       (test_every_place_to_cut_comes_up).
DEVIATION: all texts of a step are cut at the same share of their lengths, so that beginnings as well as rests are about
equally long and
    little is padding (test_texts_cut_at_the_same_share_need_little_padding).

Try it:  python -m minialign pretrain --text FILE.txt --objective span-corruption --lm-adaptation-steps 300
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from minialign.batching import Order, text_rows
from minialign.heads import LanguageModel
from minialign.pretrain.span_corruption import TextToTextRows, train_text_to_text
from minialign.runs.run_folder import RunFolder
from minialign.tokenizer import BEGIN, Tokenizer
from minialign.training import TrainingConfig


class DividedText(TextToTextRows):
    """Rows of text as training data, each divided into a beginning and the rest, anew in every epoch.

    Args:
        rows: ids of each text, without begin and end token, one less than the context holds at most.
        batch: rows a step; seed: of their order and of where they are divided.
    """

    def __init__(self, rows: Sequence[Sequence[int]], batch: int, seed: int):
        self.rows, self.seed = rows, seed
        self.order = Order([len(row) for row in rows], batch, seed)

    def pair(self, name: int, step: int) -> tuple[list[int], list[int]]:
        """One row, divided as a step divides all of its rows."""
        row, share = self.rows[name], random.Random(f"{self.seed} {step}").random()
        place = int(share * len(row))  # 0 to length − 1: the rest has at least one token
        return [BEGIN, *row[:place]], list(row[place:])


def adapt(
    model: LanguageModel,
    tokenizer: Tokenizer,
    texts: list[str],
    valid: list[str],
    config: TrainingConfig,
    run: RunFolder,
    packed: bool = True,
    places: tuple[str | None, str | None] = (None, None),
) -> dict[str, float]:
    """Teach an encoder-decoder, pretrained with span corruption, to continue texts.

    Args:
        model: trained in place, saved in the run folder.
        texts: documents to learn from; valid: documents for the validation loss, always divided at the same places.
        config: how; run: where; packed: see `text_rows`; places: where texts and valid come from, for errors.
    Returns:
        {"validation": nats per token of the rest, "perplexity": its exponential, "steps": how many}.
    """
    length = model.config.context - 1  # the begin token takes a place
    learned, checked = (text_rows(tokenizer.encode_many(part), length, packed, place) for part,
                        place in zip((texts, valid), places))
    data = DividedText(learned, min(config.batch, len(learned)), config.seed)
    return train_text_to_text(model, data, DividedText(checked, min(config.batch, len(checked)), 0), config, run,
                              "LM adaptation")
