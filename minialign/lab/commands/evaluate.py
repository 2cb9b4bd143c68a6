"""`python -m minialign evaluate RUN`"""

import math
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import click
import torch

from minialign.batching import next_token_batch
from minialign.evaluation import mean_interval
from minialign.generation import SamplingConfig, continue_texts
from minialign.heads import same_tokenizer
from minialign.lab.commands import inputs
from minialign.lab.commands import options as cli
from minialign.peft.prompt_tuning import room
from minialign.pretrain.causal_lm import encode_documents, mean_loss, perplexity
from minialign.rlhf.equal_length import win_rates
from minialign.rlhf.reward_checks import Sample, show_hacking, widest
from minialign.rlhf.reward_model import completion_rows, score_rows
from minialign.runs.errors import UserError
from minialign.runs.files import place_of, read_json, write_json
from minialign.tokenizer import Tokenizer


@click.command(cls=cli.Command)
@cli.RUN
@cli.TUNED
@cli.file_option("--text FILE", "Text to measure the perplexity on.")
@cli.file_option("--prompts FILE", "Prompts to answer: .txt, one a line, or .jsonl with `prompt` (and "
                 "`completion`, the reference).")
@cli.file_option("--judge RUN", "A reward model's run that judges the completions; let it be one that the "
                 "policy was not trained against.")
@cli.file_option("--proxy RUN", "The reward model's run that it was trained against: shows ten completions "
                 "that it and the judge see most differently.")
@cli.file_option("--against RUN", "A rival run; without it the rivals are the references in the prompts file.")
@cli.run_options(out=None, otherwise="evaluation.json in the run's folder")
@cli.configured("Sampling", "sampling", SamplingConfig(), {"new_tokens": 16})
@cli.gather_options
def command(args, sampling):
    """Perplexity on texts; win rate against references or another model, as a judge sees it.

    \b
    Example:  python -m minialign evaluate runs/pretrain --text held-out.txt
    Example:  python -m minialign evaluate runs/ppo --against runs/sft --judge runs/judge --prompts prompts.txt
    """
    run, out = args.run, free_place(args)
    # a perplexity of text is one of next tokens
    model, tokenizer = inputs.open_model(run, "language-model" if args.text is None else "decoder", args.tuned)
    result = {"run": str(run)} | ({} if args.tuned is None else {"tuned": str(args.tuned)})
    if args.text is not None:
        text = result["text"] = measure_perplexity(model, tokenizer, inputs.read_documents(args.text, "paragraphs"))
        click.echo(f"{run}: perplexity {text['perplexity']:.2f} a token, {text['bits_per_byte']:.3f} bits a byte on "
                   f"{args.text}")
    if args.prompts is not None:
        rate = result["win_rate"] = duel(model, tokenizer, args, sampling)
        click.echo(f"{run}: preferred to {args.against or 'the references'} in {rate['mean']:.1%} [{rate['low']:.1%}, "
                   f"{rate['high']:.1%}] of {rate['prompts']} prompts")
        equal = "{length_controlled:.1%} [{length_controlled_low:.1%}, {length_controlled_high:.1%}]".format(**rate)
        click.echo(f"at equal length {equal}; mean score {rate['score']:+.2f} against {rate['rival_score']:+.2f}")
        if args.proxy is not None:
            samples = show_hacking([Sample(**sample) for sample in rate["hacking"]])
            click.echo(f"seen most differently by {args.proxy} (proxy) and {args.judge} (gold):\n{samples}")
    earlier = read_json(out) if out.exists() else {}  # what was measured of this very model stays
    write_json(out, (earlier if earlier.get("tuned") == result.get("tuned") else {}) | result)
    click.echo(f"written to {out}")


def free_place(args: SimpleNamespace) -> Path:
    """Where the result goes. Raises UserError for options that do not belong together, and for a file that holds
    something else than an earlier evaluation of the same run."""
    if args.text is None and args.prompts is None:
        raise UserError("nothing to evaluate on; give --text, or --prompts with --judge")
    if args.prompts is not None and args.judge is None:
        raise UserError("answers need somebody to judge them; give --judge, the run of a reward model")
    if args.prompts is None and (args.judge or args.proxy or args.against):
        raise UserError("--judge, --proxy and --against are about answers; give --prompts")
    if args.out is None and args.tuned is None and inputs.is_named(args.run):
        raise UserError(f"there is no folder {args.run} to leave evaluation.json in; say where by --out")
    out = args.out or (args.tuned or args.run) / "evaluation.json"
    try:
        found = read_json(out) if out.exists() else {"run": str(args.run)}
    except UserError:
        found = None
    if not isinstance(found, dict) or Path(str(found.get("run"))).resolve() != args.run.resolve():
        raise UserError("is there already and is no evaluation of this run; choose another --out", out)
    return out


