r"""The datasets of instruction tuning: what can be asked of a passage, in clusters of the same kind of thinking.

    65 datasets in 19 clusters; `prompts.json` holds six or more templates for each
                                                            Wei et al. 2021 (FLAN), Fig. 3; Sanh et al. 2022 (T0), §3

A *cluster* is what is held out as a whole: who has learned to answer "who?" has half learned to answer "where?", so a
split between datasets would test nothing (pitfall D36). Passages are two to four sentences long, told for one dataset
and used in no other.

Read next: pretrain/causal_lm.py. Try it: `python -m minialign.world.datasets`.
"""

import random
from collections.abc import Callable, Iterable

from minialign.runs.errors import UserError
from minialign.world import editing, judging, reading, writing
from minialign.world.stories import write_scene
from minialign.world.tasks import TASKS, Task
from minialign.world.templates import TABLES, load_templates, texts


def by_name(*functions: Callable) -> dict[str, Callable]:
    """Name -> function."""
    return {function.__name__: function for function in functions}


CLUSTERS: dict[str, dict[str, Callable]] = {
    "questions": {name: TASKS[name].examples for name in ("who", "where", "what", "feeling")}
    | by_name(reading.which_of_two, reading.colour),
    "yes-no": {"yes_no": TASKS["yes_no"].examples}
    | by_name(reading.named_person, reading.named_thing, reading.named_place, reading.answerable),
    "counting": by_name(reading.count_people, reading.count_sentences, reading.count_things, reading.count_name),
    "order": by_name(reading.came_first, reading.came_last, reading.before, reading.person_named_first,
                     editing.sentence_before),
    "finding": by_name(reading.find_sentence, reading.last_sentence, editing.nth_sentence),
    "sentiment": by_name(judging.mood, judging.feeling_sign, judging.feels_good, judging.rude),
    "topic": by_name(judging.main_thing, judging.main_person, judging.title, judging.place),
    "paraphrase": by_name(judging.same_meaning, judging.means_the_same),
    "summaries": by_name(writing.short_summary, writing.right_summary),
    "asking": by_name(writing.ask_for, writing.which_question),
    "rewriting": by_name(writing.polite, writing.politer, writing.restate),
    "words": by_name(writing.kind_of, writing.is_a, writing.same_group, writing.odd_one_out,
                     writing.he_or_she),
    "editing": by_name(editing.first_word, editing.last_word, editing.without_first_word, editing.exchange_name),
    "comparing": by_name(editing.longer, editing.same_person),
    "lists": by_name(editing.list_people, editing.list_things),
    "inference": {"check": TASKS["check"].examples} | by_name(judging.follows, judging.contradicts),
    "completion": by_name(judging.ending, judging.goes_on, judging.why),
    "coreference": by_name(reading.pronoun, reading.pronoun_means, reading.without_pronoun),
    "format": by_name(editing.numbered, editing.twice, editing.opposite),
}
HELD_OUT = ("inference", "completion", "coreference",  # as T0 did (Sanh et al. 2022, §3)
            "format")  # and what asks for an answer in a form that no other task wants
DATASETS: dict[str, Task] = {name: Task(name, cluster, make)
                             for cluster, tasks in CLUSTERS.items() for name, make in tasks.items()}
PROMPTS = load_templates(TABLES / "prompts.json")


def examples(names: Iterable[str], count: int, seed: int, told: set[str] | None = None) -> dict[str, list[dict]]:
    """Examples of each dataset, every passage told for one of them only.

    Args:
        names: datasets.
        count: examples of each.
        seed: same seed, same examples.
        told: texts that are not used again; it grows. Give the same set to the calls for two sides of a split.
    Returns:
        dataset -> `count` examples {fields, "answer", "options"?, "cluster"}.
    Raises:
        UserError: an unknown dataset.
    """
    names = list(names)
    unknown = [name for name in names if name not in DATASETS]
    if unknown:
        raise UserError(f"there is no dataset {unknown[0]!r}; known are {', '.join(DATASETS)}")
    told = set() if told is None else told
    found: dict[str, list[dict]] = {name: [] for name in names}
    for name, kept in found.items():
        rng, task = random.Random(f"{seed} {name}"), DATASETS[name]
        while len(kept) < count:
            of_one_passage = task.examples(write_scene(rng), rng)
            example = rng.choice(of_one_passage) | {"cluster": task.cluster} if of_one_passage else None
            if example and not texts(example) & told:
                told |= texts(example)
                kept.append(example)
    return found


def show_datasets(seed: int = 0) -> str:
    """One example of each dataset in one of its wordings, for people."""
    rng, lines = random.Random(seed), []
    for name, (example,) in examples(DATASETS, 1, seed).items():
        question = rng.choice(PROMPTS[name]).pose(example)
        lines.append(f"[{example['cluster']}: {name}, {question.template}]\n{question.prompt}\n→ {question.target}")
    return "\n\n".join(lines)


if __name__ == "__main__":
    print(show_datasets())
