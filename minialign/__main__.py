r"""`python -m minialign [command]`: the map of commands, nothing else.

Without a command it runs the main job, `demo`. A command's module is imported only when it runs, so that help is quick.
"""

import contextlib
import importlib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator

import click

from minialign.runs.errors import UserError
from minialign.runs.process import prepare_process

COMMANDS = {
    "demo": "The main job: from raw text to an aligned model, with a report.",
    "pretrain": "Teach a decoder to predict the next token of your texts.",
    "bases": "Make or check the shipped models that can read.",
    "sft": "Instruction-tune a model on demonstrations.",
    "instruct": "Tune a model on many tasks in many wordings; examine it on tasks that it never saw.",
    "ask": "Ask a trained model a question in your own words.",
    "compare": "Sample pairs of answers, to be judged by people.",
    "label": "Say which of two answers is better, in the browser or in the terminal.",
    "annotators": "How far people agree, with themselves and with each other, and what it costs.",
    "reward": "Train a reward model on comparisons.",
    "ppo": "Optimise a policy against a reward model, with a price on leaving the reference.",
    "grpo": "Optimise a policy for a reward that can be checked.",
    "dpo": "Optimise a policy on comparisons directly, without a reward model.",
    "kto": "Optimise a policy on single answers that were liked or not.",
    "finetune": "Fine-tune on your data: all weights, or a small part by LoRA, BitFit, adapters or a tuned prompt.",
    "distill": "Teach a small model what a large one says and thinks; compare the two.",
    "quantize": "Store and compute a model with fewer bits; see what it costs and saves.",
    "evaluate": "Perplexity on texts; win rate against references or another model.",
    "hacking": "The answers whose reward and worth differ most.",
    "sample": "Let a model write.",
    "chat": "Talk with a real language model, SmolLM2.",
    "realdata": "Fetch real texts and real people's judgements.",
    "claims": "Check what the course notes say, one experiment a claim.",
    "notebooks": "Run the notebooks, all or some, and write them with their outputs.",
    "play": "The models of a run, or the shipped ones, in one page that computes in the browser.",
}

CHAPTERS = {  # heading of the map -> its commands, in the order in which they are needed
    "Everything at once": ("demo", "play"),
    "Texts and pretraining": ("realdata", "pretrain", "bases", "sample"),
    "Instruction tuning": ("sft", "instruct", "ask"),
    "Human feedback": ("compare", "label", "annotators", "reward", "ppo", "grpo", "dpo", "kto", "hacking"),
    "Fine-tuning, quantization, distillation": ("finetune", "quantize", "distill"),
    "Real models": ("chat",),
    "Measuring, and the notes": ("evaluate", "claims", "notebooks"),
}
COMPLETE = "_MINIALIGN_COMPLETE"  # bash_source, zsh_source or fish_source: what a shell needs to complete commands
# torchrun --nproc-per-node 2 -m minialign pretrain … shares each batch
PARALLEL = ("pretrain", "bases", "sft", "reward", "dpo", "kto", "finetune", "distill", "ppo", "grpo")


class Map(click.Group):
    """The commands, imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the map, not of the alphabet."""
        return [name for names in CHAPTERS.values() for name in names]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The module minialign/lab/commands/NAME.py holds the command `command`."""
        if name in COMMANDS:
            return import_command(name)
        if ctx.resilient_parsing:  # a shell that asks how to go on
            return None
        raise click.UsageError(f"there is no command {name!r}; known are {', '.join(COMMANDS)}")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The map, chapter by chapter, without importing anything."""
        widest = max(map(len, COMMANDS))
        for chapter, names in CHAPTERS.items():
            with formatter.section(chapter):
                formatter.write_dl([(name.ljust(widest), COMMANDS[name]) for name in names])


