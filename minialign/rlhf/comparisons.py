r"""Comparisons: two answers to one prompt, and which of them somebody preferred.

One JSON object a line: `prompt`, `chosen`, `rejected`, and, where known, `annotator`, `chosen_policy`, `rejected_policy`,
`confidence` (1 to 9), `shown_first` ("chosen" | "rejected"), `task`. Other fields are kept. Text may be a string or a list of chat messages.

Details that matter:
    1. Pairs mix several policies and the references, as in the summarisation data (Stiennon et al. 2020, §3.2): a reward model that
       has only seen one policy's answers cannot judge another's.
    2. Splits are by prompt (test_no_prompt_stands_on_both_sides_of_a_split).
    3. Pairs whose two answers are equal carry nothing; they are dropped, counted and said.

Read next: reward_model.py. Try it:  python -m minialign compare --policies RUN RUN --prompts FILE.jsonl
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from minialign.errors import UserError
from minialign.files import held_out, read_jsonl
from minialign.generation import SamplingConfig, continue_texts
from minialign.heads import LanguageModel
from minialign.tokenizer import Tokenizer


@dataclass(frozen=True)
class Candidate:
    """One source of answers: a model, or (without one) texts that people wrote."""

    name: str
    model: LanguageModel | None = None
    texts: tuple[str, ...] = ()  # one for each prompt, when there is no model
    temperature: float = 1.0  # at which the model answers


def text_of(value: Any, file: object = None, line: int | None = None) -> str:
    """A string, or the contents of a list of chat messages ({"role", "content"}) joined by line breaks."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(m, dict) and isinstance(m.get("content"), str) for m in value):
        return "\n".join(message["content"] for message in value)
    raise UserError(f"neither text nor a list of chat messages: {str(value)[:60]}", file, line)


def read_comparisons(path: Path) -> tuple[list[dict], int]:
    """Comparisons of a JSONL file, and how many were dropped because both answers are equal.

    Raises:
        UserError: a broken line, a field missing or of another type; names file and line.
    """
    records = read_jsonl(path, ("prompt", "chosen", "rejected"), kind=(str, list))
    kept = []
    for record in records:
        texts = {field: text_of(record[field], path, record["line"]) for field in ("prompt", "chosen", "rejected")}
        if texts["chosen"] != texts["rejected"]:
            kept.append({**record, **texts})
    return kept, len(records) - len(kept)


def split_by_prompt(comparisons: list[dict], share: float = 0.1) -> tuple[list[dict], list[dict]]:
    """Training and held-out comparisons; all pairs of one prompt stand on the same side.

    Without prompts (texts compared as such) the pair's own first text in alphabetical order stands in for the prompt.
    """
    key = lambda c: c["prompt"] or min(c["chosen"], c["rejected"])  # noqa: E731
    return [c for c in comparisons if not held_out(key(c), share)], [c for c in comparisons if held_out(key(c), share)]


def sample_pairs(
    candidates: Sequence[Candidate], tokenizer: Tokenizer, prompts: Sequence[str], sampling: SamplingConfig, seed: int = 0, answers: int = 2
) -> tuple[list[dict], int]:
    """For each prompt some answers of candidates drawn by chance, and all pairs of them, each in random order.

    Args:
        candidates: where answers come from; a model may answer twice, a list of texts has one answer.
        tokenizer: of the models.
        prompts: what is answered.
        sampling: how models answer; each candidate brings its own temperature.
        seed: of the draw of candidates, the order and the samples.
        answers: K to a prompt, which make C(K, 2) pairs.
    Returns:
        {"prompt", "first", "second", "first_policy", "second_policy", "index"} for each pair, and how many were dropped as equal.
    """
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    pool = [i for i, candidate in enumerate(candidates) for _ in range(1 if candidate.model is None else answers)]
    if len(pool) < answers:
        raise UserError(f"there are {len(pool)} sources for {answers} answers to a prompt; name another run, or give --references")
    drawn = [rng.sample(pool, answers) for _ in prompts]  # for each prompt its candidates, in random order
    texts = [[""] * answers for _ in prompts]
    for number, candidate in enumerate(candidates):
        wanted = [(k, place) for k, row in enumerate(drawn) for place, i in enumerate(row) if i == number]
        if candidate.model is None:
            written = [candidate.texts[k] for k, _ in wanted]
        else:
            config = SamplingConfig(sampling.new_tokens, candidate.temperature, sampling.top_k, sampling.top_p)
            written = continue_texts(candidate.model, tokenizer, [prompts[k] for k, _ in wanted], config, generator)
        for (k, place), text in zip(wanted, written):
            texts[k][place] = text
    pairs = [
        {
            "prompt": prompt,
            "first": texts[k][i],
            "second": texts[k][j],
            "first_policy": candidates[drawn[k][i]].name,
            "second_policy": candidates[drawn[k][j]].name,
            "index": k,
        }
        for k, prompt in enumerate(prompts)
        for i, j in combinations(range(answers), 2)
    ]
    different = [pair for pair in pairs if pair["first"].strip() != pair["second"].strip()]
    return different, len(pairs) - len(different)


def as_comparison(pair: dict, winner: str, **facts: Any) -> dict:
    """A judged pair as a comparison. `winner` is "first" or "second"; facts are kept beside it (annotator, confidence, …)."""
    loser = {"first": "second", "second": "first"}[winner]
    return {
        "prompt": pair["prompt"],
        "chosen": pair[winner],
        "rejected": pair[loser],
        "chosen_policy": pair[f"{winner}_policy"],
        "rejected_policy": pair[f"{loser}_policy"],
        "shown_first": "chosen" if winner == "first" else "rejected",
        **facts,
    }
