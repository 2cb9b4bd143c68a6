r"""Any checkpoint folder that can be read here, by what its config.json says that it is.

    model_type gpt2 → gpt2.py      bert → bert.py      t5 → t5.py      llama → llama.py

Read next: folder.py (the layout). Try it:  python -m minialign finetune --base FOLDER --data FILE.jsonl
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from torch import nn

from minialign.lab.interchange.folder import CONFIG, PretrainedTokenizer, read_tokenizer
from minialign.lab.pretrained.bert import load_bert
from minialign.lab.pretrained.gpt2 import load_gpt2
from minialign.lab.pretrained.llama import load_llama
from minialign.lab.pretrained.t5 import load_t5
from minialign.runs.errors import UserError
from minialign.tokenizer import SpecialIds

READERS: dict[str, Callable[[Path], nn.Module]] = {"gpt2": load_gpt2, "bert": load_bert, "t5": load_t5,
                                                   "llama": load_llama}


def architecture(folder: Path) -> str | None:
    """What a folder's config.json says that its model is, as other people write it; None for a run of this project, and
    where there is none to read."""
    try:
        found = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
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
    return model, tokenizer
