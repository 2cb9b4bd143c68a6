r"""From real numbers to a few integers and back: absmax and zero-point.

    absmax        q = clamp(round(x / s), −Q, Q)         s = max|x| / Q,  Q = 2ᵇ⁻¹ − 1            x̂ = s q
    zero-point    q = clamp(round(x / s) + z, −2ᵇ⁻¹, Q)  s = (max⁺ − min⁻) / (2ᵇ − 1)             x̂ = s (q − z)
                  z = −2ᵇ⁻¹ − round(min⁻ / s),           max⁺ = max(max x, 0), min⁻ = min(min x, 0)

Jacob et al. 2018, §2.1; Dettmers et al. 2022, §2.1. Absmax is symmetric and spends half of its codes on a side that a
ReLU never uses; zero-point moves the grid so that both ends are used. Neither moves a value inside its range by more
than **half a step, |x − x̂| ≤ s / 2**.

One scale may serve a whole tensor, a row (of X: a token, of W: an output), a column, or a group of neighbours in a row:
the fewer values share it, the smaller the step. Details that matter:
    1. With 8 bits absmax uses −127…127; −128 would have no partner, so −max and max come back equally well
       (test_both_ends_of_a_symmetric_range_come_back).
    2. A row of zeros has a tiny scale, not 0: nothing is divided by 0
       (test_a_row_of_zeros_stays_zeros_and_its_scale_is_finite).
    3. Zero-point takes 0 into the range, so 0 is one of the codes, exactly: for one-sided and for constant tensors, too
       (test_zero_is_exact_and_no_value_moves_more_than_half_a_step).
    4. torch.round takes halves to the even neighbour (test_halves_are_rounded_to_the_even_neighbour).
    5. The last group of a row may be shorter: it is filled up with zeros, which lie in every range
       (test_a_group_may_be_wider_than_what_is_left).

Read next: linear.py (computing with the integers), show_mapping in lab/quantization_diagrams.py (the two pictures of
the notes).
Try it:  python -m minialign quantize RUN --scheme absmax
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from minialign.runs.errors import UserError
from minialign.runs.settings import check_choices, check_ranges

TINY = torch.finfo(torch.float32).tiny  # the smallest step: 1 / TINY is still finite
CHOICES = {"mapping": ("absmax", "zero-point"), "per": ("tensor", "row", "column", "group")}


@dataclass(frozen=True)
class MappingConfig:
    """How one tensor is mapped to integers."""

    mapping: str = "absmax"  # absmax (symmetric) | zero-point
    bits: int = 8  # b, of each integer, 2 to 8
    per: str = "tensor"  # what shares one scale: tensor | row | column | group
    group: int = 32  # neighbours in a row that share a scale, with per = group

    def __post_init__(self):
        check_choices(self, CHOICES)
        check_ranges(self, {"bits": (2, 8), "group": (1, 2**20)})

    @property
    def codes(self) -> tuple[int, int]:
        """The least and the greatest integer: −Q, Q for absmax, −2ᵇ⁻¹, Q for zero-point."""
        greatest = 2 ** (self.bits - 1) - 1
        return (-greatest if self.mapping == "absmax" else -greatest - 1), greatest

    @property
    def scales_rows(self) -> bool:
        """Whether a row has one scale, which can be multiplied after a sum along the row, as in a matrix product."""
        return self.per in ("tensor", "row")


def absmax_scale(low: Tensor, high: Tensor, config: MappingConfig) -> Tensor:
    """s = max|x| / Q of ranges [low, high], any shape, never 0.                        Dettmers et al. 2022, §2.1"""
    return (torch.maximum(high, -low) / config.codes[1]).clamp(min=TINY)


def zero_point_scale(low: Tensor, high: Tensor, config: MappingConfig) -> tuple[Tensor, Tensor]:
    """s > 0 and z, int32, a code, of ranges [low, high] with 0 taken into them.        Jacob et al. 2018, §2.1, §3"""
    least, greatest = config.codes
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    steps = greatest - least
    scale = (high / steps - low / steps).clamp(min=TINY)  # high − low itself could overflow
    return scale, (least - (low / scale).round()).clamp(least, greatest).int()


def scales_of_range(low: Tensor, high: Tensor, config: MappingConfig) -> tuple[Tensor, Tensor | None]:
    """(scale, zero-point or None) by either mapping. Raises UserError for a range that is not finite."""
    absmax = config.mapping == "absmax"
    scale, zero_point = (absmax_scale(low, high, config), None) if absmax else zero_point_scale(low, high, config)
    if scale.numel() and not math.isfinite(float(scale.max())):  # NaN and infinity pass through all of it
        raise UserError("there are values that are not finite (NaN or infinite); no scale can hold them: look for the "
                        "layer that made them")
    return scale, zero_point


def measured_scales(x: Tensor, config: MappingConfig) -> tuple[Tensor, Tensor | None]:
    """Scale and zero-point of what shares them in x (..., K), without gradient: of all (1, ..., 1), of each row
    (..., 1), of each column (1, ..., K), or of each of G groups in a row (..., G, 1)."""
    x = x.detach().float()
    if config.per == "group":
        x = F.pad(x, (0, -x.shape[-1] % config.group)).unflatten(-1, (-1, config.group))  # (..., G, group)
    if config.per == "column" and x.dim() == 1:  # one row; no dimensions at all would mean every one of them
        return scales_of_range(x, x, config)
    dims = {"tensor": tuple(range(x.dim())), "column": tuple(range(x.dim() - 1))}.get(config.per, -1)
    return scales_of_range(x.amin(dims, keepdim=True), x.amax(dims, keepdim=True), config)


def for_each_value(x: Tensor, config: MappingConfig, *parts: Tensor | None) -> tuple[Tensor | None, ...]:
    """Scales or zero-points, so that they broadcast against x (..., K): those of groups (..., G, 1) become (..., K).

    Only this and `measured_scales` know of groups.
    """
    if config.per != "group":
        return parts
    return tuple(None if part is None else part.expand(*part.shape[:-1], config.group).flatten(-2)[..., : x.shape[-1]]
                 for part in parts)


def to_codes(x: Tensor, scale: Tensor, zero_point: Tensor | None, config: MappingConfig) -> Tensor:
    """q = clamp(round(x / s) + z), int8, x's shape; what lies outside the range takes its nearest end."""
    scale, zero_point = for_each_value(x, config, scale, zero_point)
    q = (x / scale).round_()
    return (q if zero_point is None else q.add_(zero_point)).clamp_(*config.codes).to(torch.int8)


