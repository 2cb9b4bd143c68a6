r"""Calibration: which range of its input a layer will meet, learned from a few examples before its scale is fixed.

    min-max            [min x, max x] over everything seen           one wild value decides the scale of all
    moving average     r ← (1 − c) r + c · range of this batch       one batch decides less; Jacob et al. 2018, §3.1
    percentile         cuts off a share of the values at either end                          Wu et al. 2020, §3.2
    mse                the range [αl, αh] whose mean squared rounding-and-clipping error is least, α from 0.05 to 1

The calibration set is unlabelled text like that which the model will read, and not the text of the final measurement: a
scale that was chosen on that has seen the answer (the command refuses it). Details that matter:
    1. Percentile and mse look at a histogram that doubles its reach when a larger value comes, so memory is constant
       and no value is lost (test_the_histogram_keeps_every_value_when_it_grows).
    2. Only `watch` shows an observer anything; afterwards it is gone (test_no_observer_is_left_in_the_model).
    3. With fewer values than a percentile can cut, it is min-max.

Read next: scheme.py. Try it:  python -m minialign quantize RUN --scheme static --calibration FILE
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from minialign.heads import evaluating
from minialign.quant.mappings import MappingConfig, quantize_tensor, scales_of_range
from minialign.runs.errors import UserError
from minialign.runs.submodules import replace_modules

BINS = 4096  # of a histogram over [−reach, reach]


class MinMax:
    """Least and greatest value of everything seen."""

    def __init__(self):
        self.low, self.high = None, None

    def see(self, x: Tensor) -> None:
        """Take in some values, any shape."""
        low, high = x.float().aminmax()
        self.low, self.high = (low, high) if self.low is None else self.updated(low, high)

    def updated(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The range so far and that of a new batch in one."""
        return torch.minimum(self.low, low), torch.maximum(self.high, high)

    def range(self, config: MappingConfig) -> tuple[Tensor, Tensor]:
        """(low, high), scalars. Raises UserError when nothing was seen."""
        if self.low is None:
            raise UserError("nothing was calibrated: no values came by; give at least one batch that reaches every "
                            "layer")
        return self.low, self.high

    def scales(self, config: MappingConfig) -> tuple[Tensor, Tensor | None]:
        """(1, 1) scale and zero-point of the range."""
        return scales_of_range(*(end.view(1, 1) for end in self.range(config)), config)


