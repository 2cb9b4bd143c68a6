r"""Calling a reader's function: whatever it raises comes back as a hint, with the line of the reader's own that did
it."""

import linecache
import sysconfig
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

NOT_THE_READERS = (
    Path(__file__).parents[2],
    Path(torch.__file__).parent,
    *map(Path, (sysconfig.get_paths()[kind] for kind in ("stdlib", "purelib", "platlib"))),
)


@dataclass(frozen=True)
class Raised:
    """In place of a result: the answer raised an exception."""

    says: str


def called(function: Callable, arguments: tuple) -> Any:
    """The result, or Raised with the line of the reader's that did it."""
    try:
        return function(*arguments)
    except (Exception, SystemExit) as error:
        if isinstance(error, NotImplementedError) and not error.args:
            return None  # a stub's; torch's own say what is not implemented
        return Raised(told(error, getattr(getattr(function, "__code__", None), "co_filename", "")))


def told(error: BaseException, file: str) -> str:
    """An exception as a hint: its kind, its message, and the last line of the reader's own code (in `file`, where the
    function stands) that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == file]
    own = own or [frame for frame in frames if is_the_readers(frame.filename)]
    where = ""
    if own:
        line = (own[-1].line or linecache.getline(own[-1].filename, own[-1].lineno or 0)).strip()
        where = f" in line {own[-1].lineno}" + (f", `{line}`" if line else "")
    message = " ".join(str(error).split())
    return f"It raised {type(error).__name__}{where}: {message[:300] or 'without a message'}"


def is_the_readers(file: str) -> bool:
    """Whether a file is the reader's: a cell or a file of their own, neither this package's nor a library's."""
    return not file.startswith("<frozen") and not any(Path(file).is_relative_to(folder) for folder in NOT_THE_READERS)
