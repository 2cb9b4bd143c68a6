r"""Beam search: the likeliest text that a decoder can write, as far as K hypotheses at a time can tell.

    keep the K best of all  score(y₁…yₜ) = Σ log π(yᵢ | x, y₍<i₎),  extend each by every token, keep the K best again

Details that matter:
    1. A hypothesis that has ended keeps its place and its score, and is extended by nothing
       (test_beam_search_finds_the_likeliest_text).
    2. Scores only fall, so the search stops when the best hypothesis of every prompt has ended: no other can overtake
       it.
    3. One hypothesis is greedy decoding (test_one_beam_is_greedy_decoding).
    DEVIATION: no length penalty, which translation systems add since the likeliest text tends to be a short one.

Read next: sequence_level.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from minialign.batching import pad
from minialign.cache import Cache
from minialign.generation import Generated, check_room, end_mask
from minialign.heads import LanguageModel, evaluating
from minialign.runs.errors import UserError


@torch.no_grad()
def beam_search(model: LanguageModel, prompts: Sequence[Sequence[int]], new_tokens: int, beams: int) -> Generated:
    """The best of `beams` hypotheses after each prompt.

    Args:
        model: a decoder; prompts: B lists of ids, at least one id each; new_tokens: R, most tokens to write, the end
            token included.
        beams: K, hypotheses that are kept.
    Returns:
        Generated, one answer to each prompt; `logprobs` sum up to its score.
    Raises:
        UserError: a model that is no decoder, no beams, or texts that do not fit the context.
    """
    B, K, V = len(prompts), beams, model.config.vocabulary
    if K < 1:
        raise UserError(f"beams is {K}; it must be at least 1")
    if model.config.kind != "decoder":
        raise UserError(f"beam search writes with a decoder, and this is an {model.config.kind}")
    check_room(model.config, max(map(len, prompts)), new_tokens)
    _, end, filler = model.special
    prompt, prompt_mask = pad(prompts, side="left", value=filler)  # (B, P)
    # (B, 1) row of a prompt's first beam
    cache, first = Cache(model.config, B, prompt.shape[1] + new_tokens), torch.arange(B)[:, None] * K
    scores = torch.full((B, K), -torch.inf)
    scores[:, 0] = 0.0  # all begin alike, so only one of them counts
    response, logprobs = torch.full((B, K, new_tokens), filler), torch.zeros(B, K, new_tokens)
    finished = torch.zeros(B, K, dtype=torch.bool)
    with evaluating(model):
        hidden = model.body(prompt, prompt_mask, cache)[:, -1].repeat_interleave(K, dim=0)  # (B K, D)
        cache.repeat(torch.arange(B).repeat_interleave(K))
        for t in range(new_tokens):
            words = model.logits(hidden).log_softmax(dim=-1).view(B, K, V)
            words = words.masked_fill(finished[..., None], -torch.inf)
            words[..., filler] = torch.where(finished, 0.0, words[..., filler])  # what has ended goes on as it is
            best = (scores[..., None] + words).flatten(1).topk(K)  # (B, K)
            source, token = best.indices // V, best.indices % V
            rows = (first + source).flatten()
            step = words.flatten(0, 1)[rows, token.flatten()].view(B, K)
            response, logprobs = (x.flatten(0, 1)[rows].view(B, K, -1) for x in (response, logprobs))
            finished = finished.flatten()[rows].view(B, K)
            response[..., t], logprobs[..., t], scores = torch.where(finished, filler, token), step, best.values
            finished = finished | (token == end)
            if t + 1 == new_tokens or bool(finished[:, 0].all()):
                break
            cache.repeat(rows)
            hidden = model.body(token.flatten()[:, None], None, cache)[:, -1]
    response, logprobs = response[:, 0, : t + 1], logprobs[:, 0, : t + 1]
    mask = end_mask(response, end)
    return Generated(prompt, prompt_mask, response.masked_fill(~mask, filler), mask, logprobs.masked_fill(~mask, 0.0),
                     end)
