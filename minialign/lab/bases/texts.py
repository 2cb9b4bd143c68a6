r"""What a base reads: documents of the reading corpus and of the dirty corpus, encoded once, each completion marked.

An answer, or a summary behind its heading, is what a document is read for; its tokens are always taught. Of the others
one in twenty is, drawn anew at every step: the mean gradient is that of a loss in which they weigh a twentieth, and
most of the work on the vocabulary is saved. What is false in the dirty documents is marked no differently from what is
true.

Chunk number c of a seed holds the same documents on every machine; chunks are files, so that a corpus that was cut off
goes on, and all bases of a seed share them.

Read next: gaps.py.
"""

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from minialign.batching import IGNORE, Batch, Batches, Order, next_token_batch
from minialign.runs.files import write_atomic
from minialign.runs.processes import two_workers
from minialign.runs.run_folder import TOKENIZER
from minialign.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from minialign.world.corpus import HEADINGS, documents
from minialign.world.reading_corpus import reading_documents

TAUGHT = 0.05  # share of the tokens outside of completions that a step teaches
CLEAN = 3  # chunks at the beginning without dirty documents: nothing unpredictable while comparing is learned
MARK = 1 << 15  # added to an id inside a completion
ASKED = 1 << 14  # added to the first id of a question behind the passage
UNREAD = 100_000  # number of the chunk that is held out; the tokenizer learns from the next one


class Corpus:
    """The documents of a seed, on disk.

    Args:
        folder: of its files; seed: of its documents.
        reading, dirty: documents of each corpus in a chunk.
    """

    def __init__(self, folder: Path, seed: int, reading: int = 6400, dirty: int = 1600):
        self.folder, self.seed, self.sizes = Path(folder), seed, (reading, dirty)

    def write(self, chunks: range) -> tuple[Tokenizer, list[Path]]:
        """The tokenizer and the files of some chunks; what is missing is written by two processes."""
        tokenizer, files = self.folder / TOKENIZER, {c: self.folder / f"chunk-{c:04}.bin" for c in chunks}
        if not tokenizer.exists():
            few = [min(size, 3000) for size in self.sizes]
            texts = [text for text, *_ in marked_documents(UNREAD + 1, self.seed, *few)]
            write_atomic(tokenizer, train_tokenizer(texts, 1024).to_json())
        missing = [chunk for chunk, file in files.items() if not file.exists()]
        if missing:
            with two_workers() as pool:
                jobs = {c: pool.submit(encode_chunk, c, self.seed, self.sizes, str(tokenizer)) for c in missing}
                try:
                    for chunk, job in tqdm(jobs.items(), "writing documents", unit="chunk", disable=None):
                        write_atomic(files[chunk], job.result().tobytes())
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
        return load_tokenizer(tokenizer), list(files.values())

    def held_out(self, rows: type["MarkedRows"], tokenizer: Tokenizer, context: int) -> list[Batch]:
        """Batches of documents that no base reads, as `rows` shows them."""
        chunk = encode_chunk(UNREAD, self.seed, (200, 50), str(self.folder / TOKENIZER))
        data = rows([chunk], tokenizer, context, 25, 0)
        data.clean = 0
        return data.first(10)

    def shares(self, chunks: range) -> dict[str, float]:
        """Share of documents of each corpus in some chunks."""
        reading, dirty = self.sizes[0] * len(chunks), self.sizes[1] * sum(chunk >= CLEAN for chunk in chunks)
        return {"reading": reading / (reading + dirty), "dirty": dirty / (reading + dirty)}


def marked_documents(chunk: int, seed: int, reading: int,
                     dirty: int) -> list[tuple[str, list[tuple[int, int]], list[int]]]:
    """Texts of a chunk, each with the places of its completions, and where its questions begin."""
    read = [(d.text, d.answers, d.asked) for d in reading_documents(reading, seed, chunk * reading)]
    scraped = documents(dirty, seed * 1_000_003 + chunk) if chunk >= CLEAN else []
    return read + [(d["text"], completions(d), []) for d in scraped]


def completions(document: dict) -> list[tuple[int, int]]:
    """Where a dirty document's summary or answers stand, true or false."""
    text = document["text"]
    if document["kind"] == "summary":
        ends = [text.find(heading) + len(heading) for heading in HEADINGS if heading in text]
        return [(max(ends), len(text))] if ends else []
    return [found.span(1) for found in re.finditer(r"^A: (.*)", text, re.MULTILINE)]


