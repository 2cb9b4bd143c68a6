r"""Unseen tasks: instruction tuning on templated tasks generalises to tasks of other kinds, ahead of T5 and of a larger
language model.

Sanh et al. 2022 (T0), Fig. 4: on tasks of clusters that were never trained on, T0 beats its own base (T5+LM) and GPT-3
models up to sixteen times its size, zero-shot, in nearly every wording.

The test: four clusters (inference, story completion, coreference, format) are held out. The T5 (an encoder-decoder that
reads, LM adaptation) is tuned on the clusters that it is taught (`TAUGHT`) in thousands of instructions; that is T0.
Beside it stand the T5 as it is, and a decoder with at least four times the parameters that read such texts, too. Every
wording of every held-out task is answered by ranking the options. A model's number is the mean over clusters of its
tasks' median accuracies. Seeds are of tuning, its order and its examples; there is one base of each kind.

    1. T0 is above the T5 it was made from        2. above the larger decoder, zero-shot
    3. and with two solved examples

Each needs 95 % intervals over seeds that are apart. What guessing gives is in the table and in the figure.
"""

from minialign.evaluation import Interval
from minialign.heads import load_model
from minialign.instruct.mixture import MixtureConfig
from minialign.lab.bases.make import BASES, load_base
from minialign.lab.claims import Bench, Claim, Rows, Table, Verdict, column, over_seeds
from minialign.lab.claims.instructed import (
    chance,
    examined,
    overalls,
    results_of,
    rows_of,
    settings,
    t5,
    taken_for_granted,
    tuned,
)
from minialign.lab.demo.instruct import LARGER, STYLES
from minialign.lab.plotting import Figure, bars_with_intervals, figure, finish, reference_line, whiskers
from minialign.world.datasets import DATASETS

CLAIM = Claim("t0-unseen-tasks",
              "Tuned on many tasks in many wordings, a model does better on tasks it never saw than its base and than "
              "a larger language model.",
              "Sanh et al. 2022, Fig. 4")
MANY = MixtureConfig(manners=True)  # thousands of instructions
# After T0's 1,200 steps trained tasks stand at .88, and their control asks .9. From 2,000 to 6,000 they rise from .92
# to .97, and reading from .96 to .98; 2,000 at twice the rate leave reading at .92.
STEPS = 6000
MODELS = {"T5": "its base (T5+LM)", "GPT-3": "larger decoder", "GPT-3, two examples": "larger decoder, two examples",
          "T0": "T0"}  # in the table: in words


def measure(bench: Bench) -> Rows:
    """Make the models, examine each in every wording, and compare."""
    config, larger = settings(bench, steps=STEPS), load_base(BASES / (STYLES["flan"] if bench.fast else LARGER))[:2]
    models = {"T5": load_model(t5(bench, config)), "GPT-3": larger, "GPT-3, two examples": larger}
    same = {name: examined(*models[name], config) for name in ("T5", "GPT-3")}  # whatever the seed
    for seed in range(bench.seeds):
        models["T0"] = tuned(bench, config, "t0", MANY, seed)
        yield from taken_for_granted(bench, STYLES["t0"], *models["T0"], MANY, seed, t5(bench, config))
        for name in MODELS:
            model, tokenizer = models[name]
            results = same.get(name) or examined(model, tokenizer, config, shots=2 if "two" in name else 0, seed=seed)
            yield from rows_of(results, model=name, seed=seed, parameters=sum(p.numel() for p in model.parameters()))


def accuracies(table: Table) -> dict[str, Interval]:
    """Accuracy of each model on the held-out clusters, over seeds."""
    return {name: over_seeds(overalls(table, model=name), 0.0, 1.0) for name in MODELS}


def judge(table: Table) -> Verdict:
    """The three statements, and the numbers that decide."""
    found = accuracies(table)
    checks = {
        "above its base": found["T0"].above(found["T5"]),
        "above the larger model, zero-shot": found["T0"].above(found["GPT-3"]),
        "above the larger model, few-shot": found["T0"].above(found["GPT-3, two examples"]),
    }
    sizes = {name: column(table, "parameters", model=name)[-1] for name in MODELS}
    why = "; ".join(f"{MODELS[name]} {found[name]} ({sizes[name] / 1e3:,.0f}k parameters)" for name in reversed(MODELS))
    return checks, f"held-out accuracy {why}; chance {chance(table, model='T0'):.3f}"


def draw(table: Table) -> dict[str, Figure]:
    """A bar for each model, its interval over seeds, and what guessing gives; and T0 beside its base, task by task."""
    _, axes = figure("accuracy on held-out clusters", "", 6.4, 3.6)
    bars_with_intervals(axes, {MODELS[name].replace(", ", ",\n"): interval
                               for name, interval in accuracies(table).items()})
    reference_line(axes, chance(table, model="T0"), "chance", vertical=True)
    return {"figure": finish(axes), "tasks": by_task(table)}


def by_task(table: Table) -> Figure:
    """The median wording of each held-out task, cluster by cluster, with intervals over seeds."""
    _, axes = figure("", "accuracy, median over wordings", 7.2, 4.2)
    for number, name in enumerate(("T5", "T0")):
        of_seeds = results_of(table, model=name)
        tasks = list(of_seeds[0])
        whiskers(axes, number, [place + 0.16 * number - 0.08 for place in range(len(tasks))],
                 [over_seeds([results[task].median for results in of_seeds], 0.0, 1.0) for task in tasks], MODELS[name])
    axes.hlines([of_seeds[0][task].chance for task in tasks], [place - 0.35 for place in range(len(tasks))],
                [place + 0.35 for place in range(len(tasks))], color="0.35", linewidth=1.2, label="chance")
    for place, (task, before) in enumerate(zip(tasks[1:], tasks)):
        if DATASETS[task].cluster != DATASETS[before].cluster:
            axes.axvline(place + 0.5, color="0.6", linewidth=0.8)
    axes.tick_params(axis="x", labelrotation=40)
    return finish(axes, [task.replace("_", " ") for task in tasks], ylim=(0, 1))
