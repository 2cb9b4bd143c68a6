r"""Prompt tuning: k vectors before the text are all that trains; the model itself is untouched.

    input vectors [P; E(x)]        P ∈ ℝ^(k×D) trains, E and everything behind it is frozen       Lester et al. 2021, §2

The vectors are given ids of their own, behind the vocabulary, and a table that continues the model's: so masks,
positions, padding and the cache treat them as the tokens that they are, and nothing about the model changes. Details
that matter:
    1. The mask and the positions grow by k, and the k outputs are cut away again: labels and losses stay where they
       were (test_the_prompt_shifts_positions_and_no_label).
    2. In generation the prompt is read once, with the text's first tokens, and stays in the cache
       (test_generation_with_a_tuned_prompt).
    3. They count against the context (test_a_prompt_takes_room_in_the_context).
    4. They start as random vectors, as those of tokens drawn from the vocabulary, or as those of a given text (Lester
       et al. 2021, §2.1); random is the worst.
    5. The learning rate is very high (the paper's 0.3 with Adafactor): there is little to move, and it is far from the
       output.
DEVIATION: in an encoder-decoder the prompt stands before the encoder's text, and the decoder looks at the text's
outputs, not at the prompt's.

Read next: trainable.py. Try it:  python -m minialign finetune --method prompt-tuning --base RUN --data FILE.jsonl
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minialign.cache import Cache
from minialign.peft.trainable import fingerprint, freeze, note
from minialign.runs.errors import UserError
from minialign.runs.settings import check_choices, check_ranges
from minialign.runs.submodules import replace_modules

STARTS = ("random", "vocabulary", "text")


@dataclass(frozen=True)
class PromptConfig:
    """How many vectors, and how they start."""

    length: int = 8  # k
    start: str = "vocabulary"  # random | vocabulary | text
    text_ids: tuple[int, ...] = ()  # tokens of the text that the vectors start as, repeated or cut to k
    seed: int = 0  # of the start

    def __post_init__(self):
        check_ranges(self, {"length": (1, 10**5)})
        check_choices(self, {"start": STARTS})
        if (self.start == "text") != bool(self.text_ids):
            raise UserError("the start 'text' and the ids of a text belong together; give both (as a command: "
                            "--prompt-text) or neither")


class PromptEmbedding(nn.Module):
    """The model's table of token vectors, frozen, and k more behind it that train."""

    def __init__(self, base: nn.Embedding, config: PromptConfig):
        super().__init__()
        self.base = base
        generator = torch.Generator().manual_seed(config.seed)
        if config.start == "random":
            start = torch.randn(config.length, base.embedding_dim, generator=generator).to(base.weight)
            start = start * base.weight.std()
        elif config.start == "vocabulary":
            ids = torch.randint(base.num_embeddings, (config.length,), generator=generator)
            start = base.weight[ids.to(base.weight.device)]
        else:
            ids = torch.tensor(config.text_ids * (config.length // len(config.text_ids) + 1))[: config.length]
            start = base.weight[ids.to(base.weight.device)]
        self.prompt = nn.Parameter(start.detach().clone())  # (k, D)

    @property
    def weight(self) -> Tensor:
        """The model's own table, which the tied head reads."""
        return self.base.weight

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) ids -> (B, T, D); ids from the vocabulary's size on mean the prompt."""
        V = self.base.num_embeddings
        mine = (ids >= V)[..., None]  # (B, T, 1)
        return torch.where(mine, F.embedding((ids - V).clamp(min=0), self.prompt), self.base(ids.clamp(max=V - 1)))


class PromptedBody(nn.Module):
    """A stack that reads the k vectors before every text."""

    def __init__(self, base: nn.Module, config: PromptConfig):
        super().__init__()
        base.token_embedding = PromptEmbedding(base.token_embedding, config)
        self.base, self.k, self.config = base, config.length, base.config

    @property
    def token_embedding(self) -> PromptEmbedding:
        """The table with the prompt behind it."""
        return self.base.token_embedding

    def forward(self, tokens: Tensor, mask: Tensor | None = None, cache=None, *arguments) -> Tensor:
        """As the stack's own: (B, T, D) for the T tokens alone. BERT has the segments (B, T) in the place of a cache:
        the prompt is of the first."""
        V = self.token_embedding.base.num_embeddings
        if bool((tokens >= V).any()):
            raise UserError(f"the token id {int(tokens.max())} has no row in the model's table of {V}, where the tuned "
                            f"prompt begins; use the tokenizer that belongs to the model")
        if isinstance(cache, Cache) and cache.length > 0:  # the prompt was read before the first tokens
            return self.base(tokens, mask, cache, *arguments)
        if isinstance(cache, Cache):
            cache.make_room(self.k)
        elif cache is not None:
            cache = F.pad(cache, (self.k, 0))
        ids = torch.arange(V, V + self.k, device=tokens.device).expand(len(tokens), -1)  # (B, k)
        tokens = torch.cat([ids, tokens], dim=1)  # (B, k + T)
        if mask is not None:
            mask = F.pad(mask, (self.k, 0), value=True)
            pads = (mask[:, self.k :].cumsum(dim=1) == 0).sum(dim=1, keepdim=True)  # (B, 1) on the left
            if pads.any():  # they go before the prompt, which stands right before the text
                place = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
                prompt = torch.where(place < pads + self.k, place - pads, place)
                source = torch.where(place < pads, place + self.k, prompt)
                tokens, mask = tokens.gather(1, source), mask.gather(1, source)
        return self.base(tokens, mask, cache, *arguments)[:, self.k :]


def room(model: nn.Module) -> int:
    """Tokens that a model can read: its context, less the vectors of a tuned prompt."""
    return model.config.context - getattr(getattr(model.body, "encoder", model.body), "k", 0)


def wrap(model: nn.Module, config: PromptConfig | None = None) -> nn.Module:
    """Put k vectors before whatever the model reads; they and the head train.

    Args:
        model: with a `body` of this project (decoder, encoder or encoder-decoder).
    Raises:
        UserError: another kind of model, or a prompt that leaves no room in the context.
    """
    config = config or PromptConfig()
    base = fingerprint(model)
    body = getattr(model, "body", None)
    stack = getattr(body, "encoder", body)
    if not hasattr(getattr(stack, "token_embedding", None), "num_embeddings"):
        raise UserError("prompt tuning needs a model with a `body` that has a `token_embedding`; this one has none")
    if config.length >= stack.config.context:
        raise UserError(f"a prompt of {config.length} vectors leaves no room in the context of {stack.config.context}; "
                        f"use fewer")
    freeze(model)
    replace_modules(model, {"body" if stack is body else "body.encoder": PromptedBody(stack, config)})
    return note(model, "prompt-tuning", config, base, ("token_embedding.prompt",))
