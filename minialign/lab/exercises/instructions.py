r"""Exercises of notebook 03: the score of an option, the rates of a mixture, what is held out, and a wording that a
model learns from."""

import torch
from torch import Tensor

from minialign import logprobs
from minialign.instruct import mixture, zero_shot
from minialign.lab.exercises import worded
from minialign.lab.exercises.exercise import Wrong, exercise, normal
from minialign.runs.errors import UserError
from minialign.world.templates import FIELD, Template, render

HEADING = "Templates for prompting"
FAR = "{question} Read the text and answer with one of {options}.\n{text}\nAnswer:"  # the wording that is to be beaten
ENOUGH = 0.8  # share of right answers
TASKS = {"nli": "inference", "entails": "inference", "mood": "sentiment", "pronoun": "coreference", "title": "topic"}


def _score(logits: Tensor, option: Tensor) -> Tensor:
    return logprobs.sequence_logprobs(logits[None], option[None])[0]


def _taken(logits: Tensor, option: Tensor) -> Tensor:
    return logits.gather(1, option[:, None]).squeeze(1)


def _rates(sizes: dict, templates: dict, cap: int) -> dict:
    worded = {task: [Template(task, str(i), "{text}") for i in range(count)] for task, count in templates.items()}
    found = mixture.rates(sizes, worded, cap)
    return {task: found[task, "0"] for task in sizes}


def _shares(sizes: dict, templates: dict, cap: int) -> dict:
    rates = _rates(sizes, templates, cap)
    return {task: rate / sum(rates.values()) for task, rate in rates.items()}


def _held_out(cluster_of: dict, held_out: list) -> tuple[list, list]:
    examples = {task: [{"cluster": cluster}] * 2 for task, cluster in cluster_of.items()}
    split = mixture.split_by_cluster(examples, held_out)
    return sorted(split.train), sorted(split.held_out)


def _split(cluster_of: dict, held) -> tuple[list, list]:
    return sorted(t for t in cluster_of if not held(t)), sorted(t for t in cluster_of if held(t))


def _one_of_each(cluster_of: dict, held_out: list) -> tuple[list, list]:
    firsts = [min(t for t in cluster_of if cluster_of[t] == cluster) for cluster in held_out]
    return _split(cluster_of, lambda t: t in firsts)


def _judge_template(wording: str) -> str:
    template, example = Template("gifts", "yours", wording), worded.gifts(1, 0)[0]
    fields = set(FIELD.findall(wording))
    try:
        prompt, _ = render(template, example)
    except UserError as error:
        raise Wrong("field", f"It cannot be filled in: {error}.") from None
    if "answer" in fields:
        raise Wrong("given_away", f'It gives the answer away: "{prompt}" already says {example["answer"]}. Nothing has '
                                  f'to be understood there.')
    if "text" not in fields:
        raise Wrong("no_text", f'Nobody can know that: "{prompt}" leaves the text out. Put {{text}} in.')
    if "question" not in fields:
        raise Wrong("not_asked", f'"{prompt}" does not say which of two questions is meant, so no model does better '
                                 f'than one half. Put {{question}} in.')
    if len(prompt.split()) > worded.LONGEST:
        raise Wrong("long", f"{len(prompt.split())} words are too many for a model of this size; use {worded.LONGEST} "
                            f"at most.")
    try:
        mine, theirs = worded.accuracy(wording), worded.accuracy(FAR)
    except UserError as error:
        raise Wrong("long", f"Too long for a model of this size: {error}.") from None
    numbers = f"{mine:.1%} of new questions answered; the wording to beat: {theirs:.1%}"
    if mine < ENOUGH:
        raise Wrong("little", f"{numbers}; {ENOUGH:.0%} are wanted. What does the model read last before it has to "
                              f"answer? Change that, and be short.")
    return f"The model taught in your words: {numbers}."


@exercise(
    "write", "Results (zero-shot)", logprobs.sequence_logprobs,
    stub="logits: (T, V), row t predicts token t; option: (T,) ids. Returns one number (a tensor).",
    cases=lambda: [(torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 0.0]]), torch.tensor([0, 2])),
                   (*normal(0, (4, 6)), torch.tensor([5, 0, 3, 3]))],
    reference=_score,
    mistakes={
        "mean": lambda g, o: _score(g, o) / len(o),
        "raw": lambda g, o: _taken(g, o).sum(),
        "probability": lambda g, o: _score(g, o).exp(),
        "sum_of_probabilities": lambda g, o: _taken(g.softmax(-1), o).sum(),
        "last_token": lambda g, o: _taken(g.log_softmax(-1), o)[-1],
        "wrong_axis": lambda g, o: _taken(g.log_softmax(0), o).sum(),
        "sign": lambda g, o: -_score(g, o),
    },
)
def option_score(logits, option):
    """The chain rule: the sum of the tokens' log-probabilities."""
    logprobs = logits.log_softmax(dim=-1)
    return logprobs.gather(1, option[:, None]).sum()


@exercise(
    "write", HEADING, mixture.rates,
    stub="sizes: {task: examples}; templates: {task: wordings}; cap: K. Returns {task: rate}.",
    cases=lambda: [({"small": 300, "large": 20_000}, {"small": 3, "large": 10}, 1000),
                   ({"a": 50, "b": 100}, {"a": 1, "b": 3}, 80)],
    reference=_rates,
    mistakes={
        "no_cap": lambda s, t, cap: {k: s[k] / t[k] for k in s},
        "not_shared": lambda s, t, cap: {k: min(s[k], cap) for k in s},
        "cap_after": lambda s, t, cap: {k: min(s[k] / t[k], cap) for k in s},
        "multiplied": lambda s, t, cap: {k: min(s[k], cap) * t[k] for k in s},
        "shares": _shares,
    },
)
def mixing_rates(sizes, templates, cap):
    """Capped first, then shared out among the wordings."""
    return {task: min(sizes[task], cap) / templates[task] for task in sizes}


@exercise(
    "mend", "T0 model", mixture.split_by_cluster,
    stub="cluster_of: {task: its cluster}; held_out: clusters. Returns (tasks to train on, tasks to be examined on), "
         "both sorted.",
    bug='''
        train, examined, seen = [], [], set()
        for task in sorted(cluster_of):
            if cluster_of[task] in held_out and cluster_of[task] not in seen:
                examined.append(task)
                seen.add(cluster_of[task])
            else:
                train.append(task)
        return train, examined
    ''',
    cases=lambda: [
        (TASKS, ["inference"]), (TASKS, ["topic", "sentiment"]),
        ({"ask": "question writing", "who": "question", "where": "question", "title": "topic"}, ["question"])],
    reference=_held_out,
    mistakes={
        "one_task": _one_of_each,
        "part_of_a_name": lambda c, h: _split(c, lambda t: any(name in c[t] for name in h)),
        "exchanged": lambda c, h: _held_out(c, h)[::-1],
        "nothing_taken_away": lambda c, h: (sorted(c), _held_out(c, h)[1]),
    },
)
def hold_out(cluster_of, held_out):
    """Whole clusters."""
    train = [task for task in cluster_of if cluster_of[task] not in held_out]
    return sorted(train), sorted(task for task in cluster_of if cluster_of[task] in held_out)


@exercise("beat", HEADING, zero_shot.ask, judge=_judge_template)
def template():
    """The question stands right before the answer, and nothing else is said."""
    return "{text}\nQuestion: {question}\nAnswer:"
