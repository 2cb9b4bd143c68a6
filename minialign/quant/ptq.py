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

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from minialign.quant.calibration import run_watched
from minialign.quant.gptq import GPTQConfig, rounded
from minialign.quant.mappings import TINY, relative_error
from minialign.quant.scheme import SchemeConfig, check_numbers, observe, quantized_layer
from minialign.quant.selection import ALL, KEEP, select
from minialign.quant.smoothquant import smoothed
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
            weights = "" if row.kept else f"{row.weight_error:.4f}"
            outputs = "" if row.output_error is None else f"{row.output_error:.4f}"
            outliers = "" if row.outliers is None else f"{row.outliers:.1%}"
            lines.append(f"{row.name:<{width}} {'×'.join(map(str, row.shape)):>12} {weights:>8} {outputs:>8} "
                         f"{outliers:>8} {row.bytes_before / 1024:>11.1f} {row.bytes_after / 1024:>9.1f}"
                         + (f"  stays: {row.kept}" if row.kept else ""))
        share = self.bytes_after / max(1, self.bytes_before)
        lines.append(f"in memory: {self.bytes_before:,} bytes before, {self.bytes_after:,} after ({share:.0%}); what "
                     f"is not in this list stays as it is")
        return "\n".join(lines)


def module_bytes(module: nn.Module) -> int:
    """Bytes of all tensors of a module in memory, each counted once."""
    tensors = {t.data_ptr(): t for t in [*module.parameters(), *module.buffers()] if t.numel()}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def quantize(model: nn.Module, scheme: SchemeConfig, batches: Iterable[Any] | None = None, include: Sequence[str] = ALL,
             keep: Sequence[str] = KEEP, embeddings: bool = False) -> tuple[nn.Module, Report]:
    """Replace a model's linear layers by quantized ones.

    Args:
        model: any module; it is changed (deep-copy it first to keep it).
        scheme: what to do, e.g. scheme_named("vector-wise").
        batches: a calibration set, each batch what the model takes (a tensor, a tuple of arguments, a dictionary);
            needed for schemes that are `calibrated` (static, gptq, smoothquant, llm-int8 with calibrated outliers),
            otherwise only for the output errors in the report.
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
    for name, linear in chosen.layers.items():
        check_numbers(linear, name)  # before anything is rounded, or reads what the layer makes
    with smoothed(model, batches, scheme.smoothing):
        observers = {} if batches is None else observe(model, chosen.layers, batches, scheme)
        weights = {} if scheme.rounding == "nearest" else rounded(model, chosen.layers, scheme.weight_config, batches,
                                                                  GPTQConfig(act_order=scheme.act_order))
        new = {}
        for name, linear in chosen.layers.items():
            observer = observers.get(name)
            new[name] = quantized_layer(linear, scheme, name, observer, getattr(observer, "columns", None),
                                        weights.get(name))
        errors = {} if batches is None else output_errors(model, chosen.layers, new, batches)
        tables = quantized_tables(model, scheme.single_token) if embeddings else {}
    rows = []
    for name, table in tables.items():
        if isinstance(table, QuantizedTable):
            embedding = model.get_submodule(name)
            rows.append(Row(name, tuple(embedding.weight.shape), module_bytes(embedding), module_bytes(table),
                            relative_error(table.weight, embedding.weight)))
    for name, linear in model.named_modules():
        if isinstance(linear, nn.Linear) and name:
            row = Row(name, tuple(linear.weight.shape), module_bytes(linear), module_bytes(linear),
                      kept=chosen.kept.get(name, ""))
            if name in tables:
                row.kept, row.bytes_after = "", 0  # it reads its table
            if name in new:
                row.weight_error = relative_error(new[name].quantized_weight().dequantize(), linear.weight)
                row.bytes_after, row.output_error = module_bytes(new[name]), errors.get(name)
                row.outliers = getattr(observers.get(name), "mean_share", None)
            rows.append(row)
    replace_modules(model, tables | new)
    return model.eval(), Report(rows, before, module_bytes(model))


def output_errors(model: nn.Module, layers: dict[str, nn.Linear], new: dict[str, nn.Module],
                  batches: list[Any]) -> dict[str, float]:
    """‖y − ŷ‖ / ‖y‖ of each quantized layer on the inputs that its layer sees in the unchanged model."""
    sums = {name: [0.0, 0.0] for name in layers}

    def see(name: str, x: Tensor, y: Tensor) -> None:
        sums[name][0] += float((new[name](x) - y).double().square().sum())
        sums[name][1] += float(y.double().square().sum())

    run_watched(model, layers, batches, see)
    return {name: (difference / max(size, TINY)) ** 0.5 for name, (difference, size) in sums.items()}
