r"""Prompt tuning: a few trained vectors before the text, and the larger the model, the nearer to tuning all of it.

Lester et al. 2021, Fig. 1 and Fig. 3a: 20 vectors and more; behind model tuning by 20 points for small models, level
with it at ten billion parameters.

The test, on the near task, which a frozen model could know: prompts of 1, 4 and 16 vectors before the shipped decoders,
and full fine-tuning of the same models (tuned.py says what is taken for granted).

    1. longer prompts help: 16 against 1, at the middle size
    2. at the largest size 16 vectors are within 0.05 of full fine-tuning
    3. the gap to full fine-tuning closes from the smallest to the largest model
    4. longer prompts help the smallest model        5. the gap of a single vector closes with size (Fig. 3a, too)

1 and 3 to 5 need a difference, seed by seed, whose 95 % interval over seeds is above 0; 2 looks at the upper end. The
first three seeds were known when 4 and 5 were written, so these are judged by later ones alone where there are any.
"""

from minialign.lab.claims import Bench, Claim, Rows, Table, Verdict, column, distinct, minus, over_seeds
from minialign.lab.claims.tuned import NEAR, SIZES, accuracies, accuracy, searched, solved
from minialign.lab.plotting import Figure, figure, finish, lines_with_intervals
from minialign.peft.prompt_tuning import PromptConfig

CLAIM = Claim("prompt-tuning", "A few trained vectors before the text suffice, the more so the larger the model.",
              "Lester et al. 2021, Fig. 1 and 3")
SEEN = 3  # seeds that were known when the last two statements were written
LENGTHS = {0: "full fine-tuning", 1: "1 vector", 4: "4 vectors", 16: "16 vectors"}


def measure(bench: Bench) -> Rows:
    """Lengths and sizes; length 0 is full fine-tuning."""
    for size in list(SIZES)[: 2 if bench.fast else None]:
        for length in LENGTHS:
            method, config = ("prompt-tuning", PromptConfig(length)) if length else ("full", None)
            rows = searched(bench, size, NEAR, method, config, length=length)
            yield from [*rows, *solved(rows)]


def judge(table: Table) -> Verdict:
    """The five statements, and the numbers that decide."""
    sizes = distinct(table, "size")
    found = {(size, length): accuracies(table, size=size, length=length) for size in sizes for length in (0, 1, 16)}
    gaps, alone = ({size: minus(found[size, 0], found[size, length]) for size in sizes} for length in (16, 1))
    longer, longest = (minus(found[size, 16], found[size, 1]) for size in ("middle", sizes[0]))
    closing, closing_alone = (minus(each[sizes[0]], each[sizes[-1]]) for each in (gaps, alone))
    helps, closes = (over_seeds(each[SEEN:] or each) for each in (longest, closing_alone))
    checks = {"longer prompts help": over_seeds(longer).low > 0,
              "near full fine-tuning at the largest size": over_seeds(gaps[sizes[-1]]).high < 0.05,
              "the gap closes with size": over_seeds(closing).low > 0,
              "longer prompts help the smallest": helps.low > 0,
              "the gap of one vector closes with size": closes.low > 0}
    said = ", ".join(f"{size} {over_seeds(gap)}" for size, gap in gaps.items())
    return checks, (f"16 vectors instead of 1: {over_seeds(longer)}, at the smallest size {helps}; 16 behind full "
                    f"fine-tuning by size: {said}; from the smallest to the largest this gap closes by "
                    f"{over_seeds(closing)}, that of one vector by {closes}")


def draw(table: Table) -> Figure:
    """Accuracy against size, a curve a length."""
    _, axes = figure("parameters", "accuracy on the near task", 6.0, 3.8)
    sizes = distinct(table, "size")
    places = [column(table, "parameters", size=size, length=0)[0] for size in sizes]
    lines_with_intervals(axes, places, {name: [accuracy(table, size=size, length=length) for size in sizes]
                                        for length, name in LENGTHS.items()})
    return finish(axes, xscale="log")
