r"""GGUF, the file format of llama.cpp: facts, then a list of tensors, then their numbers, most of them in a few bits.

    "GGUF"  version  how many tensors  how many facts            4 bytes, uint32, uint64, uint64; all little-endian
    for each fact      name, type, value     a text is its length (uint64) and its bytes; a list its type, length, items
    for each tensor    name, dimensions (fastest first), number format, offset
    zeros up to a multiple of `general.alignment`, 32 without it; then the tensors, each at its offset from here

    Q8_0    blocks of 32:  x = d q          d fp16, q 32 × int8                         8.5 bits a number
    Q4_1    blocks of 32:  x = d q + m      d, m fp16, q 32 × 4 bits, 0..15             5 bits a number

The first is the absmax mapping of the chapter on quantization, a scale for each group of 32; the second a relative of
its zero-point mapping, with a real m in the place of an integer. Details that matter:
    1. In a Q4_1 block the low halves of its 16 bytes are numbers 0..15, the high halves 16..31
       (test_blocks_are_read_as_counted_by_hand).
    2. Nothing in the file is believed: every length is checked against what is left of it
       (test_a_gguf_that_is_cut_anywhere_is_refused_in_words).

Read next: gguf_llama.py (what the names mean). Format: the GGUF specification, versions 2 and 3.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minialign.runs.errors import UserError

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # struct letters
TEXT, LIST = 8, 9
FORMATS = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
           12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
           20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
           29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4"}
BLOCKS = {"F32": (1, 4), "F16": (1, 2), "Q4_1": (32, 20), "Q8_0": (32, 34)}  # those read: numbers of a block, its bytes


@dataclass
class Stored:
    """One tensor as it lies in the file."""

    shape: tuple[int, ...]  # slowest dimension first, as everywhere else in the project
    format: str  # F32 | F16 | Q4_1 | Q8_0
    content: np.ndarray  # its bytes, (n,) uint8, a view of the file

    def numbers(self) -> np.ndarray:
        """All of it in fp32, of its shape."""
        return READERS[self.format](self.content).reshape(self.shape)


@dataclass
class GGUF:
    """A whole file."""

    file: Path  # where it is
    facts: dict[str, Any]  # name -> number, truth value, text or list
    tensors: dict[str, Stored]  # in the order of the file


class Reader:
    """A place in the bytes of a file that moves on as it is read; UserError when the file ends too early."""

    def __init__(self, content: np.ndarray, file: Path):
        self.content, self.file, self.place = content, file, 0

    def take(self, count: int) -> bytes:
        """The next bytes."""
        if count > len(self.content) - self.place:
            raise UserError(f"the file ends at byte {len(self.content)}, in the middle of something; it is cut short "
                            f"or altered: fetch it again", self.file)
        self.place += count
        return self.content[self.place - count : self.place].tobytes()

    def scalar(self, letter: str) -> Any:
        """One number of this struct letter."""
        return struct.unpack("<" + letter, self.take(struct.calcsize("<" + letter)))[0]

    def text(self) -> str:
        """A length and so many bytes of UTF-8."""
        try:
            return self.take(self.scalar("Q")).decode("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"a text before byte {self.place} is not UTF-8; the file is altered: fetch it again",
                            self.file) from None

    def value(self, kind: int) -> Any:
        """A fact's value of this type."""
        if kind == TEXT:
            return self.text()
        if kind == LIST:
            inner, count = self.scalar("I"), self.scalar("Q")
            if inner in SCALARS:  # all at once
                size = struct.calcsize("<" + SCALARS[inner])
                return list(struct.unpack(f"<{count}{SCALARS[inner]}", self.take(count * size))) if count else []
            if inner == TEXT and count * 8 <= len(self.content) - self.place:
                return [self.text() for _ in range(count)]
        elif kind in SCALARS:
            return self.scalar(SCALARS[kind])
        raise UserError(f"a fact before byte {self.place} is of a type or length that GGUF does not have; the file is "
                        f"altered: fetch it again", self.file)


