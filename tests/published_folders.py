"""Small folders as others publish them, for the tests: a GPT-2, a Llama and a BERT."""

import json

import torch
from gguf_files import tiny_file, tiny_llama
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from minialign.lab.interchange.folder import PretrainedTokenizer, renamed
from minialign.lab.interchange.gguf import read_gguf
from minialign.lab.interchange.gguf_llama import tokenizer_from_gguf
from minialign.lab.interchange.published import write_bert
from minialign.lab.pretrained.bert import Bert, BertConfig
from minialign.runs.tensors import tensors_of
from minialign.tokenizer import SpecialIds

LLAMA_NAMES = [  # ours -> theirs
    (r"^body\.token_embedding", "model.embed_tokens"), (r"^body\.norm", "model.norm"),
    (r"^body\.blocks\.", "model.layers."), (r"feed_forward_norm", "post_attention_layernorm"),
    (r"attention_norm", "input_layernorm"), (r"attention\.(query|key|value|output)", r"self_attn.\1_proj"),
    (r"query_proj", "q_proj"), (r"key_proj", "k_proj"), (r"value_proj", "v_proj"), (r"output_proj", "o_proj"),
    (r"feed_forward\.gate", "mlp.gate_proj"), (r"feed_forward\.inner", "mlp.up_proj"),
    (r"feed_forward\.output", "mlp.down_proj"), (r"^head", "lm_head"),
]


def gpt2(d, tokenizer, **changes):
    """A GPT-2 of one layer in its published layout; a change to None takes a setting out."""
    V, generator = tokenizer.size, torch.Generator().manual_seed(0)
    shapes = {"wte.weight": (V, 8), "wpe.weight": (48, 8), "h.0.attn.c_attn.weight": (8, 24),
              "h.0.attn.c_attn.bias": (24,), "h.0.attn.c_proj.weight": (8, 8)}
    shapes |= {"h.0.mlp.c_fc.weight": (8, 32), "h.0.mlp.c_fc.bias": (32,), "h.0.mlp.c_proj.weight": (32, 8)}
    shapes |= {f"{name}.{part}": (8,) for name in ("ln_f", "h.0.ln_1", "h.0.ln_2") for part in ("weight", "bias")}
    shapes |= {"h.0.attn.c_proj.bias": (8,), "h.0.mlp.c_proj.bias": (8,)}
    tensors = {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}
    settings = {"model_type": "gpt2", "vocab_size": V, "n_positions": 48, "n_embd": 8, "n_layer": 1, "n_head": 2,
                "bos_token_id": 2, "eos_token_id": 2}
    return write(d, settings | changes, tensors, tokenizer.to_json())


def llama(d, own_head=False, **changes):
    """The tiny Llama of gguf_files.py, with its tokenizer."""
    d.mkdir()
    model, tokenizer = tiny_llama(), tokenizer_from_gguf(read_gguf(tiny_file(d / "tiny.gguf")))
    tensors, shape = renamed(tensors_of(model), LLAMA_NAMES), model.config
    if own_head:
        tensors["lm_head.weight"] = torch.randn(tensors["model.embed_tokens.weight"].shape) * 0.1
    settings = {"model_type": "llama", "vocab_size": shape.vocabulary, "max_position_embeddings": shape.context,
                "hidden_size": shape.width, "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
                "num_key_value_heads": shape.key_value_heads, "head_dim": shape.head_size,
                "intermediate_size": shape.inner, "rope_theta": shape.base, "rms_norm_eps": shape.eps,
                "tie_word_embeddings": not own_head, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    return write(d, settings | changes, tensors, tokenizer.to_json())


def with_marks(library):
    """A copy of a tokenizer that has the marks of a BERT, the last four of its tokens."""
    marked = Tokenizer.from_str(library.to_str())
    marked.add_special_tokens(["[CLS]", "[SEP]", "[PAD]", "[MASK]"])
    return marked


def bert(d):
    """A BERT of two layers that knows eight words, with its head for masked words."""
    words = ["[PAD]", "[UNK]", "the", "red", "kite", "flew", "barn", "over", "[CLS]", "[SEP]", "[MASK]"]
    library = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    library.pre_tokenizer, library.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    library.add_special_tokens([word for word in words if word.startswith("[")])
    torch.manual_seed(0)
    model = Bert(BertConfig(len(words), context=24, width=16, layers=2, heads=2, inner=32), masked_words=True)
    model.special = SpecialIds(8, 9, 0)
    write_bert(model.eval(), PretrainedTokenizer(library, model.special), d)
    return d


def write(d, settings, tensors, tokenizer):
    """The three files of a folder; a setting that is None is left out."""
    d.mkdir(exist_ok=True)
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, d / "model.safetensors")
    (d / "config.json").write_text(json.dumps({name: v for name, v in settings.items() if v is not None}))
    (d / "tokenizer.json").write_text(tokenizer)
    return d
