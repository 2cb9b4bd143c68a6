r"""Reward models grow: larger ones, and more comparisons, come close to one human, and not to an ensemble of them.

Stiennon et al. 2020, Fig. 6: validation accuracy of reward models against their size and the number of comparisons,
with lines for one human and for an ensemble.

The test. Simulated: reward models that begin as the instruction-tuned models of three sizes, trained on an eighth, a
half or all of the comparisons, judged by annotators' choices on unseen stories; the lines are a held-out person and the
majority of five. Beside them three reward models, their scores averaged. Real: reward models of two sizes that begin as
decoders of the texts, and SmolLM2, frozen, with a linear score (frozen_reader.py), trained on 512, 2,048 or 8,192
comparisons of single raters of tweets, judged on other texts against the mean of all raters, and against held-out
single raters. The lines are one rater and five together on the
very pairs that the model is judged on, against the mean of the others, and how often two single raters agree.

    1. more comparisons help: all against an eighth, middle size        2. larger models help: large against small
    3. the best comes close to one person, at most 0.05 below, and not to five: at least 0.05 below
    4. to 6. the same with real people: 8,192 comparisons against 512; the larger model; one rater and five

1, 2, 4 and 5 need a difference, seed by seed, whose 95 % interval is above 0; 3 and 6 look at the whole interval. With
real people the 8,192 comparisons are all there are: the seeds differ in their order and in the head's start only, and
for SmolLM2, whose score has neither, in which of them are drawn, with replacement.
"""

import random
from pathlib import Path
from typing import Any

from minialign.heads import LanguageModel, ScalarModel, describe_model, load_model
from minialign.lab.claims import Bench, Claim, Rows, Table, Verdict, column, difference, distinct, over_seeds, point
from minialign.lab.claims.feedback import SIZES, compared, reward_model, share_ordered, taken_for_granted
from minialign.lab.claims.frozen_reader import PARAMETERS, FrozenReader, drawn_again
from minialign.lab.demo.evaluation import preference
from minialign.lab.demo.settings import NO_BASE, DemoConfig
from minialign.lab.plotting import Figure, legend, lines_with_intervals, reference_line
from minialign.lab.realdata.people import write_people_data, write_people_texts
from minialign.lab.realdata.ratings import raters_on, read_ratings, two_raters
from minialign.peft.trainable import counts
from minialign.pretrain.causal_lm import NextToken
from minialign.pretrain.pretrain import pretrain
from minialign.rlhf.comparisons import split_by_prompt
from minialign.rlhf.ranked import Ranked, ranked_rows
from minialign.rlhf.reward_model import Ensemble
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
REAL_SIZES = {"small": (32, 1, 2), "middle": (80, 3, 4)}  # width, layers, heads
SMOLLM2 = "SmolLM2, frozen"  # the third size
MODEL, REAL, THREE = "reward model", "reward model, real", "three reward models"
CLOSE = 0.05


def measure(bench: Bench) -> Rows:
    """Train the grid, simulated and real."""
    for seed in range(bench.seeds):
        yield from simulated(bench, seed)
    if not bench.fast:
        yield from real_people(bench)


def trained(bench: Bench, key: list[Any], base: LanguageModel, tokenizer: Tokenizer, ranked: list[Ranked], steps: int,
            seed: int, job: DemoConfig) -> ScalarModel:
    """A reward model, made once for each key, at the rate and read as in a main job; normalised on some of the answers
    that it learned from."""
    config = TrainingConfig(steps, min(16, len(ranked)), job.rates[1], weight_decay=0.01, validate_every=10_000,
                            seed=seed)

    def data() -> tuple:
        return ranked, ranked[:8], [(one.prompt, one.completions[0]) for one in ranked[:64]]

    key = [*key, len(ranked), to_dict(config)]
    folder = reward_model(bench, "scaled-reward", key, base, tokenizer, config, job.read, data)
    return load_model(folder, "scalar-model")[0]


def simulated(bench: Bench, seed: int) -> Rows:
    """One seed of the grid, and its two lines."""
    yield from taken_for_granted(bench, seed)
    made = compared(bench, "middle", seed)[1]  # every size learns from its comparisons; the bases share a tokenizer
    learned, held_out = split_by_prompt(made.comparisons)
    for name, value in people(held_out, made.judged, seed).items():
        yield {"judge": name, "seed": seed, "accuracy": value}
    ranked = ranked_rows(made.tokenizer, learned, made.instructed.config.context)[0]
    for size in ("middle",) if bench.fast else SIZES:
        folder, made, config = compared(bench, size, seed)
        for share in SHARES:
            part, steps = ranked[: max(4, round(share * len(ranked)))], max(4, round(share * config.reward_steps))
            seeds = [seed, seed + 100, seed + 200] if (size, share) == ("middle", 1.0) else [seed]
            models = [trained(bench, [folder.name], made.instructed, made.tokenizer, part, steps, seed_, config)
                      for seed_ in seeds]
            row = {"size": size, "share": share, "seed": seed, "parameters": counts(models[0])[1]}
            yield {"judge": MODEL, "accuracy": share_ordered(models[0], made.tokenizer, held_out)} | row
            if len(models) > 1:
                yield {"judge": THREE, "accuracy": share_ordered(Ensemble(models), made.tokenizer, held_out)} | row