def read_gguf(path: Path) -> GGUF:
    """Facts and tensors of a GGUF file; the numbers stay in the file until `Stored.numbers` asks for them.

    Raises:
        UserError: not a GGUF file, another version, cut short, altered so that it contradicts itself, or a number
            format that is not read.
    """
    path = Path(path)
    try:
        content = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
    except FileNotFoundError:
        raise UserError("there is no such file", path) from None
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", path) from None
    reader = Reader(content, path)
    if bytes(content[:4]) != b"GGUF":
        raise UserError("not a GGUF file (it does not begin with GGUF)", path)
    reader.take(4)
    version = reader.scalar("I")
    if version not in (2, 3):
        raise UserError(f"GGUF version {version}; versions 2 and 3 are read, little-endian ones", path)
    tensors, facts = reader.scalar("Q"), reader.scalar("Q")
    if (tensors + facts) * 12 > len(content):
        raise UserError(f"promises {tensors} tensors and {facts} facts, more than {len(content)} bytes can hold; it is "
                        f"altered: fetch it again", path)
    about = {}
    for _ in range(facts):
        name = reader.text()
        about[name] = reader.value(reader.scalar("I"))
    entries = [_entry(reader) for _ in range(tensors)]
    alignment = about.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise UserError(f"general.alignment is {alignment!r}; it must be a whole number above 0", path)
    start = math.ceil(reader.place / alignment) * alignment
    stored = {name: _stored(name, shape, kind, start + offset, content, path) for name, shape, kind, offset in entries}
    return GGUF(path, about, stored)


def _entry(reader: Reader) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, number format and offset of one tensor in the list."""
    name, dimensions = reader.text(), reader.scalar("I")
    if dimensions > 4:
        raise UserError(f"tensor {name!r} has {dimensions} dimensions; GGUF knows up to 4: the file is altered, fetch "
                        f"it again", reader.file)
    shape = tuple(reader.scalar("Q") for _ in range(dimensions))[::-1]
    return name, shape, reader.scalar("I"), reader.scalar("Q")


def _stored(name: str, shape: tuple[int, ...], kind: int, start: int, content: np.ndarray, file: Path) -> Stored:
    """A tensor's bytes, after all checks."""
    called = FORMATS.get(kind, f"number {kind}")
    if called not in BLOCKS:
        raise UserError(f"tensor {name!r} is stored as {called}; read here are {', '.join(BLOCKS)}: convert the file "
                        f"to one of them", file)
    numbers, size = BLOCKS[called]
    count = math.prod(shape)
    if (shape[-1] if shape else 1) % numbers:
        raise UserError(f"tensor {name!r} has rows of {shape[-1]} numbers, which {called} cannot hold: the file is "
                        f"altered, fetch it again", file)
    end = start + count // numbers * size
    if end > len(content):
        raise UserError(f"the file ends at byte {len(content)}, and tensor {name!r} would end at {end}; it is cut "
                        f"short: fetch it again", file)
    return Stored(shape, called, content[start:end])


def _q8_0(content: np.ndarray) -> np.ndarray:
    """x = d q."""
    blocks = content.reshape(-1, 34)
    d = blocks[:, :2].copy().view("<f2").astype(np.float32)  # (n, 1)
    return d * blocks[:, 2:].view(np.int8).astype(np.float32)  # (n, 32)


def _q4_1(content: np.ndarray) -> np.ndarray:
    """x = d q + m."""
    blocks = content.reshape(-1, 20)
    d, m = (blocks[:, at : at + 2].copy().view("<f2").astype(np.float32) for at in (0, 2))  # (n, 1)
    q = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1).astype(np.float32)  # (n, 32)
    return d * q + m


READERS = {"F32": lambda content: content.copy().view("<f4"), "Q8_0": _q8_0, "Q4_1": _q4_1,
           "F16": lambda content: content.copy().view("<f2").astype(np.float32)}
