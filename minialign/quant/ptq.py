r"""Post-training quantization: a trained model's linear layers become integers afterwards, with one call.

    quantized, report = quantize(model, scheme_named("llm-int8"), batches)
    print(report)

Nothing is trained. For each layer: map W, (static) learn the range of X from the calibration set, replace the module.
The report tells layer by layer the relative error of the weights ‖W − Ŵ‖ / ‖W‖, that of the outputs on the calibration
set ‖y − ŷ‖ / ‖y‖, and the bytes.

Source: Jacob et al. 2018, §1.1 and §3 (the rival that quantization-aware training is compared with). Details that
matter:
    1. The model that is given is changed; when anything is wrong with it (a NaN in the last layer) nothing of it is
       (test_a_weight_that_is_not_finite_is_an_error_that_names_the_layer_and_leaves_the_model).
    2. A layer's output error is measured on the inputs of the *unquantized* model: errors of layers before it do not
       count as its own (test_a_layer_s_output_error_is_its_own).
    3. Bytes are counted over all tensors of a layer: scales, zero-points, kept columns and sums too
       (test_bytes_count_scales_and_zero_points).

Read next: qat.py (the rival), saving.py. Try it:  python -m minialign quantize RUN --scheme vector-wise
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from minialign.heads import evaluating
from minialign.quant.calibration import OBSERVERS, MinMax, Observed, feed
from minialign.quant.linear import DynamicLinear, QuantizedLinear, StaticLinear, WeightOnlyLinear
from minialign.quant.llm_int8 import LLMInt8Linear, outlier_columns
from minialign.quant.mappings import TINY, quantize_tensor, scales_of_range
from minialign.quant.scheme import SchemeConfig
from minialign.quant.selection import ALL, KEEP, select
from minialign.quant.tables import QuantizedTable, quantized_tables
from minialign.runs.errors import UserError
from minialign.runs.submodules import replace_modules


@dataclass
class Row:
    """One linear layer in the report."""

    name: str  # of the layer
    shape: tuple[int, int]  # outputs, inputs
    bytes_before: int  # of weight and bias as they were
    bytes_after: int  # of everything that stands in its place, in memory
    weight_error: float = 0.0  # ‖W − Ŵ‖ / ‖W‖
    output_error: float | None = None  # ‖y − ŷ‖ / ‖y‖ on the batches given; None without batches
    outliers: float | None = None  # mean share of outlier columns in a batch; llm-int8 with batches only
    kept: str = ""  # why it stays in floating point; empty when it was quantized


@dataclass
class Report:
    """What became of each linear layer, and how much the whole model takes."""

    rows: list[Row]
    bytes_before: int  # of the whole model in memory, embeddings and norms included
    bytes_after: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        lines = [f"{'layer':<{width}} {'shape':>12} {'weights':>8} {'outputs':>8} {'outliers':>8} {'KiB before':>11} "
                 f"{'after':>9}"]
        for row in self.rows:
            error = " " * 8 if row.kept else f"{row.weight_error:>8.4f}"
            output, outliers = ("" if v is None else f(v) for v, f in ((row.output_error, "{:.4f}".format),
                (row.outliers, "{:.1%}".format)))
            sizes = f"{row.bytes_before / 1024:>11.1f} {row.bytes_after / 1024:>9.1f}"
            reason = f"  stays: {row.kept}" if row.kept else ""
            lines.append(f"{row.name:<{width}} {'×'.join(map(str, row.shape)):>12} {error} {output:>8} {outliers:>8} "
                         f"{sizes}{reason}")
        share = self.bytes_after / max(1, self.bytes_before)
        lines.append(f"in memory: {self.bytes_before:,} bytes before, {self.bytes_after:,} after ({share:.0%}); what "
                     f"is not in this list stays as it is")
        return "\n".join(lines)


def module_bytes(module: nn.Module) -> int:
    """Bytes of all tensors of a module in memory, each counted once."""
    tensors = {t.data_ptr(): t for t in [*module.parameters(), *module.buffers()] if t.numel()}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def quantized_layer(
    linear: nn.Linear, scheme: SchemeConfig, name: str = "this layer", observer: MinMax | None = None,
    columns: Tensor | None = None
) -> QuantizedLinear:
    """One linear layer as a scheme has it.

    Args:
        linear: stays untouched.
        scheme: what to do.
        name: for errors.
        observer: what saw its input, for static schemes; without it the layer refuses to work.
        columns: (K,) bool, outlier columns of the calibration set, for llm-int8 with calibrated outliers.
    Raises:
        UserError: weights that are not finite.
    """
    try:
        weight = quantize_tensor(linear.weight, scheme.weight_config)
    except UserError:
        raise UserError(f"{name}: its weights hold NaN or infinite values; take a checkpoint from before they went "
                        f"wrong") from None
    if linear.bias is not None and not bool(torch.isfinite(linear.bias).all()):
        raise UserError(f"{name}: its bias holds NaN or infinite values; take a checkpoint from before it went wrong")
    activation = scheme.activation_config
    if scheme.method == "weights":
        return WeightOnlyLinear(weight, linear.bias, name, scheme.single_token)
    if scheme.method == "dynamic":
        return DynamicLinear(weight, linear.bias, name, activation)
    if scheme.method == "static":
        scale, zero_point = (None, None) if observer is None else scales_of_range(*(v.view(1, 1)
            for v in observer.range(activation)), activation)
        return StaticLinear(weight, linear.bias, name, activation, scale, zero_point)
    every = {"original": torch.ones(linear.in_features, dtype=torch.bool), "calibrated": columns,
             "dequantized": None}[scheme.outlier_weights]
    return LLMInt8Linear(weight, linear.bias, name, activation, scheme.threshold, every, linear.weight)


class OutlierColumns(MinMax):
    """An observer that also notes which columns were outliers in some batch, and how many on average."""

    def __init__(self, threshold: float):
        super().__init__()
        self.threshold, self.columns, self.shares = threshold, None, []

    def see(self, x: Tensor) -> None:
        """Take in one batch's input, (..., K)."""
        super().see(x)
        found = outlier_columns(x.reshape(-1, x.shape[-1]), self.threshold)
        self.columns = found if self.columns is None else self.columns | found
        self.shares.append(float(found.float().mean()))


