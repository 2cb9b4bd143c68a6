"""`python -m minialign ppo --policy RUN --reward RUN --prompts FILE`"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from torch import Tensor

from minialign.batching import pack
from minialign.evaluation import Interval
from minialign.generation import SamplingConfig
from minialign.heads import ScalarModel, describe_model, load_model, same_tokenizer
from minialign.lab.commands.inputs import fill_a_batch, prompt_rows, read_documents, read_prompts
from minialign.lab.commands.options import TYPES, Command, Option, configured, file_option, run_options
from minialign.rlhf.best_of_n import beside_best_of_n
from minialign.rlhf.ppo import PPOConfig, train_ppo
from minialign.rlhf.pretraining_mix import MixConfig, PretrainingMix, alignment_tax
from minialign.rlhf.reward_model import Ensemble
from minialign.runs.errors import UserError
from minialign.runs.files import fingerprint
from minialign.runs.run_folder import RunFolder
from minialign.runs.settings import to_dict
from minialign.runs.tensors import digest, tensors_of
from minialign.tokenizer import Tokenizer

FAST = {"updates": 3, "prompts": 16, "minibatch": 8, "new_tokens": 16}


@click.command(cls=Command)
@file_option("--policy", "The run to improve, usually an instruction-tuned one; it is also the frozen reference.",
             required=True, metavar="RUN")
@file_option("--reward", "The reward model's run; given several times, the models score as one, their mean.",
             required=True, multiple=True, metavar="RUN")
@click.option("--caution", default=0.0, type=TYPES["float"], show_default=True, cls=Option,
              help="Deviations of several models' disagreement off a score.")
@file_option("--prompts", "What to answer: a .txt file with one prompt a line, or a .jsonl file with `prompt`.",
             required=True, metavar="FILE")
@file_option("--pretraining", "Text that the policy goes on learning (PPO-ptx), so that it forgets less; a tenth of it "
                              "measures how much.", metavar="FILE")
@click.option("--best-of", default=16, type=click.IntRange(1, 1000), show_default=True, cls=Option,
              help="n of the best of n compared with at the end.")
@run_options(out="runs/ppo")
@configured("PPO", "settings", PPOConfig(), FAST, rename={"prompts": "batch"})
@configured("Pretraining mix", "mixing", MixConfig())
def command(policy, reward, caution, prompts, pretraining, best_of, out, seed, fast, settings, mixing):
    """Optimise a policy against a reward model, with a price (--beta) on every nat of KL from where it started.

    \b
    Example:  python -m minialign ppo --policy runs/sft --reward runs/reward --prompts prompts.txt
    Then:     python -m minialign evaluate runs/ppo --against runs/sft --judge runs/judge --prompts more-prompts.txt
              (runs/judge: a reward model of other comparisons; the one that was optimised against cannot judge)
    """
    model, tokenizer = load_model(policy, "decoder")
    scorer, digests = reward_of(reward, caution, policy, tokenizer)
    texts = read_prompts(prompts)
    rows = prompt_rows(tokenizer, texts, settings.new_tokens, min(model.config.context, scorer.config.context), prompts)
    fill_a_batch(len(rows), "prompts", settings.prompts, prompts)
    learned, checks = text_rows(pretraining, tokenizer, model.config.context) if pretraining else (None, None)
    run = RunFolder(out)
    with run.locked():
        config = {**describe_model(model), "stage": "ppo", "ppo": to_dict(settings), "data": fingerprint(texts)}
        if pretraining:
            config |= {"mix": to_dict(mixing), "text": fingerprint(learned.tolist())}
        run.begin({**config, "policy": digest(tensors_of(model))[:16], **digests}, tokenizer)
        if not run.finished:
            click.echo(f"{len(rows):,} prompts; the reference is {policy}")
            train_ppo(model, scorer, rows, settings, run, mix=PretrainingMix(learned, mixing) if pretraining else None)
    facts = run.facts()
    click.echo(f"{out}: score {facts['score']:+.2f} (the reference's is 0), KL {facts['kl']:.1f} nats per answer")
    if len(rows) > 1:
        tell_rival(out, model, scorer, tokenizer, [text for text, _ in texts][: 8 if fast else 64],
                   4 if fast else best_of, settings)
    if pretraining:
        tax = alignment_tax(load_model(out, "language-model")[0], model, checks)
        click.echo(f"alignment tax: held-out text costs {tax.mean:+.4f} nats a token more than before (95 %: "
                   f"{tax.low:+.4f} to {tax.high:+.4f})")
    click.echo(f'try it:  python -m minialign sample {out} --prompt "…"')


def reward_of(runs: tuple[Path, ...], caution: float, policy: Path, tokenizer: Tokenizer) -> tuple[ScalarModel
        | Ensemble, dict[str, Any]]:
    """The reward model of one run, or the ensemble of several; and what tells them from others."""
    models = []
    for run in runs:
        model, its_tokenizer = load_model(run, "scalar-model")
        same_tokenizer((policy, tokenizer), (run, its_tokenizer))
        models.append(model)
    if len(models) == 1:
        if caution:
            raise UserError(f"a caution of {caution} needs reward models that can disagree; give --reward several "
                            f"times, or leave --caution out")
        return models[0], {"reward": digest(tensors_of(models[0]))[:16]}
    return Ensemble(models, caution), {"reward": [digest(tensors_of(model))[:16] for model in models],
                                       "caution": caution}


def tell_rival(out: Path, reference, scorer, tokenizer: Tokenizer, prompts: list[str], n: int,
               settings: PPOConfig) -> None:
    """Best of n of the reference beside what PPO made of it."""
    sampling = SamplingConfig(settings.new_tokens, settings.temperature)
    found = beside_best_of_n(load_model(out, "language-model")[0], reference, scorer, tokenizer, prompts, n, sampling,
                             settings.seed)
    best = f"best of {n} without training: {interval(found.rival)} at {found.kl:.1f} nats at most"
    click.echo(f"on {len(prompts)} of the prompts: score {interval(found.policy)}; {best}")


def interval(found: Interval) -> str:
    """+0.52 [+0.31, +0.73]"""
    return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def text_rows(path: Path, tokenizer: Tokenizer, context: int) -> tuple[Tensor, Tensor]:
    """Pretraining text as packed rows: what is mixed in, and the last tenth, two rows at least, on which the alignment
    tax is measured."""
    ids = tokenizer.encode_many(read_documents(path, "paragraphs"))
    rows = pack([[tokenizer.begin, *document, tokenizer.end] for document in ids], context)
    kept = max(2, len(rows) // 10)
    if len(rows) < kept + 1:
        raise UserError(f"{len(rows)} rows of {context} tokens are too few to learn from some and measure on others; "
                        f"give more text", path)
    return rows[:-kept], rows[-kept:]
