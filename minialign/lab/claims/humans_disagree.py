r"""Disagreement: people are inconsistent, with each other and with themselves; several together are better than one.

Stiennon et al. 2020, §3.3 and Appendix C.2: labellers agree with researchers in 77 % of comparisons, researchers with
each other in 73 %, labellers with each other in 72 %; the mode of three labellers raises 72 to 77 %. The notes draw one
person and an ensemble as lines that reward models are measured by.

The test. Simulated: panels of people with tastes, noise, lapses and biases of their own judge pairs of summaries. Real:
texts that 15 to 99 people rated (Hutto & Gilbert 2014, four sources); the drawn people's order of two texts against
that of all the others, who are never the same.

    1. simulated people agree with themselves in less than 95 % of pairs, and with each other in less still
    2. five people together agree with the rest more often than one, simulated        3. the same, real people
    4. a real person agrees with the others in less than 95 %

Intervals (95 %) are over panels (simulated, one a seed) and over the four sources (real); where two numbers are of one
panel their difference is taken panel by panel. Taken for granted: simulated people are as steady as they are made; they
choose what is worth more to them as often as their noise, lapses and ties imply, to within .01.
"""

import random

from minialign.lab.claims import Bench, Claim, Rows, Table, Verdict, column, control, difference, distinct, over_seeds
from minialign.lab.plotting import Figure, figure, finish, lines_with_intervals
from minialign.lab.realdata.ratings import STEMS, ensemble_agreement, read_ratings
from minialign.world.annotators import Annotator, agreement_table, annotators, logistic, typical_pairs, utility

CLAIM = Claim("humans-disagree",
              "People disagree with each other and with themselves; several people together judge better than one.",
              "Stiennon et al. 2020, §3.3")
SIZES = (1, 2, 3, 5, 7)  # people in an ensemble
PANEL = 20  # people who judge
SURE = 0.95  # nobody would call this inconsistent
STEADY = 0.99  # one minus how far choices may be from what the noise implies


def measure(bench: Bench) -> Rows:
    """Let panels judge, and draw ensembles from real raters."""
    for seed in range(bench.seeds):
        pairs, panel = typical_pairs(60 if bench.fast else 600, seed), annotators(PANEL, seed)
        whole = agreement_table(pairs, panel, seed)[-1]
        yield control("people are as steady as they are made", steadiness(pairs, panel, seed), STEADY, seed)
        for size in SIZES:
            row = {"who": "simulated", "seed": seed, "people": size}
            row["agreement"] = panel_agreement(pairs, panel, size, seed)
            yield row | {"with oneself": whole.with_oneself, "with another": whole.with_each_other}
    if not bench.fast:
        yield from real_people(bench)


def steadiness(pairs: list, panel: list[Annotator], seed: int) -> float:
    """One minus the distance between how often people choose what is worth more to them and how often their noise,
    lapses and ties would let them; a tie counts half."""
    rng, found, implied = random.Random(f"steady {seed}"), 0.0, 0.0
    for first, second in pairs:
        for person in panel:
            better = utility(person, *first) - utility(person, *second) + person.position_bias
            tied = 0.5 * (abs(better) < person.tie_width)
            said = person.choose(first, second, rng).winner
            found += 0.5 if said == "tie" else float((said == "first") == (better > 0))
            clear = tied / 2 + (1 - tied) * logistic(abs(better) / person.noise)
            implied += person.lapse / 2 + (1 - person.lapse) * clear
    return 1 - abs(found - implied) / (len(pairs) * len(panel))


def panel_agreement(pairs: list, panel: list, size: int, seed: int) -> float:
    """How often `size` drawn people prefer what most of the others prefer; ties of either side count half."""
    rng, sign, points = random.Random(seed), {"first": 1, "second": -1, "tie": 0}, 0.0
    for pair in pairs:
        votes = [sign[person.choose(*pair, rng).winner] for person in panel]
        ours = sum(votes[i] for i in rng.sample(range(len(panel)), size))
        rest = sum(votes) - ours
        points += 0.5 if ours == 0 or rest == 0 else float((ours > 0) == (rest > 0))
    return points / len(pairs)


def real_people(bench: Bench) -> Rows:
    """Rows on the four sources of ratings; none when they cannot be fetched, which is said."""
    sources = bench.fetched("real people", lambda: {name: read_ratings(name) for name in STEMS}) or {}
    for name, items in sources.items():
        for size in SIZES:
            agreement = ensemble_agreement(items, size, pairs=40_000)
            yield {"who": name, "seed": 0, "people": size, "agreement": agreement}


def judge(table: Table) -> Verdict:
    """The statements, and the numbers that decide."""
    simulated = [row for row in table if row["who"] == "simulated"]
    real = [row for row in table if row["who"] != "simulated"]
    oneself, another, one = (over_seeds(column(simulated, what, people=1), 0.0, 1.0)
                             for what in ("with oneself", "with another", "agreement"))
    less = difference(column(simulated, "with oneself", people=1), column(simulated, "with another", people=1))
    gain = difference(column(simulated, "agreement", people=5), column(simulated, "agreement", people=1))
    checks = {"simulated people are inconsistent": oneself.high < SURE and less.low > 0,
              "five are better than one, simulated": gain.low > 0}
    why = (f"simulated: with oneself {oneself}, with another {another} ({less} less), one with the rest {one}, five "
           f"{gain} more")
    if not real:
        return checks, why + "; real people were left out"
    person = over_seeds(column(real, "agreement", people=1), 0.0, 1.0)
    more = difference(column(real, "agreement", people=5), column(real, "agreement", people=1))
    checks |= {"five are better than one, real": more.low > 0, "real people are inconsistent": person.high < SURE}
    return checks, f"{why}; real: one with the rest {person}, five {more} more (four sources)"


def draw(table: Table) -> Figure:
    """Agreement with the others against the size of the ensemble."""
    _, axes = figure("people in the ensemble", "agreement with all the others", 6.0, 3.8)
    agreement = {who: [over_seeds(column(table, "agreement", who=who, people=size)) for size in SIZES]
                 for who in distinct(table, "who")}
    lines_with_intervals(axes, SIZES, agreement)
    return finish(axes)
