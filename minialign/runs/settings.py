r"""Configurations: frozen dataclasses whose comments are their documentation.

    @dataclass(frozen=True)
    class TrainingConfig:
        steps: int = 1000  # optimizer steps

`describe` reads the comment behind a field, or the lines of comment above it, so the option `--steps`, its help and the
code cannot drift apart.
"""

import dataclasses
import inspect
import json
import math
import re
from collections.abc import Iterable
from typing import Any, TypeVar

from minialign.runs.errors import UserError

Config = TypeVar("Config")
RENAMED = {"answers": "completions"}  # setting of earlier versions -> its name now, so that their run folders go on
RETIRED = {"smeared_keys": False}  # setting that is gone -> its value where it was not in use
BEHIND = re.compile(r"^    (\w+): [^#\n]+#\s*(.+)$", re.MULTILINE)
ABOVE = re.compile(r"((?:^    # .+\n)+)    (\w+): ", re.MULTILINE)


def describe(config: type) -> dict[str, str]:
    """Name of each field -> the comment behind it, or the one above it where it is too long for the line."""
    source = inspect.getsource(config)
    above = {name: " ".join(line.strip(" #") for line in lines.splitlines()) for lines, name in ABOVE.findall(source)}
    comments = above | dict(BEHIND.findall(source))
    return {field.name: comments.get(field.name, "") for field in dataclasses.fields(config)}


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain values that JSON can hold."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def renamed(values: Any) -> Any:
    """Plain values of an earlier version under the names of today, without what is gone and was not in use."""
    if not isinstance(values, dict):
        return values
    kept = ((k, v) for k, v in values.items() if k not in RETIRED or v != RETIRED[k])
    return {RENAMED.get(k, k): renamed(v) for k, v in kept}


def from_dict(config: type[Config], values: dict[str, Any], file: object = None) -> Config:
    """A configuration from plain values. Raises UserError for a key that is unknown or missing, or of another type."""
    values, known = renamed(values), {field.name: field for field in dataclasses.fields(config)}
    unknown = sorted(set(values) - set(known))
    if gone := [name for name in unknown if name in RETIRED]:
        raise UserError(f"{gone[0]} = {values[gone[0]]} was a setting of an earlier version: use that one", file)
    if unknown:
        raise UserError(f"unknown setting {', '.join(map(repr, unknown))}; known are {', '.join(known)}", file)
    needed = [name for name, field in known.items() if field.default is dataclasses.MISSING and name not in values]
    if needed:
        raise UserError(f"setting {', '.join(map(repr, needed))} is missing", file)
    kinds = {"int": (int,), "float": (float, int), "str": (str,), "bool": (bool,)}
    for name, value in values.items():
        kind = getattr(known[name].type, "__name__", str(known[name].type))
        allowed = kinds.get(kind, (object,))
        if not isinstance(value, allowed) or (isinstance(value, bool) and allowed in ((int,), (float, int))):
            raise UserError(f"setting {name!r} is {value!r}; it must be of type {kind}", file)
    return config(**values)


def check_ranges(config: Any, limits: dict[str, tuple[float, float]]) -> None:
    """Raise UserError for the first named field outside of its two limits, both allowed, or not a number."""
    for name, (low, high) in limits.items():
        if not low <= getattr(config, name) <= high:
            expected = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise UserError(f"{name} is {getattr(config, name)}; it must be {expected}")


def check_at_least_1(config: Any, *names: str) -> None:
    """Raise UserError for the first named field that is below 1."""
    check_ranges(config, dict.fromkeys(names, (1, math.inf)))


def check_choices(config: Any, choices: dict[str, Iterable[str]]) -> None:
    """Raise UserError for the first named field that is none of its choices."""
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            raise UserError(f"{name} is {getattr(config, name)!r}; choose one of {', '.join(allowed)}")
