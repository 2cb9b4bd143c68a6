"""The claims on human feedback: their verdicts follow from a table, in both directions, and what they measure by is
right."""

import math
import random

import pytest
import torch
from conftest import build

from minialign.generation import prompt_ids
from minialign.heads import ScalarModel, load_model
from minialign.lab.claims import (
    Bench,
    feedback,
    frozen_reader,
    humans_disagree,
    instructgpt,
    over_optimisation,
    people_prefer_rlhf,
    reward_scaling,
    rouge_is_poor,
    size_is_not_alignment,
)
from minialign.lab.demo.pipeline import SAMPLING, FirstHalf, ppo_settings
from minialign.lab.realdata.ratings import Rated, raters_on, two_raters
from minialign.rlhf import ppo
from minialign.rlhf.best_of_n import best_of_n_kl
from minialign.rlhf.ranked import ranked_rows
from minialign.runs.run_folder import RunFolder
from minialign.training import TrainingConfig
from minialign.world.annotators import Annotator, typical_pairs
from minialign.world.gold import score
from minialign.world.stories import Story
from minialign.world.tasks import demonstrations

SEEDS = (0, 1, 2)


def judged(module, table, *more):
    checks, why = module.judge(table, *more)
    assert why and "nan" not in why
    return checks


def shifted(table, which, change):
    """The table with a change of the rows that `which` names."""
    return [row | change(row) if which(row) else row for row in table]


PEOPLE = [
    {"who": who, "seed": seed, "people": size, "agreement": 0.7 + 0.03 * size + seed / 1000,
     "with oneself": 0.85 + seed / 1000, "with another": 0.7}
    for who in ("simulated", "tweets", "movies", "nyt")
    for seed in (SEEDS if who == "simulated" else (0,))
    for size in humans_disagree.SIZES
]


def test_people_disagree_and_five_are_better_than_one():
    assert all(judged(humans_disagree, PEOPLE).values()) and len(judged(humans_disagree, PEOPLE)) == 4
    equal = judged(humans_disagree, shifted(PEOPLE, lambda row: row["people"] == 5, lambda row: {"agreement": 0.73}))
    assert not equal["five are better than one, simulated"] and not equal["five are better than one, real"]
    assert not judged(humans_disagree, shifted(PEOPLE, lambda row: True, lambda row: {"with oneself":
        0.97}))["simulated people are inconsistent"]
    assert len(judged(humans_disagree, [row for row in PEOPLE if row["who"] == "simulated"])) == 2


def test_the_rest_of_a_panel_never_contains_those_who_are_measured():
    twin = Annotator("Twin", 0.5, 0.3, 0.2, noise=1e-6, lapse=0.0, tie_width=0.0)
    opposite = Annotator("Opposite", -0.5, -0.3, -0.2, noise=1e-6, lapse=0.0, tie_width=0.0)
    pairs = [pair for pair in typical_pairs(200, 0) if pair[0][0] != pair[1][0]]
    assert humans_disagree.panel_agreement(pairs, [twin] * 4, 1, 0) > 0.9
    # with oneself among the rest it would be a tie
    assert humans_disagree.panel_agreement(pairs, [twin, opposite], 1, 0) < 0.1


ROUGE = [
    {"pairs": pairs, "judge": judge, "seed": seed, "agreement": value + seed / 500, "count": 9}
    for pairs in ("all", "one policy", rouge_is_poor.LIES)
    for judge, value in (("reward model", 0.66), ("rouge1", 0.57), ("rouge2", 0.56), ("rougeL", 0.58))
    for seed in SEEDS
]


