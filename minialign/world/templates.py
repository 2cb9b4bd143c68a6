r"""Templates: how an example becomes a prompt and its completion.

A file of templates (`templates.json`, `prompts.json`, a user's own) holds, for each task, a list of templates, or the
name of another task whose templates it shares. `{field}` slots are fields of the task's examples; `{options}` is the
list of answers to choose from.

    {"name": "true or false",  "style": "instruction",  "input": "{story}\n{statement} Say true or false.",
     "target": "{answer}",  "words": {"yes": "true", "no": "false"},  "inverted": false,  "answer_in_input": true}

Only `name` and `input` are needed. `words` are what this wording calls the answers. An inverted template gives the
answer and asks for the question. `answer_in_input` admits that the target can be read off the input; without it that is
a mistake, and `lint` finds it. FLAN (Wei et al. 2021) wrote ten templates a task, T0 (Sanh et al. 2022) eight on
average; ours are short, because on a laptop tokens are time.

Read next: tasks.py.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minialign.runs.errors import UserError
from minialign.world.wordings import TABLES

FIELD = re.compile(r"\{(\w+)\}")
STYLES = ("", "question", "instruction", "cloze")
KEYS = {"name": str, "input": str, "target": str, "style": str, "words": dict, "inverted": bool,
        "answer_in_input": bool, "letters": str}
NOT_READ = ("answer", "options", "cluster")  # what an example has beside the fields that a model reads
SHORTEST = 12  # words; shorter texts, single sentences mostly, are alike by chance


class Unfit(UserError):
    """A template is not meant for an example: its conditions leave nothing."""


@dataclass(frozen=True)
class Question:
    """An example as a model meets it."""

    prompt: str
    target: str
    options: tuple[str, ...] = ()  # what can be answered, the target among them; empty where anything can be said
    task: str = ""
    template: str = ""

    @property
    def right(self) -> int:
        """Place of the target among the options."""
        return self.options.index(self.target)


@dataclass(frozen=True)
class Template:
    """One way of asking one task."""

    task: str
    name: str
    input: str
    target: str = "{answer}"
    style: str = ""  # question | instruction | cloze
    words: dict[str, str] = field(default_factory=dict)  # answer of the example -> what this wording calls it
    inverted: bool = False  # the answer is given and the question wanted
    answer_in_input: bool = False  # the target may stand in the input
    letters: str = ""  # "ABCD": options are listed as "A: red, B: blue", and the letter is wanted
    share: float = 1.0  # how often it is drawn, beside the other templates of its task
    manner: str = ""  # how the answer is to be given, where that was put to a wording (manners.py)
    wording: str = ""  # the name of that wording

    @property
    def asked_as(self) -> str:
        """The name of its wording, in whatever order and manner."""
        return self.wording or self.name

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that its two texts name."""
        return tuple(dict.fromkeys(FIELD.findall(self.input) + FIELD.findall(self.target)))

    @property
    def asks_for_the_answer(self) -> bool:
        """Whether its target is the example's answer, alone or in a sentence, so that the example's options are its
        options."""
        return FIELD.findall(self.target) == ["answer"]

    def calls(self, example: dict) -> dict[str, str]:
        """What this wording calls the answers of an example, where it calls them otherwise."""
        if not self.letters or "options" not in example:
            return self.words
        return dict(zip(map(str, example["options"]), self.letters))

    def pose(self, example: dict, place: tuple[object, int | None] = (None, None)) -> Question:
        """An example in this template's words; it has options where the example has, and its answer is asked for.

        Args:
            place: file and line of the example, for errors.
        Raises:
            UserError: a field is missing, or the answer is not among the options.
        """
        prompt, target = (text.strip() for text in render(self, example, place))
        options: tuple[str, ...] = ()
        if self.asks_for_the_answer and "options" in example:
            calls = self.calls(example)
            options = tuple(self.target.replace("{answer}", calls.get(option, option)).strip()
                            for option in map(str, example["options"]))
            listing = ", ".join(options) or "(none)"
            if target not in options:
                raise UserError(f"the answer {target!r} of {self.task} is not among its options {listing}", *place)
            if len(set(options)) < len(options):
                raise UserError(f"the options of {self.task} name one answer twice: {listing}", *place)
        return Question(prompt, target, options, self.task, self.name)


