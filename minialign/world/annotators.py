r"""Annotators: people who compare two summaries, each in a way of their own.

    u = 10 (w · (helpful, honest, harmless)) + length_bias · words               what a summary is worth to a person
    P(the first wins) = σ((u₁ − u₂ + position_bias) / noise)                     Bradley and Terry 1952

With probability `lapse` the choice is a coin's; when |u₁ − u₂| < `tie_width` it may be "tie". Those who label for
training and those who only test are different people. A table says how far each agrees with the others and with
herself, as papers on human feedback report (Ouyang et al. 2022, §3.4: about 73 % of pairs between annotators).

Read next: reading.py. Try it: `python -m minialign annotators`.
"""

import math
import random
from dataclasses import astuple, dataclass

from minialign.world.corpus import corrupted_summary
from minialign.world.gold import Gold, score
from minialign.world.stories import Story, write_story
from minialign.world.tasks import reference_summary

SCALE = 10.0  # utility of a perfect summary, so that noise and biases are numbers near 1


@dataclass(frozen=True)
class Annotator:
    """One person: what she values, how steady her judgement is, and what she costs."""

    name: str
    helpful: float  # weights of the three aspects; they sum to 1
    honest: float
    harmless: float
    noise: float = 0.6  # logistic scale, in units of utility
    lapse: float = 0.03  # share of choices made without looking
    length_bias: float = 0.0  # utility per word
    position_bias: float = 0.0  # utility added to whichever stands first
    tie_width: float = 0.2  # differences below this are called a tie half of the time
    price: float = 12.0  # cents per comparison

    def choose(self, first: tuple[Gold, int], second: tuple[Gold, int], rng: random.Random) -> "Choice":
        """Compare two summaries, each given as its gold score and its number of words."""
        difference = utility(self, *first) - utility(self, *second) + self.position_bias
        seconds = round(4 + 0.35 * (first[1] + second[1]) * rng.uniform(0.7, 1.5), 1)
        if rng.random() < self.lapse:
            return Choice(rng.choice(["first", "second"]), rng.randint(1, 9), seconds)
        if abs(difference) < self.tie_width and rng.random() < 0.5:
            return Choice("tie", 1, seconds)
        winner = "first" if rng.random() < logistic(difference / self.noise) else "second"
        sure = 1 + 8 * math.tanh(abs(difference) / 4) + rng.uniform(-1, 1)
        return Choice(winner, max(1, min(9, round(sure))), seconds)

    def compare(self, story: Story, first: str, second: str, rng: random.Random) -> "Choice":
        """Compare two texts as summaries of `story`."""
        return self.choose(*((score(story, text), len(text.split())) for text in (first, second)), rng)


@dataclass(frozen=True)
class Choice:
    """What an annotator says of a pair."""

    winner: str  # "first", "second" or "tie"
    confidence: int  # 1 (cannot say) to 9 (certain)
    seconds: float  # time taken