@torch.no_grad()
def measure_perplexity(model, tokenizer, documents: list[str]) -> dict[str, float]:
    """exp of the mean −log π over all tokens of the documents, cut into windows of the context; and bits per byte,
    which does not depend on the tokenizer."""
    context = room(model)
    rows = [ids[i : i + context + 1] for ids in encode_documents(tokenizer, documents)
            for i in range(0, len(ids) - 1, context)]
    rows.sort(key=len)
    batches = [next_token_batch(rows[start : start + 32]) for start in range(0, len(rows), 32)]
    mean, tokens = mean_loss(model, batches), sum(batch.count for batch in batches)
    size = sum(len(document.encode()) for document in documents)
    return {"perplexity": perplexity(mean), "bits_per_byte": mean * tokens / size / math.log(2), "tokens": tokens}


def duel(model, tokenizer: Tokenizer, args: SimpleNamespace, sampling: SamplingConfig) -> dict:
    """Both sides answer the same prompts; the judge's higher score wins."""
    scorer = inputs.open_reward_model(args.judge, args.run, tokenizer)
    context, limit = min(room(model), scorer.config.context), 32 if args.fast else None
    if args.against is None:
        records = read_references(args.prompts, tokenizer, scorer.config.context)[:limit]
        others = [record["completion"] for record in records]
    else:
        rival, rival_tokenizer = inputs.open_model(args.against)
        same_tokenizer((args.run, tokenizer), (args.against, rival_tokenizer))
        context, records = min(context, rival.config.context), inputs.read_prompts(args.prompts)[:limit]
    if len(records) < 2:
        raise UserError("one prompt gives no interval; give at least two", args.prompts)
    inputs.prompt_rows(tokenizer, records, sampling.new_tokens, context)
    texts = [record["prompt"] for record in records]
    if args.against is not None:
        chance = torch.Generator().manual_seed(args.seed + 1)
        others = continue_texts(rival, tokenizer, texts, sampling, chance)
    completions = continue_texts(model, tokenizer, texts, sampling, torch.Generator().manual_seed(args.seed))
    own, theirs = (score_texts(scorer, tokenizer, texts, side) for side in (completions, others))
    # the same answer is a tie, even where its scores were rounded apart in batches of different widths
    outcomes = [[0.5 if said == rival or a == b else float(a > b)]
                for a, b, said, rival in zip(own, theirs, completions, others)]
    found = win_rates(outcomes, completions, others)
    equal = found.at_equal_length
    result = {
        **found.won.to_dict(),
        **{"length_controlled": equal.mean, "length_controlled_low": equal.low, "length_controlled_high": equal.high},
        "score": mean_interval(own).mean,
        "rival_score": mean_interval(theirs).mean,
        "prompts": len(texts),
    }
    if args.proxy is not None:
        scores = score_texts(inputs.open_reward_model(args.proxy, args.run, tokenizer), tokenizer, texts, completions)
        result["hacking"] = [asdict(sample) for sample in widest(texts, completions, scores, own)]
    samples = zip(texts[:20], completions, others)
    return result | {"samples": [{"prompt": p, "answer": a, "rival": b} for p, a, b in samples]}


def score_texts(scorer, tokenizer: Tokenizer, prompts: list[str], completions: list[str]) -> list[float]:
    """A reward model's score of each completion."""
    return score_rows(scorer, completion_rows(tokenizer, prompts, completions, scorer.config.context)).tolist()


def read_references(path: Path, tokenizer: Tokenizer, context: int) -> list[dict]:
    """Prompts with their reference completions. Raises UserError for a pair that the judge cannot read as a whole, with
    its line."""
    records = inputs.read_prompts(path, references=True)
    rows = completion_rows(tokenizer, [r["prompt"] for r in records], [r["completion"] for r in records])
    for (prompt, completion), record in zip(rows, records):
        if (length := len(prompt) + len(completion)) > context:
            raise UserError(f"prompt and completion of {length} tokens do not fit the judge's context of {context}; "
                            f"shorten them", *place_of(record))
    return records