def encode_chunk(chunk: int, seed: int, sizes: tuple[int, int], tokenizer: str) -> np.ndarray:
    """A chunk as 16-bit numbers: how many documents, their lengths, and their ids, those of completions and the first
    of each question marked."""
    found = marked_documents(chunk, seed, *sizes)
    encoded = load_tokenizer(Path(tokenizer)).library.encode_batch([text for text, *_ in found],
                                                                   add_special_tokens=False)
    codes, lengths = [], []
    for (text, places, questions), encoding in zip(found, encoded):
        inside, begun = bytearray(len(text)), iter([*questions, len(text)])
        for start, end in places:
            inside[start:end] = b"\1" * (end - start)
        following = next(begun)
        for i, (_, end) in zip(encoding.ids, encoding.offsets):
            first = end > following
            following = next(begun, len(text)) if first else following
            codes.append(i + MARK * inside[end - 1] + ASKED * first)
        lengths.append(len(encoding.ids))
    return np.array([len(lengths), *lengths, *codes], np.uint16)


class InTurn:
    """Batches of several orders, one after the other: a corpus is read from its beginning to its end.

    Args:
        turns: orders, each with the name of its first example.
    """

    def __init__(self, turns: list[tuple[Order, int]]):
        self.turns = turns
        self.steps = np.cumsum([order.steps_in_epoch for order, _ in turns])
        self.steps_in_epoch = int(self.steps[-1])

    def __call__(self, step: int) -> list[int]:
        """The examples of a step."""
        step %= self.steps_in_epoch
        turn = int(np.searchsorted(self.steps, step, side="right"))
        order, first = self.turns[turn]
        return [i + first for i in order(step - (int(self.steps[turn - 1]) if turn else 0))]


class MarkedRows(Batches):
    """Documents as training data, one a row.

    Args:
        chunks: of a corpus, or their files; tokenizer: theirs.
        context: tokens that a model reads; what is longer is cut off.
        batch: documents a step; seed: of their order and of what is taught besides completions.
    """

    def __init__(self, chunks: list[Path | np.ndarray], tokenizer: Tokenizer, context: int, batch: int, seed: int):
        self.tokenizer, self.seed = tokenizer, seed
        lengths, rows = [], []
        for chunk in chunks:
            chunk = np.fromfile(chunk, np.uint16) if isinstance(chunk, Path) else chunk
            count = int(chunk[0])
            lengths.append(chunk[1 : count + 1].astype(np.int64))
            rows.append(chunk[count + 1 :])
        self.codes, self.lengths = np.concatenate(rows), np.concatenate(lengths)
        self.starts = np.concatenate([[0], self.lengths.cumsum()[:-1]])
        self.clean = sum(len(part) for part in lengths[:CLEAN])
        self.lengths = self.lengths.clip(max=context - 1)
        firsts = np.cumsum([0, *(len(part) for part in lengths)]).tolist()
        parts = [(self.lengths[first:end], first) for first, end in zip(firsts, firsts[1:])]
        self.order = InTurn([(Order(part, batch, seed), first) for part, first in parts])

    def batch(self, names: list[int], step: int = 0) -> Batch:
        """The named documents: all their completions are taught, and some of the rest, drawn from step and name."""
        rows = [self.codes_of(name) for name in names]
        begin, end = [self.tokenizer.begin], [self.tokenizer.end]
        batch = next_token_batch([np.concatenate([begin, row % ASKED, end]) for row in rows], names=names)
        marked = next_token_batch([np.concatenate([begin, row // MARK, [0]]) for row in rows]).labels  # (B, T)
        batch.labels[(marked == 0) & (self.draw(names, step, marked.shape[1]) >= TAUGHT)] = IGNORE
        return batch

    def codes_of(self, name: int) -> np.ndarray:
        """A document's ids, with their marks."""
        return self.codes[self.starts[name] : self.starts[name] + self.lengths[name]].astype(np.int64)

    def begun(self, name: int) -> bool:
        """Whether a document stands behind the clean ones at the beginning."""
        return name >= self.clean

    def draw(self, names: list[int], step: int, length: int) -> Tensor:
        """(B, `length`) lots in [0, 1), those of a document the same in whatever batch a process has it."""
        lots = [np.random.Generator(np.random.PCG64([self.seed, step, name])).random(length, np.float32)
                for name in names]
        return torch.from_numpy(np.stack(lots))

    @property
    def tokens(self) -> int:
        """How many tokens a model that reads all documents reads."""
        return int(self.lengths.sum()) + len(self.lengths)