def test_rouge_is_poor_only_if_the_reward_model_is_ahead_of_every_kind_on_both_sorts_of_pairs():
    assert all(judged(rouge_is_poor, ROUGE).values())
    better = shifted(ROUGE, lambda row: (row["pairs"], row["judge"]) == ("one policy", "rouge2"),
                     lambda row: {"agreement": 0.7})
    assert [name for name, holds in judged(rouge_is_poor, better).items()
            if not holds] == ["also between samples of one model"]
    finds = shifted(ROUGE, lambda row: (row["pairs"], row["judge"]) == (rouge_is_poor.LIES, "rouge1"),
                    lambda row: {"agreement": 0.9})
    assert [name for name, holds in judged(rouge_is_poor, finds).items() if not holds] == ["ROUGE misses lies"]


def test_a_lie_differs_from_the_truth_in_one_detail_and_in_nothing_else():
    tests = [test for test in demonstrations(80, 0, 1.0) if "story" in test][:60]
    pairs = rouge_is_poor.lies(tests, 0)
    assert len(pairs) > 40 and pairs == rouge_is_poor.lies(tests, 0) != rouge_is_poor.lies(tests, 1)
    stories = {test["prompt"]: Story.from_dict(test["story"]) for test in tests}
    for pair in pairs:
        golds = [score(stories[pair["prompt"]], pair[side]) for side in ("chosen", "rejected")]
        assert golds[0].honest == 1.0 and len(golds[0].statements) == len(golds[1].statements)
        assert [one.verdict for one in golds[1].statements].count("false") == 1
        kept = [set(pair[side].split()) for side in ("chosen", "rejected")]
        assert len(kept[0] - kept[1]) <= 3 and pair["chosen"] != pair["reference"]
    assert rouge_is_poor.right(0.5, 0.5) == 0.5


SIZES = [
    {"parameters": 10**width, "width": width, "seed": seed, "loss": 3 - width / 10 + seed / 100, "helpful": helpful,
     "truthful": helpful, "harmless": helpful}
    for width, helpful in ((0, 0.9), (32, 0.3), (64, 0.35), (160, 0.4))
    for seed in SEEDS
]


def test_size_is_not_alignment_unless_growing_closes_the_gap():
    assert all(judged(size_is_not_alignment, SIZES).values())
    grown = judged(size_is_not_alignment, shifted(SIZES, lambda row: row["width"] == 160,
                                                  lambda row: {"truthful": 0.8, "loss": 9.0}))
    assert [name for name, holds in grown.items() if not holds] == ["the largest predicts best", "still untruthful"]


def test_what_cannot_be_understood_is_neither_true_nor_a_lie():
    (test,) = demonstrations(1, 3, 1.0)
    found = size_is_not_alignment.gold_of([test], [test["completion"] + " Blorp the wug."])
    assert found["truthful"] == 1.0 and found["false"] == 0.0 and 0 < found["unclear"] < 1 and found["honest"] < 1
    assert size_is_not_alignment.gold_of([test], ["Blorp the wug."])["truthful"] == 0.0


def scaling(best=0.68, five=0.8, real=0.8):
    rows = [{"judge": name, "seed": seed, "accuracy": value} for name, value in (("one person", 0.70),
        ("five people", five)) for seed in SEEDS]
    for size, at in (("small", -0.06), ("middle", -0.03), ("large", 0.0)):
        for share, less in ((0.125, -0.04), (0.5, -0.02), (1.0, 0.0)):
            row = {"size": size, "share": share, "parameters": 10}
            rows += [{"judge": "reward model", "seed": seed, "accuracy": best + at + less + seed / 1000} | row
                     for seed in SEEDS]
            if (size, share) == ("middle", 1.0):
                rows += [{"judge": "three reward models", "seed": seed, "accuracy": best - 0.02} | row
                         for seed in SEEDS]
    rows += [{"judge": name, "seed": 0, "accuracy": value} for name, value in (("1 real", 0.82), ("5 real", 0.91),
        ("two real raters", 0.75))]
    for amount, less in ((512, -0.1), (2048, -0.05), (8192, 0.0)):
        for size, behind in (("small", 0.06), ("middle", 0.03), (reward_scaling.SMOLLM2, 0.0)):
            row = {"judge": "reward model, real", "size": size, "amount": amount, "parameters": 10, "one rater": 0.7}
            rows += [row | {"seed": seed, "accuracy": real + less - behind + seed / 1000} for seed in SEEDS]
    return rows


