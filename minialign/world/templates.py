r"""Templates: how an example becomes a prompt and its completion.

`templates.json` holds, for each task, a list of {"name", "input", "target"} whose `{field}` slots are fields
of the task's examples.
FLAN (Wei et al. 2021) wrote ten templates a task; ours are short, because on a laptop tokens are time.

Read next: `tasks.py`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from minialign.errors import UserError
from minialign.world.wordings import TABLES

FIELD = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Template:
    """One way of asking one task."""

    task: str
    name: str
    input: str
    target: str

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that its two texts name."""
        return tuple(dict.fromkeys(FIELD.findall(self.input) + FIELD.findall(self.target)))


def load_templates(path=TABLES / "templates.json") -> dict[str, list[Template]]:
    """Task -> its templates.

    Raises:
        UserError: a template lacks one of its three texts, or has a stray brace.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"cannot be read as JSON: {error}", file=path) from None
    templates: dict[str, list[Template]] = {}
    for task, entries in table.items():
        for entry in entries:
            if set(entry) != {"name", "input", "target"}:
                raise UserError(f'a template of {task} needs "name", "input" and "target", not {sorted(entry)}', file=path)
            for text in (entry["input"], entry["target"]):
                if re.search(r"[{}]", FIELD.sub("", text)):
                    raise UserError(f"template {task}/{entry['name']} has a stray brace in {text!r}", file=path)
            templates.setdefault(task, []).append(Template(task, **entry))
    return templates


TEMPLATES = load_templates()


def render(template: Template, example: dict) -> tuple[str, str]:
    """The prompt and the completion of an example.

    Raises:
        UserError: the example lacks a field that the template names.
    """

    def value(found: re.Match) -> str:
        field = found.group(1)
        if field not in example:
            known = ", ".join(sorted(example))
            raise UserError(f"template {template.task}/{template.name} needs the field {field!r}; the example has {known}")
        return str(example[field])

    return FIELD.sub(value, template.input), FIELD.sub(value, template.target)
