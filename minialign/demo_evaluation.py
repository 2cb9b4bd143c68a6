r"""The main job's judges: annotators who label, and, at its end, what the gold score and people who labelled nothing say of each summary.

    gold score     of pretrained, instruction-tuned and RLHF models and of the reference summaries, mean and interval over stories
    win rate       each model's summary against the reference of the same story; five held-out annotators, order by chance, ties one half
    reward model   accuracy on held-out prompts, beside judges that only look at the length or at the position
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from minialign.evaluation import Interval, length_controlled_win_rate, mean_interval, wilson_interval, win_rate
from minialign.files import write_json, write_jsonl
from minialign.generation import SamplingConfig, continue_texts, prompt_ids
from minialign.heads import LanguageModel, ScalarModel
from minialign.rlhf.comparisons import as_comparison, split_by_prompt
from minialign.rlhf.ranked import Comparisons, ranked_rows
from minialign.rlhf.reward_model import evaluate_pairs
from minialign.rlhf.rollout import Rollout, sampled_kl
from minialign.tokenizer import Tokenizer
from minialign.world.annotators import HELD_OUT_PANEL, TRAINING_PANEL
from minialign.world.gold import Gold, score
from minialign.world.stories import Story

ASPECTS = ("helpful", "honest", "harmless", "gold")


def evaluate(
    folder: Path,
    tokenizer: Tokenizer,
    models: dict[str, LanguageModel],
    reward: ScalarModel,
    comparisons: list[dict],
    tests: list[dict],
    sampling: SamplingConfig,
    seed: int,
) -> dict[str, Any]:
    """Let every model summarise the test stories, judge the summaries, write them down, and return the numbers of summary.json.

    Args:
        folder: of the run; samples and stories go to its `evaluation/`.
        tokenizer: of the models.
        models: "pretrained", "sft" and "rlhf".
        reward: the reward model; comparisons: all that its training and validation drew from.
        tests: demonstrations of stories that nothing trained on: {"prompt", "completion" (the reference), "story"}.
        sampling: how every model answers; seed: of the answers and the judges.
    """
    stories = [Story.from_dict(test["story"]) for test in tests]
    prompts = [test["prompt"] for test in tests]
    answers = {name: continue_texts(model, tokenizer, prompts, sampling, torch.Generator().manual_seed(seed)) for name, model in models.items()}
    answers["reference"] = [test["completion"] for test in tests]
    golds = {name: [score(story, text) for story, text in zip(stories, texts)] for name, texts in answers.items()}
    stages = {name: gold_scores(golds[name]) | {"length": words(texts)} for name, texts in answers.items()}
    for number, name in enumerate(models):
        stages[name] |= duel(stories, answers[name], answers["reference"], random.Random(seed * 10 + number))
    log_ratios = sampled_kl(models["rlhf"], models["sft"], prompt_ids(tokenizer, prompts[:400]), sampling, torch.Generator().manual_seed(seed + 1))
    kl = mean_interval(log_ratios.tolist())
    write_jsonl(folder / "evaluation" / "stories.jsonl", ({"story": i, "text": s.text, "plot": s.plot} for i, s in enumerate(stories)))
    samples = (sample(i, name, prompts[i], text, golds[name][i]) for name, texts in answers.items() for i, text in enumerate(texts))
    write_jsonl(folder / "evaluation" / "samples.jsonl", samples)
    result = {"stages": stages, "reward_model": judge_the_judge(reward, tokenizer, comparisons), "kl": kl.mean, "kl_interval": kl.to_dict()}
    write_json(folder / "evaluation" / "result.json", result)
    return result


def gold_scores(golds: list[Gold]) -> dict[str, dict[str, float]]:
    """Mean and interval over stories of each aspect."""
    return {aspect: mean_interval([getattr(gold, aspect) for gold in golds], 0.0, 1.0).to_dict() for aspect in ASPECTS}


def words(texts: list[str]) -> dict[str, float]:
    """Mean number of words and its interval."""
    return mean_interval([float(len(text.split())) for text in texts]).to_dict()


def duel(stories: list[Story], answers: list[str], rivals: list[str], rng: random.Random) -> dict[str, Any]:
    """Win rate of answers against rivals before the held-out panel, and what is left of it at equal length."""
    outcomes, ratios = [], []
    for story, answer, rival in zip(stories, answers, rivals):
        outcomes.append([judged(person, story, answer, rival, rng) for person in HELD_OUT_PANEL])
        ratios.append(max(1, len(answer.split())) / max(1, len(rival.split())))
    means = [sum(judges) / len(judges) for judges in outcomes]
    return {"win_rate": win_rate(outcomes).to_dict(), "win_rate_at_equal_length": length_controlled_win_rate(means, ratios)}


def judged(person, story: Story, answer: str, rival: str, rng: random.Random) -> float:
    """1 if the person prefers the answer, 0 the rival, ½ for a tie; which one stands first is drawn."""
    swapped = rng.random() < 0.5
    winner = person.compare(story, *((rival, answer) if swapped else (answer, rival)), rng).winner
    return 0.5 if winner == "tie" else float((winner == "first") != swapped)


def judge_the_judge(reward: ScalarModel, tokenizer: Tokenizer, comparisons: list[dict]) -> dict[str, float]:
    """Accuracy on comparisons whose prompts no reward model trained on, and that of two judges who do not read."""
    learned, held_out = split_by_prompt(comparisons)
    ranked, _ = ranked_rows(tokenizer, held_out, reward.config.context)
    accuracy = evaluate_pairs(reward, Comparisons(ranked, 1, 0))["accuracy"]
    interval: Interval = wilson_interval(accuracy * len(ranked), len(ranked))  # a prompt counts once: its pairs are not independent
    return {
        "accuracy": accuracy,
        "low": interval.low,
        "high": interval.high,
        "length_only": blind_accuracy(learned, held_out, lambda c: len(c["chosen"].split()) - len(c["rejected"].split())),
        "position_only": blind_accuracy(learned, held_out, lambda c: 1 if c["shown_first"] == "chosen" else -1),
        "comparisons": len(learned),
        "held_out": len(held_out),
    }


def blind_accuracy(learned: list[dict], held_out: list[dict], feature) -> float:
    """Accuracy of a judge that only looks at the sign of one number; which sign is better is taken from the training part."""
    right = lambda part: sum(1.0 if feature(c) > 0 else 0.5 if feature(c) == 0 else 0.0 for c in part) / len(part)  # noqa: E731
    return right(held_out) if right(learned) >= 0.5 else 1 - right(held_out)


def sample(index: int, stage: str, prompt: str, text: str, gold: Gold) -> dict[str, Any]:
    """One summary with its judgement, as the report and a person read it."""
    statements = [{"start": s.span[0], "end": s.span[1], "verdict": s.verdict} for s in gold.statements]
    scores = {aspect: round(getattr(gold, aspect), 4) for aspect in ASPECTS}
    return {"story": index, "stage": stage, "prompt": prompt, "text": text, **scores, "statements": statements, "rude": [list(s) for s in gold.rude_spans]}


def judge_pairs(pairs: list[dict], judged: list[dict], seed: int) -> list[dict]:
    """One annotator of the training panel, drawn at random, chooses for each pair; ties say nothing about an order and are left out.

    Args:
        pairs: from `sample_pairs`; judged: the demonstrations that their `index` counts, which know their story.
        seed: of the draws and of the annotators' noise.
    """
    rng = random.Random(seed)
    comparisons = []
    for pair in pairs:
        person = rng.choice(TRAINING_PANEL)
        choice = person.compare(Story.from_dict(judged[pair["index"]]["story"]), pair["first"], pair["second"], rng)
        if choice.winner != "tie":
            comparisons.append(as_comparison(pair, choice.winner, annotator=person.name, confidence=choice.confidence, index=pair["index"]))
    return comparisons


def gold_watch(tokenizer: Tokenizer, practice: list[dict]) -> Callable[[Rollout, list[int]], dict[str, float]]:
    """For the log alone: the gold score of each rollout's summaries, which PPO itself never sees."""

    def watch(rollout: Rollout, names: list[int]) -> dict[str, float]:
        texts = [tokenizer.decode(row[keep]) for row, keep in zip(rollout.response, rollout.mask)]
        golds = [score(Story.from_dict(practice[i]["story"]), text) for i, text in zip(names, texts)]
        return {aspect: sum(getattr(gold, aspect) for gold in golds) / len(golds) for aspect in ASPECTS}

    return watch
