"""`python -m minialign dpo --policy RUN --comparisons FILE.jsonl`"""

from __future__ import annotations

import click

from minialign.heads import describe_model, load_model
from minialign.lab.commands.inputs import fill_a_batch, rank_judged, read_judged, say_shared_prompts
from minialign.lab.commands.options import Command, configured, file_option, run_options
from minialign.rlhf.comparisons import split_by_prompt
from minialign.rlhf.dpo import DPO, DPOConfig, train_dpo
from minialign.rlhf.ranked import count_pairs
from minialign.runs.errors import UserError
from minialign.runs.files import fingerprint
from minialign.runs.run_folder import RunFolder
from minialign.runs.settings import to_dict
from minialign.runs.tensors import digest, tensors_of

FAST = {"steps": 20, "validate_every": 10}


@click.command(cls=Command)
@file_option("--policy", "The run to improve, usually an instruction-tuned one; it is also the frozen reference.",
             required=True, metavar="RUN")
@file_option("--comparisons", "One JSON object a line, with `prompt`, `chosen` and `rejected`.", required=True,
             metavar="FILE.jsonl")
@file_option("--valid", "Comparisons to validate on; without it a tenth of the prompts is held out.",
             metavar="FILE.jsonl")
@click.option("--skip-long", "long", flag_value="skip", help="Leave out what does not fit the context, and say how "
              "many, instead of stopping.")
@click.option("--cut-long", "long", flag_value="cut", help="Cut answers that do not fit the context, and say how many, "
                                                           "instead of stopping.")
@run_options(out="runs/dpo")
@configured("Training", "training", DPO, FAST)
@configured("DPO", "settings", DPOConfig())
def command(policy, comparisons, valid, long, out, seed, fast, training, settings):
    """Optimise a policy on comparisons directly, without a reward model and without sampling.

    \b
    Example:  python -m minialign dpo --policy runs/sft --comparisons preferences.jsonl
    Then:     python -m minialign evaluate runs/dpo --against runs/sft --judge runs/judge --prompts more-prompts.txt
              (runs/judge: a reward model of other people's comparisons; one of the same comparisons would only say that they were learned)
    """
    model, tokenizer = load_model(policy, "decoder")
    learned, held_out = read_judged(comparisons), read_judged(valid) if valid else None
    if held_out is None:
        learned, held_out = split_by_prompt(learned)
    say_shared_prompts(learned, held_out, valid)
    parts = ((learned, comparisons), (held_out, valid or comparisons))
    ranked, checks = (rank_judged(tokenizer, part, model.config.context, long, file) for part, file in parts)
    if count_pairs(checks) < 2:
        few = "too few to hold a tenth of the prompts out for validation" if valid is None else "too few to validate on"
        raise UserError(f"{count_pairs([*checks, *([] if valid else ranked)])} comparisons are {few}; give more",
                        valid or comparisons)
    fill_a_batch(len(ranked), "prompts with comparisons to learn from", training.batch, comparisons)
    run = RunFolder(out)
    with run.locked():
        config = {**describe_model(model), "stage": "dpo", "dpo": to_dict(settings), "training": to_dict(training)}
        run.begin({**config, "data": fingerprint([learned, held_out]), "policy": digest(tensors_of(model))[:16]},
                  tokenizer)
        if not run.finished:
            click.echo(f"{count_pairs(ranked):,} comparisons to learn from, {count_pairs(checks):,} held out; the "
                       f"reference is {policy}")
            train_dpo(model, ranked, checks, settings, training, run)
    facts = run.facts()
    click.echo(f"{out}: orders {facts['accuracy']:.1%} of the held-out comparisons as people did")
    click.echo(f"nats that answers gained against {policy}: chosen {facts['chosen']:+.2f}, rejected "
               f"{facts['rejected']:+.2f} (dpo.py says why both may fall)")
    click.echo(f'try it:  python -m minialign sample {out} --prompt "…"')