def test_reward_models_come_close_to_one_person_and_not_to_five():
    assert all(judged(reward_scaling, scaling()).values()) and len(judged(reward_scaling, scaling())) == 6
    def failed(table):
        return [name for name, holds in judged(reward_scaling, table).items() if not holds]
    assert failed(scaling(five=0.7)) == failed(scaling(best=0.6)) == ["close to one person and not to five"]
    assert failed(scaling(real=0.9)) == failed(scaling(real=0.6)) == ["real people: close to one and not to five"]
    good = shifted(scaling(), lambda row: row.get("size") == "small", lambda row: {"accuracy": 0.9})
    assert failed(good) == ["larger models help", "real people: larger models help"]


def test_a_frozen_reader_learns_what_its_vectors_hold_and_chooses_on_validation_pairs(monkeypatch):
    texts = [f"text {i}" for i in range(40)]
    good = dict(zip(texts, torch.linspace(-1, 1, 40)))

    def vectors(bench, asked):
        noise = torch.Generator().manual_seed(0)
        blind = torch.randn(len(asked), 3, generator=noise)
        seeing = torch.stack([torch.stack([good[text], torch.tensor(0.5), -good[text]]) for text in asked])
        return dict.fromkeys(frozen_reader.BLOCKS, blind) | {14: seeing}

    monkeypatch.setattr(frozen_reader, "vectors", vectors)
    rng = random.Random(0)

    def pairs(count):
        found = (sorted(rng.sample(texts, 2), key=good.get) for _ in range(count))
        return [{"chosen": better, "rejected": worse} for worse, better in found]

    learned, valid, judged = pairs(200), pairs(50), pairs(100)
    reader = frozen_reader.FrozenReader(None, learned, valid, judged)
    block, decay = reader.search(learned, valid)
    assert block == 14 and decay in frozen_reader.DECAYS
    v = reader.learn(learned, block, decay)
    assert reader.accuracy(v, judged, block) == 1.0 and reader.accuracy(-v, judged, block) == 0.0
    assert abs(float(v[1])) < 1e-6 and float(v[0]) == pytest.approx(-float(v[2]), abs=1e-5)
    harder = reader.learn(learned, block, 10 * decay)
    assert harder.norm() < v.norm() and reader.accuracy(v, valid, 6) < 0.9
    chosen, rejected = reader.sides(learned, block)
    gap = (chosen - rejected) @ v  # at the optimum the loss pulls as hard as the decay
    pull = (torch.sigmoid(-gap)[:, None] * (chosen - rejected)).mean(0)
    assert torch.allclose(pull, decay * v, atol=1e-4)
    known = sorted({pair[side] for pair in learned for side in ("chosen", "rejected")})
    seen = reader.said[14][[reader.place[text] for text in known], 0]  # what is judged has no part in the scale
    assert float(seen.mean()) == pytest.approx(0, abs=1e-5) and float(seen.std()) == pytest.approx(1, abs=1e-5)
    few = frozen_reader.FrozenReader(None, learned[:3], valid, judged)
    assert float(few.said[14][:, 0].std()) != pytest.approx(1, abs=1e-2)
    assert frozen_reader.drawn_again(learned, 50, 0) != frozen_reader.drawn_again(learned, 50, 1)


def test_raters_are_measured_by_the_others_and_never_by_themselves():
    rated = {"a": (3, 3, 3, 3, -4), "b": (0, 0, 0, 0, 0)}
    pair = [{"chosen_id": "a", "rejected_id": "b"}]
    # one of five is against the others
    assert raters_on(pair, rated, 1, random.Random(0), 500) == pytest.approx(0.8, abs=0.05)
    assert raters_on(pair, {"a": (1, 1, 1, 1, 1), "b": (0, 0, 0, 0, 0)}, 3, random.Random(0)) == 1.0
    # with themselves in the mean it would be one half
    assert raters_on(pair, {"a": (2, -2), "b": (0, 0)}, 1, random.Random(0)) == 0.0


