r"""What the claims on quantization share: the shipped decoder, texts of its world, what a scheme costs it, and what is
taken for granted of it.

It is judged on the beginnings of documents that it never saw, 64 tokens each, so that no row is padded. The base is
one, so seeds are of texts; differences are seed by seed.

    perplexity as on its card    within half a hundredth, on the documents that were held out when it was made: what a
                                 scheme loses is lost by that model

is fixed before anything is run.

Read next: int8_outliers.py.
"""

import copy
import functools
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import mean
from time import perf_counter
from typing import Any

from torch import Tensor, nn

from minialign.heads import LanguageModel
from minialign.lab.bases.make import BASES, load_base
from minialign.lab.bases.texts import Corpus, MarkedRows
from minialign.lab.claims import Bench, Table, column, control, over_seeds
from minialign.lab.claims.shipped import base, beginnings, documents, real_model
from minialign.lab.claims.tuned import SIZES
from minialign.lab.fidelity import Fidelity, fidelity, windows
from minialign.lab.plotting import Figure, figure, finish, whiskers
from minialign.pretrain.causal_lm import PackedText, mean_loss, next_token_loss
from minialign.quant.ptq import quantize
from minialign.quant.scheme import SchemeConfig
from minialign.tokenizer import Tokenizer
from minialign.training import TrainingConfig, adamw, gradient_step, learning_rate_at

ROWS = 160  # documents that a model is judged on, at most: short ones are left out
LEARNED_FROM = 6400  # documents of a seed for calibration and further training
AS_ITS_CARD = 0.995  # threshold of the control: 1 less the relative difference of perplexities
KL = dict[tuple[str, str], list[float]]  # (version of a model, scheme) -> nats a token from float, seed by seed


@dataclass
class Subject:
    """The decoder and the texts of a seed."""

    model: LanguageModel
    tokenizer: Tokenizer
    texts: list[str]  # for calibration and further training
    rows: Tensor  # (≤ ROWS, LENGTH) ids, of other documents


def subject(bench: Bench, seed: int) -> Subject:
    """The shipped decoder, and texts that it never saw."""
    (model, tokenizer), held_out = base(), 20 if bench.fast else 200
    texts = documents(seed, held_out + (LEARNED_FROM // 50 if bench.fast else LEARNED_FROM))
    return Subject(model, tokenizer, texts[held_out:], beginnings(tokenizer, texts[:held_out])[:ROWS])


def as_its_card(seed: int) -> dict[str, Any]:
    """The control, as a row of a claim's table."""
    return control("perplexity as on its card", 1 - abs(math.expm1(loss_less_the_cards())), AS_ITS_CARD, seed)


@functools.cache
def loss_less_the_cards() -> float:
    """Nats a token on the documents that were held out when the base was made, less what its card says of them."""
    folder = BASES / SIZES["middle"]
    model, tokenizer, card = load_base(folder)
    batches = Corpus(folder, card["seed"]).held_out(MarkedRows, tokenizer, model.config.context)
    return mean_loss(model, batches) - card["curve"][-1]["validation"]


def train_on(model: nn.Module, made: Subject, config: TrainingConfig) -> nn.Module:
    """The model after some more steps on the beginnings of its texts; for every method the same batches."""
    rows = beginnings(made.tokenizer, made.texts[: config.steps * config.batch])
    data = PackedText(rows, config.batch, config.seed)
    optimizer = adamw(model, config.learning_rate, config.weight_decay, config.beta2)
    model.train()
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, config)
        batches = data.microbatches(step, 1)
        gradient_step(model, optimizer, batches, next_token_loss, config, sum(batch.count for batch in batches))
    return model.eval()


def cost(model: LanguageModel, scheme: SchemeConfig, rows: Tensor, batches: list[Tensor] | None = None,
         reference: LanguageModel | None = None) -> Fidelity:
    """What a scheme does to a copy of a model.

    Args:
        model: stays as it is; scheme: what to do to its linear layers; rows: (R, T) ids to judge on.
        batches: calibration set, for schemes that need one.
        reference: what to compare with; the model itself when None.
    """
    return fidelity(reference or model, quantize(copy.deepcopy(model), scheme, batches)[0], rows, batch=32)


def costs_on_macbeth(bench: Bench, schemes: dict[str, SchemeConfig],
                     tokens: int) -> Iterator[tuple[str, Fidelity, float]]:
    """Name of each scheme, what it costs SmolLM2 on the first `tokens` tokens of Macbeth, calibrated on 4,096 that
    follow, and the seconds that quantizing took; none where they cannot be had."""
    for model, ids in real_model(bench):
        judged, calibration = windows(ids, 512, tokens), list(windows(ids[tokens:], 512, 4096).split(1))
        for name, scheme in schemes.items():
            began = perf_counter()
            changed, _ = quantize(copy.deepcopy(model), scheme, calibration if scheme.calibrated else None)
            seconds = round(perf_counter() - began, 1)
            found = fidelity(model, changed, judged, batch=1)
            bench.say(f"  SmolLM2, {name}: perplexity {found.before:.3f} -> {found.after:.3f}, KL {found.kl:.4f}, same "
                      f"first choice {found.agreement:.3f}, {seconds} s")
            yield name, found, seconds


def kl_by_scheme(table: Table, versions: Iterable[str], schemes: Iterable[str],
                 fields: tuple[str, str] = ("version", "scheme")) -> KL:
    """KL of every scheme on every version; `fields` are what the table calls the two."""
    return {pair: column(table, "kl", **dict(zip(fields, pair))) for pair in itertools.product(versions, schemes)}


def means(kl: KL, version: str, schemes: Iterable[str]) -> str:
    """Mean KL of each scheme that was tried on a version, in words."""
    return ", ".join(f"{scheme} {mean(kl[version, scheme]):.4f}" for scheme in schemes if kl[version, scheme])


def draw_kl(kl: KL, versions: dict[str, str], schemes: dict[str, str], size: tuple[float, float],
            apart: float = 0.14) -> Figure:
    """KL of every scheme, a point a version that was tried.

    Args:
        versions, schemes: what the figure calls them; size: inches.
        apart: points of neighbouring versions, in units of the distance of two schemes.
    """
    _, axes = figure("", "KL from the float model, nats a token", *size)
    tried = [version for version in versions if all(kl[version, scheme] for scheme in schemes)]
    for number, version in enumerate(tried):
        places = [place + apart * (number - (len(tried) - 1) / 2) for place in range(len(schemes))]
        whiskers(axes, number, places, [over_seeds(kl[version, scheme], 0.0) for scheme in schemes], versions[version])
    return finish(axes, list(schemes.values()), yscale="log")
