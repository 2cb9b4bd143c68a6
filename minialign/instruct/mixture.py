r"""The mixture of instruction tuning: which example comes in which words, how often, and what is never shown.

    rate of one template of a task  =  min(n, K) / templates of the task            Raffel et al. 2020 (T5), §3.5.2; Wei et al. 2021, §2.4

n is the size of the task's dataset and K the cap: a large dataset does not drown the small ones, and a task with many
wordings is not asked more often than one with few. Details that matter:
    1. Whole clusters are held out, not datasets; a task or a text on both sides is an error
       (test_a_text_on_both_sides_of_the_split_is_an_error).
    2. Models are chosen on validation questions of the *training* clusters, never on the held-out ones, as T0 was (Sanh
       et al. 2022, §5).
    3. Same seed, same questions in the same order (test_the_same_seed_draws_the_same_mixture).
DEVIATION: T0's released code gives every template of a dataset below its cap the whole size as its rate, and divides by
their number above it
    only, so that a dataset just below the cap counts eight times as much as one above; here both are divided.

Read next: t0.py, t5.py and flan.py, which differ in the words and in the model.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from minialign.runs.errors import UserError
from minialign.runs.settings import check_ranges
from minialign.world.templates import Question, Template, Unfit, texts


@dataclass(frozen=True)
class MixtureConfig:
    """How questions are drawn from datasets and templates."""

    questions: int = 20_000  # how many are drawn
    cap: int = 1000  # K: examples of a dataset that count towards its rate
    templates: int = 0  # wordings of each task that are used, the first ones of its list; 0 uses all
    inverted: bool = True  # also those that give the answer and want the question
    skip_unfit: bool = False  # draw again where a template's own conditions leave an example out, instead of stopping
    seed: int = 0  # of the draw

    def __post_init__(self):
        check_ranges(self, {"questions": (1, 10**8), "cap": (1, 10**8), "templates": (0, 10**4)})


@dataclass(frozen=True)
class Split:
    """Datasets on the two sides, task -> examples, and the training tasks' examples for choosing a model."""

    train: dict[str, list[dict]]
    validation: dict[str, list[dict]]
    held_out: dict[str, list[dict]]


def rates(sizes: dict[str, int], templates: dict[str, Sequence[Template]], cap: int) -> dict[tuple[str, str], float]:
    """(task, name of a template) -> how often it is drawn, in examples; the equation above."""
    return {(task, template.name): min(size, cap) / len(templates[task]) for task,
            size in sizes.items() for template in templates[task]}


def chosen_templates(templates: dict[str, list[Template]], tasks: Iterable[str], config: MixtureConfig) -> dict[str,
        list[Template]]:
    """The templates of each task that a mixture uses."""
    kept = {task: [t for t in templates[task] if config.inverted or not t.inverted] for task in tasks}
    return {task: found[: config.templates or None] for task, found in kept.items()}


def draw(datasets: dict[str, list[dict]], templates: dict[str, list[Template]],
         config: MixtureConfig) -> list[Question]:
    """Questions of the mixture, in random order.

    Args:
        datasets: task -> examples {fields, "answer", "options"?}.
        templates: task -> its templates, as `load_templates` returns them.
    Raises:
        UserError: a task without templates or without examples, or an example that lacks a field.
    """
    for task, examples in datasets.items():
        if not templates.get(task):
            raise UserError(f"there is no template for the task {task!r}; there are some for {', '.join(templates)}")
        if not examples:
            raise UserError(f"the task {task!r} has no examples")
    used = chosen_templates(templates, datasets, config)
    for task in datasets:
        if not used.get(task):
            raise UserError(f"all templates of the task {task!r} are inverted, and those are left out; allow them, or "
                            f"leave the task out")
    rate = rates({task: len(examples) for task, examples in datasets.items()}, used, config.cap)
    by_name = {(task, template.name): template for task, found in used.items() for template in found}
    chance = random.Random(f"mixture {config.seed}")
    questions: list[Question] = []
    for _ in range(20):  # rounds, of which the first is enough unless templates leave examples out
        for name in chance.choices(list(rate), list(rate.values()), k=config.questions - len(questions)):
            example = chance.choice(datasets[name[0]])
            try:
                questions.append(by_name[name].pose(example, (example.get("file"), example.get("line"))))
            except Unfit:
                if not config.skip_unfit:
                    raise
    if len(questions) < config.questions:
        raise UserError("the templates' own conditions leave out nearly every example; use others")
    return questions


