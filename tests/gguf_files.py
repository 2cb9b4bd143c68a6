"""Small GGUF files for the tests: a writer, and a tiny Llama with a tokenizer of 256 bytes, three marks and a few
merges."""

import struct

import numpy as np
import torch
from tokenizers import pre_tokenizers

from minialign.lab.pretrained.llama import Llama, LlamaConfig

TEMPLATE = "{% for message in messages %}{{'<|im_start|>' + message['role']}}{% endfor %}"
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "w")]
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *BYTES, *("".join(pair) for pair in MERGES)]


def text(value):
    """A length and so many bytes."""
    return struct.pack("<Q", len(value.encode())) + value.encode()


def fact(value):
    """Type and value of a fact: text, truth, whole number, number, list of texts or of whole numbers."""
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    kind, body = (8, b"".join(map(text, value))) if isinstance(value[0], str) else (5,
        struct.pack(f"<{len(value)}i", *value))
    return struct.pack("<IIQ", 9, kind, len(value)) + body


def gguf_bytes(facts, tensors, version=3):
    """A whole file; tensors: name -> (shape, number of the format, bytes)."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(facts)) + b"".join(text(name) + fact(value)
        for name, value in facts.items())
    body = b""
    for name, (shape, kind, content) in tensors.items():
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, len(body))
        body += content + b"\0" * (-len(content) % 32)
    return head + b"\0" * (-len(head) % 32) + body


def f32(tensor):
    """A tensor as it is."""
    return tuple(tensor.shape), 0, tensor.detach().numpy().astype("<f4").tobytes()


def pairs_from_halves(weight, size):
    """Rows of each head in the file's order, one by one: row 2i of a head is ours i, row 2i + 1 ours i + size / 2."""
    rows = []
    for head in range(len(weight) // size):
        for i in range(size // 2):
            rows += [weight[head * size + i], weight[head * size + size // 2 + i]]
    return torch.stack(rows)


def tiny_llama():
    """2 layers, 4 heads of queries over 2 of keys, opinions that differ."""
    torch.manual_seed(0)
    model = Llama(LlamaConfig(len(TOKENS), context=96, width=32, layers=2, heads=4, key_value_heads=2, head_size=8,
                              inner=64, base=1000.0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    return model.eval()


def llama_facts(**changes):
    """Facts of the tiny Llama; a change to None takes one out."""
    facts = {
        "general.architecture": "llama", "llama.block_count": 2, "llama.context_length": 96,
        "llama.embedding_length": 32,
        "llama.feed_forward_length": 64, "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
        "llama.rope.freq_base": 1000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.dimension_count": 8, "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS, "tokenizer.ggml.token_type": [3, 3, 3, *[1] * (len(TOKENS) - 3)],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in MERGES], "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 2, "tokenizer.chat_template": TEMPLATE, "general.quantized": False,
    }  # fmt: skip
    return {name: value for name, value in {**facts, **changes}.items() if value is not None}


def llama_tensors(model):
    """Its tensors under the file's names, in the file's order of rows."""
    tensors = {"token_embd.weight": f32(model.body.token_embedding.weight),
               "output_norm.weight": f32(model.body.norm.weight)}
    for n, block in enumerate(model.body.blocks):
        own, think = block.attention, block.feed_forward
        for name, weight in {
            "attn_norm": block.attention_norm.weight, "attn_q": pairs_from_halves(own.query.weight, 8),
            "attn_k": pairs_from_halves(own.key.weight, 8),
            "attn_v": own.value.weight, "attn_output": own.output.weight, "ffn_norm": block.feed_forward_norm.weight,
            "ffn_gate": think.gate.weight, "ffn_up": think.inner.weight, "ffn_down": think.output.weight,
        }.items():  # fmt: skip
            tensors[f"blk.{n}.{name}.weight"] = f32(weight)
    return tensors


def tiny_file(path, **changes):
    """Write the tiny Llama; returns the path."""
    path.write_bytes(gguf_bytes(llama_facts(**changes), llama_tensors(tiny_llama())))
    return path


def q8_0(d, q):
    """One block of Q8_0, from its scale and 32 whole numbers."""
    return np.float16(d).tobytes() + struct.pack("<32b", *q)


def q4_1(d, m, q):
    """One block of Q4_1, from scale, least number and 32 whole numbers 0..15."""
    return np.float16(d).tobytes() + np.float16(m).tobytes() + bytes(q[i] | q[16 + i] << 4 for i in range(16))
