r"""Checkpoint folders in the layout that Hugging Face's libraries write: settings, weights and tokenizer.

    FOLDER/config.json                     `model_type` says which architecture, the rest its shape
    FOLDER/model.safetensors               or model.safetensors.index.json and the parts that it lists
    FOLDER/tokenizer.json                  the whole tokenizer, for the `tokenizers` library

A model's file (t5.py, bert.py, gpt2.py, llama.py) says what its settings and its weights are called there. Details that
matter:
    1. Only safetensors are read. A folder with nothing but pickles is refused with the way out: opening a pickle runs
       its author's code.
    2. Weights of 16 bits become fp32, in which everything here is computed.
    3. A setting that would change the numbers and is not understood is an error, never passed over.

Read next: lab/pretrained/bert.py (the shortest of the models).
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tokenizers
import torch
from torch import Tensor, nn

from minialign.lab.realdata.packages import sha256_of
from minialign.runs.errors import UserError
from minialign.runs.files import read_json
from minialign.runs.tensors import check_fit, read_tensors, tensors_of
from minialign.tokenizer import SpecialIds, Tokenizer, check_ids

Model = TypeVar("Model", bound=nn.Module)
CONFIG, WEIGHTS, INDEX, TOKENIZER = "config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json"


class Settings:
    """The settings of a checkpoint under the names that its author gave them; `file` is named in errors."""

    def __init__(self, values: dict[str, Any], file: object):
        self.values, self.file = values, file

    def number(self, name: str, default: float | None = None, whole: bool = True, least: float = 1,
               most: float = 2**31 - 1) -> Any:
        """A number from `least` to `most`. Raises UserError when it is none, or missing without a default."""
        value = self.values.get(name)
        value = default if value is None else value
        if value is None:
            raise UserError(f"setting {name!r} is missing; copy the file again from where the model is published",
                            self.file)
        kinds = (int,) if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
            raise UserError(f"setting {name!r} is {value!r}; it must be a {'whole ' if whole else ''}number from "
                            f"{least} to {most}", self.file)
        return value

    def must_be(self, name: str, allowed: Sequence[Any]) -> Any:
        """A setting that must have one of some values, the first if it is missing. Raises UserError for another."""
        value = self.values.get(name, allowed[0])
        if value not in allowed:
            raise UserError(f"{name} is {value!r}; supported here: {', '.join(map(repr, allowed))}", self.file)
        return value

    def special(self, begin: str, defaults: SpecialIds) -> SpecialIds:
        """Ids of the special tokens; `begin` is the name of the setting for the first."""
        inside = dict(self.values)
        if isinstance(inside.get("eos_token_id"), list) and inside["eos_token_id"]:
            inside["eos_token_id"] = inside["eos_token_id"][0]  # several may end a text; the first is the usual one
        settings, names = Settings(inside, self.file), (begin, "eos_token_id", "pad_token_id")
        return SpecialIds(*(settings.number(name, default, least=0) for name, default in zip(names, defaults)))


def read_folder(folder: Path, architecture: str) -> tuple[Settings, dict[str, Tensor]]:
    """Settings and weights (fp32) of a checkpoint folder; `architecture`: what its `model_type` must say.

    Raises:
        UserError: no such folder or file, another architecture, only pickled weights, a damaged file, or numbers that
            are not finite.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError("there is no such folder; name one with config.json and model.safetensors in it", folder)
    values = read_json(folder / CONFIG)
    if not isinstance(values, dict):
        raise UserError(f"a {type(values).__name__}, not an object with settings", folder / CONFIG)
    if values.get("model_type") != architecture:
        raise UserError(f"model_type is {values.get('model_type')!r}, and this reader is for {architecture!r}",
                        folder / CONFIG)
    tensors: dict[str, Tensor] = {}
    files, listed = _weight_files(folder)
    for file in files:
        part, _ = read_tensors(file)
        tensors.update(fp32_copies(part, file))
    if lost := [name for name in listed if name not in tensors]:
        raise UserError(f"lists {lost[0]}, which is in none of the files ({len(lost)} such names); copy them again",
                        folder / INDEX)
    return Settings(values, folder / CONFIG), tensors


