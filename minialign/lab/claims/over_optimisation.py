r"""Over-optimisation: the reward is a proxy; without the KL term, optimising it runs away from what people want.

Stiennon et al. 2020, Fig. 5: what the reward model predicts keeps rising with KL while people's preference turns down.
Gao, Schulman & Hilton 2022, §3, fit gold against d = √KL as d(α − β d) for best of n, d(α − β log d) for RL. Coste et
al. 2023, §5: best of n by several reward models that distrust what they disagree on is over-optimised less.

The test: reward models (proxies) learn from different thirds of the noisy comparisons, one a seed. PPO runs against
each at several prices of KL, 0 included, and best of n beside it; prices that no statement is about with the first
proxy alone. After every update the policy answers the same held-out prompts that best of n is tried on, at the same
temperature, and proxy and gold score what it says as they score best of n's. So all curves begin at one point, the
reference at KL 0, measured once; a curve's end is the mean over its last five updates. Beside what gold gained by the
end stands what best of n gains at the same KL, on the line between the two n around it; where PPO goes further than the
largest n, that one is taken, and it is said.

    1. without a penalty the proxy rises        2. without a penalty the gold score falls
    3. with the main job's penalty gold does not fall        4. gold ends higher with the penalty than without it
    5. best of the largest n by all proxies together, their disagreement taken off, has more gold than by one of them

1, 2, 4 and 5 need a 95 % interval over seeds that excludes 0; 3 one that excludes a fall by more than 0.02. A proxy
that has learned nothing has no rise to run away with; its accuracy stands in the table. In 5 every seed draws answers
of its own, the proxies together are the same.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minialign.generation import continue_texts, prompt_ids
from minialign.heads import LanguageModel, ScalarModel, load_model
from minialign.lab.claims import Bench, Claim, Rows, Table, Verdict, column, difference, distinct, over_seeds
from minialign.lab.claims.feedback import first_half, reward_model, settings, taken_for_granted
from minialign.lab.demo.pipeline import INSTRUCTED, SAMPLING, FirstHalf, ppo_settings
from minialign.lab.demo.settings import DemoConfig
from minialign.lab.plotting import Figure, legend, line
from minialign.rlhf.best_of_n import best_of_n_kl
from minialign.rlhf.comparisons import split_by_prompt
from minialign.rlhf.kl import k1
from minialign.rlhf.ppo import PPOConfig, Rollout, collect, train_ppo
from minialign.rlhf.ranked import ranked_rows
from minialign.rlhf.reward_model import completion_rows, penalise_missing_end, score_completions, together
from minialign.runs.run_folder import RunFolder
from minialign.runs.settings import to_dict
from minialign.training import TrainingConfig
from minialign.world.gold import score
from minialign.world.stories import Story

CLAIM = Claim("over-optimisation", "Without the KL term, optimising a reward model runs away from what people want.",
              "Stiennon et al. 2020, Fig. 5; Gao et al. 2022")
BETAS = (0.0, 0.03, 0.1, 0.3, 1.0)
SIZES = (1, 2, 4, 16, 64, 256, 1024)  # n of best of n
BEST, MEAN, CAUTIOUS = "best-of-n", "best-of-n, mean", "best-of-n, cautious"
JUDGES = {BEST: "by one proxy", MEAN: "by the mean of all", CAUTIOUS: "by that less their disagreement"}
CAUTION = 1.0  # standard deviations of their disagreement that a score loses
JUDGED, UPDATES = 6000, 60  # stories, of which each proxy has a third; far enough to turn
MARGIN = 0.02  # a change of gold that nobody would call a fall
EDGE = 5  # updates that make a curve's end
AT_ONCE = 320  # answers that are asked for in one go
HELD_OUT = {"held_out_kl": "kl", "held_out_proxy": "proxy", "held_out_gold": "gold"}  # field of the log -> of the table


def measure(bench: Bench) -> Rows:
    """Train the proxies, optimise against each at every price, and look at proxy and gold along the way."""
    config, betas, updates = settings(bench, "middle", 0), (0.0, DemoConfig.beta), 2
    if not bench.fast:
        steps = config.reward_steps * JUDGED // config.judged
        config, betas, updates = dataclasses.replace(config, judged=JUDGED, reward_steps=steps), BETAS, UPDATES
    base, made = first_half(bench, config)
    tests, sizes = (made.tests[:8], SIZES[:3]) if bench.fast else (made.tests[:100], SIZES)
    trained = [train_proxy(bench, base, made, config, seed) for seed in range(bench.seeds)]
    for seed, (proxy, accuracy) in enumerate(trained):
        yield from taken_for_granted(bench, seed)
        others = [other for other, _ in trained if other is not proxy]
        best = best_of_each(made, proxy, tests, sizes, seed, others)
        for beta in betas if seed == 0 else (0.0, config.beta):
            how = ppo_settings(updates, len(made.practice), beta, seed, gentle=config.from_base)
            for row in from_the_start(optimise(bench, made, proxy, how, base, tests), best):
                yield {"method": "ppo", "beta": beta, "seed": seed, **row, "proxy_accuracy": accuracy}
        for row in best:
            yield row | {"proxy_accuracy": accuracy}


def train_proxy(bench: Bench, base: Path, made: FirstHalf, config: DemoConfig, seed: int) -> tuple[ScalarModel, float]:
    """A reward model that has seen the comparisons of every third story, from the seed-th on; and its accuracy on
    held-out prompts."""
    learned, held_out = split_by_prompt(made.comparisons)
    own = [comparison for comparison in learned if comparison["index"] % 3 == seed % 3]
    steps, context = max(1, config.reward_steps // 3), made.instructed.config.context
    training = TrainingConfig(steps, 16, config.rates[1], weight_decay=0.01, validate_every=1000, seed=seed)

    def data() -> tuple:
        prompts, generator = [comparison["prompt"] for comparison in learned[:256]], torch.Generator().manual_seed(seed)
        answers = continue_texts(made.instructed, made.tokenizer, prompts, SAMPLING, generator)
        ranked, valid = (ranked_rows(made.tokenizer, part, context)[0] for part in (own, held_out))
        return ranked, valid, completion_rows(made.tokenizer, prompts, answers, context)

    key = [base.name, to_dict(training), seed]
    folder = reward_model(bench, "proxy", key, made.instructed, made.tokenizer, training, config.read, data)
    return load_model(folder, "scalar-model")[0], RunFolder(folder).facts()["accuracy"]


@torch.no_grad()
def ask(policy: LanguageModel, made: FirstHalf, proxy: ScalarModel, tests: list[dict], answers: int, seed: int,
        others: Sequence[ScalarModel] = ()) -> Tensor:
    """(3 + m, P, K): KL from the reference (k1, nats), the proxy's score as PPO is paid it, the gold score, and the
    scores of m other proxies, of K answers to each of P held-out prompts. All curves are made of these."""
    how = PPOConfig(1, len(tests), answers, SAMPLING.new_tokens, SAMPLING.temperature, minibatch=answers)
    generator, found, few = torch.Generator().manual_seed(seed), [], max(1, AT_ONCE // answers)
    for part in (tests[start : start + few] for start in range(0, len(tests), few)):
        prompts = prompt_ids(made.tokenizer, [test["prompt"] for test in part])
        rollout = collect(policy, made.instructed, proxy, proxy, prompts, how, generator)  # nobody asks for its values
        ended = (rollout.completion == policy.special.end).any(dim=1)
        scores = [penalise_missing_end(score_completions(other, rollout.prompts, *rollout.completion_ids()), ended,
                                       how.missing_end, how.missing_end_score) for other in others]
        golds = [score(Story.from_dict(part[i]["story"]), made.tokenizer.decode(ids)).gold
                 for ids, i in zip(*rollout.completion_ids())]
        kl = k1(rollout.logprobs, rollout.reference_logprobs).sum(dim=1)
        found.append(torch.stack([kl, rollout.scores, torch.tensor(golds, device=kl.device), *scores]))
    return torch.cat(found, dim=1).view(-1, len(tests), answers)


def held_out_watcher(made: FirstHalf, proxy: ScalarModel, tests: list[dict],
                     seed: int) -> Callable[..., dict[str, float]]:
    """For the log alone: what the policy's answers to held-out prompts are, one to each, after an update."""

    def watch(rollout: Rollout, names: list[int], policy: LanguageModel) -> dict[str, float]:
        return dict(zip(HELD_OUT, ask(policy, made, proxy, tests, 1, seed).mean(dim=(1, 2)).tolist()))

    return watch


