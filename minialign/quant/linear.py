r"""Linear layers whose weights are integers: three ways to treat what comes in.

    weights only    y = x Ŵᵀ + b,  Ŵ = s_w (Q_w − z_w)        x stays as it is; saves memory, computes in floating point
    dynamic         y ≈ X̂ Ŵᵀ + b   in integers                 the scale of x is measured at run time, for each token or for the whole call
    static          y ≈ X̂ Ŵᵀ + b   in integers                 the scale of x was calibrated before and never changes

"Dynamic" is about activations alone: weights have fixed scales in all three. Static saves the look at x and gives a
token the same integers whatever stands beside it; dynamic fits each input and needs no calibration set. Details that
matter:
    1. The bias stays in floating point and is added once, at the very end
       (test_the_bias_is_added_once_and_never_quantized).
    2. A static layer without a scale refuses to work, and nothing that it sees changes its scale
       (test_a_static_layer_before_calibration_says_so, test_static_scales_do_not_move_when_the_model_is_used).
    3. NaN or infinite activations are an error that names the layer; a cast to int8 would turn them into ordinary
       numbers (test_activations_that_are_not_finite_are_an_error_that_names_the_layer).
    4. `single_token`: up to four tokens at a time go through torch's kernel for int8 weights. It reads a quarter of the
       bytes, which is what one token costs, and computes in bfloat16: the result is off by about 0.3 %
       (test_the_fast_way_for_single_tokens_is_close). Off unless asked for.

Source: Jacob et al. 2018, §2; Dettmers et al. 2022, §2.1 and §3.1. Read next: llm_int8.py, ptq.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minialign.quant.int8_matmul import TILE, integer_linear
from minialign.quant.mappings import MappingConfig, Quantized, ranges, scales_of_range, to_codes
from minialign.runs.errors import UserError

FEW = 4  # tokens; with more of them torch's kernel for single tokens is slower than the product of floats


class QuantizedLinear(nn.Module):
    """What the layers share: integers of the weight, their scales, and the bias.

    Args:
        weight: (N, K) as integers.
        bias: (N,) or None.
        name: of the layer in its model, for errors.
    """

    def __init__(self, weight: Quantized, bias: Tensor | None = None, name: str = "this layer"):
        super().__init__()
        self.out_features, self.in_features = weight.values.shape
        self.weight_config, self.name = weight.config, name
        self.register_buffer("weight", weight.values)
        self.register_buffer("weight_scale", weight.scale)
        self.register_buffer("weight_zero", weight.zero_point)
        self.register_buffer("bias", None if bias is None else bias.detach().float().clone())

    def quantized_weight(self) -> Quantized:
        """The weight's integers and scales."""
        return Quantized(self.weight, self.weight_scale, self.weight_zero, self.weight_config)

    def settings(self) -> dict:
        """What a file must hold, beside the tensors, to build the layer again."""
        return {}

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        return (f"{self.in_features}, {self.out_features}, bits={self.weight_config.bits}, "
                f"per={self.weight_config.per}, bias={self.bias is not None}")


class WeightOnlyLinear(QuantizedLinear):
    """Integer weights, read back to floating point when they are used.

    Args:
        weight, bias, name: as above.
        single_token: let up to four tokens take torch's faster, less exact kernel (8 bits, absmax, one scale a row or
            tensor only).
    """

    def __init__(self, weight: Quantized, bias: Tensor | None = None, name: str = "this layer",
                 single_token: bool = False):
        super().__init__(weight, bias, name)
        if single_token and (weight.config.mapping != "absmax" or weight.config.per not in ("tensor", "row")):
            raise UserError("the fast way for single tokens needs absmax with one scale a row or tensor; change the "
                            "scheme or turn it off")
        self.single_token = single_token

    def settings(self) -> dict:
        """Which way single tokens take."""
        return {"single_token": self.single_token}

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N), x's type."""
        if self.single_token and 0 < x.numel() <= FEW * self.in_features and not x.requires_grad:
            ones = torch.ones(self.out_features, dtype=torch.bfloat16)  # the scales follow in float32, unrounded
            flat = x.reshape(-1, self.in_features).bfloat16()
            y = torch._weight_int8pack_mm(flat, self.weight, ones).float().mul_(self.weight_scale.T)
            y = y.view(*x.shape[:-1], self.out_features)
            return (y if self.bias is None else y.add_(self.bias)).to(x.dtype)
        if self.weight_config.mapping == "absmax" and self.weight_config.per != "group" and x.dtype == torch.float32:
            # floats that stay in the cache
            tiles = [F.linear(x, self.weight[n : n + TILE].float()) for n in range(0, self.out_features, TILE)]
            y = (tiles[0] if len(tiles) == 1 else torch.cat(tiles, dim=-1)) * self.weight_scale.T  # (..., N)
            return y if self.bias is None else y + self.bias
        weight = self.quantized_weight().dequantize().to(x.dtype)
        return F.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))


