r"""Files: read what people wrote, with errors that name file and line; write the whole new file or leave the old."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from minialign.runs.errors import UserError


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


def read_jsonl(path: Path, fields: Sequence[str] = (), kind: type | tuple[type, ...] = str) -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line, each with its line number under "line"; blank lines are passed over.

    Args:
        fields: what every line must have; kind: their type.
    Raises:
        UserError: broken JSON, not an object, a field missing or of another type; names the line and the field.
    """
    example = ", ".join(f'"{field}": …' for field in fields)
    records = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", "nested too deeply, or a number too long")
            raise UserError(f"not JSON ({reason}); each line must be one object", path, number) from None
        if not isinstance(record, dict):
            raise UserError(f"a {type(record).__name__}, not an object; write {{{example}}}", path, number)
        check_fields(record, fields, kind, path, number)
        records.append({**record, "line": number})
    return records


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
        if isinstance(value, str) and not value.isascii() and any(0xD800 <= ord(c) < 0xE000 for c in value):
            raise UserError(f"field {field!r} holds half a character (an unpaired surrogate); remove it", path, number)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader, or a fault, sees the old content or the new, never a part. Raises UserError when
    the disk is full or the place cannot be written; the old file is untouched."""
    path = Path(path)
    content = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
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


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON that people can read, atomically."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises UserError when it is missing or broken, with the line."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("there is no such file", path) from None
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", path) from None
    except json.JSONDecodeError as error:
        raise UserError(f"not JSON ({error.msg})", path, error.lineno) from None
    except UnicodeDecodeError:
        raise UserError("not UTF-8", path, 1) from None
    except (ValueError, RecursionError):
        raise UserError("not JSON (nested too deeply, or a number too long)", path) from None


def write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    write_atomic(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def fingerprint(value: Any) -> str:
    """Sixteen hex digits of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def held_out(key: str, share: float) -> bool:
    """Whether an example belongs to the held-out share: its text decides, so equal prompts stand on the same side."""
    return int(hashlib.sha256(" ".join(key.lower().split()).encode()).hexdigest()[:8], 16) < share * 16**8
