r"""What the teacher predicts for a text, and what it writes, kept on disk: a text that comes again costs no pass of the
teacher.

    CACHE/<teacher>/<texts>.safetensors      one file for the new rows of a batch; <teacher> is a digest of its weights
                                             and of what is kept

    all words     log p(v) + shift, 16 bits each                      2 V bytes a token
    top k         log p_T of the k likeliest, log of all the rest     6 k + 2 bytes a token
                  compared by  Σₖ p log(p / q) + p_rest log(p_rest / q_rest)

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
    7. Texts are written once, in a file that people can read; the same teacher, prompts and settings read it back
       (test_written_texts_are_used_again_only_for_the_same_teacher_prompts_and_settings).

An encoder whose words are hidden anew in each epoch never sees a row twice: there the cache is only a cost.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minialign.distill.sequence_level import WritingConfig, write
from minialign.distill.soft_targets import SoftTargetConfig, SoftTargets
from minialign.heads import LanguageModel
from minialign.runs.devices import in_half
from minialign.runs.errors import UserError
from minialign.runs.files import fingerprint, read_jsonl, write_atomic, write_jsonl
from minialign.runs.settings import check_ranges, to_dict
from minialign.runs.tensors import digest, read_tensors, tensor_file, tensors_of

FILE = ".safetensors"
WRITTEN = "written.jsonl"  # what the teacher wrote, in the run folder
Outputs = dict[str, Tensor]  # what a teacher computes at M tokens: "logits" (M, V), and others (M, …)


@dataclass(frozen=True)
class CacheConfig:
    """Where the teacher's outputs are kept, and how many."""

    # where what the teacher thinks of a text is kept for later epochs; made where needed, several teachers may share it
    folder: str
    top_k: int = 0  # words kept for each token, beside one number for all the rest; 0 keeps all words
    most_gib: float = 4.0  # largest size; what does not fit is computed each time

    def __post_init__(self):
        check_ranges(self, {"top_k": (0, 10**6), "most_gib": (0, 10**6)})


class CachedSoftTargets(SoftTargets):
    """`SoftTargets` whose teacher computes each text once. Arguments as for `Recipe`; cache: where it is kept."""

    def __init__(self, teacher: LanguageModel, config: SoftTargetConfig, cache: CacheConfig):
        super().__init__(teacher, config)
        self.cache = TeacherCache(cache, teacher, config.temperature, bool(config.cosine))

    def teacher_outputs(self, batch: Any) -> Outputs:
        """The same, computed or read: with a top k, "words" and "ids" (`pack`) in place of "logits"."""
        with in_half(batch.tokens.device, False):  # what is kept is the same for --bf16 and without
            return self.cache(batch, self.compared(batch), super().teacher_outputs)

    def soft_loss(self, logits: Tensor, teacher: Outputs) -> Tensor:
        """The same, of all words or of the top k and the rest."""
        if "words" in teacher:
            return top_k_soft_target_loss(logits, teacher["words"], teacher["ids"], self.config.temperature)
        return super().soft_loss(logits, teacher)


