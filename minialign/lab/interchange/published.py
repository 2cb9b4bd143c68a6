r"""Any checkpoint folder that can be read here, by what its config.json says that it is; a BERT back into one; and
what `quantize` made of either.

    model_type gpt2 → gpt2.py      bert → bert.py      t5 → t5.py      llama → llama.py

A BERT that is written reads back to the same bits (test_a_bert_that_was_written_reads_back_to_the_same_bits), and gives
the same vectors in the `transformers` library (test_transformers_reads_the_folder_that_we_write).

Read next: folder.py (the layout). Try it:  python -m minialign finetune --base FOLDER --data FILE.jsonl
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from minialign.heads import LanguageModel
from minialign.lab.interchange.folder import CONFIG, TOKENIZER, WEIGHTS, PretrainedTokenizer, read_tokenizer, renamed
from minialign.lab.pretrained.bert import NAMES, Bert, BertConfig, load_bert
from minialign.lab.pretrained.gpt2 import load_gpt2
from minialign.lab.pretrained.llama import Llama, LlamaConfig, load_llama
from minialign.lab.pretrained.t5 import load_t5
from minialign.quant.saving import QUANTIZED, load_quantized, load_quantized_run
from minialign.runs.devices import default_device
from minialign.runs.errors import UserError
from minialign.runs.files import read_json, write_atomic, write_json
from minialign.runs.settings import from_dict, to_dict
from minialign.runs.tensors import tensors_of
from minialign.tokenizer import SpecialIds, Tokenizer, check_rows
from minialign.transformer import TransformerConfig

Reader = Callable[[Path], nn.Module]
READERS: dict[str, Reader] = {"gpt2": load_gpt2, "bert": load_bert, "t5": load_t5, "llama": load_llama}
# what can be quantized: class, its shape's class, the argument that says whether it has a head of its own
BUILT = {"gpt2": (LanguageModel, TransformerConfig, None), "llama": (Llama, LlamaConfig, "own_head"),
         "bert": (Bert, BertConfig, "masked_words")}


def architecture(folder: Path) -> str | None:
    """The model_type in a folder's config.json; None for a run of this project, and where there is none to read."""
    try:
        found = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return None
    return found["model_type"] if isinstance(found, dict) and isinstance(found.get("model_type"), str) else None


def load_published(folder: Path) -> tuple[nn.Module, PretrainedTokenizer]:
    """The model of a checkpoint folder, in fp32, in evaluation mode, and its tokenizer.

    Raises:
        UserError: an architecture that is not read here; whatever its reader finds wrong; no tokenizer.json.
    """
    kind = architecture(folder)
    if kind not in READERS:
        raise UserError(f"model_type is {kind!r}; read here are {', '.join(READERS)}", Path(folder) / CONFIG)
    model = READERS[kind](folder)
    tokenizer = read_tokenizer(folder, model.special, ends_prompts=kind == "t5")
    if kind == "bert":
        ids = [tokenizer.library.token_to_id(name) for name in ("[CLS]", "[SEP]", "[PAD]", "[MASK]")]
        if None not in ids:  # every vocabulary has them at places of its own
            *framing, model.hidden_word = ids
            model.special = SpecialIds(*framing)
            tokenizer = read_tokenizer(folder, model.special)
    check_rows(tokenizer, model.config.vocabulary, folder, **mask_of(model))
    if kind == "bert" and None in ids:  # the places that they have in the first vocabularies would be other words
        raise UserError("has not all of [CLS], [SEP], [PAD] and [MASK], which a BERT is read with here; rename its own "
                        "marks to these", Path(folder) / TOKENIZER)
    return model, tokenizer


def mask_of(model: nn.Module) -> dict[str, int]:
    """The id that stands for a hidden word, under its name; a model that writes has none."""
    return {"mask": model.hidden_word} if isinstance(model, Bert) else {}


def describe_published(model: nn.Module) -> dict[str, Any]:
    """What a quantized model's config.json says, so that the model can be built again without the folder that it was
    made from; `model` is the one that was quantized, before."""
    kind = next(kind for kind, (built, *_) in BUILT.items() if type(model) is built)
    return {"kind": kind, "shape": to_dict(model.config), "head": getattr(model, "head", None) is not None,
            "special": list(model.special), **mask_of(model)}


def load_quantized_folder(folder: Path) -> tuple[nn.Module, Tokenizer]:
    """The model and tokenizer that `minialign quantize --out` wrote, of a run or of a published model. Raises UserError
    for files that are missing, altered or do not belong together."""
    file = Path(folder) / CONFIG
    config = read_json(file)
    about = config.get("published") if isinstance(config, dict) else None
    if about is None:
        return load_quantized_run(folder)
    try:
        kind, shape, head = BUILT[about["kind"]]
        model = kind(from_dict(shape, about["shape"], file), **({head: about["head"]} if head else {}))
        model.special = SpecialIds(*about["special"])
        if "mask" in about:
            model.hidden_word = about["mask"]
    except (KeyError, TypeError) as error:
        raise UserError(f"does not say what was quantized ({error}); restore it from a copy, or quantize again",
                        file) from None
    tokenizer = read_tokenizer(folder, model.special)
    if tokenizer.fingerprint() != config.get("tokenizer"):
        raise UserError("tokenizer.json is not the one of this model; restore it from a copy, or quantize again",
                        folder)
    check_rows(tokenizer, model.config.vocabulary, folder, **mask_of(model))
    return load_quantized(model, Path(folder) / QUANTIZED).to(default_device()), tokenizer


def write_bert(model: Bert, tokenizer: PretrainedTokenizer, folder: Path) -> None:
    """Write config.json, tokenizer.json and, last, the weights, each at once; files of these names are replaced."""
    shape, folder = model.config, Path(folder)
    settings = {
        "model_type": "bert", "architectures": ["BertForMaskedLM" if model.head is not None else "BertModel"],
        "vocab_size": shape.vocabulary, "max_position_embeddings": shape.context, "hidden_size": shape.width,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads, "intermediate_size": shape.inner,
        "type_vocab_size": shape.segments, "layer_norm_eps": shape.eps, "hidden_dropout_prob": shape.dropout,
        "hidden_act": "gelu_new" if shape.activation == "gelu_tanh" else shape.activation,
        "pad_token_id": model.special.pad,
    }
    write_atomic(folder / TOKENIZER, tokenizer.to_json())
    write_json(folder / CONFIG, settings)
    names = [(re.escape(ours), theirs) for theirs, ours in reversed(NAMES)] + [(r"^(embeddings|encoder)", r"bert.\1")]
    tensors = {name: tensor.detach().contiguous() for name, tensor in renamed(tensors_of(model), names).items()}
    write_atomic(folder / WEIGHTS, save(tensors, {"format": "pt"}))  # without this word the library does not open it
