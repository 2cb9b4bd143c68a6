"""`python -m minialign ppo --policy RUN --reward RUN --prompts FILE`"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
from torch import Tensor

from minialign.batching import pack
from minialign.evaluation import Interval
from minialign.generation import SamplingConfig
from minialign.heads import ScalarModel, describe_model, load_model
from minialign.lab.commands import inputs
from minialign.lab.commands import options as cli
from minialign.lab.stages import stage_run
from minialign.rlhf.best_of_n import beside_best_of_n
from minialign.rlhf.ppo import PPOConfig, train_ppo
from minialign.rlhf.pretraining_mix import MixConfig, PretrainingMix, alignment_tax
from minialign.rlhf.reward_model import Ensemble
from minialign.runs.errors import UserError
from minialign.runs.files import fingerprint, place_of, typed
from minialign.runs.run_folder import RunFolder
from minialign.tokenizer import Tokenizer

FAST = {"updates": 3, "prompts": 16, "minibatch": 8, "new_tokens": 16}


@click.command(cls=cli.Command)
@cli.POLICY
@cli.file_option("--reward RUN", "The reward model's run; given several times, the models score as one, their mean.",
                 required=True, multiple=True)
@cli.option("--caution", default=0.0, type=cli.TYPES[float],
            text="Standard deviations of several models' disagreement off a score.")
@cli.file_option("--prompts FILE", required=True,
                 text="What to answer: a .txt file with one prompt a line, or a .jsonl file with `prompt`.")
@cli.file_option("--pretraining FILE", "Text that the policy goes on learning (PPO-ptx), so that it "
                 "forgets less; a tenth of it measures how much.")
@cli.count_option("--best-of", 16, 1, 1000, "n of the best of n compared with at the end.")
@cli.run_options(out="runs/ppo")
@cli.configured("PPO", "settings", PPOConfig(), FAST, rename={"prompts": "batch"})
@cli.configured("Pretraining mix", "mixing", MixConfig())
@cli.gather_options
def command(args, settings, mixing):
    """Optimise a policy against a reward model, with a price (--beta) on every nat of KL from where it started.

    \b
    Example:  python -m minialign ppo --policy runs/sft --reward runs/reward --prompts prompts.txt
    Then:     python -m minialign evaluate runs/ppo --against runs/sft --judge runs/judge --prompts more-prompts.txt
              (runs/judge: a reward model of other comparisons; the one that was optimised against cannot judge)
    """
    if mixing != MixConfig() and args.pretraining is None:
        raise UserError("--mix-weight and --mix-rows are about the text of --pretraining; give one, or leave them out")
    model, tokenizer = load_model(args.policy, "decoder")
    scorer, rewarded_by = load_rewards(args, tokenizer)
    records, context = inputs.read_prompts(args.prompts), min(model.config.context, scorer.config.context)
    rows = inputs.prompt_rows(tokenizer, records, settings.new_tokens, context)
    inputs.fill_a_batch(len(rows), "prompts", settings.prompts, args.prompts)
    data = fingerprint([[record["prompt"], place_of(record)[1]] for record in records])
    about = {**describe_model(model), "stage": "ppo", "ppo": settings, "data": data}
    mix = None
    if args.pretraining:
        learned, checks = text_rows(args.pretraining, tokenizer, model.config.context)
        mix = PretrainingMix(learned, mixing)
        about |= {"mix": mixing, "text": fingerprint(learned.tolist())}
    with stage_run(RunFolder(args.out), tokenizer, **about, policy=model, **rewarded_by) as run:
        if not run.finished:
            click.echo(f"{len(rows):,} prompts; the reference is {args.policy}")
            train_ppo(model, scorer, rows, settings, run, mix=mix)
    facts, trained = run.facts(), load_model(args.out, "language-model")[0]
    before = run.metrics()[0]["score"]  # of the reference: nothing was learned when the first answers were written
    click.echo(f"{args.out}: score {facts['score']:+.2f} (the reference's was {before:+.2f}), KL {facts['kl']:.1f} "
               f"nats per completion")
    if len(rows) > 1:
        most, n = 8 if args.fast else 64, 4 if args.fast and not cli.is_given("best_of") else args.best_of
        asked = [record["prompt"] for record in records[:most]]
        sampling = SamplingConfig(settings.new_tokens, settings.temperature)
        found = beside_best_of_n(trained, model, scorer, tokenizer, asked, n, sampling, settings.seed)
        click.echo(f"on {len(asked)} of the prompts: score {interval(found.policy)}; best of {n} without training: "
                   f"{interval(found.rival)} at {found.kl:.1f} nats at most")
    if args.pretraining:
        tax = alignment_tax(trained, model, checks)
        click.echo(f"alignment tax: held-out text costs {tax.mean:+.4f} nats a token more than before (95 %: "
                   f"{tax.low:+.4f} to {tax.high:+.4f})")
    click.echo(f'try it:  python -m minialign sample {typed(args.out)} --prompt "…"')


def load_rewards(args: SimpleNamespace, tokenizer: Tokenizer) -> tuple[ScalarModel | Ensemble, dict[str, Any]]:
    """The reward model of one run, or the ensemble of several; and what tells them from others."""
    models = [inputs.open_reward_model(run, args.policy, tokenizer) for run in args.reward]
    if len(models) > 1:
        return Ensemble(models, args.caution), {"reward": models, "caution": args.caution}
    if args.caution:
        raise UserError(f"a caution of {args.caution} needs reward models that can disagree; give --reward several "
                        f"times, or leave --caution out")
    return models[0], {"reward": models[0]}


def interval(found: Interval) -> str:
    """+0.52 [+0.31, +0.73]"""
    return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


@inputs.given_context()
def text_rows(path: Path, tokenizer: Tokenizer, context: int) -> tuple[Tensor, Tensor]:
    """Pretraining text as packed rows: what is mixed in, and the last tenth, two rows at least, on which the alignment
    tax is measured."""
    ids = tokenizer.encode_many(inputs.read_documents(path, "paragraphs"))
    rows = pack([[tokenizer.begin, *document, tokenizer.end] for document in ids], context)
    kept = max(2, len(rows) // 10)
    if len(rows) < kept + 1:
        raise UserError(f"{len(rows)} rows of {context} tokens are too few to learn from some and measure on others; "
                        f"give more text", path)
    return rows[:-kept], rows[-kept:]
