r"""Distillation: a student learns from its teacher what labels cannot tell it, and comes close to it although it is
smaller.

Hinton et al. 2015, §2 and §3, Sanh et al. 2019, Tables 1 and 4, Jiao et al. 2020, Tables 2 and 5, Wang et al. 2020,
Table 2.

The test: students of two sizes, of the shipped decoder and of the shipped encoder, on the same documents for the same
number of steps: from labels, from the teacher's likeliest word, from soft targets, by each recipe, and by each recipe
with one part taken away (distilled.py, which says what is taken for granted). They are judged by their loss on
documents that nobody trained on and, tuned alike, on two tasks; TinyBERT and MiniLM, which predict no word in their
general stage, on the tasks alone.

    1. soft targets beat labels, in both families and sizes        2. they beat the teacher's likeliest word
    3. DistilGPT-2 and DistilBERT close more than half of the gap between the student of labels and the teacher
    4. and come close to the teacher: at most 0.1 nats behind it
    5. without the soft targets, 6. without the start, both are worse
    7. TinyBERT's and MiniLM's students of half the layers know the two tasks better than the student of labels
    8. on-policy distillation brings the student's own texts closer to the teacher than soft targets on given texts,
       both begun as its layers
    9. soft targets know ten words that no document of the student holds: they get more than a quarter of the
       teacher's probability where they come next, and more than from a student of labels

Every difference is taken seed by seed; its 95 % interval over seeds has to lie above 0 (3: above one half; 4: below
0.1; 9: above a quarter). What decides nothing is made with the first seed only.
"""

import math
from collections.abc import Iterator

from minialign.evaluation import Interval
from minialign.heads import load_model
from minialign.lab.claims import Bench, Claim, Rows, Table, Verdict, column, control, difference, distilled, over_seeds
from minialign.lab.claims.distilled import ABLATIONS, MAIN, Teacher, at_temperature, load_teacher, student, warmest
from minialign.lab.plotting import Figure, bars_with_intervals, figure, reference_line
from minialign.runs.run_folder import RunFolder

CLAIM = Claim("distillation",
              "A student learns from its teacher's probabilities what labels cannot tell it, and comes close although "
              "it is smaller.",
              "Hinton et al. 2015, §2, §3; Sanh et al. 2019, Table 4")
COMPARED = ("labels", "best word", "soft targets")  # the methods whose smaller students the statements are about
WORDLESS = ("TinyBERT", "MiniLM")  # recipes in whose general stage no word is predicted
RECIPE = {"decoder": "DistilGPT-2", "encoder": "DistilBERT"}
NEEDED = ("soft, from layers", *(f"{name} − {part}" for name in RECIPE.values() for part in ("soft", "start")))
CLOSE = 0.1  # nats a token
CONTROLLED = 6  # seeds of the controls: one student's last tenth tells little
REMOVED, MANY = "ten words removed", "two layers, many documents"


def measure(bench: Bench) -> Rows:
    """Teach every student, seed by seed."""
    for seed in range(bench.seeds):
        for family in MAIN:
            teacher = load_teacher(bench, family, seed)
            knows = teacher.examine(bench, teacher.folder, seed)
            yield {"family": family, "size": "teacher", "way": "teacher", "seed": seed} | knows
            tasks = family == "encoder" or seed == 0  # no statement is about what a decoder knows of the tasks
            yield from taken_for_granted(bench, teacher, family, knows["loss"], seed, tasks)
            best, tried = warmest(bench, family)
            yield {"family": family, "way": "temperature", "seed": seed, "temperature": best} | tried
            losses = []
            for name, size, method in methods(family, bench, seed, best):
                taught = student(bench, teacher, name, method, size, seed)
                asked = tasks and name in MAIN[family] and size == "two layers"  # what is taken away shows in the loss
                found = teacher.examine(bench, taught, seed, asked)
                if name in WORDLESS:
                    del found["loss"]
                elif size == "two layers":
                    losses.append(f"{name} {found['loss']:.3f}")
                yield {"family": family, "size": size, "way": name, "seed": seed} | found
            if family == "decoder":
                yield from removed(bench, teacher, seed, at_temperature(distilled.SOFT, best))
                yield from with_many(bench, teacher, seed, at_temperature(distilled.SOFT, best))
            bench.say(f"  seed {seed}: " + ", ".join(losses))
    for seed in range(bench.seeds, 0 if bench.fast else CONTROLLED):
        for family in MAIN:
            teacher = load_teacher(bench, family, seed)
            loss = teacher.examine(bench, teacher.folder, seed, False)["loss"]
            yield from taken_for_granted(bench, teacher, family, loss, seed, False)


