r"""A Llama and its tokenizer out of one GGUF file.

Details that matter:
    1. The rows of queries and keys lie in the file in the order that interleaved rotary positions need, x₀ x₁ x₂ x₃ …
       turned in pairs of neighbours; ours are turned in pairs half a head apart, so the rows are put back
       (test_a_llama_comes_out_of_a_gguf_as_it_went_in).
    2. Numbers of 4 and 8 bits become fp32: the model that results is the quantized one, computed exactly. "fp32" in
       what is measured on it means these numbers, not those that were once trained.
    3. The tokenizer is byte-level BPE with each digit a token of its own, rebuilt from the file's tokens and merges
       (test_the_tokenizer_of_a_gguf_gives_any_text_back).

Read next: lab/pretrained/llama.py (the model).
"""

from typing import Any

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor

from minialign.lab.interchange.folder import PretrainedTokenizer, Settings, build, fp32_copies, own_head, renamed
from minialign.lab.interchange.gguf import GGUF
from minialign.lab.pretrained.llama import Llama, LlamaConfig
from minialign.runs.errors import UserError
from minialign.tokenizer import SpecialIds, check_rows

NAMES = [  # theirs -> ours
    (r"^token_embd", "body.token_embedding"),
    (r"^output_norm", "body.norm"),
    (r"^output\.", "head."),
    (r"^blk\.", "body.blocks."),
    (r"attn_norm", "attention_norm"),
    (r"ffn_norm", "feed_forward_norm"),
    (r"attn_q\.", "attention.query."),
    (r"attn_k\.", "attention.key."),
    (r"attn_v\.", "attention.value."),
    (r"attn_output\.", "attention.output."),
    (r"ffn_gate\.", "feed_forward.gate."),
    (r"ffn_up\.", "feed_forward.inner."),
    (r"ffn_down\.", "feed_forward.output."),
]
CONTROL = 3  # type of a token that no text can contain


def load_gguf(gguf: GGUF) -> tuple[Llama, PretrainedTokenizer]:
    """The model of a file and its tokenizer. Raises UserError as both do, and for ids without a row."""
    model, tokenizer = llama_from_gguf(gguf), tokenizer_from_gguf(gguf)
    check_rows(tokenizer, model.config.vocabulary, gguf.file)
    return model, tokenizer


