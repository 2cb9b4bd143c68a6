r"""Reward models grow: larger ones, and more comparisons, come close to one human, and not to an ensemble of them.

Stiennon et al. 2020, Fig. 6: validation accuracy of reward models against their size and the number of comparisons,
with lines for one human and for an ensemble.

The test, in two versions. Simulated: reward models that begin as the instruction-tuned models of three sizes, trained
on an eighth, a half or all of the comparisons, and judged by the choices of annotators on stories that they never saw;
the lines are a held-out person and the majority of five of them, judged by the same choices. Beside them an ensemble of
three reward models, their scores averaged. Real: reward models of two sizes that begin as decoders of the texts,
trained on 512, 2,048 or 8,192 comparisons of single raters of tweets, judged on other texts against the mean of all
their raters, and against single raters whose choices were held out. The lines there are one rater and five together on
the very pairs that the model is judged on, against the mean of the others, and how often two single raters agree.

    1. more comparisons help: all against an eighth, middle size            2. larger models help: large against small, all comparisons
    3. the best comes close to one person, at most 0.05 below, and not to five: at least 0.05 below
    4. to 6. the same with real people: 8,192 comparisons against 512; the larger model against the smaller; the larger
       against one rater and five

1, 2, 4 and 5 need a difference, seed by seed, whose 95 % interval over seeds is above 0; 3 and 6 look at the whole
interval of the difference. With real people the 8,192 comparisons are all there are: there the three seeds differ in
their order and in the head's start, so their interval is the narrower for it.

What was changed after a first full run: "not to five" counted by itself, which a model that has learned nothing
fulfils; of the real people only what held was asked; their lines were of pairs of any two texts, which are harder than
the pairs of the test. Statement 1 is on the line: .06 [-.07, .19] in one full run, .05 [.02, .08] in the next, with
some 400 comparisons to judge each seed by.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from minialign.heads import LanguageModel, ScalarModel, describe_model, load_model
from minialign.lab.claims.feedback import SIZES, compared
from minialign.lab.claims.runner import Bench, Claim, difference, drawn, over_seeds
from minialign.lab.demo.pipeline import Demo
from minialign.lab.plotting import legend, lines_with_intervals, reference_line, save_png
from minialign.lab.realdata.people import write_people_data, write_people_texts
from minialign.lab.realdata.ratings import raters_on, read_ratings, two_raters
from minialign.pretrain.causal_lm import NextToken
from minialign.pretrain.pretrain import pretrain
from minialign.rlhf.comparisons import split_by_prompt
from minialign.rlhf.ranked import Ranked, ranked_rows
from minialign.rlhf.reward_model import Ensemble, answer_rows, score_rows, train_reward_model
from minialign.runs.errors import UserError
from minialign.runs.files import read_jsonl
from minialign.runs.run_folder import RunFolder
from minialign.runs.settings import to_dict
from minialign.tokenizer import Tokenizer, train_tokenizer
from minialign.training import TrainingConfig
from minialign.transformer import TransformerConfig
from minialign.world.annotators import HELD_OUT_PANEL
from minialign.world.stories import Story

CLAIM = Claim("reward-scaling", "Larger reward models and more data come close to one human, not to an ensemble.",
              "Stiennon et al. 2020, Fig. 6")
SHARES = (0.125, 0.5, 1.0)  # of the comparisons
AMOUNTS = (512, 2048, 8192)  # comparisons of real people
REAL = {"small": (32, 1, 2), "middle": (80, 3, 4)}  # width, layers, heads
CLOSE = 0.05


def measure(bench: Bench) -> list[dict[str, Any]]:
    """Train the grid, simulated and real."""
    table: list[dict[str, Any]] = []
    for seed in range(bench.seeds):
        table += simulated(bench, seed)
    if not bench.fast:
        table += real_people(bench)
    return table


def trained(bench: Bench, key: list[Any], base: LanguageModel, tokenizer: Tokenizer, ranked: list[Ranked], steps: int,
            seed: int) -> ScalarModel:
    """A reward model, made once for each key; normalised on some of the answers that it learned from."""
    config = TrainingConfig(steps, min(16, len(ranked)), 1.5e-3, weight_decay=0.01, validate_every=10_000, seed=seed)

    def make(folder: Path) -> None:
        run = RunFolder(folder)
        run.begin({"what": "scalar-model", "model": to_dict(base.config), "training": to_dict(config)}, tokenizer)
        if not run.finished:
            train_reward_model(base, ranked, ranked[:8], [[*r.prompt, *r.answers[0]] for r in ranked[:64]], config, run)

    return load_model(bench.cached("scaled-reward", [*key, len(ranked), to_dict(config)], make), "scalar-model")[0]


def margins(reward: ScalarModel | Ensemble, tokenizer: Tokenizer, pairs: list[dict[str, Any]]) -> torch.Tensor:
    """(2, P) scores of the chosen and of the rejected answers."""
    prompts = [c["prompt"] for c in pairs]
    return torch.stack([score_rows(reward, answer_rows(tokenizer, prompts, [c[side] for c in pairs]))
                        for side in ("chosen", "rejected")])


def right(scores: torch.Tensor) -> float:
    """Share of pairs whose chosen answer scores higher; a tie counts half."""
    return float(((scores[0] > scores[1]).float() + 0.5 * (scores[0] == scores[1]).float()).mean())


def simulated(bench: Bench, seed: int) -> list[dict[str, Any]]:
    """One seed of the grid, and its two lines."""
    rows: list[dict[str, Any]] = []
    for size in ("middle",) if bench.fast else SIZES:
        folder, made, config = compared(bench, size, seed)
        if not rows:  # every size learns from the same comparisons, those of the first
            judged = Demo(folder, config, lambda text: None).written()[2]
            learned, held_out = split_by_prompt(made.comparisons)
            rows = [{"judge": name, "seed": seed, "accuracy": value} for name,
                    value in people(held_out, judged, seed).items()]
            ranked = ranked_rows(made.tokenizer, learned, made.instructed.config.context)[0]
        for share in SHARES:
            part, steps = ranked[: max(4, round(share * len(ranked)))], max(4, round(share * config.reward_steps))
            count = 3 if (size, share) == ("middle", 1.0) else 1
            models = [trained(bench, [folder.name], made.instructed, made.tokenizer, part, steps, seed + 100 * i)
                      for i in range(count)]
            row = {"size": size, "share": share, "seed": seed, "parameters":
                   sum(p.numel() for p in models[0].parameters())}
            rows.append({"judge": "reward model", "accuracy": right(margins(models[0], made.tokenizer, held_out))}
                        | row)
            if count > 1:
                rows.append({"judge": "three reward models", "accuracy": right(margins(Ensemble(models), made.tokenizer,
                    held_out))} | row)
    return rows


def people(pairs: list[dict], judged: list[dict], seed: int) -> dict[str, float]:
    """How often one person, and the majority of five, none of whom labelled, choose what the annotators of the pairs
    chose."""
    rng, one, majority = random.Random(seed), 0.0, 0.0
    for pair in pairs:
        story, votes = Story.from_dict(judged[pair["index"]]["story"]), []
        for person in HELD_OUT_PANEL:
            swapped = rng.random() < 0.5
            texts = (pair["rejected"], pair["chosen"]) if swapped else (pair["chosen"], pair["rejected"])
            winner = person.compare(story, *texts, rng).winner
            votes.append(0.5 if winner == "tie" else float((winner == "first") != swapped))
        one += sum(votes) / len(votes)
        majority += 0.5 if sum(votes) == len(votes) / 2 else float(sum(votes) > len(votes) / 2)
    return {"one person": one / len(pairs), "five people": majority / len(pairs)}


def real_people(bench: Bench) -> list[dict[str, Any]]:
    """The grid on real raters of tweets; none when they cannot be fetched, which is said."""
    folder = bench.folder / "people"
    try:
        items = read_ratings("tweets")
        write_people_data(folder / "tweets", "tweets")
        write_people_texts(folder / "texts")
    except UserError as error:
        bench.say(f"  left out: real people ({error})")
        return []
    texts, valid = ((folder / "texts" / f"texts.{part}.txt").read_text(encoding="utf-8").split("\n\n")
                    for part in ("train", "valid"))
    learned, judged, single = (read_jsonl(folder / "tweets" / f"comparisons.{part}.jsonl")
                               for part in ("train", "majority", "test"))
    rated = {item.id: item.ratings for item in items}
    rows = [{"judge": f"{count} real", "seed": 0, "accuracy": raters_on(judged, rated, count, random.Random(0))}
            for count in (1, 5)]
    rows.append({"judge": "two real raters", "seed": 0, "accuracy": two_raters(items, 20_000, random.Random(0))})
    for size, (width, layers, heads) in REAL.items():
        base, tokenizer = people_reader(bench, texts, valid, width, layers, heads)
        ranked, tests, others = ranked_rows(tokenizer, learned, 128, "skip")[0], fitting(tokenizer,
            judged), fitting(tokenizer, single)
        for amount in AMOUNTS:
            for seed in range(bench.seeds):
                order = random.Random(seed).sample(ranked, min(amount, len(ranked)))
                reward = trained(bench, ["tweets", size], base, tokenizer, order, max(40, amount // 20), seed)
                row = {"judge": "reward model, real", "size": size, "amount": amount, "seed": seed,
                       "parameters": sum(p.numel() for p in reward.parameters())}
                both = {"accuracy": right(margins(reward, tokenizer, tests)),
                        "one rater": right(margins(reward, tokenizer, others))}
                rows.append(row | both)
    return rows


def fitting(tokenizer: Tokenizer, pairs: list[dict[str, Any]]) -> list[dict]:
    """The pairs whose texts fit the context."""
    return [c for c in pairs if max(len(tokenizer.encode(c[side])) for side in ("chosen", "rejected")) < 126]


def people_reader(bench: Bench, texts: list[str], valid: list[str], width: int, layers: int,
                  heads: int) -> tuple[LanguageModel, Tokenizer]:
    """A decoder that has read the texts, without their ratings."""
    config = TrainingConfig(600, 32, 3e-3, validate_every=600, checkpoint_every=200)

    def make(folder: Path) -> None:
        tokenizer = train_tokenizer(texts, 2048)
        shape = TransformerConfig(tokenizer.size, 128, width, layers, heads, activation="relu", initial_std=0.1,
                                  smeared_keys=True)
        model, run = LanguageModel(shape, 0), RunFolder(folder)
        run.begin({**describe_model(model), "stage": "pretrain", "training": to_dict(config)}, tokenizer)
        if not run.finished:
            pretrain(model, tokenizer, texts, valid, config, run, NextToken(packed=False))

    return load_model(bench.cached("people-reader", [width, layers, heads, to_dict(config), len(texts)], make))


def judge(table: list[dict[str, Any]]) -> tuple[dict[str, bool], str]:
    """The statements, and the numbers that decide."""
    def of(name, **which):
        return [r["accuracy"] for r in table if r["judge"] == name
                                    and all(r.get(k) == v for k, v in which.items())]
    sizes = list(dict.fromkeys(row["size"] for row in table if row["judge"] == "reward model"))
    all_, few = of("reward model", size="middle", share=1.0), of("reward model", size="middle", share=SHARES[0])
    best = of("reward model", size=sizes[-1], share=1.0)
    data, growth = difference(all_, few), difference(best, of("reward model", size=sizes[0], share=1.0))
    one, five = (difference(best, of(name)) for name in ("one person", "five people"))
    checks = {"more comparisons help": data.low > 0, "larger models help": growth.low > 0}
    checks["close to one person and not to five"] = one.low > -CLOSE and five.high < -CLOSE
    why = (f"all comparisons instead of an eighth {data}; the largest instead of the smallest model {growth}; the "
           f"largest minus one person {one}, ")
    why += (f"minus five {five}; three reward models together {difference(of('three reward models'), all_)} more than "
            f"one")
    if of("reward model, real"):
        more = difference(of("reward model, real", size="middle", amount=AMOUNTS[-1]),
                          of("reward model, real", size="middle", amount=AMOUNTS[0]))
        top = over_seeds(of("reward model, real", size="middle", amount=AMOUNTS[-1]))
        larger = difference(*(of("reward model, real", size=size, amount=AMOUNTS[-1]) for size in ("middle", "small")))
        checks |= {"real people: more comparisons help": more.low > 0, "real people: larger models help":
                   larger.low > 0}
        lines = f"one rater has {of('1 real')[0]:.3f} on the same pairs and five {of('5 real')[0]:.3f}"
        checks["real people: close to one and not to five"] = top.low > of("1 real")[0] - CLOSE and top.high < of("5 real")[0] - CLOSE
        rater = over_seeds([r["one rater"] for r in table if (r["judge"], r.get("size"), r.get("amount"))
                            == ("reward model, real", "middle", AMOUNTS[-1])])
        lines += (f"; with single held-out raters it agrees {rater}, two of them with each other "
                  f"{of('two real raters')[0]:.3f}")
        return (checks, f"{why}; real: 8,192 instead of 512 comparisons {more}, the larger model {larger}, to {top} "
                        f"where {lines}")
    return checks, why + "; real people were left out"


def draw(table: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against the share of the comparisons, a curve a size, with the lines of people; real people beside it
    where they could be fetched."""
    panels = [("reward model", "share", "share of the comparisons, simulated",
               "agreement with annotators, unseen stories", ("one person", "five people"))]
    if any(row["judge"] == "reward model, real" for row in table):
        panels.append(("reward model, real", "amount", "comparisons by real raters",
                       "agreement with the mean of all raters", ("1 real", "5 real")))
    fig = Figure(figsize=(5.6 * len(panels), 4.0), layout="constrained")
    for axes, (name, what, x, y, lines) in zip(fig.subplots(1, len(panels), squeeze=False)[0], panels):
        rows = [row for row in table if row["judge"] == name]
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        amounts, sizes = sorted({row[what] for row in rows}), {row["size"]: row["parameters"] for row in rows}
        def of(size, amount, rows=rows, what=what):
            return drawn(over_seeds([r["accuracy"] for r in rows if (r["size"], r[what]) == (size, amount)]))
        lines_with_intervals(axes, amounts, {f"{n / 1e3:.0f}k weights": [of(size, amount) for amount in amounts]
                                             for size, n in sizes.items()})
        for person in lines:
            values = [row["accuracy"] for row in table if row["judge"] == person]
            reference_line(axes, sum(values) / len(values))
            label = {"1 real": "one person", "5 real": "five people"}.get(person, person)
            # one person stands below five; on different sides of their lines the words do not meet
            below = person == lines[0]
            place = {"xytext": (0, -3 if below else 3), "va": "top" if below else "bottom",
                     "textcoords": "offset points", "ha": "right"}
            axes.annotate(label, (amounts[-1], sum(values) / len(values)), **place)
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.05 * (high - low))  # room for the words above the upper line
        axes.set_xscale("log", base=2)
        axes.set_xticks(amounts, ["1/8", "1/2", "all"] if what == "share" else [f"{amount:,}" for amount in amounts])
        legend(axes)
    save_png(fig, path)
