r"""Text to numbers and back: byte-level byte-pair encoding, learned from any text by the `tokenizers` library.

Start with the 256 bytes; again and again join the pair that stands side by side most often (Sennrich et al. 2016, §3.2;
on bytes: Radford et al. 2019, §2.2). Any text in any language comes back exactly, since bytes are the last resort.

Special tokens have the lowest ids and stand for nothing that can be typed: `<end>` written in a text is four letters
and two signs (test_special_tokens_cannot_be_typed). Padding is a token of its own and never the end token, or the model
could not learn to stop (test_pad_is_never_end).

Read next: batching.py.
Try it:  python -m minialign sample RUN --prompt "…" --show tokens
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from minialign.runs.errors import UserError

PAD, BEGIN, END, SEPARATOR = 0, 1, 2, 3
SENTINELS = 16  # <extra_0> … stand for the gaps of span corruption (pretrain/span_corruption.py)
SPECIAL = ["<pad>", "<begin>", "<end>", "<separator>"] + [f"<extra_{i}>" for i in range(SENTINELS)]
MOST_IDS = 2**24  # more than any vocabulary; an id beyond is a damaged file
GREEN, RED, PLAIN = "\033[32m", "\033[31m", "\033[0m"  # colours of a terminal


class SpecialIds(NamedTuple):
    """Which ids begin a text, end it and fill up a row: this project's, or those that real weights came with."""

    begin: int = BEGIN  # what an encoder-decoder's decoder reads first
    end: int = END
    pad: int = PAD


class Tokenizer:
    """Byte-level BPE with the project's special tokens: what `train_tokenizer` makes or `load_tokenizer` reads."""

    pad, begin, end, separator = PAD, BEGIN, END, SEPARATOR
    ends_prompts = False  # whether a prompt is ended instead of begun

    def __init__(self, library: tokenizers.Tokenizer):
        self.library = library
        self.library.encode_special_tokens = True  # what a person types is text, never a special token
        self.size = library.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens."""
        return self.encode_many([text])[0]

    def encode_many(self, texts: list[str]) -> list[list[int]]:
        """Ids of many texts, on all cores."""
        try:
            return [encoding.ids for encoding in self.library.encode_batch(texts, add_special_tokens=False)]
        except TypeError:  # what JSON can escape and no file can hold
            message = "a text holds half a character (an unpaired surrogate such as \\ud83d); remove it"
            raise UserError(message) from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; special tokens are left out."""
        return self.library.decode([int(i) for i in ids], skip_special_tokens=True)

    def name(self, i: int) -> str:
        """How one token looks to a person: its text, or the name of a special token."""
        i = int(i)
        return SPECIAL[i] if i < len(SPECIAL) else self.library.decode([i])

    def to_json(self) -> str:
        """The whole tokenizer as the text of a `tokenizer.json`."""
        return self.library.to_str()

    def fingerprint(self) -> str:
        """Sixteen hex digits that differ when any token differs; models carry it, so that no other's ids are read."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


def train_tokenizer(texts: Iterable[str], vocabulary: int = 1024) -> Tokenizer:
    """Learn a tokenizer from texts.

    Args:
        texts: any strings.
        vocabulary: tokens in all: 20 special ones, 256 bytes, merges; fewer where the text gives no more.
    Raises:
        UserError: no room for the bytes.
    """
    if vocabulary < len(SPECIAL) + 256:
        raise UserError(f"vocabulary is {vocabulary}; it must be at least {len(SPECIAL) + 256}: {len(SPECIAL)} special "
                        f"tokens and 256 bytes")
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=SPECIAL, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    library.train_from_iterator(texts, trainer)
    return Tokenizer(library)


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a `tokenizer.json` that this project wrote. Raises UserError for anything else."""
    try:
        library = tokenizers.Tokenizer.from_str(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError("there is no tokenizer; name a run folder that `minialign pretrain` made", path) from None
    except Exception as error:  # the library raises plain Exception for whatever is wrong in the file
        raise UserError(f"not a tokenizer ({str(error)[:80]}); copy it again from the run that made it", path) from None
    check_ids(library, path)
    if [library.id_to_token(i) for i in range(len(SPECIAL))] != SPECIAL:
        raise UserError("a tokenizer without minialign's special tokens; train one with `minialign pretrain`", path)
    return Tokenizer(library)


def check_ids(library: tokenizers.Tokenizer, file: object) -> None:
    """Raise UserError for an id that no table has a row for: the library counts up to it whenever it writes."""
    name, highest = max(library.get_vocab().items(), key=lambda item: item[1], default=("", 0))
    if highest >= MOST_IDS:
        raise UserError(f"gives {name!r} the id {highest}, and no table has so many rows; the file is altered: copy it "
                        f"again", file)


def check_rows(tokenizer: Tokenizer, rows: int, file: object, **further: int) -> None:
    """Raise UserError, with their names, for ids without a row in a table of `rows` token vectors: tokens of the
    tokenizer; its begin, end and padding, and `further` ones with a meaning of their own. Called once, when a model is
    loaded: what reads ids afterwards believes them, and prompt tuning takes those beyond the table for its vectors."""
    special = {"begin": tokenizer.begin, "end": tokenizer.end, "padding": tokenizer.pad, **further}
    has = f"the model's table has {rows} rows, for the ids 0 to {rows - 1}"
    for what, ids, remedy in (
        ("the tokenizer gives", {repr(text): i for text, i in tokenizer.library.get_vocab().items()},
         "use the tokenizer.json that belongs to these weights, or let the table grow where the tokens were added "
         "(`resize_token_embeddings`) and save both again"),
        ("the settings give", special, "correct bos_token_id, eos_token_id, pad_token_id or decoder_start_token_id in "
         "config.json to ids that the tokenizer has (a BERT's are those of [CLS], [SEP], [PAD] and [MASK] in it)"),
    ):
        beyond = sorted((i, name) for name, i in ids.items() if i >= rows)
        if beyond:
            named = ", ".join(f"{name} the id {i}" for i, name in beyond[:3])
            more = f" and {len(beyond) - 3} more" * (len(beyond) > 3)
            raise UserError(f"{what} {named}{more}, and {has}; {remedy}", file)


def show_merges(tokenizer: Tokenizer, text: str) -> str:
    """A text cut into its tokens by thin bars, e.g. `The| red| kite|.`"""
    return "|".join(tokenizer.name(i) for i in tokenizer.encode(text))


def show_loss_mask(tokenizer: Tokenizer, tokens: Iterable[int], labels: Iterable[int], ignore: int = -100) -> str:
    """One row for a terminal: what the loss looks at in green, the rest in red.

    Args:
        tokens: (T,) ids that the model reads; labels: (T,) the id that it should say after each of them, or `ignore`.
    """
    tokens, labels = [int(token) for token in tokens], [int(label) for label in labels]
    shown = [f"{RED}{tokenizer.name(tokens[0])}{PLAIN}"]
    for following, label in zip([*tokens[1:], PAD], labels):
        if label != ignore:
            shown.append(f"{GREEN}{tokenizer.name(label)}{PLAIN}")
        elif following != PAD:
            shown.append(f"{RED}{tokenizer.name(following)}{PLAIN}")
    return "".join(shown)