def taken_for_granted(bench: Bench, teacher: Teacher, family: str, loss: float, seed: int, tasks: bool) -> Table:
    """A family's two controls, of the larger student of labels.

    Args:
        loss: the teacher's, nats a token; tasks: whether that student is examined on the tasks as well.
    """
    taught = student(bench, teacher, "labels", distilled.LABELS, "two layers", seed)
    looks = [row["validation"] for row in RunFolder(taught).metrics() if "validation" in row]
    less = teacher.examine(bench, taught, seed, tasks)["loss"] - loss
    return [control(f"nats that the {family} is ahead of its student of labels", less, distilled.LESS, seed),
            control(f"nats that the last tenth changes that student ({family})", looks[-1] - looks[-2],
                    -distilled.SETTLED, seed)]


def methods(family: str, bench: Bench, seed: int, temperature: float) -> Iterator[tuple[str, str, distilled.Method]]:
    """Name, size and method of each student: the first seed's have those that no statement is about, too."""
    every = seed == 0 and not bench.fast
    for name, method in MAIN[family].items():
        method = at_temperature(method, temperature) if name == "soft targets" else method
        for size in ("two layers",) if bench.fast else distilled.SIZES:
            if size == "two layers" or name in COMPARED:
                yield name, size, method
    for name, method in ABLATIONS[family].items():
        if name in NEEDED or every:
            yield name, "two layers", at_temperature(method, temperature) if name == "soft, from layers" else method


def with_many(bench: Bench, teacher: Teacher, seed: int, soft: distilled.Method) -> Rows:
    """Students that read a new document each time."""
    for name, method in (("labels", distilled.LABELS), ("soft targets", soft)):
        taught = student(bench, teacher, name, method, "two layers", seed, teacher.ids)
        found = teacher.examine(bench, taught, seed, False)
        yield {"family": "decoder", "size": MANY, "way": name, "seed": seed} | found


def removed(bench: Bench, teacher: Teacher, seed: int, soft: distilled.Method) -> Rows:
    """Students that read only documents without some words, and the probability that they give to them where they
    come."""
    words = teacher.rare_words()
    left = [ids for ids in teacher.ids if not set(words) & set(ids)]
    facts = {"family": "decoder", "size": REMOVED, "seed": seed}
    facts["words"] = ", ".join(teacher.tokenizer.name(word).strip() for word in words)
    facts["documents left"] = len(left) / len(teacher.ids)
    models = {"teacher": teacher.model}
    for name, method in (("labels", distilled.LABELS), ("soft targets", soft)):
        known_as = f"{name}, {sorted(words)} removed"
        taught = student(bench, teacher, known_as, method, "two layers", seed, left[: teacher.budget.documents])
        models[name] = load_model(taught)[0]
    for name, model in models.items():
        yield facts | {"way": name, "known": teacher.mean_probability(model, words)}


def values(table: Table, what: str, family: str, size: str, way: str) -> list[float]:
    """One field of a method's rows, in the order of the seeds; "tasks" is the mean accuracy on the two tasks."""
    if what == "tasks":
        both = (values(table, name, family, size, way) for name in ("near", "far"))
        return [(near + far) / 2 for near, far in zip(*both)]
    return column(table, what, family=family, size=size, way=way)


def ahead(table: Table, family: str, size: str, worse: str, better: str, what: str = "loss") -> Interval:
    """By how much the first method's loss is above the second's."""
    return difference(values(table, what, family, size, worse), values(table, what, family, size, better))


def closed(table: Table, family: str) -> Interval:
    """Share of the gap between a student of labels and the teacher that the family's recipe closes."""
    ways = (("two layers", "labels"), ("two layers", RECIPE[family]), ("teacher", "teacher"))
    losses = zip(*(values(table, "loss", family, size, way) for size, way in ways))
    return over_seeds([(labels - recipe) / max(labels - teacher, 1e-9) for labels, recipe, teacher in losses])


