"""`python -m minialign reward --base RUN --comparisons FILE.jsonl`"""

from __future__ import annotations

import statistics

import click
import torch

from minialign.generation import SamplingConfig, continue_texts
from minialign.heads import load_model
from minialign.lab.commands.inputs import fill_a_batch, rank_judged, read_judged, say_shared_prompts
from minialign.lab.commands.options import Command, Option, configured, file_option, run_options
from minialign.lab.plotting import save_png
from minialign.lab.report.reward import calibration_figure
from minialign.rlhf.comparisons import split_by_prompt
from minialign.rlhf.ranked import Comparisons, count_pairs
from minialign.rlhf.reward_checks import blind_baselines, calibration, show_calibration
from minialign.rlhf.reward_model import REWARD, all_pair_scores, answer_rows, evaluate_pairs, train_reward_model
from minialign.runs.errors import UserError
from minialign.runs.files import fingerprint
from minialign.runs.run_folder import RunFolder
from minialign.runs.settings import to_dict
from minialign.runs.tensors import digest, tensors_of

CALIBRATION = "calibration.png"
FAST = {"steps": 20, "validate_every": 10}


@click.command(cls=Command)
@file_option("--base", "The instruction-tuned run to start from.", required=True, metavar="RUN")
@file_option("--comparisons", "One JSON object a line, with `prompt`, `chosen` and `rejected`.", required=True,
             metavar="FILE.jsonl")
@file_option("--valid", "Comparisons to validate on; without it a tenth of the prompts is held out.",
             metavar="FILE.jsonl")
@file_option("--test", "Comparisons of other prompts or people, only measured at the end.", metavar="FILE.jsonl")
@click.option("--references", default=256, show_default=True, type=click.IntRange(2, 100_000), cls=Option,
              help="Answers of the base to normalise scores on.")
@click.option("--skip-long", "long", flag_value="skip", help="Leave out what does not fit the context, and say how "
              "many, instead of stopping.")
@click.option("--cut-long", "long", flag_value="cut", help="Cut answers that do not fit the context, and say how many, "
                                                           "instead of stopping.")
@run_options(out="runs/reward")
@configured("Training", "training", REWARD, FAST)
def command(base, comparisons, valid, test, references, long, out, seed, fast, training):
    """Train a reward model on comparisons.

    \b
    Example:  python -m minialign reward --base runs/sft --comparisons preferences.jsonl
    Then:     python -m minialign ppo --policy runs/sft --reward runs/reward --prompts prompts.jsonl
    """
    model, tokenizer = load_model(base, "decoder")
    context = model.config.context
    learned, held_out = read_judged(comparisons), read_judged(valid) if valid else None
    if held_out is None:
        learned, held_out = split_by_prompt(learned)
    others = read_judged(test) if test else []
    say_shared_prompts(learned, held_out, valid)
    say_shared_prompts(learned, others, test)
    files = (comparisons, valid or comparisons, test)
    ranked, checks, tests = (rank_judged(tokenizer, part, context, long, file) for part,
                             file in zip((learned, held_out, others), files))
    if count_pairs(checks) < 2:
        few = "too few to hold a tenth of the prompts out for validation" if valid is None else "too few to validate on"
        raise UserError(f"{count_pairs([*checks, *([] if valid else ranked)])} comparisons are {few}; give more",
                        valid or comparisons)
    if test and not tests:
        raise UserError("there is nothing in it to measure", test)
    fill_a_batch(len(ranked), "prompts with comparisons to learn from", training.batch, comparisons)
    run = RunFolder(out)
    with run.locked():
        config = {"what": "scalar-model", "model": to_dict(model.config), "stage": "reward",
                  "training": to_dict(training), "references": references}
        run.begin({**config, "data": fingerprint([learned, held_out]), "base": digest(tensors_of(model))[:16]},
                  tokenizer)
        if not run.finished:
            click.echo(f"{count_pairs(ranked):,} comparisons to learn from, {count_pairs(checks):,} held out")
            train_reward_model(model, ranked, checks, reference_rows(model, tokenizer, learned, references, seed),
                               training, run)
    click.echo(f"{out}: orders {run.facts()['accuracy']:.1%} of the held-out comparisons as people did")
    trained, _ = load_model(out, "scalar-model")
    blind = blind_baselines(held_out)
    for judge, share in blind.items():
        click.echo(f"  a judge that always takes the {judge} one: "
                   f"{max(share.mean, 1 - share.mean):.1%}{' (by taking the other)' * (share.mean < 0.5)}")
    chosen, rejected = all_pair_scores(trained, Comparisons(checks, 1, 0))
    bins = calibration((run.facts()["reference_deviation"] * (chosen - rejected)).tolist())
    click.echo(f"how sure it is (predicted), and how often people agreed (observed):\n{show_calibration(bins)}")
    names = {"longer": "only the length", "first": "only the position"}
    save_png(calibration_figure(bins, {names[judge]: max(share.mean, 1 - share.mean) for judge,
                                       share in blind.items()}), run.path / CALIBRATION)
    click.echo(f"drawn in {run.path / CALIBRATION}")
    if test:
        click.echo(f"{test}: {evaluate_pairs(trained, Comparisons(tests, 1, 0))['accuracy']:.1%} of "
                   f"{count_pairs(tests):,}")


def reference_rows(model, tokenizer, comparisons: list[dict], count: int, seed: int) -> list[list[int]]:
    """The base's own answers to prompts of the comparisons: what a score of 0 ± 1 will mean.

    They may be as long as half of the chosen answers are, so that no less than half of the prompts leave room for one.
    """
    context = model.config.context
    prompts, chosen = (tokenizer.encode_many([c[field] for c in comparisons]) for field in ("prompt", "chosen"))
    fitting = [(len(p), len(a) + 1, c["prompt"]) for p, a, c in zip(prompts, chosen, comparisons)
               if len(p) + len(a) + 2 <= context]
    if not fitting:
        raise UserError(f"no chosen answer fits the model's context of {context} with its prompt; use shorter ones, or "
                        f"a model with a longer context")
    new_tokens = min(48, statistics.median_low([length for _, length, _ in fitting]))
    texts = [text for length, _, text in fitting if 1 + length + new_tokens <= context]
    texts = [texts[i % len(texts)] for i in range(count)]
    answers = continue_texts(model, tokenizer, texts, SamplingConfig(new_tokens), torch.Generator().manual_seed(seed))
    return answer_rows(tokenizer, texts, answers, context)
