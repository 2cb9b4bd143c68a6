r"""Outlier features: which features of a layer's input are far larger than the others, in how many tokens, at which
place; and what they are worth.

    largest(k) = maxₜ |X[t, k]|       feature k is an outlier where it reaches α = 6.0          Dettmers et al. 2022, §4
    worth(k)   = what the model loses when the layers read 0 in the place of feature k                    the same, §4.1

From 6.7 billion parameters on, they found, the same few features are outliers in nearly all layers and most tokens, and
zeroing these hurts far more than zeroing as many others. Details that matter:
    1. A feature that is large in all tokens and one that is large at the first alone are two things: `tokens` and
       `place` tell them apart (test_sizes_places_and_shares_equal_their_definitions).
    2. Zeroing a feature is zeroing the columns of the weights that read it; afterwards they are what they were, to the
       bit (test_silenced_features_are_read_as_zeros_and_come_back).

Read next: calibration.py. See also: llm_int8.py (what is done about them). Try it:  notebooks/08_llm_int8.ipynb
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from minialign.quant.calibration import MinMax, watch
from minialign.quant.llm_int8 import outlier_columns
from minialign.quant.selection import ALL, select
from minialign.runs.errors import UserError


class FeatureSizes(MinMax):
    """An observer of one layer's input, feature by feature; a value counts as large from the threshold α on."""

    def __init__(self, threshold: float = 6.0):
        super().__init__()
        self.threshold, self.count, self.shares = threshold, 0, []  # α, tokens, share of outlier columns in each batch
        self.largest = self.place = self.large = 0  # (K,) max |x|; where in its row it stood; tokens that reach α

    def see(self, x: Tensor) -> None:
        """Take in one batch's input, (..., T, K)."""
        super().see(x)
        rows = torch.atleast_2d(x.abs())
        rows = rows.reshape(-1, *rows.shape[-2:])  # (B, T, K)
        values, places = rows.amax(dim=0).max(dim=0)  # (K,) each
        new = torch.ones_like(values, dtype=torch.bool) if self.count == 0 else values > self.largest
        self.place, self.largest = torch.where(new, places, self.place), torch.where(new, values, self.largest)
        self.large = self.large + (rows >= self.threshold).sum(dim=(0, 1))
        self.count += rows.shape[0] * rows.shape[1]
        self.shares.append(float(outlier_columns(values[None], self.threshold).float().mean()))

    @property
    def columns(self) -> Tensor:
        """(K,) true for features that reach α in some token: outlier columns of LLM.int8()."""
        return outlier_columns(self.largest[None], self.threshold)

    @property
    def mean_share(self) -> float:
        """Share of the columns of a batch that LLM.int8() computes in 16 bits, on average."""
        return sum(self.shares) / len(self.shares)

    @property
    def outliers(self) -> list[int]:
        """Features that reach α in some token, the largest first."""
        order = self.largest.argsort(descending=True)
        return order[self.largest[order] >= self.threshold].tolist()

    @property
    def tokens(self) -> Tensor:
        """(K,) share of the tokens in which a feature reaches α."""
        return self.large / max(1, self.count)


def feature_sizes(model: nn.Module, batches: Iterable[Any], include: Sequence[str] = ALL,
                  threshold: float = 6.0) -> dict[str, FeatureSizes]:
    """What the linear layers of a model read, by name, in their order; the model is unchanged.

    Args:
        batches: as for `ptq.quantize`; include: patterns of layers, see selection.py; threshold: α.
    Raises:
        UserError: no batches, patterns that fit nothing, a layer that is not reached, or an input that is not finite.
    """
    return watch(model, select(model, include).layers, batches, lambda: FeatureSizes(threshold))


def share_of_columns(found: dict[str, FeatureSizes], threshold: float) -> float:
    """Share of all layers' columns that reach a threshold: what LLM.int8() computes in 16 bits, were this one call."""
    return float((torch.cat([sizes.largest for sizes in found.values()]) >= threshold).float().mean())


def systematic_feature(found: dict[str, FeatureSizes]) -> tuple[int, list[str]]:
    """The feature that is an outlier in most of these equally wide layers, and their names; of several the largest.

    Raises:
        UserError: no feature is an outlier anywhere.
    """
    layers = Counter(feature for sizes in found.values() for feature in sizes.outliers)
    reach = torch.stack([sizes.largest for sizes in found.values()]).amax(dim=0)  # (K,) over all layers
    if not layers:
        raise UserError(f"no feature reaches the threshold in any of these layers; the largest value is "
                        f"{float(reach.max()):.3g}: lower the threshold")
    chosen = max(layers, key=lambda feature: (layers[feature], float(reach[feature])))
    return chosen, [name for name, sizes in found.items() if chosen in sizes.outliers]


@contextmanager
def silenced(model: nn.Module, include: Sequence[str], features: Sequence[int]) -> Iterator[nn.Module]:
    """Inside the `with`, the layers that `include` fits read 0 in the place of these features."""
    layers, columns = select(model, include).layers.values(), list(features)
    kept = [layer.weight.detach()[:, columns].clone() for layer in layers]
    try:
        with torch.no_grad():
            for layer in layers:
                layer.weight[:, columns] = 0.0
        yield model
    finally:
        with torch.no_grad():
            for layer, before in zip(layers, kept):
                layer.weight[:, columns] = before
