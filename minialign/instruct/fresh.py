r"""Fresh questions: the simulator writes a new example whenever one is drawn, so none is seen twice.

    question number i  =  f(seed, i):  a task, one of its instructions at its rate (mixture.py), a passage, an example

A thousand examples of a yes-no task are learned by heart; ten thousand are not (bAbI), and a simulator has no end.
Other processes write ahead, two chunks at a time, so training never waits for them. Details that matter:
    1. A passage that stands in a held-out example is left out (test_fresh_questions_leave_out_held_out_passages).
    2. Question i is the same on every machine and whatever was drawn before it, so a run that was stopped goes on to
       the same bits (test_a_fresh_question_depends_on_seed_and_number_alone).

Read next: t5.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from minialign.batching import Batches
from minialign.instruct.mixture import Templates, shares
from minialign.runs.processes import two_workers
from minialign.world.datasets import DATASETS
from minialign.world.stories import write_scene
from minialign.world.templates import Question, texts

CHUNK = 2048  # questions that are written, and sorted by length, at a time
AHEAD = 2  # chunks that are written while one is learned


class FreshMixture:
    """Questions of the toy world's tasks without end.

    Args:
        templates: task -> its templates; only these tasks are asked.
        seed: of everything; held_out: texts that must not come, see `templates.texts`.
        size: questions that are written, and sorted by length, at a time.
    """

    def __init__(self, templates: Templates, seed: int, held_out: set[str] = frozenset(), size: int = CHUNK):
        self.templates, self.seed, self.held_out, self.size = templates, seed, held_out, size
        self.shares = {task: list(shares(found).values()) for task, found in templates.items()}
        self.tasks = list(templates)

    def question(self, number: int) -> Question:
        """Question `number`."""
        rng = random.Random(f"fresh {self.seed} {number}")
        task = rng.choice(self.tasks)
        template = rng.choices(self.templates[task], self.shares[task])[0]
        while True:
            found = DATASETS[task].examples(write_scene(rng), rng)
            example = rng.choice(found) if found else None
            if example and not texts(example) & self.held_out:
                return template.pose(example)

    def chunk(self, number: int) -> list[Question]:
        """Questions in a row."""
        return [self.question(number * self.size + i) for i in range(self.size)]


class FreshRows(Batches):
    """Fresh questions as training data.

    Args:
        mixture: what is drawn; encode: questions -> rows and how many do not fit; the processes that write ahead
            have both.
        rows: rows -> data, such as `LabelledRows(rows, batch, seed)`.
        batch: questions a step; what is left over of a chunk is left out.
    """

    def __init__(self, mixture: FreshMixture, encode: Callable[[list[Question]], tuple[Sequence[Any], int]],
                 rows: Callable[[Sequence[Any]], Batches], batch: int):
        self.rows, self.steps = rows, mixture.size // batch
        self.ahead = Ahead(_Writer(mixture, encode))
        self._number, self._data = -1, None

    def microbatches(self, step: int, parts: int) -> list[Any]:
        """The batch of a step in `parts` pieces."""
        number, place = divmod(step, self.steps)
        if number != self._number:
            self._number, self._data = number, self.rows(self.ahead(number))
        return self._data.microbatches(place, parts)


class _Writer:
    """What the other processes do; it is sent there as it is."""

    def __init__(self, mixture: FreshMixture, encode: Callable[[list[Question]], tuple[Sequence[Any], int]]):
        self.mixture, self.encode = mixture, encode

    def __call__(self, number: int) -> Sequence[Any]:
        return self.encode(self.mixture.chunk(number))[0]


class Ahead:
    """Results of a function of 0, 1, 2 … that other processes work out while those before are used."""

    def __init__(self, make: Callable[[int], Any]):
        self.make, self.pool, self.made = make, None, {}

    def __call__(self, number: int) -> Any:
        """Result `number`; the next ones are begun."""
        if self.pool is None:
            self.pool = two_workers()
        for following in range(number, number + 1 + AHEAD):
            if following not in self.made:
                self.made[following] = self.pool.submit(self.make, following)
        self.made = {key: future for key, future in self.made.items() if key >= number}
        return self.made[number].result()
