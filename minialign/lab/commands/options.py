r"""From configuration to command line: every field of a stage's dataclass becomes an option, its comment the help.

`--fast` puts the stage's own quick values in place of the defaults; what is given on the command line always wins.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import click
from click.core import ParameterSource

from minialign.runs.errors import UserError
from minialign.runs.settings import describe

LARGEST = 2**31 - 1
SWITCHES = {"--compile": "Let torch compile the model's stack: slower to begin, faster then; the last digits differ.",
            "--shard": "Under torchrun: each process holds a part of the weights, for models that do not fit one."}
OLD_NAMES = {"--completions": "--answers"}  # option -> what it was called; taken for one version (docs/commands.md)


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
        if self.kind is float and not math.isfinite(number):
            self.fail(f"{value!r} is not finite", param, ctx)
        if self.kind is int and abs(number) > LARGEST:
            self.fail(f"{value!r} is too large; the largest is {LARGEST}", param, ctx)
        return number


TYPES = {int: Number(int), float: Number(float), str: str, bool: bool}


class Option(click.Option):
    """An option that knows under which heading of the help it stands."""

    def __init__(self, *arguments, section: str = "Files and run", **keywords):
        super().__init__(*arguments, **keywords)
        self.section = section


def put_models_on(ctx: click.Context, parameter: click.Parameter, name: str) -> str:
    """While the command runs, its models are loaded to and made on the device of that name."""
    from minialign.runs.devices import choose_device, describe_device, use_device

    device = choose_device(name)
    before = use_device(device)
    ctx.call_on_close(lambda: use_device(before))
    if device.type != "cpu":
        click.echo(f"on {describe_device(device)}", err=True)
    return name


def put_switch(ctx: click.Context, parameter: click.Parameter, on: bool) -> bool:
    """While the command runs, training is shared by parts, or compiled."""
    from minialign.runs import processes

    switch = {"shard": processes.SHARDED, "compile": processes.COMPILED}[parameter.name]
    before = switch.set(on)
    ctx.call_on_close(lambda: switch.reset(before))
    return on


class Command(click.Command):
    """A command whose help lists its options under headings; one that runs a model has --device, one that trains by the
    supervised loop --compile and --shard, too."""

    def __init__(self, *arguments, device: bool = True, trains: bool = False, **keywords):
        super().__init__(*arguments, **keywords)
        for name, text in SWITCHES.items() if trains else ():
            self.params.append(Option([name], is_flag=True, expose_value=False, callback=put_switch, help=text))
        if device:
            self.params.append(Option(["--device"], type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto",
                                      show_default=True, expose_value=False, callback=put_models_on,
                                      help="Where models compute; auto is a graphics card where there is one."))

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


def is_given(name: str) -> bool:
    """Whether somebody wrote an option of the running command; `name` is its parameter's."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def as_flag(name: str) -> str:
    """--new-tokens of new_tokens."""
    return "--" + name.replace("_", "-")


# one option


def option(*names: str, text: str, **keywords) -> Callable:
    """An option that stands by itself; its default is shown, where it has one."""
    known = (names[0], OLD_NAMES[names[0]], *names[1:]) if names[0] in OLD_NAMES else names
    return click.option(*known, cls=Option, help=text, **{"show_default": keywords.get("default") != "", **keywords})


def flag(*names: str, text: str, **keywords) -> Callable:
    """An option without a value."""
    return click.option(*names, cls=Option, is_flag=True, help=text, **keywords)


def count_option(name: str, default: int, low: int, high: int, text: str, **keywords) -> Callable:
    """A whole number from `low` to `high`."""
    return option(name, text=text, default=default, type=click.IntRange(low, high), **keywords)


def choice_option(name: str, choices: Iterable[str], default: str, text: str) -> Callable:
    """One of several words."""
    return option(name, text=text, default=default, type=click.Choice(list(choices)))


