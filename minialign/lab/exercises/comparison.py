r"""Whether two results are the same, and if not, where they part: for tensors, numbers, texts, and whatever lists and
tables hold of these.

A result may come in another form than ours: numpy's for torch's, float64 or any integer for a wide type, a number for a
tensor without dimensions, a list for a tuple. Whether it has the right kind (type, shape, count) is one question,
whether it has the right values another; who asks the first one first can say what is wrong by its name.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

FEW = 24  # numbers that are shown of one tensor
NARROW = (torch.int8, torch.uint8, torch.float16, torch.bfloat16)  # types that are the point where they are asked for


def show(value: Any, digits: int = 4) -> str:
    """A value as short as it can be told: small tensors as nested lists, large ones by shape and first numbers."""
    if isinstance(value, Tensor) and value.is_quantized:
        return f"{show(value.dequantize(), digits)} {_type(value)}"
    if isinstance(value, Tensor):
        shape, kind = tuple(value.shape), _type(value)
        if value.numel() <= FEW:
            return _numbers(value.detach().tolist(), digits) + ("" if kind == "float32" else f" {kind}")
        return f"tensor {shape} {kind}, first {_numbers(value.detach().flatten()[:4].tolist(), digits)}"
    if isinstance(value, tuple | list):
        inside = ", ".join(show(part, digits) for part in value)
        return f"({inside})" if isinstance(value, tuple) else f"[{inside}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {show(inside, digits)}" for key, inside in value.items()) + "}"
    text = _numbers(value, digits) if isinstance(value, float) else repr(value)
    return text if len(text) <= 300 else text[:297] + "..."


def _numbers(value: Any, digits: int) -> str:
    """Floats with four digits that matter or more, in as many lists as they stand in."""
    if isinstance(value, list):
        return "[" + ", ".join(_numbers(part, digits) for part in value) + "]"
    return f"{value:.{digits if abs(value) < 1000 else max(8, digits)}g}" if isinstance(value, float) else str(value)


def apart(expected: Any, got: Any, most: int = 17, show: Callable[[Any, int], str] = show,
          least: int = 4) -> tuple[str, str]:
    """Both as `show` has them, with as many digits as tell them apart; with the `least` if not even `most` do."""
    for digits in [*range(least, most + 1), least]:
        shown = show(expected, digits), show(got, digits)
        if shown[0] != shown[1]:
            break
    return shown


def number_in(value: Any) -> float | None:
    """The number that a value is, in whatever library's form; None for texts, truth values and all that is none."""
    if isinstance(value, str | bytes | bool | np.bool_):
        return None
    try:
        return float(value.item() if isinstance(value, Tensor | np.ndarray) else value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None


def holds_numpy(value: Any) -> bool:
    """Whether a result is, or holds, an array of numpy's."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return isinstance(value, np.ndarray) or any(map(holds_numpy, parts))


def in_torch(value: Any) -> Any:
    """A result with tensors for numpy's arrays and plain numbers for its numbers."""
    if isinstance(value, np.ndarray) and value.dtype.kind not in "biuf":
        return value.tolist()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value).reshape(value.shape))
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (tuple, list):
        return type(value)(map(in_torch, value))
    return {key: in_torch(inside) for key, inside in value.items()} if isinstance(value, dict) else value


def difference(expected: Any, got: Any, tolerance: float, name: str = "the result") -> str:
    """In what the two differ, as a sentence; empty when they are the same within `tolerance` (relative; absolute below
    1)."""
    return kind_difference(expected, got, name) or value_difference(expected, got, tolerance, name)