def optimise(bench: Bench, made: FirstHalf, proxy: ScalarModel, how: PPOConfig, base: Path,
             tests: list[dict]) -> list[dict[str, Any]]:
    """The log of one PPO run, with what the policy makes of held-out prompts after each update."""
    prompts = prompt_ids(made.tokenizer, [d["prompt"] for d in made.practice])

    def make(folder: Path) -> None:
        run = RunFolder(folder)
        if not run.finished:
            watch = held_out_watcher(made, proxy, tests, how.seed)
            train_ppo(made.instructed, proxy, prompts, how, run, f"beta {how.beta}", watch)

    return RunFolder(bench.cached("policy", [base.name, INSTRUCTED, to_dict(how), len(tests)], make)).metrics()


def from_the_start(log: list[dict[str, Any]], best: Table) -> Table:
    """A curve of PPO on held-out prompts: update, kl, proxy and gold, from best of 1, which is its reference."""
    (start,) = (row for row in best if row["n"] == 1 and row["method"] == BEST)
    points = [[start[name] for name in HELD_OUT.values()], *([record[name] for name in HELD_OUT] for record in log)]
    return [{"update": update, **dict(zip(HELD_OUT.values(), point))} for update, point in enumerate(points)]


def best_of_each(made: FirstHalf, proxy: ScalarModel, tests: list[dict], sizes: tuple[int, ...], seed: int,
                 others: Sequence[ScalarModel] = ()) -> Table:
    """Best of n on held-out prompts by a proxy, and by it and others together, for every n from one sampling of the
    largest, which every n divides; with the closed form of its KL."""
    _, own, golds, *scores = ask(made.instructed, made, proxy, tests, sizes[-1], seed, others)
    judges = {BEST: own}
    if scores:
        judges |= {MEAN: together([own, *scores]), CAUTIOUS: together([own, *scores], CAUTION)}
    rows = []
    for (method, judged), n in itertools.product(judges.items(), sizes):
        groups = judged.reshape(len(tests), -1, n)
        best = groups.argmax(dim=-1, keepdim=True)
        row = {"method": method, "n": n, "seed": seed, "kl": best_of_n_kl(n)}
        rows.append(row | {name: float(each.reshape(groups.shape).gather(-1, best).mean())
                           for name, each in (("proxy", judged), ("gold", golds))})
    return rows


