r"""A user's own tasks: one file of examples, one of templates, both checked before anything is trained.

tasks.jsonl, one example a line; every other field is yours, for the templates to name:

    {"task": "spam", "cluster": "mail", "text": "You have won!", "answer": "yes", "options": ["yes", "no"]}

templates.json, as `minialign/world/templates.py` describes it; or a file in YAML as the PromptSource collection keeps
it, which is for one task; or a folder with TASK.yaml, or TASK/templates.yaml, for each. In YAML all fields are the
templates' own, `answer` and `options` among them:

    {"spam": [{"name": "plain", "input": "{text}\nIs this spam?", "target": "{answer}"}]}

Without `options` an example can be trained on and not examined. `cluster` says what kind of task it is, for holding
out; without it the task is a cluster of its own. Read next: instruct/mixture.py.
"""

from pathlib import Path
from typing import Any

from minialign.lab.interchange.promptsource import read_promptsource
from minialign.runs.errors import UserError
from minialign.runs.files import place_of, read_json, read_jsonl, read_text
from minialign.world.templates import Question, Unfit, load_templates


def read_tasks(path: Path, plain: bool = True) -> dict[str, list[dict]]:
    """Task -> its examples, each with its "cluster"; answer and options without blanks around them.

    Args:
        plain: answer and options are what is asked for; not so with templates in YAML, which say it themselves.
    Raises:
        UserError: a line that is no JSON object, lacks `task`, or has options that cannot be chosen from, or without
            the answer among them.
    """
    tasks: dict[str, list[dict]] = {}
    for record in read_jsonl(path, ("task",)):
        line, options = place_of(record)[1], record.get("options")
        if not isinstance(record.get("cluster", ""), str):
            raise UserError(f"cluster is {record['cluster']!r}; it must be text", path, line)
        if plain and isinstance(record.get("answer"), str):
            record["answer"] = record["answer"].strip()
        if plain and "options" in record:
            if not isinstance(options, list) or not all(map(is_answer, options)):
                raise UserError(f'options is {options!r}; it must be a list of texts such as ["yes", "no"]', path, line)
            record["options"] = options = [o.strip() if isinstance(o, str) else o for o in options]
            if len(options) < 2:
                raise UserError(f"options has {len(options)} answers; give two or more, or leave the field out", path,
                                line)
            texts = [str(option) for option in options]
            answer = record.get("answer")
            if not is_answer(answer) or str(answer) not in texts:
                raise UserError(f"the answer {answer!r} is not among the options {', '.join(texts)}", path, line)
        record.setdefault("cluster", record["task"])
        tasks.setdefault(record["task"], []).append(record)
    return tasks


def is_answer(value: Any) -> bool:
    """Whether this can be said: a text, or a number, which stands for its text."""
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def is_yaml(path: Path) -> bool:
    """Whether templates are in the PromptSource collection's form: a folder of them, or a file."""
    suffix = path.suffix.lower()
    return (path.is_dir() or suffix in (".yaml", ".yml")
            or suffix != ".json" and not read_text(path).lstrip().startswith(("{", "[")))


def read_templates(path: Path, tasks: dict[str, list[dict]]) -> tuple[dict[str, list[Any]], list[tuple[str, str]]]:
    """Templates for the tasks, and which of a PromptSource file cannot be used, with the reason.

    Raises:
        UserError: a bad file, a task without templates, or a YAML file for more than one task.
    """
    if path.is_dir():
        templates, unusable = {}, []
        for task in tasks:
            files = [file for file in (path / f"{task}.yaml", path / task / "templates.yaml") if file.exists()]
            if not files:
                raise UserError(f"there is neither {task}.yaml nor {task}/templates.yaml in it", path)
            templates[task], left_out = read_promptsource(files[0], task)
            unusable += [(f"{task}/{name}", why) for name, why in left_out]
        return templates, unusable
    if is_yaml(path):
        if len(tasks) != 1:
            raise UserError(f"a file of the PromptSource collection is for one task, and there are {', '.join(tasks)}; "
                            f"give a folder with a file for each, such as {next(iter(tasks))}.yaml", path)
        (task,) = tasks
        templates, unusable = read_promptsource(path, task)
        return {task: templates}, unusable
    read_json(path)  # whatever is wrong with it as JSON, with the line
    table = load_templates(path)
    missing = [task for task in tasks if task not in table]
    if missing:
        raise UserError(f"the task {missing[0]!r} has no templates; there are some for {', '.join(table)}", path)
    return {task: table[task] for task in tasks}, []


def fill(tasks: dict[str, list[dict]], templates: dict[str, list[Any]],
         skip_unfit: bool = False) -> tuple[list[Question], int]:
    """Every template filled with every example, so that a fault is found now and not in an hour.

    Args:
        skip_unfit: leave out what a template does not fit, instead of raising.
    Returns:
        the questions, and how many were left out.
    Raises:
        UserError: a missing field, an answer that is not an option, an empty answer; with file and line.
    """
    questions, skipped = [], 0
    for task, examples in tasks.items():
        for example in examples:
            place = place_of(example)
            for template in templates[task]:
                try:
                    question = template.pose(example, place)
                except Unfit as error:
                    if not skip_unfit:
                        raise UserError(f"{error}; leave such pairs out with --skip-unfit") from None
                    skipped += 1
                    continue
                if not all(text.strip() for text in (question.target, *question.options)):
                    raise UserError(f"template {task}/{template.name}: an answer is empty, so there is no token to "
                                    f"rank", *place)
                questions.append(question)
    return questions, skipped
