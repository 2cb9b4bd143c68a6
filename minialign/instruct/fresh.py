r"""Fresh questions: the simulator writes a new example whenever one is drawn, so none is seen twice.

    question number i  =  f(seed, i):  a task, one of its instructions at its rate (mixture.py), a passage, an example
    conversation i     =  question i, then others on the same passage, in words that do not tell it again

A thousand examples of a yes-no task are learned by heart; ten thousand are not (bAbI), and a simulator has no end.
Other processes write ahead, two chunks at a time, so training never waits for them. Details that matter:
    1. A passage that stands in a held-out example is left out (test_fresh_questions_leave_out_held_out_passages).
    2. Question i is the same on every machine and whatever was drawn before it, so a run that was stopped goes on to
       the same bits (test_a_fresh_question_depends_on_seed_and_number_alone).

Read next: t5.py.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

from minialign.batching import Batches
from minialign.instruct.mixture import Templates, shares
from minialign.runs.errors import UserError
from minialign.runs.processes import two_workers
from minialign.world.datasets import DATASETS
from minialign.world.manners import without_passage
from minialign.world.stories import Story, write_scene
from minialign.world.templates import Question, Template, texts

Encode = Callable[[list[list[Question]]], tuple[Sequence[Any], int]]  # conversations -> rows, and how many do not fit
CHUNK = 2048  # conversations that are written, and sorted by length, at a time
SPARE = 10**12  # number of the first conversation that comes in the place of one that does not fit
AHEAD = 2  # chunks that are written while one is learned


class FreshMixture:
    """Questions of the toy world's tasks without end.

    Args:
        templates: task -> its templates; only these tasks are asked.
        seed: of everything; held_out: texts that must not come, see `templates.texts`.
        turns: most questions of one conversation, all on one passage.
        size: conversations that are written, and sorted by length, at a time.
    Raises:
        UserError: no task, or no question: a conversation would never begin.
    """

    def __init__(self, templates: Templates, seed: int, held_out: set[str] = frozenset(), turns: int = 1,
                 size: int = CHUNK):
        if not templates or turns < 1:
            raise UserError(f"tasks to ask: {len(templates)}, turns of a conversation: {turns}; give at least one of "
                            f"each")
        self.templates, self.seed, self.held_out = templates, seed, held_out
        self.turns, self.size = min(turns, len(templates)), size
        self.shares = {task: list(shares(found).values()) for task, found in templates.items()}
        self.tasks = list(templates)

    def question(self, number: int) -> Question:
        """What conversation `number` begins with."""
        return self.conversation(number)[0]

    def conversation(self, number: int) -> list[Question]:
        """Questions on one passage, which is told once; words alone are asked about in between."""
        rng, asked = random.Random(f"fresh {self.seed} {number}"), []
        tasks = rng.sample(self.tasks, self.turns)
        while not asked:
            asked = self.ask(tasks, write_scene(rng), rng)
        return asked

    def ask(self, tasks: list[str], story: Story, rng: random.Random) -> list[Question]:
        """Questions on a passage, those tasks left out that have none; nothing where the first has none."""
        asked, told = [], False
        for task in tasks:
            template, example = self.draw(task, rng), self.example(task, story, rng)
            if example is None and not asked:
                return []
            same = example is not None and example.get("story") == story.text
            if example is None or asked and "story" in example and not same:
                continue
            template = without_passage(template) if told and same else template
            if template:
                asked.append(template.pose(example))
                told = told or same
        return asked

    def draw(self, task: str, rng: random.Random) -> Template:
        """One of a task's templates, at its share."""
        return rng.choices(self.templates[task], self.shares[task])[0]

    def example(self, task: str, story: Story, rng: random.Random) -> dict | None:
        """An example of a passage, where there is one that nobody is examined on."""
        found = DATASETS[task].examples(story, rng)
        example = rng.choice(found) if found else None
        return example if example and not texts(example) & self.held_out else None

    def chunk(self, number: int) -> list[list[Question]]:
        """Conversations in a row."""
        return [self.conversation(number * self.size + i) for i in range(self.size)]


class FreshRows(Batches):
    """Fresh questions as training data.

    Args:
        mixture: what is drawn; encode: how rows are made of it; the processes that write ahead have both.
        rows: rows -> data, such as `LabelledRows(rows, batch, seed)`.
        batch: conversations a step; what is left over of a chunk is left out.
    """

    def __init__(self, mixture: FreshMixture, encode: Encode, rows: Callable[[Sequence[Any]], Batches], batch: int):
        if batch > mixture.size:
            raise UserError(f"a batch of {batch} is more than the {mixture.size} conversations that are written at a "
                            f"time; use a smaller --batch")
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

    def __init__(self, mixture: FreshMixture, encode: Encode):
        self.mixture, self.encode = mixture, encode

    def __call__(self, number: int) -> Sequence[Any]:
        """The rows of a chunk. Conversations that no chunk has come in the place of those that do not fit; where nine
        times as many are not enough, the chunk stays shorter."""
        rows, mixture = list(self.encode(self.mixture.chunk(number))[0]), self.mixture
        spare, last = SPARE + 9 * mixture.size * number, SPARE + 9 * mixture.size * (number + 1)
        while 0 < len(rows) < mixture.size and spare < last:
            rows += self.encode([mixture.conversation(spare)])[0]
            spare += 1
        return rows


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
