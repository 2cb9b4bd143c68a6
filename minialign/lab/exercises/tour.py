r"""Exercises of notebook 00: what an untrained model costs, a share of wins, and a summary that is better than a
person's."""

import math
import random
from functools import lru_cache

import torch

from minialign import evaluation, heads
from minialign.batching import next_token_batch
from minialign.lab.exercises.comparison import apart
from minialign.lab.exercises.exercise import Wrong, exercise
from minialign.pretrain.causal_lm import mean_loss
from minialign.transformer import TransformerConfig
from minialign.world import gold
from minialign.world.stories import Story, write_story
from minialign.world.tasks import reference_summary


@lru_cache(maxsize=1)
def _story() -> tuple[Story, str]:
    """The story that is summarised, and a person's summary."""
    rng = random.Random(0)
    story = write_story(rng)
    return story, reference_summary(story, rng)


def _judge_summary(text: str) -> str:
    story, reference = _story()
    found, baseline = gold.score(story, text), gold.score(story, reference)
    mine, theirs = apart(found.gold, baseline.gold, least=2)
    numbers = (f"gold {mine} (helpful {found.helpful:.2f}, honest {found.honest:.2f}, harmless {found.harmless:.0f}); "
               f"the person's has {theirs}")
    for key, says in {"false": "is not true", "unclear": "is not understood: use the story's own sentences"}.items():
        bad = [judged.text for judged in found.statements if judged.verdict == key]
        if bad and found.gold <= baseline.gold:
            raise Wrong(key, f'"{bad[0]}" {says} ({numbers}).')
    if found.rude_spans and found.gold <= baseline.gold:
        start, end = found.rude_spans[0]
        raise Wrong("rude", f'"{text[start:end]}" is rude, and a rude summary is not harmless ({numbers}).')
    if len(text.split()) > gold.BRIEF and found.gold <= baseline.gold:
        raise Wrong("long", f"{len(text.split())} words are many: beyond {gold.BRIEF} each costs ({numbers}).")
    if found.gold <= baseline.gold:
        raise Wrong("little", f"True and polite, but it leaves out what matters ({numbers}). Tell how it ends.")
    return f"The {numbers}."


def _untrained() -> float:
    model = heads.LanguageModel(TransformerConfig(vocabulary=1000, context=64, width=32, layers=2, heads=2), seed=0)
    rows = torch.randint(20, 1000, (4, 50), generator=torch.Generator().manual_seed(0)).tolist()
    return mean_loss(model, [next_token_batch(rows)])


@exercise(
    "predict", "Instruction tuning (next-token predictors)", mean_loss,
    stub="nats a token", reference=_untrained, tolerance=0.02, why_tolerance="2 %: random weights have slight opinions",
    unit="nats",
    mistakes={"bits": math.log2(1000), "perplexity": 1000.0, "sign": -math.log(1000), "nothing": 0.0},
)
def untrained_loss():
    """All of the 1000 tokens are about equally likely."""
    return math.log(1000)


@exercise(
    "write", "Results of alignment", evaluation.win_rate,
    stub="outcomes: for each prompt a list of judgements, 1 a win, 0.5 a tie, 0 a loss. Returns a float.",
    cases=lambda: [([[1.0, 1.0, 1.0, 1.0], [0.0]],), ([[0.5, 1.0], [0.0, 1.0, 0.0], [1.0, 0.5, 0.0]],)],
    reference=lambda outcomes: evaluation.win_rate(outcomes).mean,
    mistakes={
        "pooled": lambda outcomes: sum(map(sum, outcomes)) / sum(map(len, outcomes)),
        "ties_lose": lambda outcomes: sum(sum(o == 1 for o in p) / len(p) for p in outcomes) / len(outcomes),
        "sum": lambda outcomes: sum(sum(p) / len(p) for p in outcomes),
        "majority": lambda outcomes: sum(sum(p) / len(p) > 0.5 for p in outcomes) / len(outcomes),
    },
)
def win_share(outcomes):
    """Each prompt counts once."""
    shares = [sum(judges) / len(judges) for judges in outcomes]
    return sum(shares) / len(shares)


@exercise("beat", "Model alignment", gold.score, judge=_judge_summary)
def summary():
    """What happened, and how it ended."""
    return ("Anna baked some cake. Anna won the first prize for the cake. Lily was sad. Anna and Lily ate the cake "
            "together.")
