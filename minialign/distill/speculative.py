r"""Speculative decoding: a small model guesses ahead, the large one reads all guesses in one pass, and the text is the
large one's own, to the letter of its distribution.

    xᵢ ~ q(· | x₍<i₎),  i = 1..γ                the draft's guesses, one after the other
    accept xᵢ with probability min(1, p(xᵢ) / q(xᵢ)); at the first that is not accepted draw from norm(max(0, p − q));
    when all are accepted draw one token more from p                         Leviathan et al. 2023, §2.3, Algorithm 1

A decoder that writes reads all its weights for every token; reading γ + 1 tokens at once takes hardly longer. So a pass
of the target gives between 1 and γ + 1 tokens, (1 − αᵞ⁺¹) / (1 − α) on average (Eq. 1), where α = E Σ min(p, q) is how
often a guess is accepted. A distilled student is a draft by birth. Details that matter:
    1. What comes out is distributed as the target's own samples, whatever the draft is
       (test_acceptance_and_replacement_together_are_the_target, test_text_is_distributed_as_the_targets_own).
    2. Temperature, top-k and top-p shape both distributions before they are compared. Greedy text is the target's
       greedy text, token for token (test_greedy_text_is_the_targets).
    3. Both caches forget what was not accepted (test_a_cache_forgets_what_it_is_told_to).
    4. Draft and target have one vocabulary (test_a_draft_with_another_vocabulary_is_refused).

Try it:  python -m minialign sample RUN --draft STUDENT --prompt "…"
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minialign.cache import Cache
from minialign.generation import SamplingConfig, check_room, sample_token, shape_logits
from minialign.heads import LanguageModel, evaluating
from minialign.runs.devices import device_of
from minialign.runs.errors import UserError
from minialign.tokenizer import Tokenizer

AHEAD = 4  # γ, guesses a pass


@dataclass
class Speculated:
    """What was written, and what it took."""

    ids: list[int]  # of the completion, the end token included
    passes: int  # of the target
    guessed: int  # tokens that the draft guessed
    accepted: int  # of them


def probabilities(logits: Tensor, config: SamplingConfig) -> Tensor:
    """(B, V) what is sampled from: all on the likeliest token at temperature 0."""
    logits = logits.float()  # 16 bits would merge neighbours
    if config.temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(dim=-1), logits.shape[-1]).float()
    return shape_logits(logits, config).softmax(dim=-1)


def residual(p: Tensor, q: Tensor) -> Tensor:
    """(..., V) norm(max(0, p − q)): what a token is drawn from when the draft's was not accepted; p where the two are
    equal and nothing is ever refused."""
    left = (p - q).clamp(min=0)
    total = left.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, left / total.clamp(min=1e-30), p)


def accepted_count(p: Tensor, q: Tensor, guesses: Tensor, uniforms: Tensor) -> int:
    """How many of γ guesses are accepted, from the first on.

    Args:
        p, q: (≥ γ, V) and (γ, V) the two models' probabilities where each was guessed; guesses: (γ,) ids.
        uniforms: (γ,) in [0, 1).
    """
    said = guesses[:, None]
    ratio = p[: len(guesses)].gather(1, said).squeeze(1) / q.gather(1, said).squeeze(1)
    refused = (uniforms >= ratio).nonzero()
    return int(refused[0]) if len(refused) else len(guesses)


class Reader:
    """A decoder with what it has read, and the tokens that it has not read yet."""

    def __init__(self, model: LanguageModel, prompt: Sequence[int], room: int):
        self.model, self.unread = model, list(prompt)
        self.device = device_of(model)
        self.cache = Cache(model.config, 1, len(prompt) + room, rewinds=True, device=self.device)

    def read(self, more: Sequence[int] = ()) -> Tensor:
        """(T, V) logits after each of the unread tokens, and after more of them."""
        tokens = torch.tensor([[*self.unread, *more]], device=self.device)
        self.unread = []
        real = torch.ones_like(tokens, dtype=torch.bool)  # a filled cache reads several tokens at once by their mask
        return self.model.logits(self.model.body(tokens, real, self.cache))[0]


@torch.no_grad()
def speculate(target: LanguageModel, draft: LanguageModel, prompt: Sequence[int], config: SamplingConfig,
              generator: torch.Generator, ahead: int = AHEAD) -> Speculated:
    """Continue one prompt.

    Args:
        target: a decoder, whose text it is; draft: a smaller one with the same vocabulary.
        prompt: ids, one at least; config: how tokens are chosen; generator: where chance comes from.
        ahead: γ, guesses a pass.
    Raises:
        UserError: models of another kind or vocabulary, or a prompt and completion that do not fit a context.
    """
    for model in (target, draft):
        check_room(model.config, len(prompt), config.new_tokens)
        if len(prompt) + ahead + config.new_tokens > model.config.context:
            raise UserError(f"guessing ahead needs room for {ahead} tokens more than the text; use a smaller "
                            f"--new-tokens, or no draft")
        if model.config.kind != "decoder":
            raise UserError(f"speculative decoding is for two decoders, and one is an {model.config.kind}")
    if draft.config.vocabulary != target.config.vocabulary:
        raise UserError(f"the draft has {draft.config.vocabulary:,} tokens and the target "
                        f"{target.config.vocabulary:,}; give one that was distilled from it, or trained with its "
                        f"tokenizer")
    if ahead < 1:
        raise UserError(f"{ahead} guesses a pass; give 1 or more")
    found, room = Speculated([], 0, 0, 0), config.new_tokens + ahead + 1

    def drawn(count: int) -> Tensor:
        return torch.rand(count, generator=generator).to(device_of(target))

    with evaluating(target), evaluating(draft):
        large, small = Reader(target, prompt, room), Reader(draft, prompt, room)
        while len(found.ids) < config.new_tokens and target.special.end not in found.ids:
            guesses, q = [], []
            for _ in range(ahead):
                q.append(probabilities(small.read()[-1:], config))
                guesses.append(int(sample_token(q[-1], drawn(1))))
                small.unread = guesses[-1:]
            p = probabilities(large.read(guesses)[-ahead - 1 :], config)  # (γ + 1, V)
            count = accepted_count(p, torch.cat(q), torch.tensor(guesses, device=p.device), drawn(ahead))
            last = residual(p[count : count + 1], q[count]) if count < ahead else p[count:]
            token = int(sample_token(last, drawn(1)))
            large.cache.rewind(ahead - count)
            small.cache.rewind(max(0, ahead - 1 - count))
            small.unread = [*guesses[ahead - 1 : count], token]  # the last guess was not read yet
            large.unread = [token]
            found.ids += [*guesses[:count], token]
            found.passes, found.guessed = found.passes + 1, found.guessed + ahead
            found.accepted += count
    ends = [i for i, token in enumerate(found.ids) if token == target.special.end]
    found.ids = found.ids[: min([*(end + 1 for end in ends), config.new_tokens])]
    return found


def speculate_text(target: LanguageModel, draft: LanguageModel, tokenizer: Tokenizer, prompt: str,
                   config: SamplingConfig, generator: torch.Generator, ahead: int = AHEAD) -> tuple[str, Speculated]:
    """The same for a text; what was written, and what it took."""
    found = speculate(target, draft, [tokenizer.begin, *tokenizer.encode(prompt)], config, generator, ahead)
    return tokenizer.decode(found.ids), found
