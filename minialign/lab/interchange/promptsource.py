r"""Templates of the public PromptSource collection: T0's own, 2,085 of them for 180 data sets, in YAML with Jinja.

    jinja: "{{premise}} Can we infer that {{hypothesis}}? ||| {{ answer_choices[label] }}"         Bach et al. 2022, §3
    answer_choices: Yes ||| No        metadata: {original_task: true}

What stands before `|||` is the prompt, behind it the target. A template that is not marked `original_task` asks for
something else than the data set's own task; it is trained on, and never examined (Sanh et al. 2022, §4). The texts come
from strangers, so they run in Jinja's sandbox, which reaches no attribute of Python. Needs jinja2 and PyYAML.

Read next: tasks_file.py. Try it:  python -m minialign instruct --tasks FILE.jsonl --templates templates.yaml
"""

import copy
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minialign.runs.errors import UserError
from minialign.runs.files import read_text, refuse_half_characters
from minialign.world.templates import Question, Unfit

SEPARATOR = "|||"
MARK = "\0|||\0"  # in its place while a template is filled, since an example's own text may hold a |||
LOT = "lot_of_the_example"  # a name that templates do not use
ENDLESS = 10**15
MISSING = "templates in YAML need the libraries jinja2 and PyYAML; install them with: pip install jinja2 pyyaml"


class TooMuch(UserError):
    """A template, or a file of them, that would run or grow for ever."""


def weight(value: Any, known: dict[int, int] | None = None) -> int:
    """How many characters and items a value has when it is written out, at least 1. A number counts as itself, but as 1
    inside of a list or a table; a list that holds itself as more than there is."""
    if isinstance(value, int | float):
        return max(1, abs(int(value))) if abs(value) < ENDLESS else ENDLESS
    if isinstance(value, str | bytes | range):
        return max(1, len(value))
    if not isinstance(value, list | tuple | set | frozenset | dict):
        return 1
    known = {} if known is None else known
    if id(value) not in known:
        known[id(value)] = ENDLESS  # while its parts are counted
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(1 if isinstance(part, int | float) else weight(part, known) for part in parts)
    return known[id(value)]


def _environment() -> Any:
    """Jinja's sandbox, within a budget, with the three helpers that the collection's templates use, and nothing
    else."""
    try:
        from jinja2 import StrictUndefined, pass_context

        from minialign.lab.interchange.jinja_limits import PRINTED, LimitedEnvironment
    except ImportError:
        raise UserError(MISSING) from None

    class Missing(StrictUndefined):
        """A field that an example lacks: it may be asked for (`{% if hint %}`), not printed."""

        def __bool__(self) -> bool:
            return False

    environment = LimitedEnvironment(undefined=Missing, autoescape=False)
    environment.finalize = lambda value: environment.weighed(printable(value), PRINTED)
    environment.globals = {"zip": zip} | {name: environment.globals[name] for name in ("range", "namespace")}
    # drawn by chance, but the same for an example whenever it is asked
    environment.filters["choice"] = environment.filters["random"] = environment.paid(pass_context(
        lambda context, items: drawn(context.get(LOT), list(items))))
    environment.filters["most_frequent"] = environment.paid(most_frequent)
    environment.filters["place"] = place
    return environment


def drawn(lot: str, items: list) -> Any:
    """One of the items; what `map` or `select` gives has no name but an address, which differs in every run."""
    return random.Random(f"{lot} {items!r}").choice(items)


