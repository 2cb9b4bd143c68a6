"""`python -m minialign ppo --policy RUN --reward RUN --prompts FILE`"""

from __future__ import annotations

from pathlib import Path

import click
from torch import Tensor

from minialign.batching import pack
from minialign.checkpoints import RunFolder, describe_model, load_model, same_tokenizer
from minialign.commands.inputs import fill_a_batch, prompt_rows, read_documents, read_prompts
from minialign.commands.options import Command, configured, file_option, run_options
from minialign.errors import UserError
from minialign.files import fingerprint
from minialign.rlhf.ppo import PPOConfig, train_ppo
from minialign.rlhf.pretraining_mix import MixConfig, PretrainingMix, alignment_tax
from minialign.settings import to_dict
from minialign.tensors import digest, tensors_of
from minialign.tokenizer import Tokenizer

FAST = {"updates": 3, "prompts": 16, "minibatch": 8, "new_tokens": 16}


@click.command(cls=Command)
@file_option("--policy", "The run to improve, usually an instruction-tuned one; it is also the frozen reference.", required=True, metavar="RUN")
@file_option("--reward", "The reward model's run.", required=True, metavar="RUN")
@file_option("--prompts", "What to answer: a .txt file with one prompt a line, or a .jsonl file with `prompt`.", required=True, metavar="FILE")
@file_option("--pretraining", "Text that the policy goes on learning (PPO-ptx), so that it forgets less; a tenth of it measures how much.", metavar="FILE")
@run_options(out="runs/ppo")
@configured("PPO", "settings", PPOConfig(), FAST, rename={"prompts": "batch"})
@configured("Pretraining mix", "mixing", MixConfig())
def command(policy, reward, prompts, pretraining, out, seed, fast, settings, mixing):
    """Optimise a policy against a reward model, with a price (--beta) on every nat of KL from where it started.

    \b
    Example:  python -m minialign ppo --policy runs/sft --reward runs/reward --prompts prompts.txt
    Then:     python -m minialign evaluate runs/ppo --against runs/sft --judge runs/reward --prompts more-prompts.txt
    """
    model, tokenizer = load_model(policy, "decoder")
    scorer, its_tokenizer = load_model(reward, "scalar-model")
    same_tokenizer((policy, tokenizer), (reward, its_tokenizer))
    texts = read_prompts(prompts)
    rows = prompt_rows(tokenizer, texts, settings.new_tokens, min(model.config.context, scorer.config.context), prompts)
    fill_a_batch(len(rows), "prompts", settings.prompts, prompts)
    learned, checks = text_rows(pretraining, tokenizer, model.config.context) if pretraining else (None, None)
    run = RunFolder(out)
    with run.locked():
        config = {**describe_model(model), "stage": "ppo", "ppo": to_dict(settings), "data": fingerprint(texts)}
        if pretraining:
            config |= {"mix": to_dict(mixing), "text": fingerprint(learned.tolist())}
        run.begin({**config, "policy": digest(tensors_of(model))[:16], "reward": digest(tensors_of(scorer))[:16]}, tokenizer)
        if not run.finished:
            click.echo(f"{len(rows):,} prompts; the reference is {policy}")
            train_ppo(model, scorer, rows, settings, run, mix=PretrainingMix(learned, mixing) if pretraining else None)
    facts = run.facts()
    click.echo(f"{out}: score {facts['score']:+.2f} (the reference's is 0), KL {facts['kl']:.1f} nats per answer")
    if pretraining:
        tax = alignment_tax(load_model(out, "language-model")[0], model, checks)
        click.echo(f"alignment tax: held-out text costs {tax.mean:+.4f} nats a token more than before (95 %: {tax.low:+.4f} to {tax.high:+.4f})")
    click.echo(f'try it:  python -m minialign sample {out} --prompt "…"')


def text_rows(path: Path, tokenizer: Tokenizer, context: int) -> tuple[Tensor, Tensor]:
    """Pretraining text as packed rows: what is mixed in, and the last tenth, two rows at least, on which the alignment tax is measured."""
    ids = tokenizer.encode_many(read_documents(path, "paragraphs"))
    rows = pack([[tokenizer.begin, *document, tokenizer.end] for document in ids], context)
    kept = max(2, len(rows) // 10)
    if len(rows) < kept + 1:
        raise UserError(f"{len(rows)} rows of {context} tokens are too few to learn from some and measure on others; give more text", path)
    return rows[:-kept], rows[-kept:]