class IntegerLinear(QuantizedLinear):
    """Integers on both sides; how x becomes integers is left to `encode`.

    Args:
        weight, bias, name: as above.
        activation: mapping of x.
    Raises:
        UserError: weights in groups, whose scales cannot be taken out of an integer sum.
    """

    def __init__(self, weight: Quantized, bias: Tensor | None = None, name: str = "this layer",
                 activation: MappingConfig | None = None):
        super().__init__(weight, bias, name)
        self.activation = activation or MappingConfig(per="row")
        if weight.config.per in ("group", "column") or self.activation.per in ("group", "column"):
            raise UserError("an integer product takes one scale a row or tensor, not one a group or column: these "
                            "would not leave the sum; use weights only")
        self.register_buffer("weight_sum", weight.values.sum(dim=1, dtype=torch.int32), persistent=False)

    def settings(self) -> dict:
        """How x is mapped."""
        return {"activation": vars(self.activation)}

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """(T, K) float32 -> its integers (T, K) int8, scale and zero-point, broadcastable to (T, 1)."""
        raise NotImplementedError

    def product(self, x: Tensor) -> Tensor:
        """(T, K) float32 -> (T, N) float32, without bias."""
        values, scale, zero_point = self.encode(x)
        weight_sum = None if zero_point is None else self.weight_sum
        return integer_linear(values, scale, zero_point, self.weight, self.weight_scale, self.weight_zero, weight_sum)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N), x's type."""
        flat = x.detach().reshape(-1, self.in_features).float()
        y = self.product(flat) if flat.numel() else flat.new_zeros(len(flat), self.out_features)
        y = y if self.bias is None else y.add_(self.bias)
        return y.view(*x.shape[:-1], self.out_features).to(x.dtype)


def not_finite(name: str) -> UserError:
    """What to say of NaN or infinite activations."""
    return UserError(f"{name}: its input holds NaN or infinite values, which no integer can stand for; look for the "
                     f"layer before it that makes them")


class DynamicLinear(IntegerLinear):
    """The scale of x is measured at run time: one a token (per = row), or one for the whole call (per = tensor)."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Integers of x with scales of their own."""
        try:
            scale, zero_point = scales_of_range(*ranges(x, self.activation.per), self.activation)
        except UserError:
            raise not_finite(self.name) from None
        return to_codes(x, scale, zero_point, self.activation), scale, zero_point


class StaticLinear(IntegerLinear):
    """The scale of x was calibrated; it is one for the whole tensor.

    Args:
        weight, bias, name, activation: as above; activation.per must be tensor.
        scale: (1, 1) float32 of x, zero_point: (1, 1) int32 or None; scale None means: not calibrated yet.
    """

    def __init__(
        self,
        weight: Quantized,
        bias: Tensor | None = None,
        name: str = "this layer",
        activation: MappingConfig | None = None,
        scale: Tensor | None = None,
        zero_point: Tensor | None = None,
    ):
        activation = activation or MappingConfig()
        if activation.per != "tensor":
            raise UserError(f"a static scale is one for all tokens; per is {activation.per!r}, choose tensor, or "
                            f"dynamic scales")
        super().__init__(weight, bias, name, activation)
        self.register_buffer("activation_scale", scale)
        self.register_buffer("activation_zero", zero_point)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Integers of x on the calibrated grid; what lies outside takes its nearest end."""
        if self.activation_scale is None:
            raise UserError(f"{self.name} has no scale for its input yet: calibrate first, quantize(model, scheme, "
                            f"batches)")
        if not bool(torch.isfinite(torch.stack(x.aminmax())).all()):
            raise not_finite(self.name)
        return to_codes(x, self.activation_scale, self.activation_zero,
                        self.activation), self.activation_scale, self.activation_zero
