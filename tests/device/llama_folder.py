"""A Llama folder of a published shape with random weights, in bf16: `python tests/device/llama_folder.py FOLDER
[SHAPE]`. Its tokenizer is the tests' tiny one."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]
from gguf_files import tiny_file  # noqa: E402
from published_folders import LLAMA_NAMES, write  # noqa: E402

from minialign.lab.interchange.folder import renamed  # noqa: E402
from minialign.lab.interchange.gguf import read_gguf  # noqa: E402
from minialign.lab.interchange.gguf_llama import tokenizer_from_gguf  # noqa: E402
from minialign.lab.pretrained.llama import Llama, LlamaConfig  # noqa: E402
from minialign.runs.tensors import tensors_of  # noqa: E402

SHAPES = {
    "1.1b": LlamaConfig(32_000, 2048, 2048, 22, 32, 4, 64, 5632),  # TinyLlama 1.1B
    "1.7b": LlamaConfig(49_152, 2048, 2048, 24, 32, 32, 64, 8192),  # SmolLM2 1.7B
    "tiny": LlamaConfig(400, 64, 32, 2, 4, 2, 8, 64),
}


def make(folder: Path, shape: LlamaConfig) -> Path:
    """Write the folder, unless it is there."""
    if (folder / "model.safetensors").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        empty = Llama(shape)
    generator = torch.Generator().manual_seed(0)
    tensors = {name: (torch.randn(t.shape, generator=generator).mul_(0.02).bfloat16() if t.dim() > 1
                      else torch.ones(t.shape, dtype=torch.bfloat16)) for name, t in tensors_of(empty).items()}
    settings = {"model_type": "llama", "vocab_size": shape.vocabulary, "max_position_embeddings": shape.context,
                "hidden_size": shape.width, "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
                "num_key_value_heads": shape.key_value_heads, "head_dim": shape.head_size,
                "intermediate_size": shape.inner, "rope_theta": shape.base, "rms_norm_eps": shape.eps,
                "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    tokenizer = tokenizer_from_gguf(read_gguf(tiny_file(folder / "tiny.gguf")))
    return write(folder, settings, renamed(tensors, LLAMA_NAMES), tokenizer.to_json())


if __name__ == "__main__":
    make(Path(sys.argv[1]), SHAPES[(sys.argv[2:] or ["1.1b"])[0]])