def kind_difference(expected: Any, got: Any, name: str = "the result") -> str:
    """In what type, shape or count the two differ, whatever the values; empty when they can be compared."""
    if isinstance(expected, Tensor):
        return _tensor_kind(expected, got, name)
    if isinstance(expected, tuple | list):
        got = _listed(expected, got)
        kinds = f"results, ({', '.join(map(_kind, expected))})"
        wanted = f"{len(expected)} {kinds}" if isinstance(expected, tuple) else f"a list of {len(expected)}"
        if not isinstance(got, tuple | list):
            return f"{name} should be {wanted}; yours is {_kind(got)}"
        if len(expected) != len(got):
            return f"{name} should be {wanted}; yours has {len(got)}"
        return next(filter(None, (kind_difference(e, g, part) for part, e, g in _parts(expected, got, name))), "")
    if isinstance(expected, dict):
        if not isinstance(got, dict) or set(got) != set(expected):
            return f"{name} should be a table with {', '.join(map(repr, expected))}; yours is {show(got)}"
        return next(filter(None, (kind_difference(e, got[key], f"{name} for {key!r}")
                                  for key, e in expected.items())), "")
    if isinstance(expected, float | int) and not isinstance(expected, bool):
        return "" if number_in(got) is not None else f"{name} should be a number; yours is {_kind(got)}"
    return "" if type(expected) is type(got) else f"{name} should be {show(expected)}; yours is {show(got)}"


def value_difference(expected: Any, got: Any, tolerance: float, name: str = "the result") -> str:
    """Where the values of two results of one kind part; empty when they are the same within `tolerance`."""
    if isinstance(expected, tuple | list):
        return next(filter(None, (value_difference(e, g, tolerance, part)
                                  for part, e, g in _parts(expected, _listed(expected, got), name))), "")
    if isinstance(expected, dict):
        return next(filter(None, (value_difference(e, got[key], tolerance, f"{name} for {key!r}")
                                  for key, e in expected.items())), "")
    if not isinstance(expected, Tensor | float | int) or isinstance(expected, bool):
        return "" if expected == got else f"{name} should be {show(expected)}; yours is {show(got)}"
    if not isinstance(expected, Tensor):
        expected, got = (torch.tensor(number_in(value), dtype=torch.float64) for value in (expected, got))
    wide, yours = expected.detach().double(), torch.as_tensor(got).detach().double()
    wrong = ~torch.isclose(yours, wide, rtol=tolerance, atol=tolerance, equal_nan=True)
    if not bool(wrong.any()):
        return ""
    place = tuple(wrong.nonzero()[0].tolist())
    right, other = apart(expected[place].item(), torch.as_tensor(got)[place].item())
    return f"{name}{f' at {list(place)}' if place else ''} should be {right}; yours is {other}"


def _listed(expected: tuple | list, got: Any) -> Any:
    """A tensor in the place of a list as a list; anything else as it is."""
    return got.tolist() if isinstance(expected, list) and isinstance(got, Tensor) and got.dim() else got


def _parts(expected: tuple | list, got: tuple | list, name: str) -> list[tuple[str, Any, Any]]:
    """(what it is called, expected, got) of all that two lists, or two tuples of results, hold."""
    names = [f"entry {i} of {name}" for i in range(len(expected))]
    if isinstance(expected, tuple) and len(expected) <= 3:
        names = ["the first result", "the second result", "the third result"]
    return list(zip(names, expected, got))


def _tensor_kind(expected: Tensor, got: Any, name: str) -> str:
    if not isinstance(got, Tensor) and expected.dim() == 0 and isinstance(got, float | int):
        whole = not expected.is_floating_point()  # a number in the place of a tensor without dimensions
        expected, got = (expected.long(), torch.tensor(got)) if whole else (expected.float(), torch.tensor(float(got)))
    if not isinstance(got, Tensor):
        return f"{name} should be a tensor {tuple(expected.shape)}; yours is {_kind(got)}"
    if got.is_quantized:
        return f"{name} should be a plain tensor; yours is one of torch's quantized type {_type(got)}"
    if expected.shape != got.shape:
        return f"{name} should have the shape {tuple(expected.shape)}; yours has {tuple(got.shape)}"
    if expected.dtype in NARROW:
        same = got.dtype is expected.dtype
        return "" if same else f"{name} should be of type {_type(expected)}; yours is {_type(got)}"
    if _family(expected) != _family(got) or (got.is_floating_point() and got.dtype in NARROW):
        wanted = {"integer": "of an integer type", "bool": "of type bool"}.get(_family(expected), "of type float32")
        return f"{name} should be {wanted}; yours is {_type(got)}"
    return ""


def _family(tensor: Tensor) -> str:
    """What of a wide type must agree."""
    if tensor.is_floating_point() or tensor.is_complex():
        return "float" if tensor.is_floating_point() else "complex"
    return "bool" if tensor.dtype is torch.bool else "integer"


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _kind(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