@contextlib.contextmanager
def on_ctrl_c(do: Callable[[], None]) -> Iterator[None]:
    """Inside, Ctrl-C calls `do`. Not in a thread: there nobody can press anything."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda signum, frame: do())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def import_command(name: str) -> click.Command:
    """A command. Ctrl-C ends the process at once: a library whose import is broken off may swallow it or fail in its
    own words."""

    def leave() -> None:
        os.write(2, b"stopped before anything began\n")
        os._exit(130)

    with on_ctrl_c(leave):
        return importlib.import_module(f"minialign.lab.commands.{name}").command


@click.group(cls=Map, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """minialign: the course notes on aligning, fine-tuning, quantizing and distilling language models, made runnable.

    Without a command it runs the main job. `python -m minialign COMMAND --help` explains a command.
    docs/commands.md has a table of commands to copy.
    """


def run(arguments: list[str]) -> int:
    """Run one command line and return the exit status: 0, 2 for what the user can put right, 130 after Ctrl-C."""
    if COMPLETE in os.environ:  # the shell asks what could stand next
        main.main(arguments, prog_name="minialign", complete_var=COMPLETE)
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments = ["demo", *arguments]
    odd = next((word for word in arguments if re.search(r"[\ud800-\udfff]", word)), None)
    if odd is not None:
        return complain(f"{odd!r} holds half a character: bytes that are not UTF-8; type it again, or rename the file")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and arguments[0] not in PARALLEL:
        print(f"error: {arguments[0]} runs in one process; torchrun can share {', '.join(PARALLEL)}", file=sys.stderr)
        return 2
    if int(os.environ.get("RANK", 0)) > 0:  # the first process speaks for all
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    pressed = []

    def stop() -> None:
        pressed.append(True)
        raise KeyboardInterrupt

    with on_ctrl_c(stop):
        try:
            status = main.main(arguments, prog_name="python -m minialign", standalone_mode=False)
            return status if isinstance(status, int) else 0  # 1: a control failed
        except (KeyboardInterrupt, click.exceptions.Abort):
            pass
        except Exception as error:
            if not pressed:  # else some library made another error of the Ctrl-C that fell into it
                return answer(error)
        finally:
            if "torch.distributed" in sys.modules and int(os.environ.get("WORLD_SIZE", 1)) > 1:
                importlib.import_module("minialign.runs.processes").leave_processes()
    print("stopped; the same command goes on from what is saved", file=sys.stderr)
    return 130


def answer(error: Exception) -> int:
    """Say on one line what went wrong, if a person can put it right, and return the exit status. A fault of ours is
    raised again."""
    if isinstance(error, click.UsageError):
        help_of = f"; see {error.ctx.command_path} --help" if error.ctx is not None else ""
        return complain(error.format_message().rstrip(".") + help_of)
    if isinstance(error, UserError | click.ClickException):
        return complain(str(error))
    if isinstance(error, OSError):
        what = f"{error.filename or 'a file'}: {error.strerror or error}"
        return complain(f"{what}; mend that and run the same command again")
    if type(error).__name__ == "Stopped":  # resumable.Stopped, without importing torch just to ask
        print(str(error), file=sys.stderr)
        return 130
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and re.search("gloo|NCCL|by peer|Broken pipe", str(error)):
        who = importlib.import_module("minialign.runs.processes").who_ended()
        return complain(who) if who else 2
    if isinstance(error, MemoryError) or re.search("allocate memory|out of memory|Storage size calculation overflowed",
                                                       str(error)):
        return complain("there is not enough memory for this; use a smaller model, a smaller batch, or where there is "
                        "--accumulation more of it: the result is the same")
    if isinstance(error, NotImplementedError) and "MPS" in str(error):
        return complain("this graphics card lacks an operation; use --device cpu, or set PYTORCH_ENABLE_MPS_FALLBACK=1 "
                        "and the processor does what is missing")
    raise error


def complain(message: str) -> int:
    """Say on one line what the user can put right; the exit status for it."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return 2


def program() -> int:
    """The command line of this process: `python -m minialign`, or `minialign` where the package is installed. Before
    torch is imported it sets how threads wait and what memory is kept (runs/process.py)."""
    prepare_process()
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a letter shows a question mark, and no traceback
        stream.reconfigure(errors="replace")
    read_standard_input_as_a_file()
    return run(sys.argv[1:])


def read_standard_input_as_a_file() -> None:
    """What is piped in is UTF-8, without a byte-order mark, and \\n ends its lines, on Windows too."""
    if not sys.stdin.isatty():
        sys.stdin.reconfigure(encoding="utf-8-sig", newline=None)


if __name__ == "__main__":
    sys.exit(program())
