r"""Controls: can a base read? Questions about passages of a seed that nothing trained on, each asked alone.

    who, what, where, feeling    the whole answer is what the model would write
    yes-no                       in each surface form of the reading corpus, by itself
    pairs                        a question as it was and with one detail exchanged: both right
    summary                      the share of true statements in summaries behind a heading, sampled at 0.7

No control looks at a claim: what a claim compares is not measured here. Try it: `python -m minialign bases --check`.

Read next: make.py.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch

from minialign.batching import pad
from minialign.generation import SamplingConfig, continue_texts
from minialign.heads import LanguageModel, evaluating
from minialign.tokenizer import Tokenizer
from minialign.world.corpus import HEADINGS
from minialign.world.gold import score
from minialign.world.reading_corpus import FIELDS, FORMS, YES_NO, Item, facts, minimal_pair, written
from minialign.world.stories import Story, write_scene, write_story

PASSAGES, SUMMARIES = 250, 200
SEED = 31_337  # of passages that nothing trained on: corpora are made from seeds below
SUMMARISED = SamplingConfig(new_tokens=40, temperature=0.7)
FORMS_NEEDED = 6


@dataclass(frozen=True)
class Control:
    """One thing that is taken for granted, and whether it may be."""

    name: str
    value: float
    threshold: float | None  # None: told, not demanded
    count: int  # questions

    @property
    def passed(self) -> bool:
        """Whether the value reaches the threshold."""
        return self.threshold is None or self.value >= self.threshold

    def to_dict(self) -> dict:
        """As it stands in a card and in a verdict."""
        return {**asdict(self), "value": round(self.value, 4), "passed": self.passed}


class Question(NamedTuple):
    """A question, asked alone, and where its answer stands."""

    kind: str  # of the item, or the surface form of a yes-no question
    text: str  # passage, question and answer
    answer: tuple[int, int]  # characters
    pair: int  # which minimal pair it is of; −1: none


def passages(count: int, seed: int) -> list[Story]:
    """Scenes and stories, as the reading corpus has them."""
    rng = random.Random(seed)
    return [write_story(rng) if i % 5 < 2 else write_scene(rng, 3, 5) for i in range(count)]


def asked(story: Story, item: Item, form: str, kind: str, rng: random.Random, words: tuple[str, str] = YES_NO[0],
          pair: int = -1) -> Question:
    """A question by itself in a surface form."""
    document = written(story, [item], form, words, rng)
    return Question(kind, document.text, document.answers[0], pair)


def control_questions(count: int = PASSAGES, seed: int = SEED) -> list[Question]:
    """Who, what, where, feeling in forms drawn at random, and a minimal pair a passage in every form."""
    rng, found = random.Random(seed), []
    for story in passages(count, seed):
        found += [asked(story, item, rng.choice(tuple(FORMS)), item.kind, rng) for item in facts(story, rng)]
        pairs = [pair for event in story.events if (pair := minimal_pair(event, story, rng))]
        if pairs:
            pair = rng.choice(pairs)
            for number, form in enumerate(FORMS):
                name = len(found) * len(FORMS) + number
                found += [asked(story, item, form, form, rng, pair=name) for item in pair]
    return found


@torch.no_grad()
def answered(model: LanguageModel, tokenizer: Tokenizer, questions: list[Question], batch: int = 128) -> list[bool]:
    """Whether the model would write each answer, every token of it being its likeliest."""
    right: list[bool] = [False] * len(questions)
    encoded = tokenizer.library.encode_batch([q.text[: q.answer[1]] for q in questions], add_special_tokens=False)
    order = sorted(range(len(questions)), key=lambda i: len(encoded[i].ids))
    with evaluating(model):
        for names in (order[i : i + batch] for i in range(0, len(order), batch)):
            rows, _ = pad([[tokenizer.begin, *encoded[i].ids] for i in names])
            hidden = model.body(rows)  # (B, T, D)
            for row, i in enumerate(names):
                said = [place for place, (_, end) in enumerate(encoded[i].offsets) if end > questions[i].answer[0]]
                likeliest = model.logits(hidden[row, said]).argmax(dim=-1)  # place t of ids is place t + 1 of the row
                right[i] = likeliest.tolist() == [encoded[i].ids[place] for place in said]
    return right


def heading_honesty(model: LanguageModel, tokenizer: Tokenizer, count: int = SUMMARIES, seed: int = SEED) -> float:
    """Mean share of true statements in what the model writes behind a heading."""
    rng = random.Random(seed + 1)
    stories = [write_story(rng) for _ in range(count)]
    prompts = [story.text + HEADINGS[i % len(HEADINGS)] for i, story in enumerate(stories)]
    texts = continue_texts(model, tokenizer, prompts, SUMMARISED, torch.Generator().manual_seed(seed))
    return sum(score(story, text).honest for story, text in zip(stories, texts)) / count


def measure(model: LanguageModel, tokenizer: Tokenizer, demanded: bool = True, count: int = PASSAGES,
            seed: int = SEED) -> list[Control]:
    """All controls of a decoder; `demanded` says whether the thresholds count for it."""
    questions = control_questions(count, seed)
    right = answered(model, tokenizer, questions)

    def control(name: str, values: list[bool], threshold: float | None) -> Control:
        return Control(name, sum(values) / max(1, len(values)), threshold if demanded else None, len(values))

    found = [control(field, [r for q, r in zip(questions, right) if q.kind == field], 0.97) for field in FIELDS]
    forms = {form: [r for q, r in zip(questions, right) if q.kind == form] for form in FORMS}
    forms = dict(sorted(forms.items(), key=lambda form: -sum(form[1]) / max(1, len(form[1]))))
    found += [control(f"yes-no, {form}", values, 0.95 if place < FORMS_NEEDED else None)
              for place, (form, values) in enumerate(forms.items())]
    best = {form for form in list(forms)[:FORMS_NEEDED]}
    pairs: dict[int, bool] = {}
    for q, r in zip(questions, right):
        if q.pair >= 0 and q.kind in best:
            pairs[q.pair] = pairs.get(q.pair, True) and r
    found.append(control(f"pairs, in the best {FORMS_NEEDED} forms", list(pairs.values()), 0.9))
    honest = heading_honesty(model, tokenizer, min(SUMMARIES, count), seed)
    return [*found, Control("honest under a heading", honest, 0.6 if demanded else None, min(SUMMARIES, count))]
