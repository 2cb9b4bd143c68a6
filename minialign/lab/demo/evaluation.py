r"""The main job's judges: annotators who label, and at its end the gold score and people who labelled nothing.

    gold score     of the three models and of the reference summaries, mean and interval over stories
    win rate       each model's summary against the reference of the same story; held-out annotators, order by chance
    reward model   accuracy and calibration on held-out prompts, beside judges that look at length or position alone
    best of n      what the reward model finds among n summaries of the instruction-tuned model: PPO's rival

Read next: pipeline.py.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from minialign.evaluation import Interval, mean_interval, wilson_interval
from minialign.generation import SamplingConfig, continue_texts, prompt_ids
from minialign.heads import LanguageModel, ScalarModel
from minialign.rlhf.best_of_n import best_of, best_of_n_kl, sample_and_score
from minialign.rlhf.comparisons import as_comparison, split_by_prompt
from minialign.rlhf.equal_length import win_rates
from minialign.rlhf.kl import sampled_kl
from minialign.rlhf.ppo import Rollout
from minialign.rlhf.ranked import Comparisons, ranked_rows
from minialign.rlhf.reward_checks import blind_baselines, calibration
from minialign.rlhf.reward_model import all_pair_scores, completion_rows, pair_accuracy, score_rows
from minialign.runs.files import write_json, write_jsonl
from minialign.tokenizer import Tokenizer
from minialign.world.annotators import HELD_OUT_PANEL, TRAINING_PANEL, Annotator
from minialign.world.gold import Gold, score
from minialign.world.stories import Story
from minialign.world.tasks import exchange_detail

ASPECTS = ("helpful", "honest", "harmless", "gold")
RIVALS = (4, 16)  # n of the best of n that PPO is compared with


@dataclass(frozen=True)
class EvaluationConfig:
    """How the models of a run are evaluated."""

    unit: float  # log-odds that one point of the reward model stands for, by which its scores were divided
    sampling: SamplingConfig  # how every model answers
    seed: int  # of the completions and of the judges
    rivals: int = 150  # test stories on which PPO is compared with best of n: sixteen completions to each; 0: none


def evaluate(folder: Path, tokenizer: Tokenizer, models: dict[str, LanguageModel], reward: ScalarModel,
             comparisons: list[dict], tests: list[dict], config: EvaluationConfig) -> dict[str, Any]:
    """Let every model summarise the test stories, judge the summaries, and write both to `folder`/evaluation.

    Args:
        models: "pretrained", "sft" and "rlhf".
        comparisons: all that the reward model's training and validation drew from.
        tests: demonstrations of stories that nothing trained on: {"prompt", "completion" (the reference), "story"}.
    Returns:
        the numbers of summary.json.
    """
    sampling, seed = config.sampling, config.seed
    stories, prompts = [Story.from_dict(test["story"]) for test in tests], [test["prompt"] for test in tests]
    completions = {name: continue_texts(model, tokenizer, prompts, sampling, torch.Generator().manual_seed(seed))
               for name, model in models.items()}
    completions["reference"] = [test["completion"] for test in tests]
    golds = {name: [score(story, text) for story, text in zip(stories, texts)] for name, texts in completions.items()}
    stages = {name: gold_scores(golds[name]) for name in completions}
    for name, texts in completions.items():
        stages[name]["length"] = mean_interval([float(len(text.split())) for text in texts]).to_dict()
    judges = {name: seed * 10 + number for number, name in enumerate(models)}  # same judges and answers, same choices
    for name in models:
        stages[name] |= duel(stories, completions[name], completions["reference"], random.Random(judges[name]))
    asked = prompt_ids(tokenizer, prompts[: max(400, config.rivals)])
    log_ratios = sampled_kl(models["rlhf"], models["sft"], asked, sampling, torch.Generator().manual_seed(seed + 1))
    kl = mean_interval(log_ratios.tolist())
    proxy = score_rows(reward, completion_rows(tokenizer, prompts, completions["rlhf"], reward.config.context)).tolist()
    plots = ({"story": i, "text": story.text, "plot": story.plot} for i, story in enumerate(stories))
    write_jsonl(folder / "evaluation" / "stories.jsonl", plots)
    samples = [sample(i, name, prompts[i], text, golds[name][i])
               | ({"proxy": round(proxy[i], 4)} if name == "rlhf" else {})
               for name, texts in completions.items() for i, text in enumerate(texts)]
    write_jsonl(folder / "evaluation" / "samples.jsonl", samples)
    judge = check_reward_model(reward, config.unit, tokenizer, comparisons)
    judge["minimal_pairs"] = minimal_pairs(reward, tokenizer, tests, seed).to_dict()
    result = {"stages": stages, "reward_model": judge, "kl": kl.mean, "kl_interval": kl.to_dict()}
    if config.rivals:
        moved = mean_interval(log_ratios[: config.rivals].tolist()).mean
        own = rival_row("RLHF", moved, stories[: config.rivals], completions["rlhf"], completions["reference"], proxy,
                        judges["rlhf"])
        others = best_of_rivals(models["sft"], reward, tokenizer, tests[: config.rivals], sampling, seed,
                                judges["rlhf"])
        result["best_of_n"] = [own, *others]
    write_json(folder / "evaluation" / "result.json", result)
    return result


def gold_scores(golds: list[Gold]) -> dict[str, dict[str, float]]:
    """Mean and interval over stories of each aspect."""
    return {aspect: mean_interval([getattr(gold, aspect) for gold in golds], 0.0, 1.0).to_dict() for aspect in ASPECTS}


def duel(stories: list[Story], completions: list[str], rivals: list[str], rng: random.Random,
         panel: Sequence[Annotator] = HELD_OUT_PANEL) -> dict[str, Any]:
    """Win rate of completions against rivals before a panel, also at equal length, each with its interval over
    stories."""
    preferences = [[preference(person, *texts, rng) for person in panel] for texts in zip(stories, completions, rivals)]
    found = win_rates(preferences, completions, rivals)
    return {"win_rate": found.won.to_dict(), "win_rate_at_equal_length": found.at_equal_length.to_dict()}


def preference(person: Annotator, story: Story, completion: str, rival: str, rng: random.Random) -> float:
    """1 if the person prefers the completion, 0 the rival, ½ for a tie; which one stands first is drawn."""
    swapped = rng.random() < 0.5
    winner = person.compare(story, *((rival, completion) if swapped else (completion, rival)), rng).winner
    return 0.5 if winner == "tie" else float((winner == "first") != swapped)


def best_of_rivals(sft: LanguageModel, reward: ScalarModel, tokenizer: Tokenizer, tests: list[dict],
                   sampling: SamplingConfig, seed: int, judges: int) -> list[dict]:
    """What best of n makes of the instruction-tuned model with the same reward model; its KL in the closed form. `seed`
    is of the completions, `judges` of those who compare them with the references."""
    stories, references = [Story.from_dict(t["story"]) for t in tests], [t["completion"] for t in tests]
    completions, scores = sample_and_score(sft, reward, tokenizer, [test["prompt"] for test in tests], RIVALS[-1],
                                           sampling, torch.Generator().manual_seed(seed + 2))
    rows = []
    for n in RIVALS:
        texts, best = best_of(completions, scores, n)
        rows.append(rival_row(f"best of {n}", best_of_n_kl(n), stories, texts, references, best.tolist(), judges))
    return rows


def rival_row(name: str, kl: float, stories: list[Story], completions: list[str], references: list[str],
              proxy: list[float], judges: int) -> dict[str, Any]:
    """KL, score, gold and win rates of completions to some stories: one row of the comparison of PPO with best of n. On
    all test stories, and with the same seed of `judges`, the row of RLHF says what its stage does."""
    count = len(stories)
    completions, references = completions[:count], references[:count]
    gold = mean_interval([score(story, text).gold for story, text in zip(stories, completions)], 0.0, 1.0).to_dict()
    row = {"name": name, "kl": kl, "stories": count, "score": mean_interval(proxy[:count]).to_dict(), "gold": gold}
    return row | duel(stories, completions, references, random.Random(judges))


def check_reward_model(reward: ScalarModel, unit: float, tokenizer: Tokenizer,
                       comparisons: list[dict]) -> dict[str, Any]:
    """Accuracy and calibration on prompts that no reward model trained on, and accuracy of judges who do not read."""
    learned, held_out = split_by_prompt(comparisons)
    ranked, _ = ranked_rows(tokenizer, held_out, reward.config.context)
    chosen, rejected = all_pair_scores(reward, Comparisons(ranked, 1, 0))
    accuracy = pair_accuracy(chosen, rejected)
    # a prompt counts once: its pairs are not independent
    interval = wilson_interval(accuracy * len(ranked), len(ranked))
    blind = blind_accuracies(learned, held_out)
    return {"accuracy": accuracy, "low": interval.low, "high": interval.high,
            "length_only": blind["longer"], "position_only": blind["first"],
            "comparisons": len(learned), "held_out": len(held_out),
            "calibration": [asdict(bin) for bin in calibration((unit * (chosen - rejected)).tolist())]}


def minimal_pairs(reward: ScalarModel, tokenizer: Tokenizer, tests: list[dict], seed: int) -> Interval:
    """How often the reward model prefers a reference to the same with one detail exchanged: can it read at all?"""
    rng, prompts, pairs = random.Random(seed), [], []
    for test in tests:
        false = exchange_detail(Story.from_dict(test["story"]), test["completion"], rng)
        if false is not None:
            prompts += [test["prompt"]] * 2
            pairs += [test["completion"], false]
    rows = completion_rows(tokenizer, prompts, pairs, reward.config.context)
    true, false = score_rows(reward, rows).view(-1, 2).unbind(dim=1)
    return wilson_interval(pair_accuracy(true, false) * len(true), len(true))


def blind_accuracies(learned: list[dict], held_out: list[dict]) -> dict[str, float]:
    """Accuracy of judges that see only which one is "longer" or stood "first"; whether that is better they learn from
    the training part."""
    before, now = blind_baselines(learned), blind_baselines(held_out)
    return {name: found.mean if before[name].mean >= 0.5 else 1 - found.mean for name, found in now.items()}


def sample(index: int, stage: str, prompt: str, text: str, gold: Gold) -> dict[str, Any]:
    """One summary with its judgement, as the report and a person read it."""
    statements = [{"start": s.span[0], "end": s.span[1], "verdict": s.verdict} for s in gold.statements]
    scores = {aspect: round(getattr(gold, aspect), 4) for aspect in ASPECTS}
    return {"story": index, "stage": stage, "prompt": prompt, "text": text, **scores, "statements": statements,
            "rude": [list(s) for s in gold.rude_spans]}


def judge_pairs(pairs: list[dict], judged: list[dict], seed: int) -> list[dict]:
    """One annotator of the training panel, drawn at random, chooses for each pair; ties are left out.

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
            labels = {"annotator": person.name, "confidence": choice.confidence, "index": pair["index"]}
            comparisons.append(as_comparison(pair, choice.winner, **labels))
    return comparisons


def gold_score_watcher(tokenizer: Tokenizer, practice: list[dict]) -> Callable[..., dict[str, float]]:
    """For the log alone: the gold score of each rollout's summaries, which PPO itself never sees."""

    def watch(rollout: Rollout, names: list[int], policy: LanguageModel) -> dict[str, float]:
        texts = [tokenizer.decode(row[keep]) for row, keep in zip(rollout.completion, rollout.mask)]
        golds = [score(Story.from_dict(practice[i]["story"]), text) for i, text in zip(names, texts)]
        return {aspect: sum(getattr(gold, aspect) for gold in golds) / len(golds) for aspect in ASPECTS}

    return watch