def people(pairs: list[dict], judged: list[dict], seed: int) -> dict[str, float]:
    """How often one person, and the majority of five, none of whom labelled, choose what the annotators of the pairs
    chose."""
    rng, one, majority = random.Random(seed), 0.0, 0.0
    for pair in pairs:
        story = Story.from_dict(judged[pair["index"]]["story"])
        votes = [preference(person, story, pair["chosen"], pair["rejected"], rng) for person in HELD_OUT_PANEL]
        one += sum(votes) / len(votes)
        majority += 0.5 if sum(votes) == len(votes) / 2 else float(sum(votes) > len(votes) / 2)
    return {"one person": one / len(pairs), "five people": majority / len(pairs)}


def real_people(bench: Bench) -> Rows:
    """The grid on real raters of tweets; none when they cannot be fetched, which is said."""
    folder = bench.folder / "people"
    try:
        items = read_ratings("tweets")
        write_people_data(folder / "tweets", "tweets")
        write_people_texts(folder / "texts")
    except UserError as error:
        bench.say(f"  left out: real people ({error})")
        return
    texts, valid = ((folder / "texts" / f"texts.{part}.txt").read_text(encoding="utf-8").split("\n\n")
                    for part in ("train", "valid"))
    learned, valid_pairs, judged, single = (read_jsonl(folder / "tweets" / f"comparisons.{part}.jsonl")
                                            for part in ("train", "valid", "majority", "test"))
    rated = {item.id: item.ratings for item in items}
    for count in (1, 5):
        agreed = raters_on(judged, rated, count, random.Random(0))
        yield {"judge": f"{count} real", "seed": 0, "accuracy": agreed}
    yield {"judge": "two real raters", "seed": 0, "accuracy": two_raters(items, 20_000, random.Random(0))}
    for size, shape in REAL_SIZES.items():
        base, tokenizer = people_reader(bench, texts, valid, shape)
        ranked = ranked_rows(tokenizer, learned, 128, "skip")[0]
        tests, others = fitting(tokenizer, judged), fitting(tokenizer, single)
        for amount in AMOUNTS:
            for seed in range(bench.seeds):
                order = random.Random(seed).sample(ranked, min(amount, len(ranked)))
                reward = trained(bench, ["tweets", size], base, tokenizer, order, max(40, amount // 20), seed,
                                 DemoConfig(NO_BASE))
                row = {"judge": REAL, "size": size, "amount": amount, "seed": seed, "parameters": counts(reward)[1]}
                yield row | {"accuracy": share_ordered(reward, tokenizer, tests),
                             "one rater": share_ordered(reward, tokenizer, others)}
    yield from real_model(bench, learned, valid_pairs, judged, single)


def real_model(bench: Bench, learned: list[dict], valid: list[dict], judged: list[dict], single: list[dict]) -> Rows:
    """The same of SmolLM2; none when it cannot be fetched, which is said."""
    reader = bench.fetched("SmolLM2", lambda: FrozenReader(bench, learned, valid, judged, single))
    if reader is None:
        return
    block, decay = reader.search(learned, valid)
    bench.say(f"  SmolLM2: block {block}, decay {decay}")
    for amount in AMOUNTS:
        for seed in range(bench.seeds):
            v = reader.learn(drawn_again(learned, amount, seed), block, decay)
            yield {"judge": REAL, "size": SMOLLM2, "amount": amount, "seed": seed, "parameters": PARAMETERS,
                   "accuracy": reader.accuracy(v, judged, block), "one rater": reader.accuracy(v, single, block)}


def fitting(tokenizer: Tokenizer, pairs: list[dict[str, Any]]) -> list[dict]:
    """The pairs whose texts fit the context."""
    return [c for c in pairs if max(len(tokenizer.encode(c[side])) for side in ("chosen", "rejected")) < 126]


def people_reader(bench: Bench, texts: list[str], valid: list[str],
                  shape: tuple[int, int, int]) -> tuple[LanguageModel, Tokenizer]:
    """A decoder of a shape (width, layers, heads) that has read the texts, without their ratings."""
    training = TrainingConfig(600, 32, 3e-3, validate_every=600, checkpoint_every=200)

    def make(folder: Path) -> None:
        tokenizer = train_tokenizer(texts, 2048)
        config = TransformerConfig(tokenizer.size, 128, *shape, activation="relu", initial_std=0.1, short_convolution=4)
        model, run = LanguageModel(config, 0), RunFolder(folder)
        run.begin({**describe_model(model), "stage": "pretrain", "training": to_dict(training)}, tokenizer)
        if not run.finished:
            pretrain(model, tokenizer, texts, valid, training, run, NextToken(packed=False))

    return load_model(bench.cached("people-reader", [*shape, to_dict(training), len(texts)], make))


def judge(table: Table) -> Verdict:
    """The statements, and the numbers that decide."""
    sizes = distinct(table, "size", judge=MODEL)
    everything, few = (column(table, "accuracy", judge=MODEL, size="middle", share=share) for share in (1.0, SHARES[0]))
    smallest, best = (column(table, "accuracy", judge=MODEL, size=size, share=1.0) for size in (sizes[0], sizes[-1]))
    data, growth = difference(everything, few), difference(best, smallest)
    one, five = (difference(best, column(table, "accuracy", judge=name)) for name in ("one person", "five people"))
    three = difference(column(table, "accuracy", judge=THREE), everything)
    checks = {"more comparisons help": data.low > 0, "larger models help": growth.low > 0,
              "close to one person and not to five": one.low > -CLOSE and five.high < -CLOSE}
    why = (f"all comparisons instead of an eighth {data}; the largest instead of the smallest model {growth}; the "
           f"largest minus one person {one}, minus five {five}; three reward models together {three} more than one")
    if not column(table, "accuracy", judge=REAL):
        return checks, why + "; real people were left out"
    more, said = judge_real(table)
    return checks | more, f"{why}; real: {said}"


def judge_real(table: Table) -> Verdict:
    """The statements about real people."""
    largest = distinct(table, "size", judge=REAL)[-1]
    middle, few = (column(table, "accuracy", judge=REAL, size="middle", amount=amount)
                   for amount in (AMOUNTS[-1], AMOUNTS[0]))
    small, best = (column(table, "accuracy", judge=REAL, size=size, amount=AMOUNTS[-1]) for size in ("small", largest))
    more, larger, top = difference(middle, few), difference(best, small), over_seeds(best)
    rater = over_seeds(column(table, "one rater", judge=REAL, size=largest, amount=AMOUNTS[-1]))
    one, five, two = (column(table, "accuracy", judge=name)[0] for name in ("1 real", "5 real", "two real raters"))
    checks = {
        "real people: more comparisons help": more.low > 0,
        "real people: larger models help": larger.low > 0,
        "real people: close to one and not to five": top.low > one - CLOSE and top.high < five - CLOSE,
    }
    return checks, (f"8,192 instead of 512 comparisons {more}, {largest} instead of the smallest {larger}, to {top} "
                    f"where one rater has {one:.3f} on the same pairs and five {five:.3f}; with single held-out raters "
                    f"it agrees {rater}, two of them with each other {two:.3f}")


def draw(table: Table) -> Figure:
    """Accuracy against the number of comparisons, a curve a size, with the lines of people; real people beside it where
    they could be fetched."""
    real = bool(column(table, "accuracy", judge=REAL))
    fig = Figure(figsize=(5.6 * (1 + real), 4.0), layout="constrained")
    left, *right = fig.subplots(1, 1 + real, squeeze=False)[0]
    ticks = {0.125: "1/8", 0.5: "1/2", 1.0: "all"}
    draw_panel(left, table, MODEL, "share", ticks, {"one person": "one person", "five people": "five people"})
    left.set(xlabel="share of the comparisons, simulated", ylabel="agreement with annotators, unseen stories")
    for axes in right:
        ticks = {amount: f"{amount:,}" for amount in AMOUNTS}
        draw_panel(axes, table, REAL, "amount", ticks, {"1 real": "one person", "5 real": "five people"})
        axes.set(xlabel="comparisons by real raters", ylabel="agreement with the mean of all raters")
    return fig


def draw_panel(axes: Any, table: Table, name: str, what: str, ticks: dict, lines: dict[str, str]) -> None:
    """The curves of one kind of reward model, and the lines of people under their names."""
    curves = {}
    for size in distinct(table, "size", judge=name):
        weights = column(table, "parameters", judge=name, size=size)[-1]
        curves[size if size == SMOLLM2 else f"{weights / 1e6:.1f} million"] = [
            point(table, "accuracy", judge=name, size=size, **{what: amount}) for amount in ticks]
    lines_with_intervals(axes, list(ticks), curves)
    for (person, label), up in zip(lines.items(), (-3, 3)):  # at the left, where no curve comes near
        values = column(table, "accuracy", judge=person)
        mean = sum(values) / len(values)
        reference_line(axes, mean)
        axes.annotate(label, (min(ticks), mean), xytext=(0, up), va="top" if up < 0 else "bottom",
                      textcoords="offset points", ha="left")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.05 * (high - low))  # room for the words above the upper line
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(ticks), list(ticks.values()))
    legend(axes)
