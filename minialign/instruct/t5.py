r"""T5: every task is text in, text out, and each has one fixed prefix that says which task it is.

    input    who story: Rosa lost the kite. question: Who lost the kite?        target    Rosa
                                                                               Raffel et al. 2020 (T5), §2.4 and
                                                                               appendix D

The model learns a task by its prefix, so it knows no other way to ask for it, and there is no way at all to ask for a
task that it never learned. T0 (t0.py) changes the words and nothing else. Details that matter:
    1. The prefix is made of names (of the task and its fields), not of sentences (test_t5_asks_each_task_in_one_way).
    2. Mixture, loss, model and training are those of T0 (test_t5_and_t0_differ_in_nothing_but_the_words).

Read next: t0.py. Try it:  python -m minialign instruct --style t5
"""

from __future__ import annotations

from minialign.heads import LanguageModel
from minialign.instruct.mixture import MixtureConfig, Split, draw
from minialign.instruct.t0 import tune_t0, validation_of
from minialign.runs.run_folder import RunFolder
from minialign.tokenizer import Tokenizer
from minialign.training import TrainingConfig
from minialign.world.templates import NOT_READ, Question, Template


def prefix_template(task: str, example: dict) -> Template:
    """The one template of a task, made from the fields of an example."""
    fields = " ".join(f"{name}: {{{name}}}" for name in example if name not in NOT_READ)
    return Template(task, "prefix", f"{task} {fields}".strip() if fields else f"{task} options: {{options}}", style="")


def prefix_templates(datasets: dict[str, list[dict]]) -> dict[str, list[Template]]:
    """Task -> its one template; a task whose examples have nothing but options reads those."""
    return {task: [prefix_template(task, examples[0])] for task, examples in datasets.items()}


def t5_questions(split: Split, config: MixtureConfig) -> tuple[list[Question], list[Question]]:
    """Training and validation questions, both of the training clusters."""
    templates = prefix_templates(split.train)
    return draw(split.train, templates, config), draw(split.validation, templates, validation_of(config))


def tune_t5(
    model: LanguageModel,
    tokenizer: Tokenizer,
    questions: list[Question],
    valid: list[Question],
    config: TrainingConfig,
    run: RunFolder,
    skip_long: bool = False,
) -> dict[str, float]:
    """Teach an encoder-decoder tasks by their prefixes; everything else as for T0."""
    return tune_t0(model, tokenizer, questions, valid, config, run, skip_long)
