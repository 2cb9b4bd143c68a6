r"""Pretraining, the story of all objectives: documents become batches, and a model learns from them.

    objective                                  who learns             what
    NextToken         causal_lm.py             a decoder              which token comes next
    MaskedLM          masked_lm.py             an encoder             what stood under hidden tokens
    SpanCorruption    span_corruption.py       an encoder-decoder     the stretches that were cut out
    LMAdaptation      span_corruption.py       an encoder-decoder     how a text goes on

Read next: masked_lm.py. See also: instruct/sft.py (the next-token loss, on chosen text).

Try it:  python -m minialign pretrain --text FILE.txt --objective next-token | masked-lm | span-corruption
"""

import dataclasses
from typing import Protocol

from minialign.batching import Batches
from minialign.heads import LanguageModel
from minialign.pretrain.causal_lm import Loss, NextToken, mean_loss, perplexity
from minialign.runs.run_folder import RunFolder
from minialign.tokenizer import Tokenizer
from minialign.training import TrainingConfig, train
from minialign.transformer import TransformerConfig

NEXT_TOKEN = NextToken()


class Objective(Protocol):
    """What a model learns from raw text."""

    packed: bool  # documents one after the other (long texts), or one a row (many short ones)
    name: str
    loss: Loss

    def batches(self, tokenizer: Tokenizer, texts: list[str], shape: TransformerConfig, config: TrainingConfig,
                place: str | None = None) -> Batches:
        """Texts as training data; `place`: where they come from, for errors."""


def pretrain(model: LanguageModel, tokenizer: Tokenizer, texts: list[str], valid: list[str], config: TrainingConfig,
             run: RunFolder, objective: Objective = NEXT_TOKEN,
             places: tuple[str | None, str | None] = (None, None)) -> dict[str, float]:
    """Teach a model texts.

    Args:
        model: of the objective's kind; trained in place, saved in the run folder.
        texts: documents to learn from; valid: documents for the validation loss, the same ones with the same gaps for
            every seed.
        config: how; run: where.
        places: where texts and valid come from, for errors.
    Returns:
        {"validation": nats per label, "perplexity": its exponential, "steps": how many}.
    """
    data = objective.batches(tokenizer, texts, model.config, config, places[0])
    held_out = objective.batches(tokenizer, valid, model.config, dataclasses.replace(config, seed=0), places[1])
    return train_and_validate(model, data, held_out, objective.loss, config, run, objective.name)


def train_and_validate(model: LanguageModel, data: Batches, valid: Batches, loss: Loss, config: TrainingConfig,
                       run: RunFolder, label: str) -> dict[str, float]:
    """Train a model of any kind on `data`; validation looks at up to eight batches of `valid`, always the same ones.

    Args:
        loss: the sum over a batch's labels; the rest is as in `train`.
    """
    held_out = valid.first()

    def validate(model: LanguageModel) -> dict[str, float]:
        mean = mean_loss(model, held_out, loss)
        return {"validation": mean, "perplexity": perplexity(mean)}

    return train(model, data, loss, config, run, validate, label=label)