def test_two_raters_who_always_agree_agree():
    rng, items = random.Random(0), [Rated(str(i), f"text {i}", (rating, rating, rating)) for i,
                                    rating in enumerate((-3, 0, 2))]
    assert two_raters(items, 60, rng) == 1.0
    # whoever is drawn first, the second says the opposite or draws
    mixed = [Rated(str(i), f"text {i}", (-1, 1)) for i in range(2)]
    assert two_raters(mixed, 400, rng) == 0.0


PROXIES = [
    {"method": "ppo", "beta": beta, "seed": seed, "update": update, "kl": update * (2.0 - beta),
     "proxy": update / 10 + seed / 100,
     "gold": 0.6 + update * (-0.01 if beta == 0 else 0.004) + seed / 500, "proxy_accuracy": 0.65}
    for beta in (0.0, 0.1) for seed in SEEDS for update in range(13)
] + [
    {"method": "best-of-n", "n": n, "seed": seed, "kl": math.log(n) - (n - 1) / n, "proxy": math.log(n),
     "gold": 0.6 + math.log(n) / 50, "proxy_accuracy": 0.65}
    for n in (1, 2, 4, 8) for seed in SEEDS
]  # fmt: skip


def test_over_optimisation_needs_a_proxy_that_rises_while_gold_falls():
    assert all(judged(over_optimisation, PROXIES, 0.1).values())
    steady = shifted(PROXIES, lambda row: row.get("beta") == 0.0, lambda row: {"gold": 0.6 + row["update"] / 200})
    failed = [name for name, holds in judged(over_optimisation, steady, 0.1).items() if not holds]
    assert failed == ["without a penalty gold falls", "gold ends higher with the penalty"]


def test_a_price_that_one_seed_ran_at_stands_beside_the_others_and_says_so():
    alone = [row | {"beta": 0.3, "seed": 1} for row in PROXIES if row.get("beta") == 0.1 and row["seed"] == 1]
    table = PROXIES + alone
    assert over_optimisation.seeds_of(table, 0.3) == [1] and len(over_optimisation.ends(table, 0.3, "gold")) == 1
    assert over_optimisation.ends(table, 0.1, "gold") == over_optimisation.ends(PROXIES, 0.1, "gold")
    one, many = (over_optimisation.beside_best_of_n(found).split("by beta ")[1].split("; ")[0]
                 for found in (alone + PROXIES[-12:], table))
    assert one.startswith("0.3: ") and "(one seed)" in one and one in many and many.count("(one seed)") == 1
    assert all(judged(over_optimisation, table, 0.1).values())


HELD_OUT = [
    {"method": "ppo", "beta": beta, "seed": seed, "update": update, "kl": update * (2.0 - beta),
     "proxy": update / 10 + seed / 100, "gold": 0.6 + update * (-0.01 if beta == 0 else 0.004) + seed / 500,
     "proxy_accuracy": 0.65}
    for beta, seeds in ((0.0, SEEDS), (0.1, SEEDS), (0.3, (2,))) for seed in seeds for update in range(13)
] + [row | {"proxy": row["proxy"] + row["seed"] / 100, "gold": 0.6 + math.log(row["n"]) / 50 + row["seed"] / 500}
     for row in PROXIES if row["method"] == "best-of-n"]  # fmt: skip


def test_curves_that_were_measured_from_the_reference_on_meet_in_one_point_also_where_fewer_seeds_ran():
    found = over_optimisation.curves(HELD_OUT)
    assert list(found) == ["β = 0", "β = 0.1", "β = 0.3", "best of n"]
    starts = {tuple(round(means[name][0], 9) for name in ("kl", "proxy", "gold")) for means in found.values()}
    assert starts == {(0.0, 0.01, 0.602)}
    assert found["β = 0.3"]["gold"][-1] - 0.602 == pytest.approx(0.004 * 10), "its gain is that of its seed"
    first, last = over_optimisation.ends(HELD_OUT, 0.0, "gold")[2]
    assert first == pytest.approx(0.604) and last == pytest.approx(0.604 - 0.1), "one point, not a mean of five"
    assert all(judged(over_optimisation, HELD_OUT, 0.1).values())