def load_templates(path: Path = TABLES / "templates.json") -> dict[str, list[Template]]:
    """Task -> its templates.

    Raises:
        UserError: not JSON; a key that is unknown, missing or of another type; a stray brace; a name that comes twice.
    """
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8-sig"), object_pairs_hook=each_once)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot be read as JSON: {error}", path) from None
    if not isinstance(table, dict) or not table:
        raise UserError('there are no templates; it must be an object such as {"task": [{"name": "plain", "input": '
                        '"{text}", "target": "{answer}"}]}', path)
    templates: dict[str, list[Template]] = {}
    for task, entries in table.items():
        if isinstance(entries, str):
            if not isinstance(table.get(entries), list):
                raise UserError(f"{task} shares the templates of {entries!r}, which has no list of its own", path)
            entries = table[entries]
        if not isinstance(entries, list) or not entries:
            raise UserError(f"{task} has no templates; give a list of them, or the name of the task whose templates it "
                            f"shares", path)
        templates[task] = [_template(task, entry, path) for entry in entries]
        names = [template.name for template in templates[task]]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"{task} has two templates with the name {name!r}; give each its own", path)
    return templates


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises ValueError for a name that comes twice, of which the last would stand for all."""
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands in one object twice; put both into one, or rename one")
    return dict(pairs)


def _template(task: str, entry: dict, path: Path) -> Template:
    """One template, checked."""
    if not isinstance(entry, dict) or not {"name", "input"} <= set(entry) <= set(KEYS):
        found = sorted(entry) if isinstance(entry, dict) else entry
        raise UserError(f'a template of {task} needs "name" and "input" and may have {", ".join(list(KEYS)[2:])}; this '
                        f'one has {found}', path)
    here = f"template {task}/{entry['name']}"
    for key, value in entry.items():
        if not isinstance(value, KEYS[key]):
            raise UserError(f"{here}: {key} is {value!r}; it must be a {KEYS[key].__name__}", path)
    if entry.get("style", "") not in STYLES:
        raise UserError(f"{here}: style is {entry['style']!r}; choose one of {', '.join(STYLES[1:])}", path)
    template = Template(task, **entry)
    for text in (template.input, template.target):
        if re.search(r"[{}]", FIELD.sub("", text)):
            raise UserError(f"{here} has a stray brace in {text!r}", path)
    return template


TEMPLATES = load_templates()


def listed(options: Iterable[str]) -> str:
    """Options for people: "red, blue or green"; sentences one after the other, each on a line of its own."""
    options = list(options)
    if any(option.endswith((".", "?")) for option in options):
        return "".join(f"\n- {option}" for option in options)
    return f"{', '.join(options[:-1])} or {options[-1]}" if len(options) > 1 else "".join(options)


def render(template: Template, example: dict, place: tuple[object, int | None] = (None, None)) -> tuple[str, str]:
    """The prompt and the completion of an example.

    Args:
        place: file and line of the example, for errors.
    Raises:
        UserError: the example lacks a field that the template names, or it is neither a text nor a number, which stands
            for its text.
    """

    calls = template.calls(example)

    def value(found: re.Match) -> str:
        name = found.group(1)
        if name not in example:
            raise UserError(f"template {template.task}/{template.name} needs the field {name!r}; the example has "
                            f"{', '.join(sorted(example))}", *place)
        inside = example[name]
        if name == "options" and template.letters:
            return listed(f"{letter}: {option}" for letter, option in zip(template.letters, map(str, inside)))
        if name == "options":
            return listed(calls.get(option, option) for option in map(str, inside))
        if isinstance(inside, bool) or not isinstance(inside, str | int | float):
            raise UserError(f"field {name!r} is {json.dumps(inside)[:40]}, and template {template.task}/{template.name}"
                            f" writes it into a sentence; make it a text or a number", *place)
        text = str(inside)
        return calls.get(text, text) if name == "answer" else text

    # a list begins on a new line, and on one only
    prompt = re.sub(r"[ \n]\n- ", "\n- ", FIELD.sub(value, template.input))
    return prompt, FIELD.sub(value, template.target)


def stands_in(target: str, text: str) -> bool:
    """Whether the target can be read off the text, as whole words, whatever its capitals."""
    return re.search(rf"(?<!\w){re.escape(target.lower())}(?!\w)", text.lower()) is not None


def texts(example: dict) -> set[str]:
    """The example's texts of at least SHORTEST words, in small letters: what must not be on two sides of a split."""
    values = (value for key, value in example.items() if isinstance(value, str) and key not in NOT_READ)
    words = (re.findall(r"\w+", value.lower()) for value in values)
    return {" ".join(text) for text in words if len(text) >= SHORTEST}


def lint(template: Template, examples: list[dict]) -> list[str]:
    """What is wrong with a template, as sentences; an empty list when nothing is.

    Args:
        examples: of its task, a hundred or more, since some faults show in few of them.
    """
    name, found = f"{template.task}/{template.name}", []
    missing = [slot for slot in template.fields if any(slot not in example for example in examples)]
    if missing:
        return [f"{name}: the examples have no field {', '.join(missing)}"]
    questions = [template.pose(example) for example in examples]
    for text in (template.input, template.target):
        if re.search(r"\\[nt]|\}n\b|[ \t]\n|  |\t", text) or text != text.rstrip():
            found.append(f"{name}: a lost line break, a double blank or a blank at the end in {text!r}")
    if any(re.search("[{}]", question.prompt + question.target) for question in questions):
        found.append(f"{name}: a brace is left after filling")
    if any(not question.prompt or not question.target for question in questions):
        found.append(f"{name}: the prompt or the target is empty")
    readable = any(stands_in(question.target, question.prompt) for question in questions)
    if readable and not template.answer_in_input:
        found.append(f"{name}: the target stands in the input; say answer_in_input if that is meant")
    if template.answer_in_input and not readable:
        found.append(f"{name}: says answer_in_input, but the target never stands there")
    if template.inverted == template.asks_for_the_answer:
        found.append(f"{name}: inverted is {template.inverted}, but its target is {template.target!r}")
    return found
