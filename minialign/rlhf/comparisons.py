r"""Comparisons: two completions to one prompt, and which of them somebody preferred.

One JSON object a line: `prompt`, `chosen`, `rejected`, and, where known, `annotator`, `chosen_policy`,
`rejected_policy`, `confidence` (1 to 9 here; other people's scales are kept as they are), `shown_first` ("chosen" |
"rejected"), `time`, `task`. Other fields are kept. A text may be a string or a list of chat messages ({"role",
"content"}); where `chosen` and `rejected` are whole conversations, what they begin with in common is the prompt. The
labelling page writes the same lines, and ties, skipped pairs, pairs that were asked again, and undo marks. Details:
    1. Pairs mix several policies and the references, as in the summarisation data (Stiennon et al. 2020, §3.2): a
       reward model that has only seen one policy's completions cannot judge another's.
    2. Splits are by prompt (test_no_prompt_stands_on_both_sides_of_a_split).
    3. Pairs of equal completions, ties and what was taken back are dropped and counted
       (test_what_teaches_nothing_is_left_out_and_counted).

Read next: rouge.py. See also: lab/labelling/page.py (where people make them), ranked.py, reward_model.py.
Try it:  python -m minialign compare --policies RUN RUN --prompts FILE.jsonl
"""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from minialign.generation import SamplingConfig, continue_texts
from minialign.heads import LanguageModel
from minialign.runs.errors import UserError
from minialign.runs.files import check_fields, held_out, place_of, read_jsonl
from minialign.tokenizer import Tokenizer

EQUAL, TAKEN_BACK, ASKED_AGAIN = "of two equal answers", "taken back", "asked again"
ASIDE = {"tie": "ties", "skip": "skipped"}  # choices that order nothing


@dataclass(frozen=True)
class Candidate:
    """One source of completions: a model, or (without one) texts that people wrote."""

    name: str
    model: LanguageModel | None = None
    texts: tuple[str, ...] = ()  # one for each prompt, when there is no model
    temperature: float = 1.0  # at which the model answers


def is_chat(value: Any) -> bool:
    """Whether it is a list of chat messages."""
    return isinstance(value, list) and value != [] and all(
        isinstance(message, dict) and isinstance(message.get("content"), str) for message in value)


def as_chat(value: Any, role: str, place: tuple[object, int | None]) -> list[tuple[str, str]]:
    """(role, content) of each message; a string is one message, an empty one none. Raises UserError for anything
    else."""
    if isinstance(value, str) or not value:
        return [(role, value)] if value else []
    if not is_chat(value):
        raise UserError(f"neither text nor a list of chat messages with role and content: {str(value)[:60]!r}", *place)
    return [(str(message.get("role", "somebody")), message["content"]) for message in value]


