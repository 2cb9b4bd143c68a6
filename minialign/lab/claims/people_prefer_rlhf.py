r"""People prefer feedback: the model tuned on it wins more comparisons than the instruction-tuned one, and even than
the references.

Stiennon et al. 2020, Fig. 1: at every size summaries of the model tuned on human feedback are preferred over supervised
ones, and at 1.3 billion parameters over the references written by people (61 % of comparisons).

The test: the main job from bases of three sizes (feedback.py). Annotators whose choices no training used compare a
model's summary with the story's reference, in random order, ties one half. Beside it stands what is left of the win
rate at equal length, since longer summaries win by length; each seed's interval over its stories is in the table
(rlhf/equal_length.py).

    1. at every size feedback wins more than instruction tuning        2. and that more than pretraining alone
    3. the same as 1 at equal length        4. at the largest size feedback beats the references (above 50 %)

1 to 3 need a difference, seed by seed, whose 95 % interval over seeds is above 0, at every size; 4 an interval above
0.5.
"""

from minialign.lab.claims import Bench, Claim, Rows, Table, Verdict, column, difference, distinct, over_seeds, point
from minialign.lab.claims.feedback import SIZES, aligned, taken_for_granted, with_ends
from minialign.lab.plotting import Figure, figure, finish, lines_with_intervals, reference_line

CLAIM = Claim("people-prefer-rlhf",
              "People prefer the model tuned on feedback, even over references written by people.",
              "Stiennon et al. 2020, Fig. 1")
MODELS = {"pretrained": "pretrained", "sft": "instruction-tuned", "rlhf": "RLHF"}


def measure(bench: Bench) -> Rows:
    """Run the main job at every size and collect the win rates."""
    for seed in range(bench.seeds):
        yield from taken_for_granted(bench, seed)
        for size in ("middle",) if bench.fast else SIZES:
            found, models, _ = aligned(bench, size, seed)
            parameters = sum(p.numel() for p in models["rlhf"].parameters())
            for model in MODELS:
                stage, won = found["stages"][model], found["stages"][model]["win_rate"]
                row = {"size": size, "parameters": parameters, "model": model, "seed": seed}
                row |= {"won": won["mean"], "low": won["low"], "high": won["high"]}
                row |= with_ends("at equal length", stage["win_rate_at_equal_length"])
                yield row | {"gold": stage["gold"]["mean"], "kl": found["kl"]}


def judge(table: Table) -> Verdict:
    """The four statements, and the numbers that decide."""
    sizes = distinct(table, "size")
    won = {(size, model): column(table, "won", size=size, model=model) for size in sizes for model in MODELS}
    equal = {(size, model): column(table, "at equal length", size=size, model=model) for size, model in won}
    feedback, alike = ([difference(found[size, "rlhf"], found[size, "sft"]) for size in sizes]
                       for found in (won, equal))
    tuning = [difference(won[size, "sft"], won[size, "pretrained"]) for size in sizes]
    best = over_seeds(won[sizes[-1], "rlhf"], 0.0, 1.0)
    checks = {
        "feedback wins more than instruction tuning": all(gain.low > 0 for gain in feedback),
        "instruction tuning wins more than pretraining": all(gain.low > 0 for gain in tuning),
        "also at equal length": all(gain.low > 0 for gain in alike),
        "feedback beats the references": best.low > 0.5,
    }
    said = "; ".join(f"{size}: " + ", ".join(f"{name} {over_seeds(won[size, model]).mean:.3f}"
                                             for model, name in MODELS.items()) for size in sizes)
    feedback, alike, tuning = (", ".join(map(str, gains)) for gains in (feedback, alike, tuning))
    return checks, (f"won against the references, {said}; feedback over instruction tuning {feedback}, at equal length "
                    f"{alike}; instruction tuning over pretraining {tuning}; largest against the references {best}")


def draw(table: Table) -> Figure:
    """Win rate against the references, by size, a curve for each kind of training."""
    _, axes = figure("parameters", "preferred to the reference, share", 6.0, 3.8)
    sizes = distinct(table, "size")
    places = [column(table, "parameters", size=size)[0] for size in sizes]
    lines_with_intervals(axes, places, {name: [point(table, "won", size=size, model=model) for size in sizes]
                                        for model, name in MODELS.items()})
    reference_line(axes, 0.5, "the references")
    return finish(axes, xscale="log", ylim=(0, None))
