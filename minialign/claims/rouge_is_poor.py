r"""ROUGE misses what people value: it counts words in common with a reference, and a reward model that read people's choices orders summaries better.

Stiennon et al. 2020, §4.4 and Fig. 7: ROUGE agrees with labellers in about 57 % of comparisons between samples of one model, hardly above chance, and
less the better the models get; the reward model agrees in 66 %.

The test: comparisons on stories that no reward model saw, both summaries written by models (a reference has ROUGE 1 with itself and would be no
test). ROUGE-1, -2 and -L of each summary with the story's reference, and the score of a reward model of the main job, each against the annotators'
choices, pair by pair. Which pairs: drawn from several policies, as they were collected; and the hard ones, both from the same policy.

    1. the reward model agrees with people more often than ROUGE-1, -2 and -L, over all pairs         2. and over the pairs of one policy
    3. ROUGE misses lies: between two summaries that cover equally much, of which one says something false, it prefers the true one in less than 75 %

1 and 2 need a difference, seed by seed, whose 95 % interval over seeds is above 0; in 3 the upper end counts, and the pairs are made from the
simulator: the same reference with one detail exchanged.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from minialign.claims.feedback import aligned, compared
from minialign.claims.runner import Bench, Claim, difference, drawn, over_seeds
from minialign.demo import Demo
from minialign.heads import ScalarModel
from minialign.plotting import bars_with_intervals, figure, legend, reference_line, save_png
from minialign.rlhf.comparisons import split_by_prompt
from minialign.rlhf.reward_model import answer_rows, score_rows
from minialign.rouge import rouge
from minialign.tokenizer import Tokenizer
from minialign.world.corpus import corrupted_summary
from minialign.world.gold import score
from minialign.world.stories import write_story
from minialign.world.tasks import reference_summary

CLAIM = Claim("rouge-is-poor", "ROUGE misses what people value; a reward model agrees with them more often.", "Stiennon et al. 2020, Fig. 7")
KINDS = ("rouge1", "rouge2", "rougeL")
MISSED = 0.75


def measure(bench: Bench) -> list[dict[str, Any]]:
    """Order the same pairs by overlap and by reward."""
    table: list[dict[str, Any]] = []
    for seed in range(bench.seeds):
        _, models, made = aligned(bench, "middle", seed)
        folder, _, config = compared(bench, "middle", seed)
        judged = Demo(folder, config, lambda text: None).written()[2]  # the demonstrations whose stories were compared
        _, held_out = split_by_prompt(made.comparisons)
        written = [c for c in held_out if "reference" not in (c["chosen_policy"], c["rejected_policy"])]
        for pairs, name in ((written, "all"), ([c for c in written if c["chosen_policy"] == c["rejected_policy"]], "one policy")):
            agreed = agreement(pairs, [judged[c["index"]]["completion"] for c in pairs], models["reward"], made.tokenizer)
            table += [{"pairs": name, "judge": judge_, "seed": seed, "agreement": value, "count": len(pairs)} for judge_, value in agreed.items()]
        truth = lies(20 if bench.fast else 400, seed)
        table += [{"pairs": "true against false", "judge": kind, "seed": seed, "agreement": value, "count": 0} for kind, value in truth.items()]
    return table


def overlap(answer: str, reference: str) -> dict[str, float]:
    """F-measure of each kind of ROUGE."""
    found = rouge(answer, reference)
    return {kind: found[kind].f for kind in KINDS}


def right(better: float, worse: float) -> float:
    """1 when the better one scores higher, ½ when they are equal."""
    return 0.5 if better == worse else float(better > worse)


def agreement(pairs: list[dict], references: list[str], reward: ScalarModel, tokenizer: Tokenizer) -> dict[str, float]:
    """Share of the pairs in which each judge prefers what the annotator chose."""
    prompts = [c["prompt"] for c in pairs]
    scores = {side: score_rows(reward, answer_rows(tokenizer, prompts, [c[side] for c in pairs])).tolist() for side in ("chosen", "rejected")}
    found = {"reward model": sum(map(right, scores["chosen"], scores["rejected"])) / len(pairs)}
    overlaps = [(overlap(c["chosen"], reference), overlap(c["rejected"], reference)) for c, reference in zip(pairs, references)]
    return found | {kind: sum(right(chosen[kind], rejected[kind]) for chosen, rejected in overlaps) / len(pairs) for kind in KINDS}


def lies(count: int, seed: int) -> dict[str, float]:
    """How often each kind of ROUGE prefers the true one of two summaries that cover equally much, of which one has a detail exchanged."""
    rng, points, made = random.Random(seed), dict.fromkeys(KINDS, 0.0), 0
    while made < count:
        story = write_story(rng)
        reference, true, false = reference_summary(story, rng), reference_summary(story, rng), corrupted_summary(story, rng, 1.0, 0.0, 0.0)
        golds = score(story, true), score(story, false)
        if golds[1].honest < golds[0].honest and abs(golds[0].helpful - golds[1].helpful) < 0.05:
            overlaps = overlap(true, reference), overlap(false, reference)
            points = {kind: points[kind] + right(overlaps[0][kind], overlaps[1][kind]) for kind in KINDS}
            made += 1
    return {kind: value / count for kind, value in points.items()}


def judge(table: list[dict[str, Any]]) -> tuple[dict[str, bool], str]:
    """The statements, and the numbers that decide."""
    of = lambda pairs, name: [row["agreement"] for row in table if (row["pairs"], row["judge"]) == (pairs, name)]  # noqa: E731
    ahead = {pairs: [difference(of(pairs, "reward model"), of(pairs, kind)) for kind in KINDS] for pairs in ("all", "one policy")}
    truth = {kind: over_seeds(of("true against false", kind), 0.0, 1.0) for kind in KINDS}
    checks = {
        "the reward model is ahead": all(gain.low > 0 for gain in ahead["all"]),
        "also between samples of one model": all(gain.low > 0 for gain in ahead["one policy"]),
        "ROUGE misses lies": all(found.high < MISSED for found in truth.values()),
    }
    said = "; ".join(f"{pairs}: " + ", ".join(f"{name} {over_seeds(of(pairs, name)).mean:.3f}" for name in ("reward model", *KINDS)) for pairs in ahead)
    return checks, f"agreement with annotators, {said}; of two that cover equally much ROUGE finds the true one in {', '.join(f'{found.mean:.2f}' for found in truth.values())}"  # noqa: E501


def draw(table: list[dict[str, Any]], path: Path) -> None:
    """Agreement with people's choices, a bar for each judge."""
    fig, axes = figure("agreement with annotators on pairs of unseen stories", "", 6.4, 3.2)
    of = lambda name: [row["agreement"] for row in table if (row["pairs"], row["judge"]) == ("all", name)]  # noqa: E731
    bars_with_intervals(axes, {name: drawn(over_seeds(of(name))) for name in ("reward model", *KINDS)})
    axes.set_xlim(0, 1)
    reference_line(axes, 0.5, "chance", vertical=True)
    legend(axes)
    save_png(fig, path)
