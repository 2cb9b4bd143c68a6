r"""Whether two results are the same, and if not, where they part: for tensors, numbers, texts, and whatever lists and
tables hold of these."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

FEW = 24  # numbers that are shown of one tensor


def show(value: Any) -> str:
    """A value as short as it can be told: small tensors as nested lists, large ones by shape and first numbers."""
    if isinstance(value, Tensor):
        shape, kind = tuple(value.shape), str(value.dtype).removeprefix("torch.")
        if value.numel() <= FEW:
            return _numbers(value.detach().tolist()) + ("" if kind == "float32" else f" {kind}")
        return f"tensor {shape} {kind}, first {_numbers(value.detach().flatten()[:4].tolist())}"
    if isinstance(value, tuple | list):
        inside = ", ".join(map(show, value))
        return f"({inside})" if isinstance(value, tuple) else f"[{inside}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {show(inside)}" for key, inside in value.items()) + "}"
    text = _numbers(value) if isinstance(value, float) else repr(value)
    return text if len(text) <= 300 else text[:297] + "..."


def _numbers(value: Any) -> str:
    """Floats with four digits that matter, in as many lists as they stand in."""
    if isinstance(value, list):
        return "[" + ", ".join(map(_numbers, value)) + "]"
    return f"{value:.{4 if abs(value) < 1000 else 8}g}" if isinstance(value, float) else str(value)


def difference(expected: Any, got: Any, tolerance: float, name: str = "the result") -> str:
    """In what the two differ, as a sentence; empty when they are the same within `tolerance` (relative; absolute below
    1)."""
    if isinstance(expected, Tensor):
        return _tensor_difference(expected, got, tolerance, name)
    if isinstance(expected, tuple | list):
        results = isinstance(expected, tuple)
        kinds = f"results, ({', '.join(map(_kind, expected))})"
        wanted = f"{len(expected)} {kinds}" if results else f"a list of {len(expected)}"
        if not isinstance(got, tuple | list):
            return f"{name} should be {wanted}; yours is {_kind(got)}"
        if len(expected) != len(got):
            return f"{name} should be {wanted}; yours has {len(got)}"
        parts = [f"entry {i} of {name}" for i in range(len(expected))]
        if results and len(expected) <= 3:
            parts = ["the first result", "the second result", "the third result"]
        return next(filter(None, (difference(e, g, tolerance, part) for part, e, g in zip(parts, expected, got))), "")
    if isinstance(expected, dict):
        if not isinstance(got, dict) or set(got) != set(expected):
            return f"{name} should be a table with {', '.join(map(repr, expected))}; yours is {show(got)}"
        return next(filter(None, (difference(e, got[key], tolerance, f"{name} for {key!r}")
                                  for key, e in expected.items())), "")
    if isinstance(expected, float | int) and not isinstance(expected, bool):
        if not isinstance(got, float | int) and not (isinstance(got, Tensor) and got.numel() == 1):
            return f"{name} should be a number; yours is {_kind(got)}"
        close = math.isclose(float(expected), float(got), rel_tol=tolerance, abs_tol=tolerance)
        return "" if close else f"{name} should be {show(expected)}; yours is {show(float(got))}"
    same = type(expected) is type(got) and expected == got
    return "" if same else f"{name} should be {show(expected)}; yours is {show(got)}"


def _tensor_difference(expected: Tensor, got: Any, tolerance: float, name: str) -> str:
    if not isinstance(got, Tensor):
        return f"{name} should be a tensor {tuple(expected.shape)}; yours is {_kind(got)}"
    if expected.shape != got.shape:
        return f"{name} should have the shape {tuple(expected.shape)}; yours has {tuple(got.shape)}"
    if _family(expected.dtype, got.dtype) != _family(got.dtype, expected.dtype):
        kinds = [str(t.dtype).removeprefix("torch.") for t in (expected, got)]
        return f"{name} should be of type {kinds[0]}; yours is {kinds[1]}"
    wide, yours = expected.detach().double(), got.detach().double()
    wrong = ~torch.isclose(yours, wide, rtol=tolerance, atol=tolerance, equal_nan=True)
    if not bool(wrong.any()):
        return ""
    place = tuple(wrong.nonzero()[0].tolist())
    where = f" at {list(place)}" if place else ""
    return f"{name}{where} should be {show(expected[place].item())}; yours is {show(got[place].item())}"


def _family(dtype: torch.dtype, other: torch.dtype) -> object:
    """What of a type must agree: a narrow one exactly, of the wide ones whether it is a float, an integer or a truth
    value."""
    narrow = (torch.int8, torch.uint8, torch.float16, torch.bfloat16)
    return dtype if dtype in narrow or other in narrow else (dtype.is_floating_point, dtype == torch.bool)


def _kind(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
