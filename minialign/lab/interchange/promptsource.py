r"""Templates of the public PromptSource collection: T0's own, 2,085 of them for 180 data sets, in YAML with Jinja.

    jinja: "{{premise}} Can we infer that {{hypothesis}}? ||| {{ answer_choices[label] }}"         Bach et al. 2022, §3
    answer_choices: Yes ||| No        metadata: {original_task: true}

What stands before `|||` is the prompt, behind it the target. A template that is not marked `original_task` asks for
something else than the data set's own task; it is trained on, and never examined (Sanh et al. 2022, §4). The texts come
from strangers, so they run in Jinja's sandbox, which reaches no attribute of Python. Needs jinja2 and PyYAML.

Read next: tasks_file.py. Try it:  python -m minialign instruct --tasks FILE.jsonl --templates templates.yaml
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minialign.runs.errors import UserError
from minialign.runs.files import read_text, refuse_half_characters
from minialign.world.templates import Question, Unfit

SEPARATOR = "|||"
MARK = "\0|||\0"  # in its place while a template is filled, since an example's own text may hold a |||
MISSING = "templates in YAML need the libraries jinja2 and PyYAML; install them with: pip install jinja2 pyyaml"


def _environment() -> Any:
    """Jinja's sandbox with the three helpers that the collection's templates use."""
    try:
        from jinja2 import StrictUndefined
        from jinja2.sandbox import SandboxedEnvironment
    except ImportError:
        raise UserError(MISSING) from None
    environment = SandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
    environment.globals.update(zip=zip)
    # the collection draws one by chance; the same text for the same example is worth more here
    environment.filters["choice"] = lambda items: items[0]
    environment.filters["most_frequent"] = most_frequent
    environment.filters["place"] = place
    return environment


def place(value: Any) -> Any:
    """What a field says as the place in a list. Raises ValueError for what Python would count from the end, or take for
    0 or 1, in silence."""
    if isinstance(value, bool) or (isinstance(value, int) and value < 0):
        raise ValueError(f"{json.dumps(value)} is no place in a list; write 0 for the first, 1 for the second")
    return value


def compile_checked(environment: Any, text: str) -> Any:
    """A template in which every place that a field gives is checked; `[-1]` and `[a == b]` are the author's own."""
    from jinja2 import nodes

    if not isinstance(text, str):
        raise TypeError(f"{text!r} is no text")
    tree = environment.parse(text.replace(SEPARATOR, MARK))
    for item in tree.find_all(nodes.Getitem):
        literal = isinstance(item.arg, nodes.Neg) and isinstance(item.arg.node, nodes.Const)
        if not literal and not isinstance(item.arg, nodes.Const | nodes.Slice | nodes.Compare | nodes.Not | nodes.Test):
            item.arg = nodes.Filter(item.arg, "place", [], [], None, None, lineno=item.lineno, environment=environment)
    return environment.from_string(tree)


def most_frequent(items: list) -> list:
    """The items that come most often, each once, in their order."""
    counts = Counter(items)
    return [item for item in counts if counts[item] == max(counts.values())]


