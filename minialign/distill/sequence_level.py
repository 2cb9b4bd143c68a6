r"""Sequence-level distillation: the student learns what the teacher writes, word for word, as if it were the text.

    L = −log p_student(ŷ | x),    ŷ ≈ argmax over y of p_teacher(y | x), by beam search            Kim & Rush 2016, §3.2
    beam search: keep the K best of all score(y₁…yₜ) = Σ log π(yᵢ | x, y₍<i₎), extend each by every token, keep K again

A student that has no room for all that its teacher may say learns its one best completion instead, which is easier than
people's texts: one text for each prompt, always said in the same way. Details that matter:
    1. The loss falls on what the teacher wrote and not on the prompt, its end token included; nothing stands after it
       (test_the_student_is_taught_what_the_teacher_wrote_and_no_more).
    2. The teacher's probabilities may be learned on these texts as well (weight `soft`): the paper's best, Seq-KD +
       Word-KD (its Table 1).
    3. A temperature above 0 draws the texts from the teacher instead: what it may say rather than what it finds best.
    4. A hypothesis that has ended keeps its place and its score, and is extended by nothing
       (test_beam_search_finds_the_likeliest_text).
    5. Scores only fall, so the search stops when the best hypothesis of every prompt has ended.
    6. One hypothesis is greedy decoding (test_one_beam_is_greedy_decoding).
    DEVIATION: no interpolation (the hypothesis nearest to the people's text, §3.3): many of our prompts come without
    one. DEVIATION: no length penalty, which translation systems add since the likeliest text tends to be a short one.

Read next: on_policy.py, where the student writes.
Try it:  python -m minialign distill --teacher RUN --recipe sequence-level --text FILES
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from minialign.batching import pad
from minialign.cache import Cache
from minialign.distill.soft_targets import SoftTargetConfig
from minialign.generation import Generated, SamplingConfig, check_room, end_mask, generate
from minialign.heads import LanguageModel, evaluating
from minialign.runs.devices import device_of
from minialign.runs.errors import UserError
from minialign.runs.settings import check_ranges

SEQUENCE_LEVEL = SoftTargetConfig(temperature=1.0, soft=0.0, hard=1.0)


@dataclass(frozen=True)
class WritingConfig:
    """How the teacher writes."""

    beams: int = 5  # hypotheses that it keeps; 1 is greedy
    drawn_at: float = 0.0  # 0 searches; above 0 the texts are drawn at this temperature, and beams has no say
    new_tokens: int = 48  # most tokens after a prompt, the end token included
    together: int = 64  # prompts that are answered together

    def __post_init__(self):
        check_ranges(self, {"beams": (1, 1000), "drawn_at": (0, 100), "new_tokens": (1, 10**6), "together": (1, 10**5)})


@torch.no_grad()
def beam_search(model: LanguageModel, prompts: Sequence[Sequence[int]], new_tokens: int, beams: int) -> Generated:
    """The best of `beams` hypotheses after each prompt.

    Args:
        model: a decoder; prompts: B lists of ids, at least one each; new_tokens: R, the end token included; beams: K.
    Returns:
        Generated, one completion to each prompt; `logprobs` sum up to its score.
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
    device = device_of(model)
    prompt, prompt_mask = pad(prompts, side="left", value=filler, device=device)  # (B, P)
    cache = Cache(model.config, B, prompt.shape[1] + new_tokens, device=device)
    first = torch.arange(B, device=device)[:, None] * K  # (B, 1) row of a prompt's first beam
    scores = torch.full((B, K), -torch.inf, device=device)
    scores[:, 0] = 0.0  # all begin alike, so only one of them counts
    completion = torch.full((B, K, new_tokens), filler, device=device)
    logprobs = torch.zeros(B, K, new_tokens, device=device)
    finished = torch.zeros(B, K, dtype=torch.bool, device=device)
    with evaluating(model):
        hidden = model.body(prompt, prompt_mask, cache)[:, -1].repeat_interleave(K, dim=0)  # (B K, D)
        cache.repeat(torch.arange(B, device=device).repeat_interleave(K))
        for t in range(new_tokens):
            words = model.logits(hidden).float().log_softmax(dim=-1).view(B, K, V)  # 16 bits would merge
            words = words.masked_fill(finished[..., None], -torch.inf)
            words[..., filler] = torch.where(finished, 0.0, words[..., filler])  # what has ended goes on as it is
            best = (scores[..., None] + words).flatten(1).topk(K)  # (B, K)
            source, token = best.indices // V, best.indices % V
            rows = (first + source).flatten()
            step = words.flatten(0, 1)[rows, token.flatten()].view(B, K)
            completion, logprobs = (x.flatten(0, 1)[rows].view(B, K, -1) for x in (completion, logprobs))
            finished = finished.flatten()[rows].view(B, K)
            completion[..., t], logprobs[..., t], scores = torch.where(finished, filler, token), step, best.values
            finished = finished | (token == end)
            if t + 1 == new_tokens or bool(finished[:, 0].all()):
                break
            cache.repeat(rows)
            hidden = model.body(token.flatten()[:, None], None, cache)[:, -1]
    completion, logprobs = completion[:, 0, : t + 1], logprobs[:, 0, : t + 1]
    mask = end_mask(completion, end)
    completion, logprobs = completion.masked_fill(~mask, filler), logprobs.masked_fill(~mask, 0.0)
    return Generated(prompt, prompt_mask, completion, mask, logprobs, end)


def write(teacher: LanguageModel, prompts: Sequence[Sequence[int]], config: WritingConfig,
          seed: int) -> list[tuple[list[int], int]]:
    """The teacher's completion to each prompt as rows to learn from.

    Args:
        prompts: lists of ids that begin with the begin token; seed: of what is drawn.
    Returns:
        for each prompt (ids of prompt and completion up to its end token, length of the prompt), for LabelledRows.
    """
    chance, order = torch.Generator().manual_seed(seed), sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    rows: list[tuple[list[int], int]] = [([], 0)] * len(prompts)
    for start in range(0, len(order), config.together):
        chosen = order[start : start + config.together]
        asked = [prompts[i] for i in chosen]
        if config.drawn_at > 0:
            written = generate(teacher, asked, SamplingConfig(config.new_tokens, config.drawn_at), chance)
        else:
            written = beam_search(teacher, asked, config.new_tokens, config.beams)
        for i, row, keep in zip(chosen, written.completion, written.mask):
            rows[i] = ([*prompts[i], *row[keep].tolist()], len(prompts[i]))
    return rows
