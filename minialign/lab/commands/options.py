r"""From configuration to command line: every field of a stage's dataclass becomes an option, its comment the help.

`--fast` puts the stage's own quick values in place of the defaults; what is given on the command line always wins.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from minialign.runs.settings import describe

LARGEST = 2**31 - 1


class Number(click.ParamType):
    """A number that a computer can work with: a float that is finite, a whole number that is not astronomical."""

    def __init__(self, kind: type):
        self.kind, self.name = kind, {int: "integer", float: "float"}[kind]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or an error with the value."""
        try:
            number = self.kind(value)
        except ValueError:
            self.fail(f"{value!r} is not {'a whole number' if self.kind is int else 'a number'}", param, ctx)
        if not math.isfinite(number) or (self.kind is int and abs(number) > LARGEST):
            self.fail(f"{value!r} is not finite" if self.kind is float else f"{value!r} is too large; the largest is "
                      f"{LARGEST}", param, ctx)
        return number


TYPES = {"int": Number(int), "float": Number(float), "str": str, "bool": bool}


class Option(click.Option):
    """An option that knows under which heading of the help it stands."""

    def __init__(self, *arguments, section: str = "Files and run", **keywords):
        super().__init__(*arguments, **keywords)
        self.section = section


class Command(click.Command):
    """A command whose help lists its options under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One list for the files, one for each configuration."""
        sections: dict[str, list] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                sections.setdefault(getattr(parameter, "section", "Files and run"), []).append(record)
        for section, records in sections.items():
            with formatter.section(section):
                formatter.write_dl(records)


def configured(
    section: str, name: str, default: Any, fast: dict[str, Any] | None = None, hide: tuple[str, ...] = (),
    rename: dict[str, str] | None = None
) -> Callable:
    """Give a command one option for each field of a configuration, and hand it the configuration as one argument.

    Args:
        section: heading in the help.
        name: of the argument that receives the configuration.
        default: an instance, with this command's defaults.
        fast: values that --fast puts in their place.
        hide: fields that are not options here and keep their default.
        rename: field -> name of its option, where another option of the command has the field's own name.
    """
    help_of = describe(type(default))
    fields = [field for field in dataclasses.fields(default) if field.name not in hide]
    option = {field.name: (rename or {}).get(field.name, field.name) for field in fields}

    def decorate(function: Callable) -> Callable:
        @click.pass_context
        def wrapper(ctx: click.Context, /, **values):
            chosen = {}
            for field in fields:
                value = values.pop(option[field.name]) if field.name != "seed" else values["seed"]
                given = ctx.get_parameter_source(option[field.name]) not in (ParameterSource.DEFAULT, None)
                chosen[field.name] = (fast[field.name] if values.get("fast") and fast and field.name in fast
                                      and not given else value)
            values[name] = dataclasses.replace(default, **chosen)
            return ctx.invoke(function, **values)

        wrapper.__doc__, wrapper.__name__ = function.__doc__, function.__name__
        wrapper.__click_params__ = list(getattr(function, "__click_params__", []))
        own = [option_of(field, option[field.name], getattr(default, field.name), help_of[field.name], section)
               for field in fields if field.name != "seed"]
        wrapper.__click_params__ = list(reversed(own)) + wrapper.__click_params__
        return wrapper

    return decorate


def option_of(field: dataclasses.Field, name: str, default: Any, text: str, section: str) -> Option:
    """The option of one field."""
    flag = "--" + name.replace("_", "-")
    if field.type == "bool":
        return Option([f"{flag}/--no-{flag[2:]}", name], default=default, show_default=True, help=text, section=section)
    return Option([flag, name], default=default, type=TYPES[field.type], show_default=True, help=text, section=section)


def run_options(out: str | None, otherwise: str = "") -> Callable:
    """--out, --seed and --fast, which every command that makes something has. Without a fixed `out`, `otherwise` says
    where the result goes."""

    def decorate(function: Callable) -> Callable:
        for option in (
            click.option("--fast", is_flag=True, cls=Option, help="A quick look: less of everything, in seconds."),
            click.option("--seed", default=0, type=click.IntRange(0, 2**31 - 1), show_default=True, cls=Option,
                         help="Same seed, same numbers."),
            click.option("--out", type=click.Path(path_type=Path), default=out, show_default=otherwise or True,
                         cls=Option, help="Where the result goes."),
        ):
            function = option(function)
        return function

    return decorate


def file_option(name: str, text: str, **keywords) -> Callable:
    """An option that takes a path. Whether the file is there and good is checked when it is read, with a message that
    names the line."""
    return click.option(name, type=click.Path(path_type=Path), cls=Option, help=text, **keywords)


TUNED = file_option("--tuned", "OUT/METHOD of `finetune`: what was trained on top of this very model.",
                    metavar="FOLDER")