def top_k_soft_target_loss(student: Tensor, words: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """T² KL(teacher ‖ student) over k words and "any other one", mean over tokens, nats.

    Args:
        student: (M, V) logits; words: (M, k + 1) the teacher's log-probabilities at temperature T, the last one that of
            all other words.
        ids: (M, k) which words; temperature: T.
    """
    log_q = (student / temperature).log_softmax(dim=-1)
    log_p, ids = words.float().log_softmax(dim=-1), ids.long()  # rounding to 16 bits took the sum off 1
    rest = log_q.scatter(-1, ids, -torch.inf).logsumexp(dim=-1, keepdim=True)  # (M, 1)
    log_q = torch.cat([log_q.gather(-1, ids), rest], dim=-1)  # (M, k + 1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean()


def pack(logits: Tensor, top_k: int, temperature: float) -> Outputs:
    """(M, V) logits as they are kept: all of them, shifted, or the top k of the softened distribution and the rest."""
    if not 0 < top_k < logits.shape[-1]:
        return {"logits": (logits - logits.amax(dim=-1, keepdim=True)).clamp(min=-65504).half()}  # (M, V)
    words = (logits / temperature).log_softmax(dim=-1)
    best = words.topk(top_k)
    rest = words.scatter(-1, best.indices, -torch.inf).logsumexp(dim=-1, keepdim=True)  # (M, 1)
    kept = torch.cat([best.values, rest], dim=-1).clamp(min=-65504).half()
    return {"words": kept, "ids": best.indices.int()}  # (M, k + 1), (M, k)


class TeacherCache:
    """A teacher's outputs by text.

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
        self.open: dict[Path, Outputs] = {}  # mapped from disk, not read
        self.bytes = self.asked = self.found = 0
        for path in sorted(self.folder.glob("*" + FILE)):
            self._open(path)

    def __call__(self, batch: Any, compared: Tensor, compute: Callable[[Any], Outputs]) -> Outputs:
        """The teacher's outputs at the M compared tokens of a batch.

        Args:
            batch: of B rows; compared: (B, T) bool, at which tokens.
            compute: (batch) -> Outputs; called on the rows that are not known yet.
        Returns:
            what `pack` keeps of the logits, and the rest, in 16 bits.
        """
        names = [row_name(*row) for row in zip(batch.tokens, batch.mask, compared)]
        missing = {name: i for i, name in enumerate(names) if name not in self.rows}
        self.asked, self.found = self.asked + len(names), self.found + len(names) - len(missing)
        fresh = self._compute(batch, compared, missing, compute) if missing else {}
        parts = [fresh[name] if name in fresh else self._row(name) for name in names]
        return {name: torch.cat([part[name].to(compared.device) for part in parts]) for name in parts[0]}

    def _compute(self, batch: Any, compared: Tensor, missing: dict[str, int], compute: Callable) -> dict[str, Outputs]:
        places = list(missing.values())
        outputs = compute(replace(batch, tokens=batch.tokens[places], labels=batch.labels[places],
                                  mask=batch.mask[places], rows=[batch.rows[i] for i in places]))
        tensors = pack(outputs.pop("logits"), self.config.top_k, self.temperature)
        tensors |= {name: tensor.half() for name, tensor in outputs.items()}
        lengths = compared[places].sum(dim=1)
        table = [[name, end - length, end] for name, length, end in zip(missing, lengths.tolist(),
                                                                       lengths.cumsum(0).tolist())]
        if self.bytes + sum(t.numel() * t.element_size() for t in tensors.values()) <= self.config.most_gib * 2**30:
            path = self.folder / (fingerprint(list(missing)) + FILE)
            write_atomic(path, tensor_file(tensors, rows=table))
            self._open(path)
        return {name: {what: tensor[start:end] for what, tensor in tensors.items()} for name, start, end in table}

    def _open(self, path: Path) -> None:
        """Learn what a file holds; a damaged one is removed, and its rows are computed again."""
        try:
            self.open[path], about = read_tensors(path)
        except UserError:
            path.unlink(missing_ok=True)
            return
        self.bytes += path.stat().st_size
        self.rows |= {name: (path, start, end) for name, start, end in about["rows"]}

    def _row(self, name: str) -> Outputs:
        path, start, end = self.rows[name]
        return {what: tensor[start:end] for what, tensor in self.open[path].items()}


def row_name(tokens: Tensor, mask: Tensor, compared: Tensor) -> str:
    """A digest of a row's real tokens (T,) and of which of them are compared (T,)."""
    return hashlib.sha256(torch.stack([tokens[mask], compared[mask].long()]).cpu().numpy().tobytes()).hexdigest()[:32]


def identity(model: nn.Module) -> str:
    """A digest of a model's weights and shape."""
    return fingerprint([digest(tensors_of(model)), to_dict(model.config)])


def written_once(teacher: LanguageModel, prompts: Sequence[Sequence[int]], config: WritingConfig, seed: int,
                 path: Path) -> list[tuple[list[int], int]]:
    """The same as `write`, kept in a file: its first line says for whom, the others hold a prompt and a completion
    each, in ids."""
    made_for = fingerprint([identity(teacher), list(map(list, prompts)), to_dict(config), seed])
    if path.exists():
        first, *lines = read_jsonl(path)
        if first.get("made for") == made_for:
            return [([*line["prompt"], *line["answer"]], len(line["prompt"])) for line in lines]
    rows = write(teacher, prompts, config, seed)
    completions = [{"prompt": ids[:start], "answer": ids[start:]} for ids, start in rows]
    write_jsonl(path, [{"made for": made_for}, *completions])
    return rows