def divide_conversations(record: dict) -> dict[str, str]:
    """`prompt`, `chosen` and `rejected` as texts; what completions repeat of the prompt, or begin with in common, is
    read once, as the prompt.

    One question and its two answers are their contents. Of more turns each is a line `role: content`, the prompt ends
    with the role that answers, and prompt and answer side by side are the whole conversation.
    Raises:
        UserError: no prompt, neither text nor messages, or a prompt that conversations do not have.
    """
    place, asked = place_of(record), record.get("prompt")
    prompt, *completions = [as_chat(record.get(name), role, place)
                        for name, role in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant"))]
    if is_chat(record["chosen"]) and is_chat(record["rejected"]):
        common = next((i for i, (a, b) in enumerate(zip(*completions)) if a != b), min(map(len, completions)))
        # each keeps a completion
        shared = completions[0][: min(common, *(len(completion) - 1 for completion in completions))]
        said, known = ([content.strip() for _, content in part] for part in (prompt, shared))
        if any(known[i : i + len(said)] == said for i in range(len(known))):
            prompt, completions = shared, [completion[len(shared) :] for completion in completions]
        elif shared and isinstance(asked, str) and asked and shared[0][0] != "assistant":
            raise UserError("the conversations begin alike, and without the prompt; leave the prompt out, or let them "
                            "begin with it", *place)
        elif shared:
            prompt, completions = prompt + shared, [completion[len(shared) :] for completion in completions]
    completions = [completion[len(prompt) :] if completion[: len(prompt)] == prompt != completion else completion
                   for completion in completions]
    if not prompt and asked is None:
        check_fields(record, ("prompt",), (str, list), *place)
    if len(prompt) < 2 and all(len(completion) < 2 for completion in completions):
        texts = ["".join(content for _, content in part) for part in (prompt, *completions)]
    else:
        before, *whole = ["\n".join(f"{role}: {content}" for role, content in turns)
                          for turns in (prompt, *(prompt + completion for completion in completions))]
        if prompt and all(completions) and len({completion[0][0] for completion in completions}) == 1:
            before += f"\n{completions[0][0][0]}:"
        texts = [before, *(text[len(before) :] for text in whole)]
    return dict(zip(("prompt", "chosen", "rejected"), texts))


def refuse_other_forms(record: dict) -> None:
    """Raise UserError for a line of a well-known other form, and say how to rewrite it."""
    texts = [record.get(name) for name in ("chosen", "rejected")]
    if record.get("prompt") is None and all(isinstance(text, str) and "\n\nAssistant:" in text for text in texts):
        raise UserError(r"chosen and rejected are whole dialogues, as in hh-rlhf, without a prompt; cut both after the "
                        r"last '\n\nAssistant:' that they share, and make what stands before the cut the prompt",
                        *place_of(record))
    if "completion" in record and type(record.get("label")) is bool:
        raise UserError("one completion and whether it was liked, as in KTO; a comparison needs two completions to a "
                        "prompt, chosen and rejected", *place_of(record))


def name_of(record: dict, field: str = "id") -> tuple[str, int | None]:
    """By what an undo means a label: whose it is, and its number, which each person counts from 0."""
    return str(record.get("annotator")), record.get(field) if type(record.get(field)) is int else None


def taken_back(records: Iterable[dict]) -> set[int]:
    """Places of the labels that were taken back: an undo means the last one of its name before it, since files of
    several folders may stand one behind the other."""
    last, found = {}, set()
    for place, record in enumerate(records):
        if type(record.get("undo")) is not int:
            last[name_of(record)] = place
        elif (name := name_of(record, "undo")) in last:
            found.add(last.pop(name))
    return found


def read_comparisons(path: Path) -> tuple[list[dict], Counter[str]]:
    """Comparisons of a JSONL file, and what was left out: reason -> lines.

    Raises:
        UserError: a broken line, a field missing or of another type; names file and line. Completions that all repeat
            their prompts.
    """
    records = read_jsonl(path)
    undone = taken_back(records)
    kept, left_out = [], Counter()
    for place, record in enumerate(records):
        if type(record.get("undo")) is int:
            continue
        reason = TAKEN_BACK if place in undone else ASIDE.get(str(record.get("choice")))
        if reason is None and record.get("again") is True:
            reason = ASKED_AGAIN
        if reason is None:
            refuse_other_forms(record)
            chats = all(isinstance(record.get(name), list) for name in ("chosen", "rejected"))
            needed = () if chats and record.get("prompt") is None else ("prompt",)
            check_fields(record, (*needed, "chosen", "rejected"), (str, list), *place_of(record))
            record |= divide_conversations(record)
            check_facts(record)
            reason = EQUAL if record["chosen"] == record["rejected"] else None
        if reason is None:
            kept.append(record)
        else:
            left_out[reason] += 1
    repeated = (bool(r["prompt"]) and r[name].startswith(r["prompt"]) for r in kept for name in ("chosen", "rejected"))
    if len(kept) > 1 and all(repeated):
        raise UserError("every chosen and rejected begins with its prompt, which would be read twice; cut it off there",
                        path)
    return kept, left_out


def check_facts(record: dict) -> None:
    """Raise UserError when something that is known about a comparison cannot be meant so; names the line."""
    texts = ("annotator", "chosen_policy", "rejected_policy", "time")
    for name in (*texts, "confidence"):
        value, kinds, kind = record.get(name), *((str, "text") if name in texts else ((int, float), "a number"))
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool) or value != value):
            raise UserError(f"{name!r} is {str(value)[:40]!r}, not {kind}", *place_of(record))
    first = record.get("shown_first")
    if first not in (None, "chosen", "rejected"):
        raise UserError(f"'shown_first' is {str(first)[:40]!r}; it must be chosen or rejected", *place_of(record))


