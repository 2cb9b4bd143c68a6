r"""Outliers break plain int8; a scale for each vector, and 16 bits for the columns that hold outliers, repair it.

Dettmers et al. 2022 (LLM.int8()), Table 1 and Fig. 1: from 6.7 billion parameters on, a few features of the activations
are so large that one scale for a matrix rounds everything else away; vector-wise scales help, and taking the outlier
columns out in 16 bits brings float's loss back.

The test, weights and activations of every linear layer in int8, KL from the model in float, nats a token, for

    toy        the shipped decoder: nothing stands far out, though up to 29 of 96 columns reach the threshold in its
               last block, so that llm-int8 loses a fifth less than vector-wise
    planted    two features of each block 30 times as large at the norm before its layers, and as much smaller in the
               weights that read them: in float nothing changes, for int8 these are outlier columns
    real       SmolLM2-135M, first 4,096 tokens of Macbeth in windows of 512; when it can be fetched

    1. planting breaks plain int8: absmax (a scale for each matrix) is worse on `planted` than on `toy`
    2. a scale for each vector is better than one for each matrix, on planted and real
    3. taking out the outlier columns is better still, on planted and real
    4. on planted it loses less than a tenth of absmax's KL

Each needs a difference of KL, seed by seed, whose 95 % interval is above 0 (real: one model, so the KL itself).
"""

import copy
from functools import partial

import torch

from minialign.heads import LanguageModel
from minialign.lab.claims import Bench, Claim, Rows, Table, Verdict, column, difference, distinct, over_seeds
from minialign.lab.claims.quantized import as_its_card, cost, subject
from minialign.lab.claims.shipped import on_the_real_model
from minialign.lab.fidelity import fidelity, windows
from minialign.lab.plotting import Figure, figure, legend, whiskers
from minialign.quant.ptq import quantize
from minialign.quant.scheme import SCHEMES
from minialign.runs.devices import device_of

CLAIM = Claim("int8-outliers",
              "Outlier features break plain int8; vector-wise scales and a 16-bit part for their columns repair it.",
              "Dettmers et al. 2022, Table 1")
TRIED = ("absmax", "zero-point", "row-wise", "vector-wise", "llm-int8", "weights")
VERSIONS = {"toy": "toy", "planted": "toy, planted outliers", "real": "SmolLM2-135M"}  # as the figure names them
FACTOR, FEATURES = 30.0, 2  # how much larger, and how many of a block's features


def measure(bench: Bench) -> Rows:
    """Quantize all versions with all schemes."""
    for seed in range(bench.seeds):
        yield as_its_card(seed)
        made = subject(bench, seed)
        changed = plant_outliers(made.model, seed)
        with torch.no_grad():
            same = float((changed(made.rows[:8]) - made.model(made.rows[:8])).abs().max())
        for version, model in (("toy", made.model), ("planted", changed)):
            for scheme in TRIED:
                found = cost(model, SCHEMES[scheme], made.rows, reference=made.model)
                yield {"version": version, "scheme": scheme, "seed": seed, "change in float": same} | found.to_dict()
    yield from on_the_real_model(bench, partial(on_macbeth, bench))


def plant_outliers(model: LanguageModel, seed: int, factor: float = FACTOR, features: int = FEATURES) -> LanguageModel:
    """A copy whose outputs in float are the same, and in which each norm before a linear layer lets some features out
    `factor` times as large.

    Args:
        model: a decoder of `transformer.py`; seed: which features; features: how many, the same in all blocks, as in
            large models.
    """
    model = copy.deepcopy(model)
    chosen = torch.randperm(model.config.width, generator=torch.Generator().manual_seed(seed))[:features]
    chosen = chosen.to(device_of(model))
    with torch.no_grad():
        for block in model.body.blocks:
            attention = (block.attention.query, block.attention.key, block.attention.value)
            inner = (block.feed_forward.inner,)
            for norm, readers in ((block.attention_norm, attention), (block.feed_forward_norm, inner)):
                norm.weight[chosen] *= factor
                norm.bias[chosen] *= factor
                for reader in readers:
                    reader.weight[:, chosen] /= factor
    return model


def on_macbeth(bench: Bench, model: LanguageModel, ids: list[int], tokens: int = 4096, window: int = 512) -> Rows:
    """Rows on SmolLM2, one a scheme."""
    rows = windows(ids, window, tokens)
    for scheme in TRIED:
        found = fidelity(model, quantize(copy.deepcopy(model), SCHEMES[scheme])[0], rows, batch=1)
        bench.say(f"  SmolLM2, {scheme}: perplexity {found.before:.3f} -> {found.after:.3f}, KL {found.kl:.4f}, same "
                  f"first choice {found.agreement:.3f}")
        yield {"version": "real", "scheme": scheme, "seed": 0, "change in float": 0.0} | found.to_dict()


def judge(table: Table) -> Verdict:
    """The four statements, and the numbers that decide."""
    kl = {(version, scheme): column(table, "kl", version=version, scheme=scheme)
          for version in VERSIONS for scheme in TRIED}

    def better(scheme: str, rival: str) -> bool:
        real = all(a > b for a, b in zip(kl["real", rival], kl["real", scheme]))
        return real and difference(kl["planted", rival], kl["planted", scheme]).low > 0

    left = over_seeds([a / b for a, b in zip(kl["planted", "llm-int8"], kl["planted", "absmax"])])
    checks = {
        "outliers break plain int8": difference(kl["planted", "absmax"], kl["toy", "absmax"]).low > 0,
        "a scale for each vector is better": better("vector-wise", "absmax"),
        "the 16-bit part is better still": better("llm-int8", "vector-wise"),
        "less than a tenth is left": left.high < 0.1,
    }
    said = []
    for version in distinct(table, "version"):
        means = {scheme: sum(kl[version, scheme]) / len(kl[version, scheme])
                 for scheme in ("absmax", "vector-wise", "llm-int8")}
        said.append(f"{version}: " + ", ".join(f"{scheme} {mean:.4f}" for scheme, mean in means.items()))
    rest = "" if kl["real", "absmax"] else "; the real model was left out"
    return checks, (f"KL from float, nats a token, {'; '.join(said)}; with planted outliers llm-int8 keeps {left} of "
                    f"absmax's{rest}")


def draw(table: Table) -> Figure:
    """KL of every scheme, a point a version."""
    fig, axes = figure("", "KL from the float model, nats a token", 6.6, 3.8)
    versions = distinct(table, "version")
    for number, version in enumerate(versions):
        found = [column(table, "kl", version=version, scheme=scheme) for scheme in TRIED]
        points = [over_seeds(kl, 0.0) if len(kl) > 1 else kl[0] for kl in found]
        places = [place + 0.16 * (number - (len(versions) - 1) / 2) for place in range(len(TRIED))]
        whiskers(axes, number, places, points, VERSIONS[version])
    axes.set_xticks(range(len(TRIED)), [name.replace("-", "-\n", 1) for name in TRIED])
    axes.set_yscale("log")
    legend(axes)
    return fig
