r"""A BERT of ours as a checkpoint folder that other libraries read: the way back of lab/pretrained/bert.py.

    FOLDER/config.json   model_type bert, and the shape under its author's names
    FOLDER/model.safetensors, FOLDER/tokenizer.json

What is written reads back to the same bits (test_a_bert_that_was_written_reads_back_to_the_same_bits), and gives the
same vectors in the `transformers` library (test_transformers_reads_the_folder_that_we_write).

Read next: lab/pretrained/bert.py.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save

from minialign.lab.interchange.folder import CONFIG, TOKENIZER, WEIGHTS, PretrainedTokenizer, renamed
from minialign.lab.pretrained.bert import Bert
from minialign.runs.files import write_atomic, write_json
from minialign.runs.tensors import tensors_of

NAMES = [  # ours -> theirs
    (r"^body\.token_embedding", "embeddings.word_embeddings"),
    (r"^body\.position_embedding", "embeddings.position_embeddings"),
    (r"^body\.segment_embedding", "embeddings.token_type_embeddings"),
    (r"^body\.norm", "embeddings.LayerNorm"),
    (r"^body\.blocks\.", "encoder.layer."),
    (r"attention\.(query|key|value)", r"attention.self.\1"),
    (r"attention\.output", "attention.output.dense"),
    (r"attention_norm", "attention.output.LayerNorm"),
    (r"feed_forward\.inner", "intermediate.dense"),
    (r"feed_forward\.output", "output.dense"),
    (r"feed_forward_norm", "output.LayerNorm"),
    (r"^(embeddings|encoder)", r"bert.\1"),
    (r"^head\.inner", "cls.predictions.transform.dense"),
    (r"^head\.norm", "cls.predictions.transform.LayerNorm"),
    (r"^head\.bias", "cls.predictions.bias"),
]


def write_bert(model: Bert, tokenizer: PretrainedTokenizer, folder: Path) -> None:
    """Write config.json, tokenizer.json and, last, the weights, each at once; files of these names are replaced."""
    shape, folder = model.config, Path(folder)
    settings = {
        "model_type": "bert",
        "architectures": ["BertForMaskedLM" if model.head is not None else "BertModel"],
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.context,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.inner,
        "type_vocab_size": shape.segments,
        "hidden_act": "gelu_new" if shape.activation == "gelu_tanh" else shape.activation,
        "layer_norm_eps": shape.eps,
        "hidden_dropout_prob": shape.dropout,
        "pad_token_id": model.special.pad,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / TOKENIZER, tokenizer.to_json())
    write_json(folder / CONFIG, settings)
    tensors = {name: tensor.detach().contiguous() for name, tensor in renamed(tensors_of(model), NAMES).items()}
    write_atomic(folder / WEIGHTS, save(tensors, {"format": "pt"}))  # without this word the library does not open it