def fp32_copies(tensors: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Copies of the tensors, fp32 if they are floating-point. Raises UserError when a number is not finite."""
    ours = {name: t.to(torch.float32 if t.is_floating_point() else t.dtype, copy=True) for name, t in tensors.items()}
    for name, tensor in ours.items():
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{name} holds NaN or infinity; the file is damaged, copy it again from where the model is "
                            f"published", file)
    return ours


def check_unaltered(path: Path, sha256: str) -> None:
    """Raise UserError when a file is not what was fetched: a flipped bit in a weight would go unnoticed otherwise."""
    if sha256_of(path) != sha256:
        raise UserError("was altered after it was fetched; delete the folder that it is in, and the next run fetches "
                        "it again", path)


def _weight_files(folder: Path) -> tuple[list[Path], list[str]]:
    """The safetensors files of a folder, and the tensors that an index says are in them."""
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS], []
    if (folder / INDEX).exists():
        index = read_json(folder / INDEX)
        files = index.get("weight_map") if isinstance(index, dict) else None
        names = sorted(set(files.values())) if isinstance(files, dict) else []
        if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise UserError("no weight_map with the names of files in this folder; copy it again", folder / INDEX)
        return [folder / name for name in names], list(files)
    if list(folder.glob("*.bin")):
        raise UserError("only pickled weights (.bin), which are not opened here because that runs their author's code; "
                        "save them as safetensors", folder)
    raise UserError(f"there is no {WEIGHTS}", folder)


def renamed(tensors: dict[str, Tensor], rules: Iterable[tuple[str, str]], drop: str = r"(?!)") -> dict[str, Tensor]:
    """Tensors under other names, without those whose name matches `drop`.

    Args:
        rules: pairs (regular expression, replacement), all applied, one after the other.
    """
    found = {}
    for name, tensor in tensors.items():
        if re.search(drop, name):
            continue
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        found[name] = tensor
    return found


def build(kind: type[Model], config: Any, tensors: dict[str, Tensor], file: Path, **keywords: Any) -> Model:
    """A model whose parameters are these tensors (taken over, not copied), in evaluation mode.

    Raises:
        UserError: names or shapes that are not those of the model.
    """
    try:
        with torch.device("meta"):
            model = kind(config, **keywords)
    except RuntimeError as error:  # a table of more numbers than there are addresses
        raise UserError(f"describes a model that cannot be ({str(error)[:80]}); the file is altered", file) from None
    check_fit(model, tensors, file)
    model.load_state_dict({name: tensors[name] for name in tensors_of(model)}, strict=False, assign=True)
    return model.requires_grad_(True).eval()


def own_head(tensors: dict[str, Tensor], head: str, table: str, settings: Settings, needed: bool = True,
             tied: str = "tie_word_embeddings") -> bool:
    """Whether a head is there that differs from the table of token vectors; one that is equal is taken out.

    Args:
        needed: whether such a model has a head at all; tied: the setting that says whether it is the table.
    Raises:
        UserError: the settings say that it is tied, and it differs, or that it is not, and there is none.
    """
    said, there = settings.values.get(tied), head in tensors
    differs = there and not torch.equal(tensors[head], tensors.get(table, tensors[head]))
    if said is False and needed and not there:
        remedy = ", or, if the head is the table of token vectors, write true" * (tied == "tie_word_embeddings")
        raise UserError(f"says that the head is not tied ({tied} is false), and the weights hold none; copy all of "
                        f"them again{remedy}", settings.file)
    if said is True and differs:
        raise UserError(f"says that the head is tied ({tied} is true), and the weights hold one that differs from the "
                        f"table of token vectors; if it is to be used, write false", settings.file)
    if there and not differs:
        del tensors[head]
    return differs


class PretrainedTokenizer(Tokenizer):
    """The tokenizer that real weights were trained with.

    Args:
        library: of the `tokenizers` library, complete.
        special: its ids of begin, end and padding.
        ends_prompts: whether its model reads prompts that are ended in place of begun, as T5 does.
    """

    def __init__(self, library: tokenizers.Tokenizer, special: SpecialIds, ends_prompts: bool = False):
        library.no_padding()
        library.no_truncation()
        super().__init__(library)
        self.special, self.ends_prompts = special, ends_prompts
        self.begin, self.end, self.pad = special
        # SentencePiece's put a blank of their own before every text, also before one that goes on
        first = library.encode("a", add_special_tokens=False).tokens[:1]
        self.own_blank = not ends_prompts and bool(first) and first[0].startswith("▁")

    def encode_many(self, texts: list[str]) -> list[list[int]]:
        """Ids of many texts; the blank that a text begins with is the tokenizer's own where it has one."""
        return super().encode_many([text.removeprefix(" ") if self.own_blank else text for text in texts])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; where the tokenizer has a blank of its own, with it, as a text goes on."""
        ids = [int(i) for i in ids]
        first = next((i for i in ids if i not in self.special), None) if self.own_blank else None
        blank = first is not None and (self.library.id_to_token(first) or "").startswith("▁")
        return " " * blank + super().decode(ids)

    def name(self, i: int) -> str:
        """How one token looks to a person."""
        return self.library.decode([int(i)], skip_special_tokens=False)


def read_tokenizer(folder: Path, special: SpecialIds, ends_prompts: bool = False) -> PretrainedTokenizer:
    """The tokenizer.json of a folder; the rest is the tokenizer's. Raises UserError when there is none or it is bad."""
    path = Path(folder) / TOKENIZER
    try:
        library = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError("there is no such file; the library that made the folder writes it when a fast tokenizer is "
                        "saved", path) from None
    except Exception as error:  # the library raises plain Exception for whatever is wrong in the file
        raise UserError(f"not a tokenizer ({str(error)[:80]}); copy it again from where the model is published",
                        path) from None
    check_ids(library, path)
    return PretrainedTokenizer(library, special, ends_prompts)