class Compared(nn.Module):
    """A linear layer that computes as before and adds up how far its quantized twin is off on the same inputs."""

    def __init__(self, linear: nn.Module, twin: QuantizedLinear):
        super().__init__()
        self.linear, self.twin = linear, twin
        self.difference = self.size = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """The layer's own output."""
        y = self.linear(x)
        self.difference += float((self.twin(x) - y).double().square().sum())
        self.size += float(y.double().square().sum())
        return y


def quantize(
    model: nn.Module,
    scheme: SchemeConfig,
    batches: Iterable[Any] | None = None,
    include: Sequence[str] = ALL,
    keep: Sequence[str] = KEEP,
    embeddings: bool = False,
) -> tuple[nn.Module, Report]:
    """Replace a model's linear layers by quantized ones.

    Args:
        model: any module; it is changed (deep-copy it first to keep it).
        scheme: what to do, e.g. scheme_named("vector-wise").
        batches: a calibration set, each batch what the model takes (a tensor, a tuple of arguments, a dictionary);
            needed for static schemes, otherwise only for the output errors in the report.
        include, keep: patterns of names, see selection.py.
        embeddings: store the embeddings, and heads that share them, as int8 weights too; see tables.py.
    Returns:
        The same model, in evaluation mode, and the report.
    Raises:
        UserError: weights or activations that are not finite, no or an empty calibration set where one is needed,
            patterns that fit nothing.
    """
    if scheme.calibrated and batches is None:
        raise UserError(f"the method {scheme.method} with these settings needs a calibration set; give batches of text "
                        f"like that which the model will read")
    batches = None if batches is None else list(batches)
    chosen, before = select(model, include, keep), module_bytes(model)
    observers = {} if batches is None else observe(model, chosen.layers, batches, scheme)
    new = {}
    for name, linear in chosen.layers.items():
        observer = observers.get(name)
        new[name] = quantized_layer(linear, scheme, name, observer, getattr(observer, "columns", None))
    compared = {} if batches is None else compare(model, chosen.layers, new, batches)
    tables = quantized_tables(model, scheme.single_token) if embeddings else {}
    rows = [table_row(name, model.get_submodule(name), table) for name, table in tables.items()
            if isinstance(table, QuantizedTable)]
    for name in [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name]:
        linear = model.get_submodule(name)
        row = Row(name, tuple(linear.weight.shape), module_bytes(linear), module_bytes(linear),
                  kept=chosen.kept.get(name, ""))
        if name in tables:
            row.kept, row.bytes_after = "", 0  # it reads its table
        if name in new:
            difference = (new[name].quantized_weight().dequantize() - linear.weight.detach().float()).norm()
            row.weight_error = float(difference / linear.weight.detach().float().norm().clamp(min=TINY))
            row.bytes_after = module_bytes(new[name])
            row.output_error = compared.get(name)
            row.outliers = (sum(observers[name].shares) / len(observers[name].shares) if scheme.method == "llm-int8"
                            and name in observers else None)
        rows.append(row)
    replace_modules(model, tables | new)
    return model.eval(), Report(rows, before, module_bytes(model))


