r"""The mixture of instruction tuning: which example comes in which words, how often, and what is never shown.

    rate of one template of a task  =  min(n, K) · share / shares of the task's templates
                                                      Raffel et al. 2020 (T5), §3.5.2; Wei et al. 2021 (FLAN), §2.4

n is the size of the task's dataset and K the cap: a large dataset does not drown the small ones, and a task with many
wordings is not asked more often than one with few. The share of a template is 1, unless it is one of many manners of
answering (world/manners.py). Details that matter:
    1. Whole clusters are held out, not datasets; a task or a text on both sides is an error
       (test_a_text_on_both_sides_of_the_split_is_an_error).
    2. Models are chosen on validation questions of the *training* clusters, never on the held-out ones, as T0 was (Sanh
       et al. 2022, §5).
    3. Same seed, same questions in the same order (test_the_same_seed_draws_the_same_mixture).
DEVIATION: T0's released code gives every template of a dataset below its cap the whole size as its rate and divides by
    their number only above it, so a dataset just below the cap counts eight times as much as one above. Here both are
    divided.

Read next: fresh.py.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from minialign.generation import as_prompt
from minialign.runs.errors import UserError
from minialign.runs.files import place_of
from minialign.runs.settings import check_ranges
from minialign.world.manners import instructions
from minialign.world.templates import Question, Template, Unfit, texts

Datasets = dict[str, list[dict]]  # task -> its examples {fields, "answer", "options"?, "cluster"}
Templates = dict[str, list[Template]]  # task -> its templates


@dataclass(frozen=True)
class MixtureConfig:
    """How questions are drawn from datasets and templates."""

    questions: int = 20_000  # how many are drawn, where they are not fresh
    cap: int = 1000  # K: examples of a dataset that count towards its rate
    templates: int = 0  # wordings of each task that are used, not inverted ones, drawn by the seed; 0 uses all
    manners: bool = False  # each also in the manners of answering that go with it
    letters: bool = False  # and by the letter of an option, which the bases do not learn in the time
    instructions: int = 0  # different instructions at most, drawn by the seed; 0 uses all
    inverted: bool = True  # also those that give the answer and want the question
    skip_unfit: bool = False  # draw again where a template's own conditions leave an example out, instead of stopping
    seed: int = 0  # of the draw

    def __post_init__(self):
        check_ranges(self, {"questions": (1, 10**8), "cap": (1, 10**8), "templates": (0, 10**4),
                            "instructions": (0, 10**6)})


@dataclass(frozen=True)
class Split:
    """Datasets on the two sides, and the training tasks' examples for choosing a model."""

    train: Datasets
    validation: Datasets
    held_out: Datasets


def rates(sizes: dict[str, int], templates: dict[str, Sequence[Template]], cap: int) -> dict[tuple[str, str], float]:
    """(task, name of a template) -> how often it is drawn, in examples; the equation above."""
    return {(task, name): min(size, cap) * share
            for task, size in sizes.items() for name, share in shares(templates[task]).items()}


def shares(templates: Sequence[Template]) -> dict[str, float]:
    """Name of a template -> its part of its task; they sum to 1."""
    every = {template.name: getattr(template, "share", 1.0) for template in templates}
    return {name: share / sum(every.values()) for name, share in every.items()}


def draw(datasets: Datasets, templates: Templates, config: MixtureConfig) -> list[Question]:
    """Questions of the mixture, in random order.

    Raises:
        UserError: a task without templates or without examples, or an example that lacks a field.
    """
    check_tasks(datasets, templates)
    used = chosen({task: templates[task] for task in datasets}, {task: found[0] for task, found in datasets.items()},
                  config)
    datasets = {task: found for task, found in datasets.items() if task in used}
    rate = rates({task: len(examples) for task, examples in datasets.items()}, used, config.cap)
    by_name = {(task, template.name): template for task in used for template in used[task]}
    rng = random.Random(f"mixture {config.seed}")
    questions: list[Question] = []
    for _ in range(20):  # rounds, of which the first is enough unless templates leave examples out
        for name in rng.choices(list(rate), list(rate.values()), k=config.questions - len(questions)):
            example = rng.choice(datasets[name[0]])
            try:
                questions.append(by_name[name].pose(example, place_of(example)))
            except Unfit:
                if not config.skip_unfit:
                    raise
    if len(questions) < config.questions:
        raise UserError("the templates' own conditions leave out nearly every example; use others")
    return questions


def check_tasks(datasets: Datasets, templates: Templates) -> None:
    """Raise UserError for a task without templates or without examples."""
    for task, examples in datasets.items():
        if not templates.get(task):
            raise UserError(f"there is no template for the task {task!r}; there are some for {', '.join(templates)}")
        if not examples:
            raise UserError(f"the task {task!r} has no examples")


