r"""Llama, by hand: a decoder with rotary positions, fewer keys than queries, and a gate in its feed-forward layer.

    x ← x + Attention(RMSNorm(x));   x ← x + FeedForward(RMSNorm(x));   no biases      Touvron et al. 2023, §2.2
    queries and keys are turned by m θᵢ, θᵢ = base^(−2i/d), m the place                Su et al. 2021, §3.4.2
    G = H / K queries share one of K keys and values (grouped-query attention)         Ainslie et al. 2023, §2.2
    FeedForward(x) = W₂ (silu(W_g x) ⊙ W₁ x)                                            Shazeer 2020 (SwiGLU), Eq. 6

It reads folders of `model_type` llama (here) and GGUF files of architecture llama (gguf_llama.py). Details that matter:
    1. The pairs that are turned together are (xᵢ, xᵢ₊d/2), as in transformer.py; GGUF files keep the rows for pairs
       (x₂ᵢ, x₂ᵢ₊₁).
    2. Positions count real tokens, so padding on the left changes nothing
       (test_left_padding_changes_no_logit_of_llama).
    3. The cache keeps K heads, not H: a third of the memory in SmolLM2
       (test_cached_steps_of_llama_equal_the_full_pass).
    4. While writing, the G queries of a key are multiplied with it at once, so no key is copied for them.

Read next: smollm2.py (a real one). Try it:  python -m minialign chat smollm2
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from minialign.cache import Cache
from minialign.lab.interchange.folder import WEIGHTS, Settings, build, own_head, read_folder, renamed
from minialign.lab.pretrained.masks import who_sees_whom
from minialign.lab.pretrained.rms_norm import RMSNorm
from minialign.runs.errors import UserError
from minialign.tokenizer import SpecialIds
from minialign.transformer import attention, rotate, rotation_table

NAMES = [  # theirs -> ours
    (r"^model\.embed_tokens", "body.token_embedding"),
    (r"^model\.norm", "body.norm"),
    (r"^model\.layers\.", "body.blocks."),
    (r"input_layernorm", "attention_norm"),
    (r"post_attention_layernorm", "feed_forward_norm"),
    (r"self_attn\.q_proj", "attention.query"),
    (r"self_attn\.k_proj", "attention.key"),
    (r"self_attn\.v_proj", "attention.value"),
    (r"self_attn\.o_proj", "attention.output"),
    (r"mlp\.gate_proj", "feed_forward.gate"),
    (r"mlp\.up_proj", "feed_forward.inner"),
    (r"mlp\.down_proj", "feed_forward.output"),
    (r"^lm_head", "head"),
]
UNUSED = r"rotary_emb\.inv_freq$"


@dataclass(frozen=True)
class LlamaConfig:
    """Shape of a Llama."""

    vocabulary: int  # V, how many tokens there are
    context: int = 2048  # most tokens that it can read, prompt and answer together
    width: int = 576  # D, length of a token's vector
    layers: int = 30  # N, number of blocks
    heads: int = 9  # H, heads of queries
    key_value_heads: int = 3  # K, heads of keys and values; divides H
    head_size: int = 64  # d, even
    inner: int = 1536  # width of the feed-forward layer
    base: float = 10_000.0  # of the rotary angles; larger ones turn slower and reach further
    eps: float = 1e-5  # added to the mean square in the norms
    kind: str = "decoder"  # what it is to generation.py

    def __post_init__(self):
        if self.heads % self.key_value_heads:
            raise UserError(f"{self.heads} heads of queries cannot share {self.key_value_heads} heads of keys evenly")
        if self.head_size % 2:
            raise UserError(f"the head size is {self.head_size}; rotary positions need an even one")


class Attention(nn.Module):
    """H heads of queries over K heads of keys and values."""

    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__()
        self.config, self.layer, d = config, layer, config.head_size
        self.query = nn.Linear(config.width, config.heads * d, bias=False)
        self.key = nn.Linear(config.width, config.key_value_heads * d, bias=False)
        self.value = nn.Linear(config.width, config.key_value_heads * d, bias=False)
        self.output = nn.Linear(config.heads * d, config.width, bias=False)

    def forward(self, x: Tensor, rotation, allowed: Tensor | None, causal: bool, cache: Cache | None) -> Tensor:
        B, T, K = *x.shape[:2], self.config.key_value_heads

        def split(y: Tensor) -> Tensor:
            return y.view(B, T, -1, self.config.head_size).transpose(1, 2)  # (B, T, · d) -> (B, ·, T, d)

        query, key = (rotate(split(y), rotation) for y in (self.query(x), self.key(x)))  # (B, H, T, d), (B, K, T, d)
        value = split(self.value(x))
        if cache is not None:
            key, value = cache.extend(self.layer, key, value)  # (B, K, S, d)
        G = self.config.heads // K
        if T == 1:
            mixed = attention(query.view(B, K, G, -1), key, value, allowed, fused=False)  # (B, K, G, d)
            mixed = mixed.view(B, self.config.heads, 1, -1)  # (B, H, 1, d)
        else:
            mixed = attention(query, key.repeat_interleave(G, dim=1), value.repeat_interleave(G, dim=1), allowed,
                              causal)  # (B, H, T, d)
        return self.output(mixed.transpose(1, 2).flatten(2))  # (B, T, D)


class FeedForward(nn.Module):
    """W₂ (silu(W_g x) ⊙ W₁ x), on every token by itself."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.gate, self.inner = (nn.Linear(config.width, config.inner, bias=False) for _ in range(2))
        self.output = nn.Linear(config.inner, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(F.silu(self.gate(x)) * self.inner(x))


class Block(nn.Module):
    """Attention, then feed-forward: each adds its result to the stream."""

    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__()
        self.attention_norm, self.attention = RMSNorm(config.width, config.eps), Attention(config, layer)
        self.feed_forward_norm, self.feed_forward = RMSNorm(config.width, config.eps), FeedForward(config)

    def forward(self, x: Tensor, rotation, allowed: Tensor | None, causal: bool, cache: Cache | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotation, allowed, causal, cache)
        return x + self.feed_forward(self.feed_forward_norm(x))


class LlamaBody(nn.Module):
    """Tokens in, one vector for each token out."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = RMSNorm(config.width, config.eps)
        self.checkpoints = False  # keep each block's input only, and compute the block again in the backward pass

    def forward(self, tokens: Tensor, mask: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """(B, T, D) of tokens (B, T), after the last norm. Raises UserError for more than the context holds.

        Args:
            mask: (B, T) bool, true at real tokens; None says that all are.
            cache: what was read before; these T tokens are added to it.
        """
        T = tokens.shape[1]
        causal = mask is None and T > 1 and (cache is None or cache.length == 0)  # the fused kernel needs no mask
        positions, allowed = who_sees_whom(tokens, mask, cache, causal=not causal)
        longest = int(positions.max()) + 1
        if longest > self.config.context:
            raise UserError(f"{longest} tokens do not fit the model's context of {self.config.context}; shorten the "
                            f"text")
        x = self.token_embedding(tokens)  # (B, T, D)
        rotation = rotation_table(positions, self.config.head_size, self.config.base)
        for block in self.blocks:
            if self.checkpoints and cache is None and torch.is_grad_enabled():
                x = checkpoint(block, x, rotation, allowed, causal, None, use_reentrant=False)
            else:
                x = block(x, rotation, allowed, causal, cache)
        if cache is not None:
            cache.length += T
        return self.norm(x)


class Llama(nn.Module):
    """A body and its head: the table of token vectors, or with `own_head` a table of its own."""

    special = SpecialIds(1, 2, 0)

    def __init__(self, config: LlamaConfig, own_head: bool = False):
        super().__init__()
        self.config, self.body = config, LlamaBody(config)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False) if own_head else None

    def forward(self, tokens: Tensor, mask: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """(B, T, V) logits; the arguments are the body's."""
        return self.logits(self.body(tokens, mask, cache))

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""
        return F.linear(hidden, self.body.token_embedding.weight) if self.head is None else self.head(hidden)


def load_llama(folder: Path) -> Llama:
    """A Llama from a checkpoint folder, in fp32, in evaluation mode.

    Raises:
        UserError: see `read_folder`; a setting that is not supported; tensors of another model.
    """
    settings, tensors = read_folder(folder, "llama")
    settings.must_be("hidden_act", ("silu",))
    settings.must_be("attention_bias", (False,))
    settings.must_be("mlp_bias", (False,))
    width, heads = settings.number("hidden_size"), settings.number("num_attention_heads")
    config = LlamaConfig(
        vocabulary=settings.number("vocab_size"),
        context=settings.number("max_position_embeddings"),
        width=width,
        layers=settings.number("num_hidden_layers", most=len(tensors)),
        heads=heads,
        key_value_heads=settings.number("num_key_value_heads", heads),
        head_size=settings.number("head_dim", width // heads),
        inner=settings.number("intermediate_size"),
        base=rotary_base(settings),
        eps=settings.number("rms_norm_eps", 1e-6, whole=False, least=0),
    )
    tensors = renamed(tensors, NAMES, UNUSED)
    own = own_head(tensors, "head.weight", "body.token_embedding.weight", settings)
    model = build(Llama, config, tensors, Path(folder) / WEIGHTS, own_head=own)
    model.special = settings.special("bos_token_id", Llama.special)
    return model


def rotary_base(settings: Settings) -> float:
    """The base of the rotary angles, old name or new. Raises UserError when the angles are stretched."""
    for name in ("rope_scaling", "rope_parameters"):  # a file may have both
        rotary = settings.values.get(name) or {}
        inside = Settings(rotary if isinstance(rotary, dict) else {"rope_type": rotary}, settings.file)
        inside.must_be("rope_type" if "rope_type" in inside.values else "type", ("default",))
    return inside.number("rope_theta", settings.number("rope_theta", 10_000.0, whole=False), whole=False)
