r"""T5: every task is text in, text out, and each has one fixed prefix that says which task it is.

    input    who story: Rosa lost the kite. question: Who lost the kite?        target    Rosa
                                                              Raffel et al. 2020 (T5), §2.4 and appendix D

The model learns a task by its prefix, so it knows no other way to ask for it, and there is no way at all to ask for a
task that it never learned. T0 (t0.py) changes the words and nothing else. Details that matter:
    1. The prefix is made of names (of the task and its fields), not of sentences (test_t5_asks_each_task_in_one_way).
    2. Mixture, loss, model and training are those of T0 (test_t5_and_t0_differ_in_nothing_but_the_words).

Read next: t0.py. Try it:  python -m minialign instruct --style t5
"""

from minialign.runs.errors import UserError
from minialign.runs.files import place_of
from minialign.world.templates import FIELD, NOT_READ, Template


def prefix_templates(datasets: dict[str, list[dict]]) -> dict[str, list[Template]]:
    """Task -> its one template, made of the fields of an example; one that has nothing but options reads those."""
    templates = {}
    for task, examples in datasets.items():
        names = [name for name in examples[0] if name not in NOT_READ]
        if odd := [name for name in names if not FIELD.fullmatch(f"{{{name}}}")]:
            raise UserError(f"field {odd[0]!r} cannot stand in a prefix; rename it with letters, digits and _ only",
                            *place_of(examples[0]))
        fields = " ".join(f"{name}: {{{name}}}" for name in names)
        templates[task] = [Template(task, "prefix", f"{task} {fields or 'options: {options}'}")]
    return templates