def say_left_out(left_out: Counter[str]) -> str:
    """The counts for people: "3 of two equal answers, 2 ties"."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))


def split_by_prompt(comparisons: list[dict], share: float = 0.1) -> tuple[list[dict], list[dict]]:
    """Training and held-out comparisons; all pairs of one prompt stand on the same side."""
    return tuple([c for c in comparisons if held_out(key_of(c), share) is side] for side in (False, True))


def key_of(comparison: dict) -> str:
    """By what a comparison is put on one side of a split: its prompt, or its first text where nothing was asked."""
    return comparison["prompt"] or min(comparison["chosen"], comparison["rejected"])


def sample_pairs(candidates: Sequence[Candidate], tokenizer: Tokenizer, prompts: Sequence[str],
                 sampling: SamplingConfig, seed: int = 0, completions: int = 2) -> tuple[list[dict], int]:
    """For each prompt some completions of candidates drawn by chance, and all pairs of them, each in random order.

    Args:
        candidates: where completions come from; a model may answer twice, a list of texts has one completion.
        tokenizer: of the models; prompts: what is answered.
        sampling: how models answer, each at its candidate's temperature; seed: of the draw, the order and the samples.
        completions: K to a prompt, which make C(K, 2) pairs.
    Returns:
        {"prompt", "first", "second", "first_policy", "second_policy", "index"} of each pair, and how many were equal.
    """
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    pool = [i for i, candidate in enumerate(candidates) for _ in range(1 if candidate.model is None else completions)]
    if len(pool) < completions:
        raise UserError(f"there are {len(pool)} sources for {completions} completions to a prompt; name another run, "
                        f"or give --references")
    drawn = [rng.sample(pool, completions) for _ in prompts]  # for each prompt its candidates, in random order
    texts = [[""] * completions for _ in prompts]
    for number, candidate in enumerate(candidates):
        wanted = [(k, place) for k, row in enumerate(drawn) for place, i in enumerate(row) if i == number]
        if candidate.model is None:
            written = [candidate.texts[k] for k, _ in wanted]
        else:
            config = replace(sampling, temperature=candidate.temperature)
            written = continue_texts(candidate.model, tokenizer, [prompts[k] for k, _ in wanted], config, generator)
        for (k, place), text in zip(wanted, written):
            texts[k][place] = text
    names = [[candidates[i].name for i in row] for row in drawn]
    pairs = [{"prompt": prompt, "first": texts[k][i], "second": texts[k][j], "first_policy": names[k][i],
              "second_policy": names[k][j], "index": k}
             for k, prompt in enumerate(prompts) for i, j in combinations(range(completions), 2)]
    different = [pair for pair in pairs if pair["first"].strip() != pair["second"].strip()]
    return different, len(pairs) - len(different)


def as_comparison(pair: dict, winner: str, **facts: Any) -> dict:
    """A judged pair as a comparison; `winner` is "first" or "second"; facts (annotator, confidence, …) stand beside."""
    loser = {"first": "second", "second": "first"}[winner]
    texts = {"prompt": pair["prompt"], "chosen": pair[winner], "rejected": pair[loser]}
    policies = {"chosen_policy": pair[f"{winner}_policy"], "rejected_policy": pair[f"{loser}_policy"]}
    return {**texts, **policies, "shown_first": "chosen" if winner == "first" else "rejected", **facts}