def split_by_cluster(datasets: dict[str, list[dict]], held_out: Sequence[str], validation: float = 0.05,
                     seed: int = 0) -> Split:
    """Datasets as training, validation and held-out ones, whole clusters at a time.

    Args:
        datasets: task -> examples, each with its "cluster".
        held_out: names of clusters.
        validation: share of each training dataset that is kept for choosing a model, at least one example.
        seed: of that choice.
    Raises:
        UserError: an unknown cluster, nothing left to train on, a task in two clusters, or a text on both sides.
    """
    clusters = {example["cluster"] for examples in datasets.values() for example in examples}
    unknown = [name for name in held_out if name not in clusters]
    if unknown:
        raise UserError(f"there is no cluster {unknown[0]!r} to hold out; known are {', '.join(sorted(clusters))}")
    sides = {task: {example["cluster"] in held_out for example in examples} for task, examples in datasets.items()}
    torn = [task for task, where in sides.items() if len(where) > 1]
    if torn:
        raise UserError(f"the task {torn[0]!r} stands in a training and in a held-out cluster; give each task one "
                        f"cluster")
    asked = {task: examples for task, examples in datasets.items() if sides[task] == {True}}
    learned = {task: examples for task, examples in datasets.items() if sides[task] == {False}}
    if not learned:
        raise UserError("every cluster is held out; leave some to train on")
    refuse_shared_texts(learned, asked)
    chance = random.Random(f"split {seed}")
    train, valid = {}, {}
    for task, examples in learned.items():
        shuffled = chance.sample(examples, len(examples))
        count = max(1, round(validation * len(examples)))
        train[task], valid[task] = shuffled[count:], shuffled[:count]
        if not train[task]:
            raise UserError(f"the task {task!r} has {len(examples)} example, and one is kept for validation; give more")
    return Split(train, valid, asked)


def refuse_shared_texts(learned: dict[str, list[dict]], asked: dict[str, list[dict]]) -> None:
    """Raise UserError when a text of a training task stands in a held-out one too."""
    owner = {text: task for task, examples in learned.items() for example in examples for text in texts(example)}
    for task, examples in asked.items():
        for example in examples:
            shared = [text for text in texts(example) if text in owner]
            if shared:
                both = (f"this text stands in the training task {owner[shared[0]]!r} and in the held-out task "
                        f"{task!r}: {shared[0][:60]!r}")
                raise UserError(f"{both}; leave it out of one", example.get("file"), example.get("line"))


def ids_of(tokenizer, questions: Sequence[Question], context: int,
           skip_long: bool = False) -> tuple[list[tuple[list[int], list[int]]], int]:
    """Questions as (prompt ids with the begin token, target ids).

    The target begins with a blank, as a word does in running text, where its token was learned.

    Args:
        context: most tokens of a prompt or a target, begin and end token included, that the model can read.
        skip_long: leave out what does not fit instead of raising.
    Returns:
        pairs, and how many were left out.
    Raises:
        UserError: a prompt or a target that does not fit, or a target of no token.
    """
    prompts, targets = tokenizer.encode_many([q.prompt for q in questions]), tokenizer.encode_many([" " + q.target
        for q in questions])
    pairs, skipped = [], 0
    for question, prompt, target in zip(questions, prompts, targets):
        longest = max(len(prompt), len(target)) + 1
        if longest > context and not skip_long:
            which = "prompt" if len(prompt) >= len(target) else "target"
            fit = f"has {longest} tokens, begin or end token included, and the model's context is {context}"
            raise UserError(f"a {which} of {question.task}/{question.template} {fit}; shorten it, or leave such "
                            f"questions out with --skip-long")
        if longest > context:
            skipped += 1
        else:
            pairs.append(([tokenizer.begin, *prompt], target))
    return pairs, skipped