def test_the_legend_names_each_curve_once_and_lies_above_them():
    fig = over_optimisation.draw(HELD_OUT)
    fig.draw_without_rendering()
    (legend,) = fig.legends
    assert [text.get_text() for text in legend.get_texts()] == ["β = 0", "β = 0.1", "β = 0.3", "best of n"]
    assert all(legend.get_window_extent().y0 >= axes.get_window_extent().y1 for axes in fig.axes)


@pytest.fixture(scope="module")
def optimised(tokenizer, tmp_path_factory):
    """The table of the quickest experiment, with a tiny policy and a tiny proxy, and what policies were asked."""
    tests, practice, folder = demonstrations(12, 5, 1.0), demonstrations(4, 6, 1.0), tmp_path_factory.mktemp("claim")
    decoder, proxy = build(context=400), ScalarModel(build(1, context=400).body, seed=1)
    made = FirstHalf(tokenizer, decoder, decoder, [], [], practice, tests)
    asked, generate = [], ppo.generate

    def listening(policy, prompts, sampling, *rest, **more):
        asked.append((len(prompts), sampling.temperature, sampling.new_tokens, tuple(prompts[0])))
        return generate(policy, prompts, sampling, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo, "generate", listening)
        patch.setattr(over_optimisation, "first_half", lambda bench, config: (folder / "base", made))
        patch.setattr(over_optimisation, "taken_for_granted", lambda *_: [])
        patch.setattr(over_optimisation, "train_proxy", lambda *rest: (proxy, 0.6))
        table = list(over_optimisation.measure(Bench(folder, folder / "cache", 1, True, lambda text: None)))
    return table, asked, made, proxy


def test_ppo_and_best_of_n_begin_as_one_model_on_the_same_prompts_at_the_same_temperature(optimised):
    table, asked, made, proxy = optimised
    starts = [row for row in table if row.get("update") == 0 or row.get("n") == 1]
    assert len(starts) == 3 and len({(row["kl"], row["proxy"], row["gold"]) for row in starts}) == 1
    assert starts[0]["kl"] == 0.0 and [row["update"] for row in table if row.get("beta") == 0.1] == [0, 1, 2]
    first = prompt_ids(made.tokenizer, [made.tests[0]["prompt"]])[0]
    held_out = [(temperature, room) for _, temperature, room, prompt in asked if prompt == tuple(first)]
    # best of n once, then both prices after each of two updates
    assert held_out == [(SAMPLING.temperature, SAMPLING.new_tokens)] * 5
    kl, scores, golds = over_optimisation.ask(made.instructed, made, proxy, made.tests, 4, 0)
    assert float(kl.abs().max()) < 1e-4, "the reference is at KL 0"
    best = {row["n"]: row for row in over_optimisation.best_of_each(made, proxy, made.tests, (1, 2, 4), 0)}
    assert best[1]["proxy"] == pytest.approx(float(scores.mean())) and best[4]["kl"] == best_of_n_kl(4)
    assert best[1]["gold"] == pytest.approx(float(golds.mean()), abs=1e-6)
    assert best[4]["proxy"] == pytest.approx(float(scores.amax(dim=1).mean()))
    assert best[1]["proxy"] < best[2]["proxy"] < best[4]["proxy"]


