"""`python -m minialign evaluate RUN`"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click
import torch

from minialign.batching import next_token_batch
from minialign.evaluation import mean_interval
from minialign.generation import SamplingConfig, continue_texts
from minialign.heads import load_model, same_tokenizer
from minialign.lab.commands.inputs import is_named, open_model, prompt_rows, read_documents, read_prompts
from minialign.lab.commands.options import TUNED, Command, configured, file_option, run_options
from minialign.pretrain.causal_lm import encode_documents, next_token_loss
from minialign.rlhf.equal_length import win_rates
from minialign.rlhf.reward_checks import Sample, show_hacking, widest
from minialign.rlhf.reward_model import answer_rows, score_rows
from minialign.runs.errors import UserError
from minialign.runs.files import read_json, read_jsonl, write_json
from minialign.tokenizer import Tokenizer


@click.command(cls=Command)
@click.argument("run", type=click.Path(path_type=Path))
@TUNED
@file_option("--text", "Text to measure the perplexity on.", metavar="FILE")
@file_option("--prompts", "Prompts to answer: .txt, one a line, or .jsonl with `prompt` (and `completion`, the "
                          "reference).", metavar="FILE")
@file_option("--judge", "A reward model's run that judges the answers; let it be one that the policy was not trained "
                        "against.", metavar="RUN")
@file_option("--proxy", "The reward model's run that it was trained against: shows ten answers that it and the judge "
                        "see most differently.", metavar="RUN")
@file_option("--against", "A rival run; without it the rivals are the references in the prompts file.", metavar="RUN")
@run_options(out=None, otherwise="evaluation.json in the run's folder")
@configured("Sampling", "sampling", SamplingConfig(), {"new_tokens": 16})
def command(run, tuned, text, prompts, judge, proxy, against, out, seed, fast, sampling):
    """Perplexity on texts; win rate against references or another model, as a judge sees it.

    \b
    Example:  python -m minialign evaluate runs/pretrain --text held-out.txt
    Example:  python -m minialign evaluate runs/ppo --against runs/sft --judge runs/judge --prompts prompts.txt
    """
    if text is None and prompts is None:
        raise UserError("nothing to evaluate on; give --text, or --prompts with --judge")
    if prompts is not None and judge is None:
        raise UserError("answers need somebody to judge them; give --judge, the run of a reward model")
    if out is None and tuned is None and is_named(run):
        raise UserError(f"there is no folder {run} to leave evaluation.json in; say where by --out")
    out = out or (tuned or run) / "evaluation.json"
    if out.exists() and not is_evaluation(out, run):
        raise UserError("is there already and is no evaluation of this run; choose another --out", out)
    # a perplexity of text is one of next tokens
    model, tokenizer = open_model(run, "language-model" if text is None else "decoder", tuned)
    result = {"run": str(run)} | ({} if tuned is None else {"tuned": str(tuned)})
    if text is not None:
        result["text"] = measure_perplexity(model, tokenizer, read_documents(text, "paragraphs"))
        click.echo(f"{run}: perplexity {result['text']['perplexity']:.2f} a token, "
                   f"{result['text']['bits_per_byte']:.3f} bits a byte on {text}")
    if prompts is not None:
        result["win_rate"] = duel((run, model, tokenizer), against, judge, prompts, sampling, seed,
                                  32 if fast else None, proxy)
        rate = result["win_rate"]
        rival = against or "the references"
        click.echo(f"{run}: preferred to {rival} in {rate['mean']:.1%} [{rate['low']:.1%}, {rate['high']:.1%}] of "
                   f"{rate['prompts']} prompts")
        equal = "{length_controlled:.1%} [{length_controlled_low:.1%}, {length_controlled_high:.1%}]".format(**rate)
        click.echo(f"at equal length {equal}; mean score {rate['score']:+.2f} against {rate['rival_score']:+.2f}")
        if proxy is not None:
            click.echo(f"seen most differently by {proxy} (proxy) and {judge} "
                       f"(gold):\n{show_hacking([Sample(**s) for s in rate['hacking']])}")
    write_json(out, result)
    click.echo(f"written to {out}")


def is_evaluation(path: Path, run: Path) -> bool:
    """Whether a file is what an earlier evaluation of the same run left, and may be replaced."""
    try:
        found = read_json(path)
    except UserError:
        return False
    return isinstance(found, dict) and found.get("run") == str(run)


@torch.no_grad()
def measure_perplexity(model, tokenizer, documents: list[str]) -> dict[str, float]:
    """exp of the mean −log π over all tokens of the documents, cut into windows of the context; and bits per byte,
    which does not depend on the tokenizer."""
    context = model.config.context
    rows = [ids[i : i + context + 1] for ids in encode_documents(tokenizer, documents)
            for i in range(0, len(ids) - 1, context)]
    rows.sort(key=len)
    nats = tokens = 0.0
    for start in range(0, len(rows), 32):
        batch = next_token_batch(rows[start : start + 32])
        nats += float(next_token_loss(model, batch))
        tokens += batch.count
    size = sum(len(document.encode()) for document in documents)
    return {"perplexity": float(torch.tensor(nats / tokens).exp()), "bits_per_byte": nats / size / 0.6931471805599453,
            "tokens": int(tokens)}


def duel(one, against, judge, prompts, sampling: SamplingConfig, seed: int, limit: int | None,
         proxy: Path | None = None) -> dict:
    """Both sides answer the same prompts; the judge's higher score wins. `one` is a run, its model and its
    tokenizer."""
    run, model, tokenizer = one
    scorer, its_tokenizer = load_model(judge, "scalar-model")
    same_tokenizer((run, tokenizer), (judge, its_tokenizer))
    context = min(model.config.context, scorer.config.context)
    if against is not None:
        rival, rival_tokenizer = open_model(against)
        same_tokenizer((run, tokenizer), (against, rival_tokenizer))
        context = min(context, rival.config.context)
        asked = read_prompts(prompts)[:limit]
    else:
        records = read_references(prompts, tokenizer, scorer.config.context)[:limit]
        asked, others = [(r["prompt"], r["line"]) for r in records], [r["completion"] for r in records]
    if len(asked) < 2:
        raise UserError("one prompt gives no interval; give at least two", prompts)
    prompt_rows(tokenizer, asked, sampling.new_tokens, context, prompts)
    texts = [text for text, _ in asked]
    if against is not None:
        others = continue_texts(rival, tokenizer, texts, sampling, torch.Generator().manual_seed(seed + 1))
    answers = continue_texts(model, tokenizer, texts, sampling, torch.Generator().manual_seed(seed))
    own, theirs = (score_rows(scorer, answer_rows(tokenizer, texts, side, scorer.config.context))
                   for side in (answers, others))
    outcomes = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(own.tolist(), theirs.tolist())]
    found = win_rates([[outcome] for outcome in outcomes], answers, others)
    equal = found.at_equal_length
    return {
        **found.won.to_dict(),
        **{"length_controlled": equal.mean, "length_controlled_low": equal.low, "length_controlled_high": equal.high},
        "score": mean_interval(own.tolist()).mean,
        "rival_score": mean_interval(theirs.tolist()).mean,
        "prompts": len(texts),
        **({} if proxy is None else {"hacking": differing(proxy, (run, tokenizer), texts, answers, own.tolist())}),
        "samples": [{"prompt": p, "answer": a, "rival": b} for p, a, b in list(zip(texts, answers, others))[:20]],
    }


def differing(proxy: Path, of: tuple[Path, Tokenizer], prompts: list[str], answers: list[str],
              judged: list[float]) -> list[dict]:
    """The ten answers that the reward model and the judge see most differently."""
    scorer, tokenizer = load_model(proxy, "scalar-model")
    same_tokenizer(of, (proxy, tokenizer))
    scores = score_rows(scorer, answer_rows(tokenizer, prompts, answers, scorer.config.context))
    return [asdict(sample) for sample in widest(prompts, answers, scores.tolist(), judged)]


def read_references(path: Path, tokenizer: Tokenizer, context: int) -> list[dict]:
    """Prompts with their reference answers. Raises UserError for a pair that the judge cannot read as a whole, with its
    line."""
    if path.suffix != ".jsonl":
        raise UserError("has no references to compare with; give a .jsonl file with `prompt` and `completion`, or a "
                        "rival with --against", path)
    records = read_jsonl(path, ("prompt", "completion"))
    rows = answer_rows(tokenizer, [r["prompt"] for r in records], [r["completion"] for r in records])
    for row, record in zip(rows, records):
        if len(row) > context:
            raise UserError(f"prompt and completion of {len(row)} tokens do not fit the judge's context of {context}; "
                            f"shorten them", path, record["line"])
    return records
