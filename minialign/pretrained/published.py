r"""Any checkpoint folder that can be read here, by what its config.json says that it is.

    model_type gpt2 → gpt2.py      bert → bert.py      t5 → t5.py      llama → llama.py

Read next: folder.py (the layout). Try it:  python -m minialign finetune --base FOLDER --data FILE.jsonl
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from minialign.errors import UserError
from minialign.files import read_json
from minialign.pretrained.bert import load_bert
from minialign.pretrained.folder import CONFIG, PretrainedTokenizer, read_tokenizer
from minialign.pretrained.gpt2 import load_gpt2
from minialign.pretrained.llama import load_llama
from minialign.pretrained.t5 import load_t5

READERS: dict[str, Callable[[Path], nn.Module]] = {"gpt2": load_gpt2, "bert": load_bert, "t5": load_t5, "llama": load_llama}


def is_published(folder: Path) -> bool:
    """Whether a folder is a checkpoint as other people publish it, and no run of this project."""
    config = read_json(Path(folder) / CONFIG) if (Path(folder) / CONFIG).is_file() else None
    return isinstance(config, dict) and "model_type" in config and "what" not in config


def load_published(folder: Path) -> tuple[nn.Module, PretrainedTokenizer]:
    """The model of a checkpoint folder, in fp32, in evaluation mode, and its tokenizer.

    Raises:
        UserError: an architecture that is not read here; whatever its reader finds wrong; no tokenizer.json.
    """
    kind = read_json(Path(folder) / CONFIG).get("model_type")
    if not isinstance(kind, str) or kind not in READERS:
        raise UserError(f"model_type is {kind!r}; read here are {', '.join(READERS)}", Path(folder) / CONFIG)
    model = READERS[kind](folder)
    return model, read_tokenizer(folder, model.special, ends_prompts=kind == "t5")