def printable(value: Any) -> Any:
    """What a template prints. Raises ValueError for null, which would be read as the word None."""
    if value is None:
        raise ValueError("a field that it prints is null")
    return value


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
    environment.begin()
    tree = environment.parse(text.replace(SEPARATOR, MARK))
    assigned = {target.name for each in tree.find_all(nodes.Assign) for target in each.find_all(nodes.Name)
                if target.ctx == "store"}

    def by_author(item: Any) -> bool:
        if isinstance(item, nodes.CondExpr):
            return by_author(item.expr1) and (item.expr2 is None or by_author(item.expr2))
        if isinstance(item, nodes.Neg | nodes.And | nodes.Or):
            return all(map(by_author, item.iter_child_nodes()))
        return (isinstance(item, nodes.Const | nodes.Slice | nodes.Compare | nodes.Not | nodes.Test)
                or isinstance(item, nodes.Name) and item.name in assigned)

    for item in tree.find_all(nodes.Getitem):
        if not by_author(item.arg):
            item.arg = nodes.Filter(item.arg, "place", [], [], None, None, lineno=item.lineno, environment=environment)
    return environment.from_string(environment.limited(tree, len(text)))


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
    share: float = 1.0  # how often it is drawn, beside the other templates of its task
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
            UserError: a field is missing, or Jinja fails. Unfit: no prompt or no target is left, the template has no
                place for what a field says, or the target is not among the choices.
        """
        from jinja2 import UndefinedError

        fields = {name: copy.deepcopy(value) for name, value in example.items() if name != "cluster"}  # it may pop
        here, (text, choices) = f"template {self.task}/{self.name}", self.compiled
        fields[LOT] = json.dumps(fields, sort_keys=True, default=str)
        text.environment.begin()
        try:
            options = [part.strip() for part in choices.render(fields).split(MARK)] if choices else []
            parts = [part.strip() for part in text.render(fields | {"answer_choices": options or None}).split(MARK)]
        except UndefinedError as error:
            if str(error).endswith(" is undefined"):
                raise UserError(f"{here} needs a field that the example lacks ({error}); the example has "
                                f"{', '.join(sorted(example))}", *place) from None
            raise Unfit(f"{here} has no place for what a field of this example says: {error}", *place) from None
        except ValueError as error:
            raise Unfit(f"{here} cannot be filled with this example: {error}", *place) from None
        except Exception as error:  # a stranger's template may fail in any way
            raise UserError(f"{here} cannot be filled with this example: {error}", *place) from None
        if len(parts) != 2 or not all(parts):
            raise Unfit(f"{here} makes no prompt and target of this example: a field that it prints is empty, or its "
                        f"own conditions leave the example out", *place)
        if options and self.original_task and parts[1] not in options:
            raise Unfit(f"{here}: the target {parts[1]!r} is not among its choices {', '.join(options)}", *place)
        if options and (len(set(options)) < len(options) or len(options) < 2):
            raise Unfit(f"{here}: its choices are not two or more different ones: {', '.join(options)}", *place)
        return Question(parts[0], parts[1], tuple(options) if self.asks_for_the_answer else (), self.task, self.name)


def read_promptsource(path: Path, task: str) -> tuple[list[JinjaTemplate], list[tuple[str, str]]]:
    """The templates of one `templates.yaml` for a task, and those that cannot be used with the reason.

    Raises:
        UserError: the libraries are missing, the file is no YAML or not in the collection's form, or none of its
            templates can be used.
    """
    environment, table = _environment(), _load_yaml(path)
    if not isinstance(table, dict) or not isinstance(table.get("templates"), dict):
        raise UserError("this is not a file of the PromptSource collection: it has no `templates`", path)
    found, unusable, names = [], [], Counter()
    for number, entry in enumerate(table["templates"].values(), 1):
        entry = entry if isinstance(entry, dict) else {}
        name, jinja = str(entry.get("name") or f"template {number}"), entry.get("jinja") or ""
        names[name] += 1
        name += f" ({names[name]})" if names[name] > 1 else ""
        try:
            found.append(_template(environment, task, name, jinja, entry))
        except Exception as error:  # of Jinja's parser, whatever it meets
            unusable.append((name, str(error) if isinstance(error, UserError) else f"Jinja cannot read it: {error}"))
    if not found:
        reasons = "; ".join(f"{name}: {why}" for name, why in unusable) or "there are none"
        raise UserError(f"no template can be used: {reasons}", path)
    return found, unusable


def _template(environment: Any, task: str, name: str, jinja: Any, entry: dict) -> JinjaTemplate:
    """One entry of the file. Raises UserError for what is not in the collection's form, and what Jinja raises."""
    choices, metadata = entry.get("answer_choices"), entry.get("metadata") or {}
    if isinstance(choices, list):  # older files
        choices = f" {SEPARATOR} ".join(map(str, choices))
    if not isinstance(jinja, str) or SEPARATOR not in jinja:
        raise UserError("it has no ||| between prompt and target")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("original_task") or False, bool):
        raise UserError("its metadata must say original_task: true or false")
    if not isinstance(choices or "", str) or choices == 0:
        raise UserError(f"its answer_choices are {choices!r}; write Yes {SEPARATOR} No")
    compiled = tuple(text and compile_checked(environment, text) for text in (jinja, choices or ""))
    return JinjaTemplate(task, name, jinja, choices or "", bool(metadata.get("original_task")), "", 1.0, compiled)


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
        if weight(table) > 100 * len(text) + 10_000:  # YAML may name a list twice in a list that it names twice ...
            raise TooMuch("it would be longer than any memory, written out", path)
        refuse_half_characters(table, path)
    except (yaml.YAMLError, ValueError, ArithmeticError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        raise UserError(f"not valid YAML: {getattr(error, 'problem', None) or error}", path,
                        mark.line + 1 if mark else None) from None
    return table