def logistic(x: float) -> float:
    """1 / (1 + exp(−x)), for any x."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def utility(annotator: Annotator, gold: Gold, words: int) -> float:
    """What a summary is worth to an annotator, from 0 to SCALE before the length bias."""
    parts = annotator.helpful * gold.helpful + annotator.honest * gold.honest + annotator.harmless * gold.harmless
    return SCALE * parts + annotator.length_bias * words


TRAINING_PANEL = (
    Annotator("Priya", 0.50, 0.30, 0.20, noise=0.5),
    Annotator("Jonas", 0.80, 0.10, 0.10, noise=0.6, length_bias=0.04),
    Annotator("Aisha", 0.30, 0.50, 0.20, noise=0.5, price=15),
    Annotator("Mateo", 0.45, 0.35, 0.20, noise=0.7, position_bias=0.2, price=8),
    Annotator("Ingrid", 0.15, 0.75, 0.10, noise=0.5, price=18),
    Annotator("Kofi", 0.40, 0.10, 0.50, noise=0.5, lapse=0.06, tie_width=0.3, price=9),
    Annotator("Hana", 0.60, 0.25, 0.15, noise=0.5, length_bias=-0.12),
    Annotator("Piotr", 0.45, 0.30, 0.25, noise=0.8, lapse=0.05, price=7),
)
HELD_OUT_PANEL = (
    Annotator("Salma", 0.50, 0.30, 0.20, noise=0.6),
    Annotator("Diego", 0.40, 0.15, 0.45, noise=0.6, length_bias=0.08),
    Annotator("Yuki", 0.80, 0.15, 0.05, noise=0.7),
    Annotator("Freya", 0.15, 0.70, 0.15, noise=0.5, price=16),
    Annotator("Omar", 0.45, 0.30, 0.25, noise=0.7, position_bias=0.15),
)
STRANGERS = (  # people who want what nobody in the training panel does: every weight lies outside of the panel's
    Annotator("Lena", 0.92, 0.04, 0.04, noise=0.6),
    Annotator("Tariq", 0.06, 0.90, 0.04, noise=0.6),
    Annotator("Noor", 0.10, 0.05, 0.85, noise=0.6),
    Annotator("Viktor", 0.88, 0.06, 0.06, noise=0.7, length_bias=-0.16),
    Annotator("Mei", 0.08, 0.84, 0.08, noise=0.7, position_bias=0.25),
)
NAMES = (
    "Amara Bruno Chloe Dmitri Elif Farid Greta Hugo Ilse Jamal Keiko Lucas Maeve Nikhil Olga Pedro Quinn Rania Stefan "
    "Tova Umar Vera Wanda Xavier Yara Zoltan"
).split()


def annotators(count: int, seed: int) -> list[Annotator]:
    """A random panel; every fifth person looks at one aspect only. After the names run out they carry a number."""
    rng = random.Random(seed)
    order = rng.sample(NAMES, len(NAMES))
    panel = []
    for index in range(count):
        name = order[index % len(order)] + (str(index // len(order) + 1) if index >= len(order) else "")
        weights = [rng.gammavariate(4 * share, 1) for share in (0.5, 0.3, 0.2)]
        if index % 5 == 4:
            only = rng.randrange(3)
            weights = [float(i == only) for i in range(3)]
        shares = (weight / sum(weights) for weight in weights)
        panel.append(Annotator(name, *shares, noise=rng.uniform(0.4, 1.2), lapse=rng.uniform(0, 0.08),
                               length_bias=rng.gauss(0, 0.02), position_bias=rng.gauss(0.1, 0.1),
                               price=round(rng.uniform(6, 20))))
    return panel


def typical_pairs(count: int, seed: int) -> list[tuple[tuple[Gold, int], tuple[Gold, int]]]:
    """Pairs as labellers meet them: two summaries of one story, as a small model writes them, in random order."""
    rng = random.Random(seed)
    pairs = []
    while len(pairs) < count:
        story = write_story(rng)
        texts = [corrupted_summary(story, rng) if rng.random() < 0.6 else reference_summary(story, rng)
                 for _ in range(2)]
        if texts[0] != texts[1]:
            pairs.append(tuple((score(story, text), len(text.split())) for text in texts))
    return pairs


@dataclass(frozen=True)
class Agreement:
    """How far people agree: shares of the pairs on which neither said "tie"."""

    name: str
    with_oneself: float
    with_each_other: float
    with_majority: float  # of the others
    ties: float
    first: float  # share of choices for the completion that stands first: above one half, a habit
    longer: float  # share of choices for the longer completion
    dollars: float  # price of all pairs, once

    def dollars_per_bit(self, pairs: int) -> float:
        """Price of one bit about what the others think."""
        told = pairs * information(self.with_majority)
        return self.dollars / told if told else math.inf


def information(p: float) -> float:
    """Bits in a choice that is right with probability p: 1 + p log₂ p + (1 − p) log₂(1 − p), Shannon 1948."""
    return 1 + sum(q * math.log2(q) for q in (p, 1 - p) if q > 0)


def agreement_table(pairs: list, panel: tuple[Annotator, ...] | list[Annotator], seed: int) -> list[Agreement]:
    """One row a person, each pair judged twice by everybody; the last row, "panel", is the mean (its cost the sum)."""
    rng = random.Random(seed)
    sign = {"first": 1, "second": -1, "tie": 0}
    once, again = ([[sign[person.choose(*pair, rng).winner] for pair in pairs] for person in panel] for _ in range(2))
    longer = [first[1] - second[1] for first, second in pairs]
    rows = []
    for i, person in enumerate(panel):
        others = [votes for j, votes in enumerate(once) if j != i]
        rows.append(Agreement(
            name=person.name,
            with_oneself=_agreement(once[i], again[i]),
            with_each_other=sum(_agreement(once[i], votes) for votes in others) / len(others),
            with_majority=_agreement(once[i], [sum(votes) for votes in zip(*others)]),
            ties=once[i].count(0) / len(pairs),
            first=_agreement(once[i], [1] * len(pairs)),
            longer=_agreement(once[i], longer),
            dollars=person.price * len(pairs) / 100,
        ))
    *shares, dollars = zip(*[astuple(row)[1:] for row in rows])
    return [*rows, Agreement("panel", *(sum(column) / len(rows) for column in shares), sum(dollars))]


def _agreement(votes: list[int], others: list[int]) -> float:
    """Share of the pairs with the same winner, of those on which both have one."""
    decided = [(a > 0) == (b > 0) for a, b in zip(votes, others) if a and b]
    return sum(decided) / len(decided) if decided else 0.0


def show_agreement(rows: list[Agreement], pairs: int) -> str:
    """The table for people; `pairs`: how many each of them judged."""
    lines = ["            oneself   others  majority   ties   first  longer      cost    a bit"]
    for r in rows:
        shares = f"{r.with_oneself:9.0%}{r.with_each_other:9.0%}{r.with_majority:10.0%}{r.ties:7.0%}"
        bit = r.dollars_per_bit(pairs * (len(rows) - 1) if r is rows[-1] else pairs)
        lines.append(f"{r.name:10}{shares}{r.first:8.0%}{r.longer:8.0%}{r.dollars:9.2f}${bit:8.2f}$")
    return "\n".join(lines)
