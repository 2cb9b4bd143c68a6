r"""Rank classification: instead of letting a model write, ask how likely it finds each option, and take the likeliest.

    answer = argmaxₒ Σₜ log π(oₜ | prompt, o₍<t₎)             Brown et al. 2020 (GPT-3), §2.4; Sanh et al. 2022 (T0), §4

The sum runs over the option's tokens and the end token, so that "no" and "no one" are told apart. A mean over tokens
(the log-probability a token) is the usual alternative: the sum prefers short options, the mean long ones that are easy
to go on with. Details that matter:
    1. A prompt is read once for all its options, and all options of a batch go through the model together
       (test_ranking_in_one_pass_equals_the_one_by_one_loop).
    2. The end token counts (test_the_end_token_tells_an_option_from_its_own_beginning).
    3. An option of no token is an error: its probability would be that of saying nothing.

Read next: classification.py.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from minialign.heads import LanguageModel, evaluating
from minialign.logprobs import completion_logprobs
from minialign.runs.errors import UserError


@torch.no_grad()
def option_logprobs(model: LanguageModel, prompts: Sequence[Sequence[int]], options: Sequence[Sequence[Sequence[int]]],
                    mean: bool = False, batch: int = 32) -> list[Tensor]:
    """How likely each option is after its prompt.

    Args:
        model: a decoder or an encoder-decoder.
        prompts: lists of ids that begin with the begin token.
        options: for each prompt its options, lists of ids without an end token.
        mean: the mean over an option's tokens instead of the sum.
        batch: prompts computed together; those of similar length are.
    Returns:
        for each prompt a tensor (its options,), log-probabilities in nats.
    Raises:
        UserError: a prompt without options, an option without tokens, or more than the context holds.
    """
    for i, choices in enumerate(options):
        if not choices or not all(choices):
            nothing = "an option of no token" if choices else "no options"
            raise UserError(f"prompt {i} has {nothing}; there is nothing to rank")
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found: list[Tensor] = [torch.empty(0)] * len(prompts)
    with evaluating(model):
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            of = [place for place, i in enumerate(chosen) for _ in options[i]]  # (N,) whose option it is
            said = [[*option, model.special.end] for i in chosen for option in options[i]]  # N lists
            logprobs, mask = completion_logprobs(model, [list(prompts[i]) for i in chosen], said, of)
            total = logprobs.sum(dim=1) / (mask.sum(dim=1) if mean else 1)  # (N,)
            for i, part in zip(chosen, total.split([len(options[i]) for i in chosen])):
                found[i] = part
    return found


def rank(scores: Sequence[Tensor]) -> list[int]:
    """The place of the likeliest option of each prompt."""
    return [int(score.argmax()) for score in scores]