def llama_from_gguf(gguf: GGUF) -> Llama:
    """The model, in fp32, in evaluation mode.

    Raises:
        UserError: a file of another architecture; facts that are missing or do not fit; tensors of another model;
            numbers that are not finite.
    """
    settings = Settings(gguf.facts, gguf.file)
    if gguf.facts.get("general.architecture") != "llama":
        raise UserError(f"holds a model of architecture {gguf.facts.get('general.architecture')!r}; only 'llama' is "
                        f"read here", gguf.file)
    factors = [gguf.facts.get(f"llama.rope.{name}", 1) for name in ("scaling.factor", "scale_linear")]
    untyped = "none" if all(factor in (0, 1) for factor in factors) else "linear"  # from before there were types
    scaling = gguf.facts.get("llama.rope.scaling.type", untyped)
    if scaling != "none":
        raise UserError(f"stretches its rotary positions ({scaling!r}), which is not supported here", gguf.file)
    width, heads = settings.number("llama.embedding_length"), settings.number("llama.attention.head_count")
    size = settings.number("llama.rope.dimension_count", width // heads)
    config = LlamaConfig(
        vocabulary=len(_texts(gguf, "tokenizer.ggml.tokens")),
        context=settings.number("llama.context_length"),
        width=width,
        layers=settings.number("llama.block_count", most=len(gguf.tensors)),
        heads=heads,
        key_value_heads=settings.number("llama.attention.head_count_kv", heads),
        head_size=size,
        inner=settings.number("llama.feed_forward_length"),
        base=settings.number("llama.rope.freq_base", 10_000.0, whole=False),
        eps=settings.number("llama.attention.layer_norm_rms_epsilon", whole=False, least=0),
    )
    scales = gguf.tensors.get("rope_freqs.weight")
    if scales is not None and not (scales.numbers() == 1).all():
        raise UserError("its rotary angles are scaled (rope_freqs, as in Llama 3.1 and later), which is not known "
                        "here; use another model", gguf.file)
    stored = renamed(gguf.tensors, NAMES, r"^rope_freqs\.")
    tensors: dict[str, Tensor] = {}
    for name, tensor in stored.items():  # one at a time: together they would be in memory twice
        tensors.update(fp32_copies({name: torch.from_numpy(tensor.numbers())}, gguf.file))
    for name, tensor in tensors.items():
        turned = name.endswith(("attention.query.weight", "attention.key.weight"))
        if turned and tensor.numel() % (size * width) == 0:
            tensors[name] = halves_from_pairs(tensor, size)
    own = own_head(tensors, "head.weight", "body.token_embedding.weight", settings)
    model = build(Llama, config, tensors, gguf.file, own_head=own)
    model.special = special_ids(gguf)
    return model


def halves_from_pairs(weight: Tensor, size: int) -> Tensor:
    """Rows of each head from the order x₀ y₀ x₁ y₁ … to x₀ x₁ … y₀ y₁ …; weight (heads · size, D), size even."""
    return weight.view(-1, size // 2, 2, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


def special_ids(gguf: GGUF) -> SpecialIds:
    """Begin, end and padding; without a padding token the end token stands for it."""
    settings = Settings(gguf.facts, gguf.file)
    end = settings.number("tokenizer.ggml.eos_token_id", least=0)
    begin = settings.number("tokenizer.ggml.bos_token_id", end, least=0)
    return SpecialIds(begin, end, settings.number("tokenizer.ggml.padding_token_id", end, least=0))


def tokenizer_from_gguf(gguf: GGUF) -> PretrainedTokenizer:
    """The tokenizer of the file. Raises UserError when it is not byte-level BPE, or its parts do not fit together."""
    algorithm, cut = gguf.facts.get("tokenizer.ggml.model"), gguf.facts.get("tokenizer.ggml.pre", "smollm")
    if (algorithm, cut) != ("gpt2", "smollm"):
        raise UserError(f"its tokenizer is {algorithm!r}, cut as {cut!r}; only 'gpt2' cut as 'smollm' is read here",
                        gguf.file)
    tokens, merges = _texts(gguf, "tokenizer.ggml.tokens"), _texts(gguf, "tokenizer.ggml.merges")
    kinds = gguf.facts.get("tokenizer.ggml.token_type", [1] * len(tokens))
    pairs, places = [tuple(merge.split(" ")) for merge in merges], {token: i for i, token in enumerate(tokens)}
    # or the library panics
    fit = all(len(pair) == 2 and {*pair, "".join(pair)} <= places.keys() for pair in pairs)
    if not isinstance(kinds, list) or len(kinds) != len(tokens) or len(places) != len(tokens) or not fit:
        raise UserError("its tokens, their types and its merges do not fit together; the file is altered: fetch it "
                        "again", gguf.file)
    library = tokenizers.Tokenizer(models.BPE(places, pairs))
    digits, bytes_ = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.pre_tokenizer, library.decoder = pre_tokenizers.Sequence([digits, bytes_]), decoders.ByteLevel()
    marks = [token for token, kind in zip(tokens, kinds) if kind == CONTROL]
    library.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in marks])
    return PretrainedTokenizer(library, special_ids(gguf))


def _texts(gguf: GGUF, name: str) -> list[Any]:
    """A fact that is a list of texts."""
    value = gguf.facts.get(name)
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise UserError(f"{name!r} is missing or not a list of texts; the file is altered, or has no tokenizer",
                        gguf.file)
    return value
