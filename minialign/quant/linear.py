r"""Linear layers whose weights are integers: three ways to treat what comes in.

    weights only    y = x Ŵᵀ + b,  Ŵ = s_w (Q_w − z_w)      x stays as it is; saves memory, computes in floating point
    dynamic         y ≈ x̂ Ŵᵀ + b   in integers              the scale of x is measured at run time
    static          y ≈ x̂ Ŵᵀ + b   in integers              the scale of x was calibrated before and never changes

With x̂ = s_x (Q_x − z_x), (T, K), and Ŵ, (N, K), the sum over K is one of integers; the scales multiply it at the end:

    x̂ Ŵᵀ = s_x s_wᵀ ⊙ [ Q_x Q_wᵀ − z_x 1 (Q_w 1)ᵀ − (Q_x 1) z_wᵀ + K z_x z_wᵀ ]       Jacob et al. 2018, §2.3, Eq. 7

A scale for each row of x and of W (a *column* of the paper's W, which is our Wᵀ) is vector-wise quantization, Dettmers
et al. 2022, §3.1, Eq. 7. Weights have fixed scales in all three. A static scale gives a token the same integers
whatever stands beside it; dynamic ones fit each input and need no calibration set. Details that matter:
    1. The bias stays in floating point and is added once, at the very end
       (test_the_bias_is_added_once_and_never_quantized).
    2. Scales multiply the finished integers, an outer product (test_scales_are_an_outer_product). Those of groups or
       columns could not leave the sum (test_groups_have_no_place_in_an_integer_product).
    3. A static layer without a scale refuses to work, and nothing that it sees changes its scale
       (test_a_static_layer_before_calibration_says_so, test_static_scales_do_not_move_when_the_model_is_used).
    4. NaN or infinite activations are an error that names the layer; a cast to int8 would turn them into ordinary
       numbers (test_activations_that_are_not_finite_are_an_error_that_names_the_layer).
    5. What stands before an integer layer (a LoRA, a prompt) can be trained through it: the input's gradient is that of
       x Ŵᵀ, as if nothing had been rounded, and 0 where x was cut off at a calibrated end; the weights are fixed
       (test_the_gradient_of_an_integer_layer_is_that_of_its_fake_quantized_self).

fast_products.py computes the same in less time. Read next: fast_products.py. See also: llm_int8.py.
Try it:  python -m minialign quantize RUN --scheme weights
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minialign.quant.fast_products import fast_weight_product, int8_matmul
from minialign.quant.mappings import MappingConfig, Quantized, quantize_tensor
from minialign.runs.errors import UserError


def dequantized_linear(x: Tensor, weight: Quantized, bias: Tensor | None = None) -> Tensor:
    """y = x Ŵᵀ + b, (..., K) -> (..., N), in x's type: read the weight back and multiply."""
    return F.linear(x, weight.dequantize().to(x.dtype), None if bias is None else bias.to(x.dtype))


def integer_linear(x: Quantized, w: Quantized, w_sum: Tensor | None = None) -> Tensor:
    """x̂ Ŵᵀ of (T, K) and (N, K), each with one scale a row or for all: (T, N) float32.             Jacob et al., Eq. 7

    `w_sum` are the sums of w's rows, (N,) int32, when they are known already.
    """
    total = int8_matmul(x.values, w.values)  # (T, N) int32   Q_x Q_wᵀ
    if x.zero_point is not None:
        w_sum = w.values.sum(dim=1, dtype=torch.int32) if w_sum is None else w_sum  # (N,)
        total = total - x.zero_point * w_sum  # z_x (Q_w 1)ᵀ
    if w.zero_point is not None:
        total = total - x.values.sum(dim=1, keepdim=True, dtype=torch.int32) * w.zero_point.T  # (Q_x 1) z_wᵀ
        if x.zero_point is not None:
            total = total + x.values.shape[1] * x.zero_point * w.zero_point.T  # K z_x z_wᵀ
    return total.float().mul_(x.scale).mul_(w.scale.T)  # (T, N)   s_x s_wᵀ


