"""`python -m minialign grpo --policy RUN --prompts FILE --check answer|regex|MODULE:FUNCTION`"""

import contextlib
import importlib
import inspect
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from minialign.lab.commands import options as cli
from minialign.lab.commands.inputs import fill_a_batch, open_policy, prompt_rows, read_prompts, say_how_to_sample
from minialign.lab.stages import stage_run
from minialign.peft.lora import LoRAConfig
from minialign.rlhf.grpo import Check, GRPOConfig, train_grpo
from minialign.runs.errors import UserError
from minialign.runs.files import fingerprint, place_of

SAID = {"reward": "reward", "pass_1": "solved by one answer", "pass_8": "by one of eight"}
LONGEST = 5.0  # seconds that a regular expression may look at one answer
FAST = {"updates": 3, "prompts": 4, "completions": 4, "minibatch": 16, "new_tokens": 8}


@click.command(cls=cli.Command)
@cli.IMPROVED
@cli.file_option("--prompts FILE", required=True,
                 text="What to answer: JSONL with `prompt`, and `answer` (or `completion`) or `regex` where those are "
                      "checked.")
@cli.option("--check", required=True, metavar="answer|regex|MODULE:FUNCTION",
            text="How an answer is rewarded: 1 where it is the line's `answer`, or has the line's `regex` in it; or "
                 "what your function says of (the line, the answer).")
@cli.run_options(out="runs/grpo")
@cli.configured("GRPO", "settings", GRPOConfig(), FAST, rename={"prompts": "batch"})
@cli.configured("LoRA, on a published policy", "update", LoRAConfig(), hide=("targets", "seed", "dropout"))
@cli.gather_options
def command(args, settings, update):
    """Optimise a policy for a reward that can be checked: each answer is judged by the others to its prompt.

    \b
    Example:  python -m minialign grpo --policy runs/sft --prompts questions.jsonl --check answer
    Example:  python -m minialign grpo --policy runs/sft --prompts questions.jsonl --check mine:short_and_right
              (mine.py, here: def short_and_right(line, said): return float(said == line["answer"]) - len(said) / 100)
    """
    model, tokenizer, run, of = open_policy(args.policy, update, args.out)
    records = read_prompts(args.prompts)
    rows = prompt_rows(tokenizer, records, settings.new_tokens, model.config.context)
    fill_a_batch(len(rows), "prompts", settings.prompts, args.prompts)
    check = load_check(args.check, records)
    about = {**of, "stage": "grpo", "grpo": settings, "check": args.check,
             "data": fingerprint([[dict(record), place_of(record)[1]] for record in records])}
    if ":" in args.check:  # another function under the same name would be another reward
        with contextlib.suppress(OSError, TypeError):  # a module that has no source to read
            about["function"] = fingerprint(inspect.getsource(sys.modules[args.check.rpartition(":")[0]]))
    with stage_run(run, tokenizer, **about):
        if not run.finished:
            click.echo(f"{len(rows):,} prompts; the reference is {args.policy}")
            train_grpo(model, tokenizer, records, rows, check, settings, run)
    metrics = run.metrics()
    few = max(1, len(metrics) // 10)
    first, last = mean_of(metrics[:few]), mean_of(metrics[-few:])
    tries = {"pass_8": f"by one of {min(8, settings.completions)}"}
    said = [f"{words} {first[name]:.2f} → {last[name]:.2f}" for name, words in (SAID | tries).items()]
    click.echo(f"{args.out}: from the first to the last updates {', '.join(said)}; KL {last['kl']:.1f} nats per answer")
    if all(each["even_groups"] == 1 for each in metrics):
        click.echo("every answer to a prompt was as good as the others, in every update: such a reward teaches "
                   "nothing; look at --check and at the prompts (too easy, too hard?), or raise --temperature or "
                   "--completions")
    say_how_to_sample(args.policy, run)


def mean_of(metrics: list[dict]) -> dict[str, float]:
    """The mean of each number over some updates."""
    return {name: sum(each[name] for each in metrics) / len(metrics)
            for name, value in metrics[0].items() if isinstance(value, int | float)}


def load_check(name: str, records: Sequence[dict]) -> Check:
    """A checker by name. Raises UserError for an unknown one, or where a line lacks what it needs."""
    if name in ("answer", "regex"):
        for record in records:
            if name == "answer":
                record["answer"] = record.get("completion") if record.get("answer") is None else record["answer"]
            if not isinstance(record.get(name), str):
                raise UserError(f"--check {name} needs a text `{name}` in every line", *place_of(record))
        return says_the_answer if name == "answer" else has_the_regex(records)
    module, colon, function = name.partition(":")
    if not colon:
        raise UserError(f"--check {name}: choose answer, regex, or MODULE:FUNCTION with a function of yours")
    sys.path.insert(0, str(Path.cwd()))
    try:
        check = getattr(importlib.import_module(module), function)
    except Exception as error:  # a reader's module may fail in any way
        raise UserError(f"--check {name} cannot be loaded: {error!r}") from None
    finally:
        sys.path.pop(0)
    if not callable(check):
        raise UserError(f"--check {name} is no function but {check!r}")
    return check


def says_the_answer(line: dict, said: str) -> float:
    """1 where the answer is said and nothing else."""
    return float(said.strip() == line["answer"].strip())


def has_the_regex(records: Sequence[dict]) -> Check:
    """1 where the line's pattern is found in what was said.

    Raises:
        UserError: a pattern is no regular expression, or looks for so long that it would not end.
    """
    patterns = {}
    for record in records:
        try:
            patterns[record["regex"]] = re.compile(record["regex"])
        except re.error as error:
            raise UserError(f"{record['regex']!r} is no regular expression: {error}", *place_of(record)) from None

    def check(line: dict, said: str) -> float:
        with at_most(LONGEST, f"looking for {line['regex']!r} in {said!r}"):
            return float(bool(patterns[line["regex"]].search(said)))

    return check


@contextlib.contextmanager
def at_most(seconds: float, what: str) -> Iterator[None]:
    """Inside, what takes longer is a UserError: some patterns try exponentially many ways. Where the system has no
    alarm clock, or off the main thread, nothing is stopped."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise UserError(f"{what} takes more than {seconds:g} s; write the pattern without repetitions in repetitions")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
