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

import torch

from minialign.heads import LanguageModel
from minialign.lab.claims import Bench, Claim, Rows, Table, Verdict, difference, over_seeds
from minialign.lab.claims.quantized import as_its_card, cost, costs_on_macbeth, draw_kl, kl_by_scheme, means, subject
from minialign.lab.plotting import Figure
from minialign.quant.scheme import SCHEMES
from minialign.runs.devices import device_of

CLAIM = Claim("int8-outliers",
              "Outlier features break plain int8; vector-wise scales and a 16-bit part for their columns repair it.",
              "Dettmers et al. 2022, Table 1")
TRIED = {name: SCHEMES[name] for name in ("absmax", "zero-point", "row-wise", "vector-wise", "llm-int8", "weights")}
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
            for scheme, config in TRIED.items():
                found = cost(model, config, made.rows, reference=made.model)
                yield {"version": version, "scheme": scheme, "seed": seed, "change in float": same} | found.to_dict()
    for scheme, found, _ in costs_on_macbeth(bench, TRIED, 4096):
        yield {"version": "real", "scheme": scheme, "seed": 0, "change in float": 0.0} | found.to_dict()


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


def judge(table: Table) -> Verdict:
    """The four statements, and the numbers that decide."""
    kl = kl_by_scheme(table, VERSIONS, TRIED)

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
    said = "; ".join(f"{version}: {means(kl, version, ('absmax', 'vector-wise', 'llm-int8')) or 'left out'}"
                     for version in VERSIONS)
    return checks, f"KL from float, nats a token, {said}; with planted outliers llm-int8 keeps {left} of absmax's"


def draw(table: Table) -> Figure:
    """KL of every scheme, a point a version."""
    names = {name: name.replace("-", "-\n", 1) for name in TRIED}
    return draw_kl(kl_by_scheme(table, VERSIONS, TRIED), VERSIONS, names, (6.6, 3.8), apart=0.16)