class MovingAverage(MinMax):
    """Exponential average of each batch's range; `rate` is c, the weight of the newest one, above 0, at most 1."""

    def __init__(self, rate: float = 0.1):
        super().__init__()
        if not 0 < rate <= 1:
            raise UserError(f"rate is {rate}; it must be above 0 and at most 1")
        self.rate = rate

    def updated(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """r ← (1 − c) r + c · range of this batch."""
        return self.low.lerp(low, self.rate), self.high.lerp(high, self.rate)


class Histogram(MinMax):
    """Counts in equal bins over [−reach, reach]; when a larger value comes, the reach doubles and bins merge."""

    def __init__(self):
        super().__init__()
        self.counts, self.reach = torch.zeros(BINS, dtype=torch.float64), 0.0

    def see(self, x: Tensor) -> None:
        """Take in some values."""
        super().see(x)
        largest = float(x.abs().max())
        if not largest < float("inf"):
            return  # min-max has noted it, and the range that is asked for will not be finite
        if self.reach == 0.0:
            self.reach = largest  # zeros before it lie in the middle bins, which stay the middle
        while 0 < self.reach < largest:
            middle = self.counts.view(-1, 2).sum(dim=1)  # (BINS / 2,)
            self.counts = torch.cat([torch.zeros(BINS // 4), middle, torch.zeros(BINS // 4)]).double()
            self.reach *= 2
        place = ((x.flatten().cpu().double() / max(self.reach, 1e-300) + 1) * (BINS / 2)).long().clamp_(0, BINS - 1)
        self.counts += torch.bincount(place, minlength=BINS)

    def centres(self) -> Tensor:
        """(BINS,) the value that stands for each bin."""
        return (torch.arange(BINS, dtype=torch.float64) + 0.5) * (2 * self.reach / BINS) - self.reach


class Percentile(Histogram):
    """The range that holds a share of all values, e.g. 0.999; half of the rest is cut off at either end."""

    def __init__(self, share: float = 0.999):
        super().__init__()
        if not 0.5 < share <= 1:
            raise UserError(f"share is {share}; it must be above 0.5 and at most 1")
        self.share = share

    def range(self, config: MappingConfig) -> tuple[Tensor, Tensor]:
        """(low, high): bin edges with at most (1 − share) / 2 of the values outside each, within min and max."""
        low, high = super().range(config)
        cut, width = (1 - self.share) / 2 * self.counts.sum(), 2 * self.reach / BINS
        below = int((self.counts.cumsum(0) <= cut).sum())  # bins that may go at the lower end
        above = int((self.counts.flip(0).cumsum(0) <= cut).sum())
        edges = torch.tensor([below * width - self.reach, self.reach - above * width])
        edges = edges.to(low.device)
        return torch.maximum(low, edges[0]), torch.minimum(high, edges[1])


class MeanSquaredError(Histogram):
    """The range whose rounding and clipping errors together are least, by trying."""

    def range(self, config: MappingConfig) -> tuple[Tensor, Tensor]:
        """(low, high) = α (min, max) for the best α of 0.05, 0.06 … 1."""
        low, high = super().range(config)
        x, best = self.centres().float().to(low.device), (float("inf"), 1.0)
        for percent in range(100, 4, -1):
            scales = scales_of_range(low * percent / 100, high * percent / 100, config)
            back = quantize_tensor(x, config, scales).dequantize()
            best = min(best, (float(((x - back).cpu().double() ** 2 * self.counts).sum()), percent / 100))
        return low * best[1], high * best[1]


OBSERVERS: dict[str, Callable[[], MinMax]] = {
    "min-max": MinMax, "moving-average": MovingAverage, "percentile": Percentile, "mse": MeanSquaredError,
}


class Watched(nn.Module):
    """A module that shows each input and output to `see` and computes as before."""

    def __init__(self, inner: nn.Module, see: Callable[[Tensor, Tensor], None]):
        super().__init__()
        self.inner, self.see = inner, see

    def forward(self, x: Tensor) -> Tensor:
        """The module's own output."""
        y = self.inner(x)
        self.see(x, y)
        return y


def run_watched(model: nn.Module, modules: dict[str, nn.Module], batches: Iterable[Any],
                see: Callable[[str, Tensor, Tensor], None]) -> None:
    """Run a model on batches and call see(name, input, output) whenever one of these modules is used; afterwards the
    model is as it was.

    Args:
        batches: a tensor is the model's one argument, a tuple its arguments, a dictionary its keywords.
    Raises:
        UserError: no batches.
    """
    batches = list(batches)
    if not batches:
        raise UserError("the calibration set is empty; give at least one batch of text like that which the model will "
                        "read")
    replace_modules(model, {name: Watched(module, partial(see, name)) for name, module in modules.items()})
    try:
        with evaluating(model), torch.no_grad():
            for batch in batches:
                if isinstance(batch, dict):
                    model(**batch)
                else:
                    model(*(batch if isinstance(batch, tuple | list) else (batch,)))
    finally:
        replace_modules(model, modules)


def watch(model: nn.Module, layers: dict[str, nn.Linear], batches: Iterable[Any],
          make: Callable[[], MinMax]) -> dict[str, MinMax]:
    """Show each layer's input to an observer of its own. The observers by name; the model is as it was.

    Raises:
        UserError: no batches, a layer that none of them reached, or inputs that are not finite.
    """
    observers = {name: make() for name in layers}

    def see(name: str, x: Tensor, _: Tensor) -> None:
        if x.numel():
            observers[name].see(x)
            if not bool(torch.isfinite(torch.stack([observers[name].low, observers[name].high])).all()):
                raise UserError(f"{name}: its input holds NaN or infinite values while it is calibrated; look for the "
                                f"layer before it that makes them")

    run_watched(model, layers, batches, see)
    unreached = [name for name, observer in observers.items() if observer.low is None]
    if unreached:
        raise UserError(f"{unreached[0]} ({len(unreached)} such) was reached by no batch of the calibration set; give "
                        f"batches that use the whole model")
    return observers