def test_best_of_n_by_several_proxies_takes_off_what_they_disagree_on(optimised):
    _, _, made, proxy = optimised
    proxies = [proxy, *(ScalarModel(build(seed, context=400).body, seed=seed) for seed in (2, 3))]
    _, own, golds, *scores = over_optimisation.ask(made.instructed, made, proxy, made.tests, 4, 0, proxies[1:])
    scores = [own, *scores]
    alone = over_optimisation.ask(made.instructed, made, proxies[2], made.tests, 4, 0)[1]
    assert torch.allclose(scores[2], alone), "each proxy scores the same answers as by itself"
    every = torch.stack(scores)
    together = every.mean(dim=0) - every.std(dim=0, correction=0)
    table = over_optimisation.best_of_each(made, proxy, made.tests, (1, 4), 0, proxies[1:])
    (most,) = (row for row in table if row["method"] == over_optimisation.CAUTIOUS and row["n"] == 4)
    chosen = together.argmax(dim=1)
    assert most["gold"] == pytest.approx(float(golds[torch.arange(len(golds)), chosen].mean()), abs=1e-6)
    assert most["proxy"] == pytest.approx(float(together.amax(dim=1).mean()))


def test_cautious_proxies_must_find_more_gold_at_the_largest_n():
    def by_all(more):
        return [row | {"method": over_optimisation.CAUTIOUS, "gold": row["gold"] + more + row["seed"] / 1000}
                for row in PROXIES if row["method"] == "best-of-n"]
    name = "best of n by proxies that distrust their disagreement is better"
    assert name not in judged(over_optimisation, PROXIES, 0.1), "tables of one proxy say nothing of it"
    assert judged(over_optimisation, PROXIES + by_all(0.02), 0.1)[name]
    assert not judged(over_optimisation, PROXIES + by_all(-0.02), 0.1)[name]
    assert any("cautious: a 0" in law for law in over_optimisation.laws(PROXIES + by_all(0.1)))


def test_looking_at_held_out_prompts_does_not_change_what_ppo_learns(optimised, tmp_path):
    _, _, made, proxy = optimised
    prompts = prompt_ids(made.tokenizer, [d["prompt"] for d in made.practice])
    how = ppo_settings(2, len(prompts), 0.1, 0)
    watch = over_optimisation.held_out_watcher(made, proxy, made.tests[:3], 0)
    ends = [ppo.train_ppo(made.instructed, proxy, prompts, how, RunFolder(tmp_path / str(bool(look))), watch=look)
            for look in (None, watch)]
    assert all(torch.equal(a, b) for a, b in zip(*(policy.state_dict().values() for policy, _ in ends)))
    assert set(ends[1][1]) - set(ends[0][1]) == set(over_optimisation.HELD_OUT)


def test_best_of_n_is_read_off_between_two_n_and_its_law_is_found_again():
    def at(kl):
        return over_optimisation.best_of_n_at(PROXIES, 0, kl)
    assert at(0.0) == pytest.approx(0.6) and at(math.log(4) - 0.75) == pytest.approx(0.6 + math.log(4) / 50)
    assert at(99.0) == pytest.approx(0.6 + math.log(8) / 50)
    middle = (math.sqrt(math.log(2) - 0.5) + math.sqrt(math.log(4) - 0.75)) / 2
    assert at(middle**2) == pytest.approx(0.6 + (math.log(2) + math.log(4)) / 100)
    d = [0.2, 0.5, 1.0, 1.5, 2.5]
    assert over_optimisation.fit_law(d, [x * (0.3 - 0.07 * x) for x in d], logarithm=False) == pytest.approx((0.3,
        0.07), abs=1e-4)
    assert over_optimisation.fit_law(d, [x * (0.3 - 0.07 * math.log(x)) for x in d],
                                     logarithm=True) == pytest.approx((0.3, 0.07), abs=1e-4)


def preferred(**won):
    rates = {"pretrained": 0.05, "sft": 0.3, "rlhf": 0.55} | won
    return [
        {"size": size, "parameters": 1, "model": model, "seed": seed, "won": rate + seed / 1000,
         "at equal length": rate + seed / 1000}
        for size in ("small", "large")
        for model, rate in rates.items()
        for seed in SEEDS
    ]