def judge(table: Table) -> Verdict:
    """The nine statements, and the numbers that decide."""
    sizes = [size for size in distilled.SIZES if values(table, "loss", "decoder", size, "labels")]
    soft = {(family, size): ahead(table, family, size, "labels", "soft targets") for family in MAIN for size in sizes}
    best = {size: ahead(table, "decoder", size, "best word", "soft targets") for size in sizes}
    share = {family: closed(table, family) for family in MAIN}
    behind = {family: difference(values(table, "loss", family, "two layers", RECIPE[family]),
                                 values(table, "loss", family, "teacher", "teacher")) for family in MAIN}
    lacking = {part: {family: ahead(table, family, "two layers", f"{name} − {part}", name)
                      for family, name in RECIPE.items()} for part in ("soft", "start")}
    tasks = {way: ahead(table, "encoder", "two layers", way, "labels", "tasks") for way in WORDLESS}
    own = ahead(table, "decoder", "two layers", "soft, from layers", "on-policy", "own texts")
    knows = {way: values(table, "known", "decoder", REMOVED, way) for way in ("teacher", "soft targets", "labels")}
    part = over_seeds([a / max(b, 1e-9) for a, b in zip(knows["soft targets"], knows["teacher"])])
    more = difference(knows["soft targets"], knows["labels"])
    checks = {
        "soft targets beat labels": all(gain.low > 0 for gain in soft.values()),
        "soft targets beat the teacher's likeliest word": all(gain.low > 0 for gain in best.values()),
        "the recipes close more than half of the gap": all(interval.low > 0.5 for interval in share.values()),
        "they come close to the teacher": all(gap.high < CLOSE for gap in behind.values()),
        "without the soft targets they are worse": all(loss.low > 0 for loss in lacking["soft"].values()),
        "without the start they are worse": all(loss.low > 0 for loss in lacking["start"].values()),
        "TinyBERT and MiniLM know the tasks better than labels": all(gain.low > 0 for gain in tasks.values()),
        "on-policy brings own texts closer": own.low > 0,
        "soft targets know a word that was taken away": part.low > 0.25 and more.low > 0,
    }
    said = [f"soft targets are {gain} nats ahead of labels ({family}, {size})" for (family, size), gain in soft.items()]
    said += [f"{gain} ahead of the likeliest word ({size})" for size, gain in best.items()]
    said += [f"{name} closes {share[family]} of the gap and is {behind[family]} behind its teacher"
             for family, name in RECIPE.items()]
    parts = {"soft": "the soft part", "start": "the start"}
    said += [f"{loss} worse without {parts[part_]} ({family})"
             for part_, losses in lacking.items() for family, loss in losses.items()]
    said += [f"{way} is {gain} ahead on the tasks" for way, gain in tasks.items()]
    said.append(f"own texts {own} nats closer on-policy")
    means = ", ".join(f"{way} {over_seeds(found).mean:.4f}" for way, found in knows.items())
    return checks, "; ".join([*said, f"removed words: {means} (share of the teacher's {part})"])


def draw(table: Table) -> dict[str, Figure]:
    """The decoder's losses, the encoder's tasks, and the removed words."""
    fig, axes = figure("mean probability of ten words where they come next", "", 6.0, 2.4)
    names = {"teacher": "the teacher", "soft targets": "soft targets, never read them",
             "labels": "labels, never read them"}
    bars_with_intervals(axes, {name: over_seeds(values(table, "known", "decoder", REMOVED, way))
                               for way, name in names.items()}, digits=4)
    data, axes = figure("loss of the student, nats a token", "", 6.0, 2.6)
    bars_with_intervals(axes, {f"{way}, {texts}": over_seeds(values(table, "loss", "decoder", size, way))
                               for texts, size in (("few documents", "two layers"), ("many documents", MANY))
                               for way in ("labels", "soft targets")}, digits=3)
    return {
        "figure": draw_family(table, "decoder", "loss", "loss of the student, nats a token", math.inf),
        "encoders": draw_family(table, "encoder", "tasks", "mean accuracy on two tasks", 1.0),
        "removed-words": fig,
        "few-and-many": data,
    }


def draw_family(table: Table, family: str, what: str, label: str, most: float) -> Figure:
    """A point for each method, beside the teacher's line; `most` is what the quantity can be."""
    found = {way: values(table, what, family, "two layers", way) for way in (*MAIN[family], *ABLATIONS[family])}
    found = {way: numbers for way, numbers in found.items() if numbers}
    teacher = values(table, what, family, "teacher", "teacher")
    fig, axes = figure(label, "", 6.4, 0.7 + 0.36 * len(found))
    shown = {way: over_seeds(numbers, 0.0, most) for way, numbers in found.items() if len(numbers) > 1}
    bars = {way if way in shown else f"{way} (one seed)": shown.get(way, found[way][0]) for way in found}
    for bar in bars_with_intervals(axes, bars, digits=3):
        bar.set_visible(False)  # the axis does not begin at 0, so a bar's length would say nothing
    reference_line(axes, over_seeds(teacher).mean, "teacher", vertical=True)
    ends = [end for interval in shown.values() for end in (interval.low, interval.high)]
    ends += [*teacher, *(number for numbers in found.values() for number in numbers)]
    margin = 0.05 * (max(ends) - min(ends)) + 1e-3
    axes.set_xlim(min(ends) - margin, max(ends) + margin)
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)
    return fig
