"""A stage's run folder: locked, and with what it was made from written down or compared."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

from torch import nn

from minialign.runs.run_folder import RunFolder
from minialign.runs.settings import to_dict
from minialign.runs.tensors import digest, tensors_of
from minialign.tokenizer import Tokenizer


@contextlib.contextmanager
def stage_run(run: RunFolder, tokenizer: Tokenizer, **about: Any) -> Iterator[RunFolder]:
    """A stage's run folder, locked. Its config.json is written, or compared with these facts where the folder holds a
    run already; whoever gets it trains unless it is `finished`.

    Args:
        about: what config.json says: a configuration as a dictionary, a model as a digest of its weights.
    Raises:
        UserError: another process holds the folder, or another run is in it.
    """
    with run.locked():
        run.begin({name: as_fact(value) for name, value in about.items()}, tokenizer)
        yield run


def as_fact(value: Any) -> Any:
    """A value as config.json says it."""
    if isinstance(value, nn.Module):
        return digest(tensors_of(value))[:16]
    if isinstance(value, list):
        return [as_fact(one) for one in value]
    return to_dict(value) if dataclasses.is_dataclass(value) else value
