"""`python -m minialign dpo --policy RUN --comparisons FILE.jsonl`"""

import click

from minialign.lab.commands import options as cli
from minialign.lab.commands.inputs import open_policy, say_how_to_sample
from minialign.lab.commands.judged import comparison_options, read_sides
from minialign.lab.stages import stage_run
from minialign.peft.lora import LoRAConfig
from minialign.rlhf.dpo import DPO, DPOConfig, train_dpo
from minialign.rlhf.ranked import count_pairs
from minialign.runs.files import fingerprint

FAST = {"steps": 20, "validate_every": 10}


@click.command(cls=cli.Command, trains=True)
@cli.IMPROVED
@comparison_options
@cli.run_options(out="runs/dpo")
@cli.configured("Training", "training", DPO, FAST)
@cli.configured("DPO", "settings", DPOConfig())
@cli.configured("LoRA, on a published policy", "update", LoRAConfig(), hide=("targets", "seed", "dropout"))
@cli.gather_options
def command(args, training, settings, update):
    """Optimise a policy on comparisons directly, without a reward model and without sampling.

    \b
    Example:  python -m minialign dpo --policy runs/sft --comparisons preferences.jsonl
    Then:     python -m minialign evaluate runs/dpo --against runs/sft --judge runs/judge --prompts more-prompts.txt
              (runs/judge: a reward model of other people's comparisons; one of the same comparisons would only say that
              they were learned)
    """
    model, tokenizer, run, of = open_policy(args.policy, update, args.out)
    sides, (ranked, checks) = read_sides(tokenizer, model.config.context, training.batch, args)
    about = {**of, "stage": "dpo", "dpo": settings, "training": training}
    with stage_run(run, tokenizer, **about, data=fingerprint(sides)):
        if not run.finished:
            click.echo(f"{count_pairs(ranked):,} comparisons to learn from, {count_pairs(checks):,} held out; the "
                       f"reference is {args.policy}")
            train_dpo(model, ranked, checks, settings, training, run)
    facts = run.facts()
    click.echo(f"{args.out}: orders {facts['accuracy']:.1%} of the held-out comparisons as people did")
    click.echo(f"nats that completions gained against {args.policy}: chosen {facts['chosen']:+.2f}, rejected "
               f"{facts['rejected']:+.2f} (dpo.py says why both may fall)")
    say_how_to_sample(args.policy, run)