class ThroughIntegers(torch.autograd.Function):
    """An integer layer's output, with a gradient for its input: the straight-through estimator, Bengio et al. 2013."""

    @staticmethod
    def forward(ctx, x: Tensor, layer: "QuantizedLinear") -> Tensor:
        """(..., K) -> (..., N), x's type."""
        ctx.save_for_backward(x)
        ctx.layer = layer
        return layer.in_integers(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        """(..., N) -> (..., K), x's type; none for the layer."""
        (x,), layer = ctx.saved_tensors, ctx.layer
        flat = x.detach().reshape(-1, layer.in_features).float()
        back = layer.input_gradient(flat, gradient.reshape(-1, layer.out_features).float())
        return back.view(x.shape).to(x.dtype), None


class QuantizedLinear(nn.Module):
    """What the layers share: integers on both sides, or, without `activation`, of the weight alone.

    Args:
        weight: (N, K); bias: (N,) or None; name: of the layer in its model, for errors.
        activation: how x becomes integers; None where it stays as it is.
    Raises:
        UserError: scales of groups or columns, which cannot leave the sum of an integer product.
    """

    def __init__(self, weight: Quantized, bias: Tensor | None = None, name: str = "this layer",
                 activation: MappingConfig | None = None):
        super().__init__()
        self.out_features, self.in_features = weight.values.shape
        self.weight_config, self.activation, self.name = weight.config, activation, name
        self.register_buffer("weight", weight.values)
        self.register_buffer("weight_scale", weight.scale)
        self.register_buffer("weight_zero", weight.zero_point)
        self.register_buffer("bias", None if bias is None else bias.detach().float().clone())
        if activation is not None:
            if not (weight.config.scales_rows and activation.scales_rows):
                raise UserError("an integer product takes one scale a row or tensor, not one a group or column: these "
                                "would not leave the sum; use weights only")
            self.register_buffer("weight_sum", weight.values.sum(dim=1, dtype=torch.int32), persistent=False)

    def quantized_weight(self) -> Quantized:
        """The weight's integers and scales."""
        return Quantized(self.weight, self.weight_scale, self.weight_zero, self.weight_config)

    def settings(self) -> dict:
        """What a file must hold, beside the tensors, to build the layer again."""
        return {"activation": vars(self.activation)}

    def encode(self, x: Tensor) -> Quantized:
        """Integers of (T, K) float32, with scales of its own."""
        try:
            return quantize_tensor(x, self.activation)
        except UserError:
            raise self.not_finite() from None

    def product(self, x: Tensor) -> Tensor:
        """(T, K) float32 -> (T, N) float32, without bias."""
        return integer_linear(self.encode(x), self.quantized_weight(), self.weight_sum)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N), x's type."""
        if x.requires_grad and torch.is_grad_enabled():
            return ThroughIntegers.apply(x, self)
        return self.in_integers(x)

    def in_integers(self, x: Tensor) -> Tensor:
        """The output itself, which knows of no gradient."""
        flat = x.detach().reshape(-1, self.in_features).float()
        y = self.product(flat) if flat.numel() else flat.new_zeros(len(flat), self.out_features)
        y = y if self.bias is None else y.add_(self.bias)
        return y.view(*x.shape[:-1], self.out_features).to(x.dtype)

    def input_gradient(self, x: Tensor, gradient: Tensor) -> Tensor:
        """(T, K) of (T, N), the output's gradient: that of x Ŵᵀ. The scale of x, measured or not, has none."""
        return gradient @ self.quantized_weight().dequantize()

    def not_finite(self) -> UserError:
        """What to say of NaN or infinite activations."""
        return UserError(f"{self.name}: its input holds NaN or infinite values, which no integer can stand for; look "
                         f"for the layer before it that makes them")

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        return (f"{self.in_features}, {self.out_features}, bits={self.weight_config.bits}, "
                f"per={self.weight_config.per}, bias={self.bias is not None}")


class WeightOnlyLinear(QuantizedLinear):
    """Integer weights, read back to floating point when they are used.

    `single_token` lets up to four tokens take torch's faster, less exact kernel (absmax, one scale a row or tensor).
    """

    def __init__(self, weight: Quantized, bias: Tensor | None = None, name: str = "this layer",
                 single_token: bool = False):
        super().__init__(weight, bias, name)
        if single_token and (weight.zero_point is not None or not weight.config.scales_rows):
            raise UserError("the fast way for single tokens needs absmax with one scale a row or tensor; change the "
                            "scheme or turn it off")
        self.single_token = single_token

    def settings(self) -> dict:
        """Which kernel single tokens take."""
        return {"single_token": self.single_token}

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N), x's type."""
        product = fast_weight_product(x, self.quantized_weight(), self.single_token)
        if product is None:
            return dequantized_linear(x, self.quantized_weight(), self.bias)
        return (product if self.bias is None else product + self.bias).to(x.dtype)


class DynamicLinear(QuantizedLinear):
    """The scale of x is measured at run time: one a token (per = row), or one for the whole call (per = tensor)."""

    def __init__(self, weight: Quantized, bias: Tensor | None = None, name: str = "this layer",
                 activation: MappingConfig | None = None):
        super().__init__(weight, bias, name, activation or MappingConfig(per="row"))


class StaticLinear(QuantizedLinear):
    """The scale of x, (1, 1), was calibrated, and so was its zero-point. Without a scale the layer refuses to work."""

    def __init__(self, weight: Quantized, bias: Tensor | None = None, name: str = "this layer",
                 activation: MappingConfig | None = None, scale: Tensor | None = None,
                 zero_point: Tensor | None = None):
        super().__init__(weight, bias, name, activation or MappingConfig())
        if self.activation.per != "tensor":
            raise UserError(f"a static scale is one for all tokens; per is {self.activation.per!r}, choose tensor, or "
                            f"dynamic scales")
        self.register_buffer("activation_scale", scale)
        self.register_buffer("activation_zero", zero_point)

    def encode(self, x: Tensor) -> Quantized:
        """Integers of x on the calibrated grid; what lies outside takes its nearest end."""
        if self.activation_scale is None:
            raise UserError(f"{self.name} has no scale for its input yet: calibrate first, quantize(model, scheme, "
                            f"batches)")
        if not bool(torch.isfinite(torch.stack(x.aminmax())).all()):
            raise self.not_finite()
        return quantize_tensor(x, self.activation, (self.activation_scale, self.activation_zero))

    def input_gradient(self, x: Tensor, gradient: Tensor) -> Tensor:
        """As above, and 0 where x lies outside of the calibrated range."""
        code = (x / self.activation_scale).round() + (0 if self.activation_zero is None else self.activation_zero)
        return super().input_gradient(x, gradient) * (code == code.clamp(*self.activation.codes))
