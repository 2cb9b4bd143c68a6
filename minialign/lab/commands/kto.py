"""`python -m minialign kto --policy RUN --judged FILE.jsonl`"""

import click

from minialign.lab.commands import options as cli
from minialign.lab.commands.inputs import fill_a_batch, open_policy, say_how_to_sample
from minialign.lab.commands.judged import say_shared_prompts
from minialign.lab.stages import stage_run
from minialign.peft.lora import LoRAConfig
from minialign.rlhf.dpo import DPO
from minialign.rlhf.kto import KTOConfig, read_judged_answers, train_kto
from minialign.runs.errors import UserError
from minialign.runs.files import fingerprint, held_out

FAST = {"steps": 20, "validate_every": 10}


@click.command(cls=cli.Command, trains=True)
@cli.IMPROVED
@cli.file_option("--judged FILE.jsonl", required=True,
                 text="One JSON object a line, with `prompt`, `completion` and `liked`: true or false.")
@cli.file_option("--valid FILE.jsonl", "Answers to validate on; without it a tenth of the prompts is held out.")
@cli.run_options(out="runs/kto")
@cli.configured("Training", "training", DPO, FAST)
@cli.configured("KTO", "settings", KTOConfig())
@cli.configured("LoRA, on a published policy", "update", LoRAConfig(), hide=("targets", "seed", "dropout"))
@cli.gather_options
def command(args, training, settings, update):
    """Optimise a policy on single answers that somebody liked or did not, without comparisons.

    \b
    Example:  python -m minialign kto --policy runs/sft --judged thumbs.jsonl
    """
    model, tokenizer, run, of = open_policy(args.policy, update, args.out)
    judged = read_judged_answers(args.judged, tokenizer, model.config.context)
    if args.valid:
        valid = read_judged_answers(args.valid, tokenizer, model.config.context)
        learned, measured = ([{"prompt": tuple(each.prompt)} for each in side] for side in (judged, valid))
        say_shared_prompts(learned, measured, args.valid)
    else:
        sides = [[each for each in judged if held_out(str(each.prompt), 0.1) is side] for side in (False, True)]
        judged, valid = sides  # all answers to a prompt are on one side
    if any(len({each.liked for each in side}) < 2 for side in (judged, valid)):
        raise UserError("too few answers to have liked and other ones on both sides; give more, or --valid",
                        args.valid or args.judged)
    fill_a_batch(len(judged), "answers to learn from", training.batch, args.judged)
    about = {**of, "stage": "kto", "kto": settings, "training": training}
    data = fingerprint([[each.prompt, each.completion, each.liked] for each in [*judged, *valid]])
    with stage_run(run, tokenizer, **about, data=data):
        if not run.finished:
            click.echo(f"{len(judged):,} answers to learn from, {len(valid):,} held out; the reference is "
                       f"{args.policy}")
            train_kto(model, judged, valid, settings, training, run)
    facts = run.facts()
    click.echo(f"{args.out}: nats that held-out answers gained against {args.policy}: liked {facts['liked']:+.2f}, "
               f"others {facts['other']:+.2f}; {facts['accuracy']:.1%} on the right side of the point of reference")
    say_how_to_sample(args.policy, run)
