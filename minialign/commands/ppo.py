"""`python -m minialign ppo --policy RUN --reward RUN --prompts FILE`"""

from __future__ import annotations

import click

from minialign.checkpoints import RunFolder, describe_model, load_model, same_tokenizer
from minialign.commands.inputs import fill_a_batch, prompt_rows, read_prompts
from minialign.commands.options import Command, configured, file_option, run_options
from minialign.files import fingerprint
from minialign.rlhf.ppo import PPOConfig, train_ppo
from minialign.settings import to_dict
from minialign.tensors import digest, tensors_of

FAST = {"updates": 3, "prompts": 16, "minibatch": 8, "new_tokens": 16}


@click.command(cls=Command)
@file_option("--policy", "The run to improve, usually an instruction-tuned one; it is also the frozen reference.", required=True, metavar="RUN")
@file_option("--reward", "The reward model's run.", required=True, metavar="RUN")
@file_option("--prompts", "What to answer: a .txt file with one prompt a line, or a .jsonl file with `prompt`.", required=True, metavar="FILE")
@run_options(out="runs/ppo")
@configured("PPO", "settings", PPOConfig(), FAST, rename={"prompts": "batch"})
def command(policy, reward, prompts, out, seed, fast, settings):
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
    run = RunFolder(out)
    with run.locked():
        config = {**describe_model(model), "stage": "ppo", "ppo": to_dict(settings), "data": fingerprint(texts)}
        run.begin({**config, "policy": digest(tensors_of(model))[:16], "reward": digest(tensors_of(scorer))[:16]}, tokenizer)
        if not run.finished:
            click.echo(f"{len(rows):,} prompts; the reference is {policy}")
            train_ppo(model, scorer, rows, settings, run)
    facts = run.facts()
    click.echo(f"{out}: score {facts['score']:+.2f} (the reference's is 0), KL {facts['kl']:.1f} nats per answer")
    click.echo(f'try it:  python -m minialign sample {out} --prompt "…"')
