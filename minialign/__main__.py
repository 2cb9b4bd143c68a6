r"""`python -m minialign [command]`: the map of commands, nothing else.

Without a command it runs the main job, `demo`. A command's module is imported only when the command is run, so that help is quick.
"""

from __future__ import annotations

import importlib
import os
import sys

import click

from minialign.errors import UserError

COMMANDS = {
    "demo": "The main job: from raw text to an aligned model, with a report.",
    "pretrain": "Teach a decoder to predict the next token of your texts.",
    "sft": "Instruction-tune a model on demonstrations.",
    "compare": "Sample pairs of answers, to be judged by people.",
    "reward": "Train a reward model on comparisons.",
    "ppo": "Optimise a policy against a reward model, with a price on leaving the reference.",
    "evaluate": "Perplexity on texts; win rate against references or another model.",
    "sample": "Let a model write.",
    "realdata": "Fetch real texts and real people's judgements.",
    "claims": "Check what the course notes say, one experiment a claim.",
}

PARALLEL = ("pretrain", "sft", "reward")  # torchrun --nproc-per-node 2 -m minialign pretrain … shares each batch


class Map(click.Group):
    """The commands, imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the pipeline, not of the alphabet."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The module minialign/commands/NAME.py holds the command `command`."""
        if name not in COMMANDS:
            raise click.UsageError(f"there is no command {name!r}; known are {', '.join(COMMANDS)}")
        return importlib.import_module(f"minialign.commands.{name}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The map, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Map, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """minialign: the course notes on aligning, fine-tuning, quantizing and distilling language models, made runnable.

    Without a command it runs the main job. `python -m minialign COMMAND --help` explains a command.
    """


def run(arguments: list[str]) -> int:
    """Run one command line and return the exit status: 0, 2 for what the user can put right, 130 after Ctrl-C."""
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments = ["demo", *arguments]
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and arguments[0] not in PARALLEL:
        print(f"error: {arguments[0]} runs in one process; torchrun can share {', '.join(PARALLEL)}", file=sys.stderr)
        return 2
    if int(os.environ.get("RANK", 0)) > 0:  # the first process speaks for all
        sys.stdout = open(os.devnull, "w")
    try:
        main.main(arguments, prog_name="python -m minialign", standalone_mode=False)
        return 0
    except click.UsageError as error:
        help_of = f"; see {error.ctx.command_path} --help" if error.ctx is not None else ""
        print(f"error: {error.format_message().rstrip('.')}{help_of}", file=sys.stderr)
        return 2
    except (UserError, click.ClickException) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, click.exceptions.Abort):
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except Exception as error:
        if type(error).__name__ != "Stopped":  # training.Stopped, without importing torch just to ask
            raise
        print(str(error), file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