def test_feedback_must_win_more_at_every_size_and_beat_the_references_at_the_largest():
    assert all(judged(people_prefer_rlhf, preferred()).values())
    assert [name for name, holds in judged(people_prefer_rlhf, preferred(rlhf=0.4)).items()
            if not holds] == ["feedback beats the references"]
    longer = shifted(preferred(), lambda row: (row["size"], row["model"]) == ("small", "rlhf"),
                     lambda row: {"at equal length": 0.3})
    assert [name for name, holds in judged(people_prefer_rlhf, longer).items() if not holds] == ["also at equal length"]


def before_and_after(**changes):
    row = {"honest, sft": 0.5, "honest, rlhf": 0.6, "harmless, sft": 0.9, "harmless, rlhf": 0.95, "won, held out": 0.6,
           "won, training": 0.62}
    row |= {"won, held out, at equal length": 0.57, "won against the large one": 0.9,
            "won against the large one, before": 0.8}
    row |= {"questions, sft": 0.5, "questions, rlhf": 0.495, "honest, large, pretrained": 0.4, "won, strangers": 0.6}
    row |= {"reading, pretrained": 0.97, "reading, sft": 0.8, "reading, rlhf": 0.7, "reading, mixed": 0.75}
    row |= {f"harmless, {how}, {name}": value for how in instructgpt.BEGINNINGS
            for name, value in (("pretrained", 0.8), ("rlhf", 0.95))}
    return [{name: value + seed / 1000 for name, value in (row | changes).items()} | {"seed": seed} for seed in SEEDS]


def test_instructgpt_s_statements_fail_one_by_one():
    def failed(**changes):
        return [name for name, holds in judged(instructgpt, before_and_after(**changes)).items()
                                    if not holds]
    assert failed() == []
    assert failed(**{"honest, rlhf": 0.5}) == ["feedback makes it more truthful"]
    assert failed(**{"honest, large, pretrained": 0.7}) == ["more truthful than its base"]
    assert failed(**{"harmless, rlhf": 0.8}) == ["feedback makes it less toxic"]
    assert failed(**{"harmless, rudely, rlhf": 0.8}) == ["less toxic than its base, however it is asked"]
    assert failed(**{"won, strangers": 0.45}) == ["so do people unlike any who labelled"]
    assert failed(**{"reading, mixed": 0.7}) == ["pretraining text in PPO keeps more of the base's skill"]
    assert failed(**{"won, training": 0.7}) == failed(**{"won, held out, at equal length":
                                                         0.48}) == ["held-out annotators prefer it"]
    assert failed(**{"questions, rlhf": 0.4}) == ["at most 0.03 of the answers to other tasks are lost"]
    large = ["beats a large model that only predicts, and more than before"]
    assert failed(**{"won against the large one": 0.4}) == failed(**{"won against the large one, before": 0.9}) == large
    ceiling = [row | {"harmless, sft": 1.0, "harmless, rlhf": 1.0} for row in before_and_after()]
    assert "feedback makes it less toxic" not in judged(instructgpt, ceiling)  # what cannot rise is no test
    assert len(judged(instructgpt, before_and_after(**{"reading, rlhf": 0.795}))) == 8  # nor what was not lost


@pytest.mark.parametrize("read", ["end", "mean"])
def test_a_kept_reward_model_is_read_where_it_was_trained_to_be(tokenizer, tmp_path, read):
    rows = [{"prompt": f"{i}?", "chosen": " good", "rejected": " bad"} for i in range(12)]
    ranked, base = ranked_rows(tokenizer, rows, 40)[0], build(context=40)
    training = TrainingConfig(2, 4, 1e-3, validate_every=2)
    data = (ranked[4:], ranked[:4], [(one.prompt, one.completions[0]) for one in ranked])
    folder = feedback.reward_model(Bench(tmp_path, tmp_path, 1, True), "kept", [], base, tokenizer, training, read,
                                   lambda: data)
    assert load_model(folder, "scalar-model")[0].read == read