def chosen(templates: Templates, examples: dict[str, dict], config: MixtureConfig) -> Templates:
    """The instructions of a mixture: so many wordings of each task, in so many manners, so many in all. With fewer
    instructions than tasks some tasks are left out.

    Args:
        examples: task -> any one of its examples.
    Raises:
        UserError: a task has nothing but inverted templates, and those are left out.
    """
    used: Templates = {}
    for task, found in (instructions(templates, examples) if config.manners else templates).items():
        found = [template for template in found if (config.inverted or not template.inverted)
                 and (config.letters or not getattr(template, "manner", "").startswith("letters"))]
        if not found:
            raise UserError(f"all templates of the task {task!r} are inverted, and those are left out; allow them, or "
                            f"leave the task out")
        wordings = list(dict.fromkeys(template.asked_as for template in found))
        if 0 < config.templates < len(wordings):
            asking = list(dict.fromkeys(t.asked_as for t in found if not t.inverted)) or wordings
            few = random.Random(f"{config.seed} {task}").sample(asking, min(config.templates, len(asking)))
            found = [template for template in found if template.asked_as in few]
        used[task] = found
    if not config.instructions:
        return used
    rng, few = random.Random(f"instructions {config.seed}"), {}
    lots = {task: rng.sample(found, len(found)) for task, found in used.items()}
    for task in rng.sample(list(lots), len(lots)) * max(map(len, lots.values())):
        if lots[task] and sum(map(len, few.values())) < config.instructions:
            few.setdefault(task, []).append(replace(lots[task].pop(), share=1.0))
    return few


def draw_training_and_validation(split: Split, templates: Templates,
                                 config: MixtureConfig) -> tuple[list[Question], list[Question]]:
    """Questions to learn from, and a fortieth as many, at least 64, for choosing a model; both of training clusters and
    in the same instructions."""
    check_tasks(split.train, templates)
    used = chosen({task: templates[task] for task in split.train},
                  {task: found[0] for task, found in split.train.items()}, config)
    train, valid = ({task: found for task, found in side.items() if task in used}
                    for side in (split.train, split.validation))
    config = replace(config, templates=0, manners=False, instructions=0)  # they are chosen
    fewer = replace(config, questions=max(64, config.questions // 40), seed=config.seed + 1)
    return draw(train, used, config), draw(valid, used, fewer)


def split_by_cluster(datasets: Datasets, held_out: Sequence[str], validation: float = 0.05, seed: int = 0) -> Split:
    """Datasets as training, validation and held-out ones, whole clusters at a time.

    Args:
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
    learned, asked = {}, {}
    for task, examples in datasets.items():
        sides = {example["cluster"] in held_out for example in examples}
        if len(sides) > 1:
            raise UserError(f"the task {task!r} stands in a training and in a held-out cluster; give each task one "
                            f"cluster")
        (asked if True in sides else learned)[task] = examples
    if not learned:
        raise UserError("every cluster is held out; leave some to train on")
    refuse_shared_texts(learned, asked)
    rng = random.Random(f"split {seed}")
    train, valid = {}, {}
    for task, examples in learned.items():
        shuffled = rng.sample(examples, len(examples))
        count = max(1, round(validation * len(examples)))
        train[task], valid[task] = shuffled[count:], shuffled[:count]
        if not train[task]:
            raise UserError(f"the task {task!r} has no more examples than the {count} kept for validation, so none is "
                            f"left to learn from; give more, or keep a smaller share")
    return Split(train, valid, asked)


def refuse_shared_texts(learned: Datasets, asked: Datasets) -> None:
    """Raise UserError when a text of a training task stands in a held-out one too."""
    owner = {text: task for task, examples in learned.items() for example in examples for text in texts(example)}
    for task, examples in asked.items():
        for example in examples:
            for text in texts(example):
                if text in owner:
                    raise UserError(f"this text stands in the training task {owner[text]!r} and in the held-out task "
                                    f"{task!r}: {text[:60]!r}; leave it out of one", *place_of(example))


def question_ids(tokenizer, questions: Sequence[Question], context: int,
                 skip_long: bool = False,
                 kind: str = "encoder-decoder") -> tuple[list[tuple[list[int], list[int]]], int]:
    """Questions as (ids of the prompt as a model of a kind reads it, target ids), and how many were left out.

    The target begins with a blank, as a word does in running text, where its token was learned.

    Args:
        context: most tokens of a prompt or a target, begin and end token included, that the model can read.
        skip_long: leave out what does not fit instead of raising.
    Raises:
        UserError: a prompt or a target that does not fit.
    """
    prompts = tokenizer.encode_many([question.prompt for question in questions])
    targets = tokenizer.encode_many([" " + question.target for question in questions])
    pairs, skipped = [], 0
    for question, prompt, target in zip(questions, prompts, targets):
        read = as_prompt(tokenizer, prompt, kind)
        longest = max(len(read), len(target) + 1)
        if longest <= context:
            pairs.append((read, target))
        elif skip_long:
            skipped += 1
        else:
            which = "prompt" if len(read) == longest else "target"
            fit = f"has {longest} tokens, begin or end token included, and the model's context is {context}"
            raise UserError(f"a {which} of {question.task}/{question.template} {fit}; shorten it, or leave such "
                            f"questions out with --skip-long")
    return pairs, skipped
