r"""GPTQ: rounding that knows what the layer reads. A column is rounded, and those to its right make up for the error.

    minimise ‖W X − Ŵ X‖²,   H = 2 X Xᵀ + damping                                  Frantar et al. 2023, §2 and §3
    ε  = (w_q − quant(w_q)) / [H⁻¹]_qq            for a column q of W, all rows at once             Eq. 2
    W_F ← W_F − ε [H⁻¹]_qF                       for the columns F that are not rounded yet
    H⁻¹ of F is what elimination of q leaves; the upper Cholesky factor of H⁻¹ has all of these at once        Eq. 3

Rounding to the nearest code is best for a weight, not for a layer: inputs are correlated, so an error in one column can
be undone in another. At 8 bits there is little to undo, at 4 and 3 much. Details that matter:
    1. It equals the definition, one column after the other with H⁻¹ updated each time
       (test_gptq_is_optimal_brain_quantization_column_by_column).
    2. Columns of a block correct each other at once, those behind it in one product at its end: the same numbers
       (test_blocks_change_nothing).
    3. An input that is always 0 has no column in H; its weights are set to 0 (test_an_input_that_is_always_0).
    4. Scales are those of the weights as they were (per row), or of a group as the columns before it left it; with
       `act_order`, which rounds the columns with the largest inputs first, groups keep their first scales.
    5. Each group of layers reads what the ones before it, already rounded, make of the calibration set
       (test_later_layers_see_what_rounded_ones_say).
    DEVIATION: the paper takes a layer's own block alone through its quantized predecessors; here the whole model runs
       once a block, which is slower and shorter.

Read next: smoothquant.py. Try it:  python -m minialign quantize RUN --scheme gptq --calibration FILE
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from minialign.quant.calibration import run_watched
from minialign.quant.mappings import MappingConfig, Quantized, measured_scales, to_codes
from minialign.runs.errors import UserError
from minialign.runs.settings import check_ranges


@dataclass(frozen=True)
class GPTQConfig:
    """How columns are rounded."""

    damping: float = 0.01  # share of the mean of H's diagonal that is added to it
    block: int = 128  # columns that correct each other before the others learn of it
    act_order: bool = False  # round the columns with the largest inputs first

    def __post_init__(self):
        check_ranges(self, {"damping": (1e-8, 10), "block": (1, 2**20)})


def inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """(K, K) U, upper, with Uᵀ U = (H + damping · mean diag H)⁻¹. Raises UserError where H has no such factor."""
    diagonal = hessian.diagonal().mean() * damping
    damped = hessian + diagonal * torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    lower, failed = torch.linalg.cholesky_ex(damped)
    upper, failed_too = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    if failed or failed_too:
        raise UserError("the inputs of a layer say too little about each other to be inverted; give more calibration "
                        "text, or a larger damping")
    return upper


def gptq(weight: Tensor, hessian: Tensor, mapping: MappingConfig, config: GPTQConfig = GPTQConfig()) -> Quantized:
    """Round a weight (N, K) so that what it makes of its inputs changes least.

    Args:
        hessian: (K, K) X Xᵀ of the inputs, whatever its scale.
    Raises:
        UserError: values that are not finite, or a hessian that cannot be inverted.
    """
    W, H = weight.detach().double().clone(), hessian.double().clone()
    scale, zero_point = measured_scales(W, mapping)
    dead = H.diagonal() == 0
    H[dead, dead], W[:, dead] = H.diagonal()[~dead].mean().nan_to_num(1.0), 0.0  # damping stays that of the others
    order = H.diagonal().argsort(descending=True) if config.act_order else torch.arange(len(H), device=H.device)
    U = inverse_factor(H[order][:, order], config.damping)
    codes = torch.zeros(W.shape, dtype=torch.int8, device=W.device)
    for start in range(0, len(order), config.block):
        columns = order[start : start + config.block].tolist()
        errors = torch.zeros(len(W), len(columns), dtype=W.dtype, device=W.device)
        for i, column in enumerate(columns):
            place = start + i
            if mapping.per == "group" and not config.act_order and column % mapping.group == 0:
                end = column + mapping.group
                group = slice(column // mapping.group, column // mapping.group + 1)
                fresh = measured_scales(W[:, column:end] - errors[:, :i] @ U[start:place, place:end], mapping)
                scale[:, group] = fresh[0]
                if zero_point is not None:
                    zero_point[:, group] = fresh[1]
            here = W[:, column] - errors[:, :i] @ U[start:place, place]  # what the columns of this block taught it
            codes[:, column], back = one_column(here, column, scale, zero_point, mapping)
            errors[:, i] = (here - back) / U[place, place]  # Eq. 2
        rest = order[start + len(columns) :]
        W[:, rest] -= errors @ U[start : start + len(columns), start + len(columns) :]
    return Quantized(codes, scale, zero_point, mapping)


def one_column(values: Tensor, column: int, scale: Tensor, zero_point: Tensor | None,
               mapping: MappingConfig) -> tuple[Tensor, Tensor]:
    """(N,) codes of one column's values, and what comes back of them."""
    if mapping.per == "group":
        scale, zero_point = (None if x is None else x[:, column // mapping.group] for x in (scale, zero_point))
    elif mapping.per == "column":
        scale, zero_point = (None if x is None else x[:, column : column + 1] for x in (scale, zero_point))
    plain = MappingConfig(mapping.mapping, mapping.bits, "row")
    codes = to_codes(values[:, None].float(), scale, zero_point, plain)
    return codes[:, 0], Quantized(codes, scale, zero_point, plain).dequantize()[:, 0].to(values.dtype)


def rounded(model: nn.Module, layers: dict[str, nn.Linear], mapping: MappingConfig, batches: Iterable[Any],
            config: GPTQConfig = GPTQConfig()) -> dict[str, Quantized]:
    """The weights of a model's layers rounded one block after the other; the model is as it was.

    Args:
        layers: name -> layer; batches: a calibration set, as in `ptq.quantize`.
    Raises:
        UserError: an empty calibration set, a layer that it does not reach, or values that are not finite.
    """
    batches, found, kept = list(batches), {}, {}
    try:
        for names in in_blocks(list(layers)):
            hessians = input_products(model, {name: layers[name] for name in names}, batches)
            for name in names:
                if name not in hessians or not bool(torch.isfinite(hessians[name]).all()):
                    what = "was reached by no batch" if name not in hessians else "reads NaN or infinite values"
                    raise UserError(f"{name} {what} of the calibration set; give batches that use the whole model")
                found[name] = gptq(layers[name].weight, hessians[name], mapping, config)
                kept[name] = layers[name].weight.detach().clone()
                with torch.no_grad():
                    layers[name].weight.copy_(found[name].dequantize())
    finally:
        with torch.no_grad():
            for name, weight in kept.items():
                layers[name].weight.copy_(weight)
    return found


def input_products(model: nn.Module, layers: dict[str, nn.Linear], batches: list[Any]) -> dict[str, Tensor]:
    """Layer -> (K, K) X Xᵀ over all inputs that it reads."""
    found: dict[str, Tensor] = {}

    def see(name: str, x: Tensor, _: Tensor) -> None:
        rows = x.detach().flatten(0, -2).double()
        found[name] = found.get(name, 0) + rows.T @ rows

    run_watched(model, layers, batches, see)
    return found


def in_blocks(names: list[str]) -> list[list[str]]:
    """Names of layers that stand in one block of a stack, together and in order: `body.blocks.3.…`."""
    groups: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        numbered = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
        groups.setdefault(".".join(parts[: numbered + 1]), []).append(name)
    return list(groups.values())