def table_row(name: str, embedding: nn.Embedding, table: QuantizedTable) -> Row:
    """The report's line on an embedding."""
    weight = embedding.weight.detach().float()
    error = float((table.weight - weight).norm() / weight.norm().clamp(min=TINY))
    return Row(name, tuple(weight.shape), module_bytes(embedding), module_bytes(table), error)


def observe(model: nn.Module, layers: dict[str, nn.Linear], batches: list[Any], scheme: SchemeConfig) -> dict[str,
        MinMax]:
    """Show each layer's input to the observer that a scheme needs; see `watch`."""
    return watch(model, layers, batches, OBSERVERS[scheme.observer] if scheme.method == "static"
                 else lambda: OutlierColumns(scheme.threshold))


def watch(model: nn.Module, layers: dict[str, nn.Linear], batches: Iterable[Any],
          make: Callable[[], MinMax]) -> dict[str, MinMax]:
    """Show each layer's input to an observer of its own. The observers by name; the model is as it was.

    Raises:
        UserError: no batches, a layer that none of them reached, or inputs that are not finite.
    """
    watched = {name: Observed(linear, make(), name) for name, linear in layers.items()}
    replace_modules(model, watched)
    try:
        with evaluating(model):
            feed(model, batches)
    finally:
        put_back(model, watched)
    unreached = [name for name, module in watched.items() if module.observer.low is None]
    if unreached:
        raise UserError(f"{unreached[0]} ({len(unreached)} such) was reached by no batch of the calibration set; give "
                        f"batches that use the whole model")
    return {name: module.observer for name, module in watched.items()}


def compare(model: nn.Module, layers: dict[str, nn.Linear], new: dict[str, QuantizedLinear],
            batches: list[Any]) -> dict[str, float]:
    """Relative error of each quantized layer's output on the inputs that its layer sees in the unchanged model."""
    pairs = {name: Compared(linear, new[name]) for name, linear in layers.items()}
    replace_modules(model, pairs)
    try:
        with evaluating(model):
            feed(model, batches)
    finally:
        put_back(model, pairs)
    return {name: (pair.difference / max(pair.size, TINY)) ** 0.5 for name, pair in pairs.items()}


def put_back(model: nn.Module, wrappers: dict[str, nn.Module]) -> None:
    """Take wrappers off again."""
    replace_modules(model, {name: wrapper.linear for name, wrapper in wrappers.items()})
