r"""Controls: can a base read? Questions about passages of a seed that nothing trained on, each asked alone.

    who, what, where, feeling    the whole answer is what the model would write
    yes-no                       in each surface form of the reading corpus, by itself
    pairs                        a question as it was and with one detail exchanged: both right
    summary                      the share of true statements in summaries behind a heading, sampled at 0.7

No control looks at a claim: what a claim compares is not measured here. Try it: `python -m minialign bases --check`.

Read next: make.py.
"""

import random
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch

from minialign.batching import pad
from minialign.generation import SamplingConfig, continue_texts, generate
from minialign.heads import LanguageModel, evaluating
from minialign.pretrain.masked_lm import MASK
from minialign.pretrain.span_corruption import GAPS
from minialign.runs.devices import device_of
from minialign.tokenizer import BEGIN, END, Tokenizer
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
def answered(model: LanguageModel, tokenizer: Tokenizer, questions: list[Question], directly: bool = False,
             batch: int = 128) -> list[bool]:
    """Whether the model would write each answer, every token of it being its likeliest; directly: see `measure`."""
    right: list[bool] = [False] * len(questions)
    encoded = tokenizer.library.encode_batch([q.text[: q.answer[1]] for q in questions], add_special_tokens=False)
    order = sorted(range(len(questions)), key=lambda i: len(encoded[i].ids))
    with evaluating(model):
        for names in (order[i : i + batch] for i in range(0, len(order), batch)):
            answers = [[id for id, (_, end) in zip(encoded[i].ids, encoded[i].offsets) if end > questions[i].answer[0]]
                       for i in names]
            asked = [encoded[i].ids[: -len(answer)] for i, answer in zip(names, answers)]
            likeliest = (said_after_it if directly else SAID[model.config.kind])(model, asked, answers)
            for i, answer, said in zip(names, answers, likeliest):
                right[i] = said == answer
    return right


def said_by_decoder(model: LanguageModel, asked: list[list[int]], answers: list[list[int]]) -> list[list[int]]:
    """The likeliest token at each place of each answer, given the question and the answer's tokens before it."""
    rows, _ = pad([[BEGIN, *question, *answer[:-1]] for question, answer in zip(asked, answers)],
                  device=device_of(model))
    hidden = model.body(rows)  # (B, T, D)
    return [model.logits(hidden[row, len(question) : len(question) + len(answer)]).argmax(dim=-1).tolist()
            for row, (question, answer) in enumerate(zip(asked, answers))]


def said_in_a_gap(model: LanguageModel, asked: list[list[int]], answers: list[list[int]]) -> list[list[int]]:
    """The same of an encoder-decoder that reads the question with a gap behind it."""
    inputs, input_mask = pad([[BEGIN, *question, GAPS[0]] for question in asked], device=device_of(model))
    rows, _ = pad([[BEGIN, GAPS[0], *answer[:-1]] for answer in answers], device=device_of(model))
    hidden = model.body(rows, inputs, input_mask)  # (B, T, D)
    return [model.logits(hidden[row, 1 : 1 + len(answer)]).argmax(dim=-1).tolist()
            for row, answer in enumerate(answers)]


def said_after_it(model: LanguageModel, asked: list[list[int]], answers: list[list[int]]) -> list[list[int]]:
    """The same of an encoder-decoder that goes on from the question."""
    inputs, input_mask = pad([[BEGIN, *question, END] for question in asked], device=device_of(model))
    rows, _ = pad([[BEGIN, *answer[:-1]] for answer in answers], device=device_of(model))
    hidden = model.body(rows, inputs, input_mask)  # (B, T, D)
    return [model.logits(hidden[row, : len(answer)]).argmax(dim=-1).tolist() for row, answer in enumerate(answers)]


def said_under_masks(model: LanguageModel, asked: list[list[int]], answers: list[list[int]]) -> list[list[int]]:
    """The same of an encoder: a mask stands for the token that it is asked for and for each of those behind it."""
    said: list[list[int]] = [[] for _ in answers]
    for place in range(max(map(len, answers))):
        names = [row for row, answer in enumerate(answers) if len(answer) > place]
        rows, mask = pad([[BEGIN, *asked[row], *answers[row][:place], *[MASK] * (len(answers[row]) - place)]
                          for row in names], device=device_of(model))
        hidden = model.body(rows, mask)  # (B, T, D)
        for row, vectors in zip(names, hidden):
            said[row].append(int(model.logits(vectors[1 + len(asked[row]) + place]).argmax()))
    return said


SAID = {"decoder": said_by_decoder, "encoder-decoder": said_in_a_gap, "encoder": said_under_masks}


def heading_honesty(model: LanguageModel, tokenizer: Tokenizer, count: int = SUMMARIES, seed: int = SEED) -> float:
    """Mean share of true statements in what the model writes behind a heading."""
    rng = random.Random(seed + 1)
    stories = [write_story(rng) for _ in range(count)]
    prompts = [story.text + HEADINGS[i % len(HEADINGS)] for i, story in enumerate(stories)]
    generator = torch.Generator().manual_seed(seed)
    if model.config.kind == "decoder":
        texts = continue_texts(model, tokenizer, prompts, SUMMARISED, generator)
    else:
        rows = [[BEGIN, *ids, GAPS[0]] for ids in tokenizer.encode_many(prompts)]
        texts = [text for start in range(0, count, 64)
                 for text in generate(model, rows[start : start + 64], SUMMARISED, generator).texts(tokenizer)]
    return sum(score(story, text).honest for story, text in zip(stories, texts)) / count


def measure(model: LanguageModel, tokenizer: Tokenizer, demanded: bool = True, count: int = PASSAGES,
            seed: int = SEED, directly: bool = False) -> list[Control]:
    """All controls of a base; `demanded` says whether the thresholds count for it; `directly` has an encoder-decoder go
    on from each question, where otherwise a gap stands behind it, and write no summary."""
    questions = control_questions(count, seed)
    right = answered(model, tokenizer, questions, directly)

    def control(name: str, values: list[bool], threshold: float | None) -> Control:
        return Control(name, sum(values) / max(1, len(values)), threshold if demanded else None, len(values))

    found = [control(field, [r for q, r in zip(questions, right) if q.kind == field], 0.97) for field in FIELDS]
    forms = {form: [r for q, r in zip(questions, right) if q.kind == form] for form in FORMS}
    forms = dict(sorted(forms.items(), key=lambda form: -sum(form[1]) / max(1, len(form[1]))))
    found += [control(f"yes-no, {form}", values, 0.95 if place < FORMS_NEEDED else None)
              for place, (form, values) in enumerate(forms.items())]
    best = set(list(forms)[:FORMS_NEEDED])
    pairs: dict[int, bool] = {}
    for q, r in zip(questions, right):
        if q.pair >= 0 and q.kind in best:
            pairs[q.pair] = pairs.get(q.pair, True) and r
    found.append(control(f"pairs, in the best {FORMS_NEEDED} forms", list(pairs.values()), 0.9))
    if model.config.kind == "encoder" or directly:
        return found
    honest = heading_honesty(model, tokenizer, min(SUMMARIES, count), seed)
    return [*found, Control("honest under a heading", honest, 0.6 if demanded else None, min(SUMMARIES, count))]


def answered_rightly(controls: list[Control]) -> float:
    """Share of all questions whose answer is right, each question counted once."""
    asked = [control for control in controls if control.name in FIELDS or control.name.startswith("yes-no")]
    return sum(control.value * control.count for control in asked) / sum(control.count for control in asked)
