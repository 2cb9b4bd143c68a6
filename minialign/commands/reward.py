"""`python -m minialign reward --base RUN --comparisons FILE.jsonl`"""

from __future__ import annotations

import click
import torch

from minialign.checkpoints import RunFolder, load_model
from minialign.commands.options import Command, configured, file_option, run_options
from minialign.errors import UserError
from minialign.files import fingerprint
from minialign.generation import SamplingConfig, continue_texts
from minialign.rlhf.comparisons import read_comparisons, split_by_prompt
from minialign.rlhf.reward_model import REWARD, Comparisons, answer_rows, count_pairs, evaluate_pairs, ranked_rows, train_reward_model
from minialign.settings import to_dict

FAST = {"steps": 20, "validate_every": 10}


@click.command(cls=Command)
@file_option("--base", "The instruction-tuned run to start from.", required=True, metavar="RUN")
@file_option("--comparisons", "One JSON object a line, with `prompt`, `chosen` and `rejected`.", required=True, metavar="FILE.jsonl")
@file_option("--valid", "Comparisons to validate on; without it a tenth of the prompts is held out.", metavar="FILE.jsonl")
@file_option("--test", "Comparisons of other prompts or people, only measured at the end.", metavar="FILE.jsonl")
@click.option("--references", default=256, show_default=True, help="Answers of the base that scores are normalised on.")
@click.option("--skip-long", is_flag=True, help="Leave out what does not fit the context, and say how many, instead of stopping.")
@run_options(out="runs/reward")
@configured("Training", "training", REWARD, FAST)
def command(base, comparisons, valid, test, references, skip_long, out, seed, fast, training):
    """Train a reward model on comparisons.

    \b
    Example:  python -m minialign reward --base runs/sft --comparisons preferences.jsonl
    Then:     python -m minialign ppo --policy runs/sft --reward runs/reward --prompts prompts.jsonl
    """
    model, tokenizer = load_model(base, "language-model")
    learned, held_out = read(comparisons), read(valid) if valid else None
    if held_out is None:
        learned, held_out = split_by_prompt(learned)
    if len(held_out) < 2:
        raise UserError(f"{len(learned) + len(held_out)} comparisons are too few to hold a tenth out for validation; give more", comparisons)
    ranked, skipped = ranked_rows(tokenizer, learned, model.config.context, skip_long, comparisons)
    checks, skipped_too = ranked_rows(tokenizer, held_out, model.config.context, skip_long, valid or comparisons)
    if skipped + skipped_too:
        click.echo(f"{skipped + skipped_too} comparisons do not fit the context and are left out")
    run = RunFolder(out)
    with run.locked():
        config = {"what": "scalar-model", "model": to_dict(model.config), "stage": "reward", "training": to_dict(training)}
        run.begin({**config, "data": fingerprint([str(base), learned, held_out])}, tokenizer)
        if not run.finished:
            click.echo(f"{count_pairs(ranked):,} comparisons to learn from, {count_pairs(checks):,} held out")
            rows = reference_rows(model, tokenizer, learned, references, seed)
            train_reward_model(model, ranked, checks, rows, training, run)
    click.echo(f"{out}: orders {run.facts()['accuracy']:.1%} of the held-out comparisons as people did")
    if test is not None:
        trained, _ = load_model(out, "scalar-model")
        others, _ = ranked_rows(tokenizer, read(test), model.config.context, skip_long, test)
        click.echo(f"{test}: {evaluate_pairs(trained, Comparisons(others, 1, 0))['accuracy']:.1%} of {count_pairs(others):,}")


def read(path) -> list[dict]:
    """Comparisons of a file; says how many were dropped because both answers are equal."""
    kept, dropped = read_comparisons(path)
    if dropped:
        click.echo(f"{path}: {dropped} comparisons of two equal answers are dropped")
    return kept


def reference_rows(model, tokenizer, comparisons: list[dict], count: int, seed: int) -> list[list[int]]:
    """The base's own answers to the first prompts that leave room for one: what a score of 0 ± 1 will mean."""
    room = model.config.context // 2
    prompts = [c["prompt"] for c in comparisons if len(c["prompt"].encode()) < 2 * room and len(tokenizer.encode(c["prompt"])) < room]
    if not prompts:
        raise UserError(f"no prompt is shorter than half of the model's context of {model.config.context}; the reference has no room to answer")
    prompts = [prompts[i % len(prompts)] for i in range(count)]
    new_tokens = min(model.config.context - room - 2, 48)
    answers = continue_texts(model, tokenizer, prompts, SamplingConfig(new_tokens), torch.Generator().manual_seed(seed))
    return answer_rows(tokenizer, prompts, answers)
