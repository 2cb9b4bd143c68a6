r"""Files: read what people wrote, with errors that name file and line; write the whole new file or leave the old."""

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from minialign.runs.errors import UserError

SILENT: list[bool] = []  # while it holds anything, nothing is written: another process does
HALF = re.compile(r"[\ud800-\udfff]")  # JSON can escape an unpaired surrogate, and no file can hold it
OBJECT = re.compile(r"""\s*(\[\s*)?\{\s*(("[^"]*"|'[^']*')\s*:|\}\s*$)""")  # how an object begins, right or wrong


class Record(dict):
    """The fields of one line of a file. Where it stands is no field, so that people may call theirs as they like."""

    def __init__(self, fields: dict[str, Any], file: object = None, line: int | None = None):
        super().__init__(fields)
        self.place = (file, line)


def place_of(record: dict[str, Any]) -> tuple[object, int | None]:
    """File and line of a record, for errors; nothing of what never stood in a file."""
    return getattr(record, "place", (None, None))


def read_text(path: Path) -> str:
    """A UTF-8 text file, without its byte-order mark.

    Raises:
        UserError: missing, a folder, empty, or not UTF-8 (names the line and the byte).
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError("there is no such file", path) from None
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", path) from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"not UTF-8: byte 0x{content[error.start]:02x}; save the file as UTF-8", path, line) from None
    if not text.strip():
        raise UserError("the file is empty", path)
    return text


def lines_of(text: str) -> list[str]:
    r"""Its lines. \n, \r\n and \r end one; U+2028, a form feed or NEL are letters of a text, unlike in splitlines."""
    return re.split("\r\n|[\r\n]", text)


def is_jsonl(path: Path, text: str) -> bool:
    """Whether a file is one of JSON objects: by its content, and where its name says so, so that a fault in it is
    found. A first line or most lines that begin as an object does will do."""
    begun = [OBJECT.match(line) is not None for line in lines_of(text) if line.strip()]
    named = Path(path).suffix.lower() in (".jsonl", ".ndjson", ".json")
    return named or OBJECT.match(text) is not None or 2 * sum(begun) > len(begun)


def read_jsonl(path: Path, fields: Sequence[str] = (), kind: type | tuple[type, ...] = str) -> list[Record]:
    """The JSON objects of a file, one a line; blank lines are passed over.

    Args:
        fields: what every line must have; kind: their type.
    Raises:
        UserError: broken JSON, not an object, half a character, a field missing or of another type; names the line and
            the field.
    """
    return parse_jsonl(read_text(path), path, fields, kind)


def parse_jsonl(text: str, path: Path, fields: Sequence[str] = (), kind: type | tuple[type, ...] = str) -> list[Record]:
    """The same of a text that was read already."""
    example = ", ".join(f'"{field}": …' for field in fields)
    records = []
    for number, line in enumerate(lines_of(text), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if "\\u" in line:
                refuse_half_characters(record, path, number)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", "nested too deeply, or a number too long")
            raise UserError(f"not JSON ({reason}); each line must be one object", path, number) from None
        if not isinstance(record, dict):
            raise UserError(f"a {type(record).__name__}, not an object; write {{{example}}}", path, number)
        check_fields(record, fields, kind, path, number)
        records.append(Record(record, path, number))
    return records


def refuse_half_characters(value: Any, file: object, line: int | None = None) -> None:
    """Raise UserError for an unpaired surrogate anywhere in what JSON or YAML held; names the field on top."""
    for name, inside in value.items() if isinstance(value, dict) else [(None, value)]:
        if HALF.search(json.dumps([name, inside], ensure_ascii=False, default=str)):
            what = "it" if name is None else f"field {name!r}"
            raise UserError(f"{what} holds half a character (an unpaired surrogate such as \\ud83d); remove it", file,
                            line)


def check_fields(record: dict[str, Any], fields: Sequence[str], kind: type | tuple[type, ...], path: Path,
                 number: int) -> None:
    """Raise UserError when a line of a file lacks a field, or one is of another type than `kind`."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    names = " or ".join("text" if k is str else k.__name__ for k in kinds)
    for field in fields:
        if field not in record:
            raise UserError(f"field {field!r} is missing; the line has {', '.join(map(repr, record)) or 'none'}", path,
                            number)
        value = record[field]
        if not isinstance(value, kind):
            raise UserError(f"field {field!r} is {type(value).__name__}, not {names}", path, number)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader, or a fault, sees the old content or the new, never a part. Raises UserError when
    the disk is full or the place cannot be written; the old file is untouched."""
    if SILENT:
        return
    path = Path(path)
    content = content.encode() if isinstance(content, str) else content
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        if os.name == "posix":  # the new name itself must survive a power cut
            folder = os.open(path.parent, os.O_RDONLY)
            with contextlib.suppress(OSError):  # some file systems cannot sync a folder
                os.fsync(folder)
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise unwritable(path, error) from None


def unwritable(path: Path, error: OSError) -> UserError:
    """What to tell a person whose disk is full or whose place cannot be written."""
    remedy = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose another --out"
    return UserError(f"cannot be written ({error.strerror or error}); {remedy} and run the same command again", path)


def typed(path: Path) -> str:
    """A path as it is typed in a terminal: in quotes where it has a blank, which would end it."""
    return f'"{path}"' if " " in str(path) else str(path)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON that people can read, atomically."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises UserError when it is missing or broken, with the line, or holds half a character."""
    try:
        value = json.loads(read_text(path))
        refuse_half_characters(value, path)
        return value
    except json.JSONDecodeError as error:
        raise UserError(f"not JSON ({error.msg})", path, error.lineno) from None
    except (ValueError, RecursionError):
        raise UserError("not JSON (nested too deeply, or a number too long)", path) from None


def write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    write_atomic(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def fingerprint(value: Any) -> str:
    """Sixteen hex digits of anything that JSON can hold. A record counts with its line, as in runs of earlier versions,
    so that they go on."""
    if isinstance(value, list):
        value = [{"line": part.place[1], **part} if isinstance(part, Record) else part for part in value]
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def held_out(key: str, share: float) -> bool:
    """Whether an example belongs to the held-out share: its text decides, so equal prompts stand on the same side."""
    return int(hashlib.sha256(" ".join(key.lower().split()).encode()).hexdigest()[:8], 16) < share * 16**8
