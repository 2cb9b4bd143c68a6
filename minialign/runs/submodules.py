r"""Submodules: choose them by name, and put others in their place. Every method that changes a model uses these.

Names are matched whole or by shell patterns, never by a part of a word: "bias" does not mean the last word of
"relative_attention_bias" (test_names_are_matched_whole).
"""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from minialign.runs.errors import UserError


def fits(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns means a dotted name: the name itself, its last parts ("query", "attention.query"), or
    a shell pattern for all of it ("*.attention.*")."""
    return any(name == pattern or name.endswith("." + pattern) or fnmatchcase(name, pattern) for pattern in patterns)


def matching(names: Sequence[str], patterns: Sequence[str], what: str) -> list[str]:
    """Those of the names that the patterns mean, in the order of the names.

    Raises:
        UserError: a pattern that means none of them; lists the last parts of those that there are.
    """
    for pattern in patterns:
        if not any(fits(name, [pattern]) for name in names):
            known = ", ".join(dict.fromkeys(".".join(name.split(".")[-2:]) for name in names)) or "none"
            raise UserError(f"no {what} is called {pattern!r}; there are {known}")
    return [name for name in names if fits(name, patterns)]


def replace_modules(model: nn.Module, new: dict[str, nn.Module]) -> None:
    """Put new modules in the place of those with these names, everywhere that the old ones stand; or in a place that is
    empty (None). A new module may hold the old one."""
    for name, module in new.items():
        parent_name, _, last = name.rpartition(".")
        places = [(model.get_submodule(parent_name), last)]
        old = getattr(*places[0])
        if old is not None:  # named_children would pass over a second place
            places = [(parent, child) for parent in model.modules() if parent is not module
                      for child, there in parent._modules.items() if there is old]
            module.train(old.training)
        for parent, child in places:
            setattr(parent, child, module)