@dataclass(frozen=True)
class JinjaTemplate:
    """One template of the collection; it poses questions as a `Template` does."""

    task: str
    name: str
    jinja: str
    answer_choices: str = ""  # Jinja too; empty where anything can be said
    original_task: bool = True
    style: str = ""
    compiled: tuple[Any, Any] = field(default=(None, None), compare=False, repr=False)

    @property
    def inverted(self) -> bool:
        """Whether it asks for something else than the data set's own task."""
        return not self.original_task

    @property
    def asked_as(self) -> str:
        """The name of its wording: its own."""
        return self.name

    @property
    def asks_for_the_answer(self) -> bool:
        """Whether it is examined: it asks for the task itself and there are answers to choose from."""
        return self.original_task and bool(self.answer_choices)

    def pose(self, example: dict, place: tuple[object, int | None] = (None, None)) -> Question:
        """An example in this template's words.

        Args:
            place: file and line of the example, for errors.
        Raises:
            UserError: a field is missing, Jinja fails, or the target is not among the choices. Unfit: no prompt or no
                target is left.
        """
        from jinja2 import TemplateError, UndefinedError

        fields = {name: value for name, value in example.items() if name != "cluster"}
        here, (text, choices) = f"template {self.task}/{self.name}", self.compiled
        try:
            options = [part.strip() for part in choices.render(**fields).split(MARK)] if choices else []
            parts = [part.strip() for part in text.render(**fields, answer_choices=options or None).split(MARK)]
        except UndefinedError as error:
            raise UserError(f"{here} needs a field that the example lacks ({error}); the example has "
                            f"{', '.join(sorted(fields))}", *place) from None
        except (TemplateError, TypeError, ValueError, IndexError, KeyError, AttributeError, ZeroDivisionError) as error:
            raise UserError(f"{here} cannot be filled with this example: {error}", *place) from None
        if len(parts) != 2 or not all(parts):
            raise Unfit(f"{here} makes no prompt and target of this example, which its conditions leave out", *place)
        if options and self.original_task and parts[1] not in options:
            raise UserError(f"{here}: the target {parts[1]!r} is not among its choices {', '.join(options)}", *place)
        return Question(parts[0], parts[1], tuple(options) if self.asks_for_the_answer else (), self.task, self.name)


def read_promptsource(path: Path, task: str) -> tuple[list[JinjaTemplate], list[tuple[str, str]]]:
    """The templates of one `templates.yaml` for a task, and those that cannot be used with the reason.

    Raises:
        UserError: the libraries are missing, the file is no YAML or not in the collection's form, or none of its
            templates can be used.
    """
    environment = _environment()
    from jinja2 import TemplateError, meta

    table = _load_yaml(path)
    if not isinstance(table, dict) or not isinstance(table.get("templates"), dict):
        raise UserError("this is not a file of the PromptSource collection: it has no `templates`", path)
    found, unusable = [], []
    for number, entry in enumerate(table["templates"].values(), 1):
        entry = entry if isinstance(entry, dict) else {}
        name, jinja = str(entry.get("name", f"template {number}")), entry.get("jinja") or ""
        choices, metadata = entry.get("answer_choices") or "", entry.get("metadata") or {}
        if not isinstance(jinja, str) or SEPARATOR not in jinja:
            unusable.append((name, "it has no ||| between prompt and target"))
            continue
        try:
            compiled = tuple(text and compile_checked(environment, text) for text in (jinja, choices))
            foreign = sorted(meta.find_undeclared_variables(environment.parse(jinja)) & set(environment.globals)
                             - {"range", "zip", "dict"})
        except (TemplateError, TypeError) as error:
            unusable.append((name, f"Jinja cannot read it: {error}"))
            continue
        if foreign:
            unusable.append((name, f"it calls {foreign[0]}, which is not given to templates"))
            continue
        found.append(JinjaTemplate(task, name, jinja, choices, bool(metadata.get("original_task")), "", compiled))
    if not found:
        reasons = "; ".join(f"{name}: {why}" for name, why in unusable) or "there are none"
        raise UserError(f"no template can be used: {reasons}", path)
    return found, unusable


def _load_yaml(path: Path) -> Any:
    """A YAML file, its `!Template` and `!TemplateMetadata` as plain tables; nothing else may be built from it."""
    try:
        import yaml
    except ImportError:
        raise UserError(MISSING) from None

    class Loader(yaml.SafeLoader):
        pass

    for tag in ("!Template", "!TemplateMetadata"):
        Loader.add_constructor(tag, lambda loader, node: loader.construct_mapping(node, deep=True))
    text = read_text(path)
    try:
        table = yaml.load(text, Loader=Loader)  # a SafeLoader with two harmless tags
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise UserError(f"not valid YAML: {getattr(error, 'problem', None) or error}", path,
                        mark.line + 1 if mark else None) from None
    refuse_half_characters(table, path)
    return table
