"""`python -m minialign reward --base RUN --comparisons FILE.jsonl`"""

import statistics
from pathlib import Path

import click
import torch

from minialign.generation import SamplingConfig, continue_texts
from minialign.heads import load_model
from minialign.lab.commands import options as cli
from minialign.lab.commands.judged import comparison_options, rank_judged, read_judged, read_sides, say_shared_prompts
from minialign.lab.plotting import save_png
from minialign.lab.report.reward import calibration_figure
from minialign.lab.stages import stage_run
from minialign.rlhf.ranked import Comparisons, Ranked, count_pairs
from minialign.rlhf.reward_checks import blind_baselines, calibration, show_calibration
from minialign.rlhf.reward_model import REWARD, all_pair_scores, completion_rows, evaluate_pairs, train_reward_model
from minialign.runs.errors import UserError
from minialign.runs.files import fingerprint
from minialign.runs.run_folder import RunFolder

CALIBRATION = "calibration.png"
FAST = {"steps": 20, "validate_every": 10}


@click.command(cls=cli.Command, trains=True)
@cli.file_option("--base RUN", "The instruction-tuned run to start from.", required=True)
@comparison_options
@cli.file_option("--test FILE.jsonl", "Comparisons of other prompts or people, only measured at the end.")
@cli.count_option("--references", 256, 2, 100_000, "Answers of the base to normalise scores on.")
@cli.choice_option("--read", ["end", "mean"], "end", "Where the score stands: at the end, or the mean of all tokens.")
@cli.run_options(out="runs/reward")
@cli.configured("Training", "training", REWARD, FAST)
@cli.gather_options
def command(args, training):
    """Train a reward model on comparisons.

    \b
    Example:  python -m minialign reward --base runs/sft --comparisons preferences.jsonl
    Then:     python -m minialign ppo --policy runs/sft --reward runs/reward --prompts prompts.jsonl
    """
    model, tokenizer = load_model(args.base, "decoder")
    context, out = model.config.context, args.out
    sides, (ranked, checks) = read_sides(tokenizer, context, training.batch, args)
    tests = read_test(tokenizer, sides[0], context, args.long, args.test) if args.test else []
    about = {"what": "scalar-model", "model": model.config, "stage": "reward", "training": training}
    about |= {"references": args.references, "data": fingerprint(sides), "base": model}
    about |= {} if args.read == "end" else {"read": args.read}
    with stage_run(RunFolder(out), tokenizer, **about) as run:
        if not run.finished:
            click.echo(f"{count_pairs(ranked):,} comparisons to learn from, {count_pairs(checks):,} held out")
            references = reference_rows(model, tokenizer, sides[0], args.references, args.seed, args.long == "cut")
            train_reward_model(model, ranked, checks, references, training, run, args.read)
    click.echo(f"{out}: orders {run.facts()['accuracy']:.1%} of the held-out comparisons as people did")
    trained, _ = load_model(out, "scalar-model")
    report(trained, checks, sides[1], run)
    if tests:
        accuracy = evaluate_pairs(trained, Comparisons(tests, 1, 0))["accuracy"]
        click.echo(f"{args.test}: {accuracy:.1%} of {count_pairs(tests):,}")


def read_test(tokenizer, learned: list[dict], context: int, long: str | None, file: Path) -> list[Ranked]:
    """Comparisons that are only measured."""
    comparisons = read_judged(file)
    say_shared_prompts(learned, comparisons, file)
    tests = rank_judged(tokenizer, comparisons, context, long, file)
    if not tests:
        raise UserError("there is nothing in it to measure", file)
    return tests


def report(trained, checks: list[Ranked], held_out: list[dict], run: RunFolder) -> None:
    """What judges reach who do not read the completions, and how well the model's probabilities are calibrated."""
    blind = {judge: (max(share.mean, 1 - share.mean), " (by taking the other)" * (share.mean < 0.5))
             for judge, share in blind_baselines(held_out).items()}
    for judge, (share, other) in blind.items():
        click.echo(f"  a judge that always takes the {judge} one: {share:.1%}{other}")
    chosen, rejected = all_pair_scores(trained, Comparisons(checks, 1, 0))
    bins = calibration((run.facts()["reference_deviation"] * (chosen - rejected)).tolist())
    click.echo(f"how sure it is (predicted), and how often people agreed (observed):\n{show_calibration(bins)}")
    names = {"longer": "only the length", "first": "only the position"}
    shares = {names[judge]: share for judge, (share, _) in blind.items()}
    save_png(calibration_figure(bins, shares), run.path / CALIBRATION)
    click.echo(f"drawn in {run.path / CALIBRATION}")


def reference_rows(model, tokenizer, comparisons: list[dict], count: int, seed: int, cut: bool = False) -> list[tuple]:
    """The base's own completions to prompts of the comparisons: what a score of 0 ± 1 will mean.

    They may be as long as half of the chosen completions are, so that no less than half of the prompts leave room for
    one.
    """
    context = model.config.context
    prompts, chosen = (tokenizer.encode_many([c[field] for c in comparisons]) for field in ("prompt", "chosen"))
    if cut:  # as they are learned from
        chosen = [a[: max(0, context - len(p) - 2)] for p, a in zip(prompts, chosen)]
    fitting = [(len(p), len(a) + 1, c["prompt"]) for p, a, c in zip(prompts, chosen, comparisons)
               if len(p) + len(a) + 2 <= context]
    if not fitting:
        raise UserError(f"no chosen completion fits the model's context of {context} with its prompt; use shorter "
                        f"ones, or a model with a longer context")
    new_tokens = min(48, statistics.median_low([length for _, length, _ in fitting]))
    texts = [text for length, _, text in fitting if 1 + length + new_tokens <= context]
    texts = [texts[i % len(texts)] for i in range(count)]
    completions = continue_texts(model, tokenizer, texts, SamplingConfig(new_tokens),
                                 torch.Generator().manual_seed(seed))
    return completion_rows(tokenizer, texts, completions, context)
