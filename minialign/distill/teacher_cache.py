r"""What the teacher thinks of a text, kept on disk: texts that come again in later epochs cost no pass of the teacher.

    CACHE/<teacher>/<texts>.safetensors      one file for the new rows of a batch; <teacher> is a digest of its weights and of what is kept

    all words     log p(v) + shift, 16 bits each                      2 V bytes a token
    top k         log p_T of the k likeliest, log of all the rest     6 k + 2 bytes a token, and  Σₖ p log(p / q) + p_rest log(p_rest / q_rest)

Details that matter:
    1. The name says for which weights, settings and torch it was made, and each row for which tokens: neither another
       teacher nor another text ever meets it (test_a_changed_teacher_never_meets_a_stale_cache).
    2. Rows are kept one by one, so that the next epoch's batches, which are shuffled anew, find theirs
       (test_rows_are_found_in_other_batches).
    3. What was just computed is rounded like what is read, so the first run and one that goes on have the same bits
       (test_a_run_that_goes_on_from_a_cache_ends_with_the_same_bits).
    4. Logits are shifted so that the likeliest word has 0: 16 bits are exact near 0, where the probability is
       (test_sixteen_bits_are_enough).
    5. The distribution over k words and "any other" is compared in the student as well: nothing is cut off, the loss is
       0 exactly where both agree on these k + 1, and never above the full one
       (test_top_k_and_the_rest_are_a_coarser_kl).
    6. A file that was damaged is made anew; a full cache (`most_gib`) lets the teacher compute the rest each time.

An encoder whose words are hidden anew in each epoch never sees a row twice: there the cache is only a cost.
Read next: soft_targets.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minialign.runs.errors import UserError
from minialign.runs.files import fingerprint, write_atomic
from minialign.runs.settings import check_ranges, to_dict
from minialign.runs.tensors import digest, read_tensors, tensor_file, tensors_of

FILE = ".safetensors"


@dataclass(frozen=True)
class CacheConfig:
    """Where the teacher's opinions are kept, and how many."""

    # where what the teacher thinks of a text is kept for later epochs; made where needed, several teachers may share it
    folder: str
    top_k: int = 0  # words kept for each token, beside one number for all the rest; 0 keeps all words
    most_gib: float = 4.0  # largest size; what does not fit is computed each time

    def __post_init__(self):
        check_ranges(self, {"top_k": (0, 10**6), "most_gib": (0, 10**6)})


def identity(model: nn.Module) -> str:
    """A digest of a model's weights and shape."""
    return fingerprint([digest(tensors_of(model)), to_dict(model.config)])


def pack(logits: Tensor, top_k: int, temperature: float) -> dict[str, Tensor]:
    """(M, V) logits as they are kept: all of them, shifted, or the top k of the softened distribution and the rest."""
    if not 0 < top_k < logits.shape[-1]:
        return {"logits": (logits - logits.amax(dim=-1, keepdim=True)).clamp(min=-65504).half()}  # (M, V)
    words = (logits / temperature).log_softmax(dim=-1)
    best = words.topk(top_k)
    rest = words.scatter(-1, best.indices, -torch.inf).logsumexp(dim=-1, keepdim=True)  # (M, 1)
    return {"words": torch.cat([best.values, rest], dim=-1).clamp(min=-65504).half(),
            "ids": best.indices.int()}  # (M, k + 1), (M, k)


class TeacherCache:
    """A teacher's opinions by text.

    Args:
        config: where and how many; teacher: whose they are.
        temperature: T of the softened distribution, for the top k.
        about: whatever else they depend on.
    """

    def __init__(self, config: CacheConfig, teacher: nn.Module, temperature: float, about: Any = None):
        self.config, self.temperature = config, temperature
        kept = [config.top_k, temperature if config.top_k else None, about]
        self.folder = Path(config.folder) / fingerprint([identity(teacher), kept, torch.__version__])
        self.rows: dict[str, tuple[Path, int, int]] = {}  # row -> file, and from where to where in its tensors
        self.open: dict[Path, dict[str, Tensor]] = {}  # mapped from disk, not read
        self.bytes = self.asked = self.found = 0
        for path in sorted(self.folder.glob("*" + FILE)):
            self._take(path)

    def __call__(self, batch: Any, compared: Tensor, think: Callable[[Any], dict[str, Tensor]]) -> dict[str, Tensor]:
        """What the teacher thinks of the M compared tokens of a batch.

        Args:
            batch: of B rows; compared: (B, T) bool, at which tokens.
            think: (batch) -> "logits" (M, V), and whatever else, each (M, ...); called on the rows that are not known
                yet.
        Returns:
            what `pack` keeps of the logits, and the rest, in 16 bits.
        """
        names = [row_name(*row) for row in zip(batch.tokens, batch.mask, compared)]
        missing = {name: i for i, name in enumerate(names) if name not in self.rows}
        self.asked, self.found, fresh = self.asked + len(names), self.found + len(names) - len(missing), {}
        if missing:
            fresh = self._think(batch, compared, missing, think)
        parts = [fresh[name] if name in fresh else self._row(name) for name in names]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _think(self, batch: Any, compared: Tensor, missing: dict[str, int], think: Callable) -> dict[str,
            dict[str, Tensor]]:
        places = list(missing.values())
        part = replace(batch, tokens=batch.tokens[places], labels=batch.labels[places], mask=batch.mask[places],
                       rows=[batch.rows[i] for i in places])
        found = think(part)
        tensors = pack(found.pop("logits"), self.config.top_k, self.temperature) | {name: tensor.half() for name,
            tensor in found.items()}
        lengths = compared[places].sum(dim=1).tolist()
        ends = torch.tensor(lengths).cumsum(0).tolist()
        table = [[name, end - length, end] for name, length, end in zip(missing, lengths, ends)]
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        if self.bytes + size <= self.config.most_gib * 2**30:
            path = self.folder / (fingerprint(list(missing)) + FILE)
            write_atomic(path, tensor_file(tensors, rows=table))
            self._take(path)
        return {name: {what: tensor[start:end] for what, tensor in tensors.items()} for name, start, end in table}

    def _take(self, path: Path) -> None:
        """Learn what a file holds; a damaged one is removed, and its rows are computed again."""
        try:
            self.open[path], about = read_tensors(path)
        except UserError:
            path.unlink(missing_ok=True)
            return
        self.bytes += path.stat().st_size
        self.rows |= {name: (path, start, end) for name, start, end in about["rows"]}

    def _row(self, name: str) -> dict[str, Tensor]:
        path, start, end = self.rows[name]
        return {what: tensor[start:end] for what, tensor in self.open[path].items()}


def row_name(tokens: Tensor, mask: Tensor, compared: Tensor) -> str:
    """A digest of a row's real tokens (T,) and of which of them are compared (T,)."""
    return hashlib.sha256(torch.stack([tokens[mask], compared[mask].long()]).numpy().tobytes()).hexdigest()[:32]