@dataclass
class Quantized:
    """A tensor as integers, with what is needed to read them."""

    values: Tensor  # the tensor's own shape, int8
    scale: Tensor  # s, float32; broadcasts against the values: (1, 1), (N, 1), (1, K); or (N, G, 1) for groups
    zero_point: Tensor | None  # z, int32, the scale's shape; None for absmax, whose zero is 0
    config: MappingConfig

    def dequantize(self) -> Tensor:
        """x̂ = s (q − z), float32, the values' shape."""
        scale, zero_point = for_each_value(self.values, self.config, self.scale, self.zero_point)
        return scale * (self.values.float() if zero_point is None else self.values.float() - zero_point)

    @property
    def bytes(self) -> int:
        """What the tensors take in memory, scales and zero-points included."""
        return sum(t.numel() * t.element_size() for t in (self.values, self.scale, self.zero_point) if t is not None)


def quantize_tensor(x: Tensor, config: MappingConfig, scales: tuple[Tensor, Tensor | None] | None = None) -> Quantized:
    """Map a tensor (..., K) of any float type, with at least one value, by its own scales or by a given (s, z).

    A row is what the last dimension runs along, a column what it counts. Raises UserError when its own scales would not
    be finite, because some value is not.
    """
    scale, zero_point = scales or measured_scales(x, config)
    return Quantized(to_codes(x.detach().float(), scale, zero_point, config), scale, zero_point, config)


def round_trip_error(x: Tensor, config: MappingConfig) -> float:
    """‖x − x̂‖ / ‖x‖; 0 for a tensor of zeros."""
    return relative_error(quantize_tensor(x, config).dequantize(), x)


def relative_error(found: Tensor, exact: Tensor) -> float:
    """‖x̂ − x‖ / ‖x‖, in float32; 0 for two tensors of zeros."""
    exact = exact.detach().float()
    return float((found - exact).norm() / exact.norm().clamp(min=TINY))


def show_codes(x: Tensor, config: MappingConfig, most: int = 12) -> str:
    """A small table: scale and zero-point, then the first `most` values, their codes and what comes back."""
    mapped = quantize_tensor(x.flatten()[None], replace(config, per="tensor"))
    zero = 0 if mapped.zero_point is None else int(mapped.zero_point)
    least, greatest = config.codes
    lines = [f"{config.mapping}, {config.bits} bits: scale {float(mapped.scale):.6g}, zero-point {zero}, codes "
             f"{least}…{greatest}"]
    for value, code, back in list(zip(x.flatten(), mapped.values[0], mapped.dequantize()[0]))[:most]:
        lines.append(f"{float(value):>12.5f} -> {int(code):>4} -> {float(back):>12.5f}")
    return "\n".join(lines)