def file_option(name: str, text: str, **keywords) -> Callable:
    """An option that takes a path; `name` may say what it is, as in "--text FILE". Whether the file is there and good
    is checked when it is read, with a message that names the line."""
    name, _, metavar = name.partition(" ")
    return option(name, text=text, type=click.Path(path_type=Path), **{"metavar": metavar or None, **keywords})


def seed_option(text: str = "Same seed, same numbers.") -> Callable:
    """--seed."""
    return count_option("--seed", 0, 0, LARGEST, text)


def run_options(out: str | None, otherwise: str = "") -> Callable:
    """--out, --seed and --fast, which every command that makes something has. Without a fixed `out`, `otherwise` says
    where the result goes."""

    def decorate(function: Callable) -> Callable:
        function = flag("--fast", text="A quick look: less of everything, in seconds.")(function)
        where = file_option("--out", "Where the result goes.", default=out, show_default=otherwise or True)
        return where(seed_option()(function))

    return decorate


RUN = click.argument("run", type=click.Path(path_type=Path))
POLICY = file_option("--policy RUN", required=True, text="The run to improve, usually an instruction-tuned one; it is "
                                                        "also the frozen reference.")
IMPROVED = file_option("--policy RUN", required=True, text="The run to improve, usually an instruction-tuned one, and "
                       "the frozen reference; or a GPT-2 or Llama that others published, or smollm2, on which a LoRA "
                       "learns.")
TUNED = file_option("--tuned FOLDER", "OUT/METHOD of `finetune`: what was trained on top of this very model.")


# one option a field


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
        hide: fields that are not options here and keep their default; a `seed` that is not hidden is the command's own.
        rename: field -> name of its option, where another option of the command has the field's own name.
    """
    fields = {field: what for field, what in fields_of(type(default)).items() if field not in hide}
    names = {field: field for field in fields} | (rename or {})

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def with_configuration(**values):
            chosen = {field: values["seed"] if field == "seed" else values.pop(own) for field, own in names.items()}
            if values.get("fast"):
                chosen |= {field: value for field, value in (fast or {}).items() if not is_given(names[field])}
            try:
                made = dataclasses.replace(default, **chosen)
            except UserError as error:
                field = str(error).partition(" ")[0]
                raise UserError((rename or {}).get(field, field) + str(error)[len(field) :]) from None
            return function(**values, **{name: made})

        for field, (kind, text) in reversed(fields.items()):
            if field != "seed":
                add = field_option(names[field], kind, text, getattr(default, field), section)
                with_configuration = add(with_configuration)
        return with_configuration

    return decorate


def overrides(section: str, name: str, fields: dict[str, tuple[type, str]]) -> Callable:
    """Give a command options for some fields of configurations that it looks up, and hand it the values that were
    given, as one dictionary; `fields`: as from `fields_of`."""

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def with_changes(**values):
            given = {field: values.pop(field) for field in fields}
            return function(**values, **{name: {k: v for k, v in given.items() if v is not None}})

        for field, (kind, text) in reversed(fields.items()):
            with_changes = field_option(field, kind, text, None, section)(with_changes)
        return with_changes

    return decorate


def fields_of(config: type, *names: str) -> dict[str, tuple[type, str]]:
    """Fields of a configuration, all without `names`: each one's type, and its comment as the help."""
    kinds, texts = get_type_hints(config), describe(config)
    return {name: (kinds[name], texts[name]) for name in names or texts}


def field_option(name: str, kind: type, text: str, default: Any, section: str) -> Callable:
    """The option of one field of a configuration."""
    flag, switch = as_flag(name), kind is bool
    return option(f"{flag}/--no-{flag[2:]}" if switch else flag, name, text=text, default=default,
                  type=None if switch else TYPES[kind], section=section)


def gather_options(function: Callable) -> Callable:
    """Hand a command all its options as one `args`, besides its configurations; it stands below the options."""

    @functools.wraps(function)
    def with_args(**values):
        configurations = {name: value for name, value in values.items() if dataclasses.is_dataclass(value)}
        return function(SimpleNamespace(**{k: v for k, v in values.items() if k not in configurations}),
                        **configurations)

    return with_args