def seeds_of(table: Table, beta: float) -> list[int]:
    """The seeds that ran at this beta."""
    return sorted(distinct(table, "seed", method="ppo", beta=beta))


def ends(table: Table, beta: float, field: str) -> list[tuple[float, float]]:
    """For each seed that ran at this beta, a field where its run began, and its mean over the last updates."""
    found = []
    for seed in seeds_of(table, beta):
        values = column(table, field, method="ppo", seed=seed, beta=beta)
        found.append((values[0], mean(values[-min(EDGE, max(1, len(values) // 2)) :])))
    return found


def gains(table: Table, beta: float, field: str) -> list[float]:
    """How far a field moved by the end of each run at this beta."""
    return [last - first for first, last in ends(table, beta, field)]


def best_of_n_at(table: Table, seed: int, kl: float) -> float:
    """Gold of best of n at a KL, on the straight line against √KL between the two n around it; beyond the largest n
    that of the largest."""
    which = {"method": BEST, "seed": seed}
    points = sorted(zip(map(math.sqrt, column(table, "kl", **which)), column(table, "gold", **which)))
    return float(np.interp(math.sqrt(max(0.0, kl)), *zip(*points)))


def beside_best_of_n(table: Table) -> str:
    """For each price of KL, by how much PPO gained more gold than best of n at the same KL does, each from where it
    began."""
    said = []
    furthest = max(column(table, "kl", method=BEST))
    for beta in sorted(distinct(table, "beta", method="ppo")):
        kls = [kl for _, kl in ends(table, beta, "kl")]
        rivals = [best_of_n_at(table, seed, kl) - best_of_n_at(table, seed, 0.0)
                  for seed, kl in zip(seeds_of(table, beta), kls)]
        beyond = " (beyond the largest n)" if max(kls) > furthest else ""
        said.append(f"{beta:g}: {difference(gains(table, beta, 'gold'), rivals)}{beyond}")
    return "what PPO's gold gains more than that of best of n at the same KL, by beta " + ", ".join(said)


def judge(table: Table, beta: float = DemoConfig.beta) -> Verdict:
    """The four statements, from the table."""
    proxy, free = (over_seeds(gains(table, 0.0, field)) for field in ("proxy", "gold"))
    priced = over_seeds(gains(table, beta, "gold"))
    higher = difference(*([last for _, last in ends(table, price, "gold")] for price in (beta, 0.0)))
    checks = {
        "without a penalty the proxy rises": proxy.low > 0,
        "without a penalty gold falls": free.high < 0,
        "with the penalty gold does not fall": priced.low > -MARGIN,
        "gold ends higher with the penalty": higher.low > 0,
    }
    at_most = {method: column(table, "gold", method=method, n=max(distinct(table, "n", method=method)))
               for method in JUDGES if distinct(table, "n", method=method)}
    if CAUTIOUS in at_most:
        checks["best of n by proxies that distrust their disagreement is better"] = difference(
            at_most[CAUTIOUS], at_most[BEST]).low > 0
    together = ", ".join(f"{JUDGES[method]} {over_seeds(golds)}" for method, golds in at_most.items())
    accuracy = over_seeds(column(table, "proxy_accuracy", method=BEST, n=1))
    return checks, (
        f"at beta 0 the proxy moves by {proxy}, gold by {free}; at beta {beta:g} gold moves by {priced} and ends "
        f"{higher} above beta 0's; the proxies order {accuracy.mean:.0%} of held-out comparisons rightly; "
        f"{beside_best_of_n(table)}; gold of best of the largest n {together}"
    )


def fit_law(d: list[float], gold: list[float], logarithm: bool) -> tuple[float, float]:
    """α and β of gold − gold₀ = d(α − β d), or d(α − β log d), by least squares; Gao et al. 2022, §3."""
    x = torch.tensor([[v, -v * (math.log(v) if logarithm else v)] for v in d])
    return tuple(torch.linalg.lstsq(x, torch.tensor(gold)[:, None]).solution.flatten().tolist())


def smooth(values: list[float]) -> list[float]:
    """Means over EDGE values in a row; all of them in one when there are fewer."""
    return [mean(values[i : i + EDGE]) for i in range(max(1, len(values) - EDGE + 1))]


def curves(table: Table) -> dict[str, dict[str, list[float]]]:
    """Label -> mean over the seeds that ran of kl, proxy and gold along a run, over five updates in a row after the
    common beginning; best of n along n. A price that fewer seeds ran at begins where all do, too: each seed has a
    proxy of its own, and gains are what is compared."""
    runs = {f"β = {beta:g}": {"method": "ppo", "beta": beta} for beta in sorted(distinct(table, "beta", method="ppo"))}
    found = {label: means_along(table, "update", **which) for label, which in runs.items()}
    found = {label: {name: means[:1] + smooth(means[1:]) for name, means in curve.items()}
             for label, curve in found.items()}
    best = means_along(table, "n", method=BEST)
    cautious = {"best of n, cautious": means_along(table, "n", method=CAUTIOUS)} if CAUTIOUS in distinct(
        table, "method") else {}
    found = {label: {name: [value - means[0] + best[name][0] for value in means] for name, means in curve.items()}
             for label, curve in found.items()}
    return found | {"best of n": best} | cautious


def means_along(table: Table, order: str, **which: Any) -> dict[str, list[float]]:
    """Means over the seeds of kl, proxy and gold at each value of a field."""
    places = sorted(distinct(table, order, **which))
    return {name: [mean(column(table, name, **which, **{order: place})) for place in places]
            for name in ("kl", "proxy", "gold")}


def laws(table: Table) -> list[str]:
    """The two laws of Gao et al. 2022, fitted to each seed's curves of gold that move from the reference."""
    fits: dict[str, list[tuple[float, float]]] = {}
    for seed in distinct(table, "seed", method=BEST):
        for label, means in curves([row for row in table if row.get("seed") == seed]).items():
            d = [math.sqrt(max(0.0, kl)) for kl in means["kl"]]
            moved = [(x, gold - means["gold"][0]) for x, gold in zip(d, means["gold"]) if x > 0.05]
            if len(moved) > 2:
                fit = fit_law(*map(list, zip(*moved)), logarithm="best of n" not in label)
                fits.setdefault(label, []).append(fit)
    return [f"{label}: a {over_seeds(a)}, b {over_seeds(b)}" for label, found in fits.items() for a, b in [zip(*found)]]


def draw(table: Table) -> Figure:
    """Proxy and gold against √KL, a colour for each price, mean over seeds; best of n beside them, and the fitted
    laws."""
    found = curves(table)
    fig = Figure(figsize=(12.6, 4.2), layout="constrained")
    labels = {"proxy": "proxy, deviations of the reward", "gold": "gold score, 0 to 1"}
    for axes, (what, label) in zip(fig.subplots(1, 2), labels.items()):
        axes.set_xlabel("√KL from the reference (√nats)")
        axes.set_ylabel(label)
        for number, (name, means) in enumerate(found.items()):
            line(axes, number, [math.sqrt(max(0.0, kl)) for kl in means["kl"]], means[what], name)
    left, right = fig.axes
    legend(left, outside=True, columns=len(found))
    text = "\n".join(["gain = d (a − b log d), for best of n d (a − b d)", *laws(table)])
    right.text(1.03, 1.0, text, transform=right.transAxes, fontsize="small", va="top")  # beside the curves
    return fig
