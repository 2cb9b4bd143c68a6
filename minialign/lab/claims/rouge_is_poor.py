r"""ROUGE misses what people value: it counts words in common with a reference, and a reward model that read people's
choices orders summaries better.

Stiennon et al. 2020, §4.4: ROUGE agrees with labellers in about 57 % of comparisons between samples of supervised
models and in about 50 % between samples of models tuned on feedback, where reward models still agree in 62 %.

The test: comparisons on stories that no reward model saw, both summaries written by models. ROUGE-1, -2 and -L of each
summary with the story's reference, and the score of a reward model of the main job, each against the annotators'
choices: on pairs from several policies, as they were collected, and on the hard ones, both from the same policy.

    1. the reward model agrees with people more often than ROUGE-1, -2 and -L, over all pairs
    2. and over the pairs of one policy
    3. ROUGE misses lies: of a true summary, in other words than the reference, and the same one with one detail
       exchanged it prefers the true one in less than 75 %, whichever kind of ROUGE

1 and 2 need a difference, seed by seed, whose 95 % interval over seeds is above 0; in 3 the upper end counts. What the
reward model says of lies stands in the table and decides nothing.
"""

import random

from minialign.heads import ScalarModel
from minialign.lab.claims import Bench, Claim, Rows, Table, Verdict, column, difference, over_seeds, point
from minialign.lab.claims.feedback import aligned, share_ordered, taken_for_granted
from minialign.lab.plotting import Figure, bars_with_intervals, figure, finish, reference_line
from minialign.rlhf.comparisons import split_by_prompt
from minialign.rlhf.rouge import rouge
from minialign.tokenizer import Tokenizer
from minialign.world.parse import parse
from minialign.world.stories import Story
from minialign.world.tasks import falsify, reference_summary

CLAIM = Claim("rouge-is-poor", "ROUGE misses what people value; a reward model agrees with them more often.",
              "Stiennon et al. 2020, §4.4")
KINDS = ("rouge1", "rouge2", "rougeL")
JUDGES = ("reward model", *KINDS)
LIES = "one detail exchanged"
MISSED = 0.75


def measure(bench: Bench) -> Rows:
    """Order the same pairs by overlap and by reward."""
    for seed in range(bench.seeds):
        yield from taken_for_granted(bench, seed)
        _, models, made = aligned(bench, "middle", seed)
        held_out = [pair | {"reference": made.judged[pair["index"]]["completion"]}
                    for pair in split_by_prompt(made.comparisons)[1]]
        written = [c for c in held_out if "reference" not in (c["chosen_policy"], c["rejected_policy"])]
        same = [c for c in written if c["chosen_policy"] == c["rejected_policy"]]
        kinds = {"all": written, "one policy": same, LIES: lies(made.tests[: 20 if bench.fast else 400], seed)}
        for name, pairs in kinds.items():
            for judge_, agreed in agreement(pairs, models["reward"], made.tokenizer).items():
                yield {"pairs": name, "judge": judge_, "seed": seed, "agreement": agreed, "count": len(pairs)}


def overlap(answer: str, reference: str) -> dict[str, float]:
    """F-measure of each kind of ROUGE."""
    found = rouge(answer, reference)
    return {kind: found[kind].f for kind in KINDS}


def right(better: float, worse: float) -> float:
    """1 when the better one scores higher, ½ when they are equal."""
    return 0.5 if better == worse else float(better > worse)


def agreement(pairs: list[dict], reward: ScalarModel, tokenizer: Tokenizer) -> dict[str, float]:
    """Share of the pairs in which each judge prefers what the annotator chose; each pair has its "reference"."""
    overlaps = [[overlap(pair[side], pair["reference"]) for side in ("chosen", "rejected")] for pair in pairs]
    agreed = {kind: sum(right(chosen[kind], rejected[kind]) for chosen, rejected in overlaps) for kind in KINDS}
    return {"reward model": share_ordered(reward, tokenizer, pairs)} | {
        kind: count / len(pairs) for kind, count in agreed.items()}


def lies(tests: list[dict], seed: int) -> list[dict]:
    """For each story that allows it a true summary ("chosen") and the same one with one detail exchanged ("rejected"),
    as comparisons.

    Args:
        tests: demonstrations of summaries; what each says is kept as the "reference".
    """
    rng, pairs = random.Random(seed), []
    for test in tests:
        story = Story.from_dict(test["story"])
        true = reference_summary(story, rng)
        false = with_one_detail_exchanged(true, story, rng)
        if false is not None and true.strip() != test["completion"].strip():
            pairs.append({"prompt": test["prompt"], "reference": test["completion"], "chosen": true, "rejected": false})
    return pairs


def with_one_detail_exchanged(summary: str, story: Story, rng: random.Random) -> str | None:
    """The summary with one detail of one statement exchanged for something that the story does not say, every other
    word as it was; None if that fails."""
    statements = parse(summary)
    for statement in rng.sample(statements, len(statements)):
        swapped = statement.event and falsify(statement.event, story, rng)
        if not swapped:
            continue
        before, after = statement.event.to_dict(), swapped.to_dict()
        (field,) = (name for name in after if after[name] != before.get(name))
        start, end = statement.span
        changed = summary[:start] + summary[start:end].replace(str(before[field]), str(after[field]), 1) + summary[end:]
        wanted = [swapped if one is statement else one.event for one in statements]
        if [one.event for one in parse(changed)] == wanted:
            return changed
    return None


def judge(table: Table) -> Verdict:
    """The statements, and the numbers that decide."""
    agreed = {pairs: {name: column(table, "agreement", pairs=pairs, judge=name) for name in JUDGES}
              for pairs in ("all", "one policy", LIES)}
    truth = {name: over_seeds(agreed[LIES][name], 0.0, 1.0) for name in (*KINDS, "reward model")}
    ahead = {pairs: [difference(agreed[pairs]["reward model"], agreed[pairs][kind]) for kind in KINDS]
             for pairs in ("all", "one policy")}
    checks = {
        "the reward model is ahead": all(gain.low > 0 for gain in ahead["all"]),
        "also between samples of one model": all(gain.low > 0 for gain in ahead["one policy"]),
        "ROUGE misses lies": all(truth[kind].high < MISSED for kind in KINDS),
    }
    said = "; ".join(f"{pairs}: " + ", ".join(f"{name} {over_seeds(agreed[pairs][name]).mean:.3f}" for name in JUDGES)
                     for pairs in ahead)
    found = ", ".join(f"{name} {interval}" for name, interval in truth.items())
    return checks, (f"agreement with annotators, {said}; of a true summary and the same with one detail exchanged the "
                    f"true one is found by {found}")


def draw(table: Table) -> Figure:
    """Agreement with people's choices, a bar for each judge."""
    _, axes = figure("agreement with annotators on pairs of unseen stories", "", 6.4, 3.2)
    bars_with_intervals(axes, {name: point(table, "agreement", pairs="all", judge=name) for name in JUDGES})
    reference_line(axes, 0.5, "chance", vertical=True)
    return finish(axes, xlim=(0, 1))
