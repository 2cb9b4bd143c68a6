r"""Quantization-aware training: the forward pass sees rounded numbers, the backward pass moves the real ones.

    forward     ŵ = s (clamp(round(w / s) + z, q⁻, q⁺) − z)           "fake" quantization: floats that lie on the grid
    backward    ∂ŵ/∂w = 1 where q⁻ ≤ round(w / s) + z ≤ q⁺, else 0    straight-through estimator, Bengio et al. 2013
    learned step (LSQ), Esser et al. 2020, §2.1, Eq. 3:
                ∂ŵ/∂s = round(w / s) − w / s inside, q⁻ or q⁺ outside, times g = 1 / √(n q⁺)
                s starts at 2 mean|w| / √q⁺

    prepare(model, scheme, batches)  ->  train with any loop  ->  convert(model)

The *latent* weights w stay in full precision and are what the optimizer moves; the integers are derived from them anew
in each forward pass. (Rounding itself has gradient 0 almost everywhere: nothing would ever be learned through it.)
Details that matter:
    1. The estimator stands around the rounding alone, so the clamp's gradient of 0 outside the range remains
       (test_the_gradient_is_1_inside_the_range_and_0_outside).
    2. Scales that are measured carry no gradient; learned ones do, and are parameters
       (test_measured_scales_carry_no_gradient_and_learned_ones_do).
    3. Steps are vectors, so that the optimizer's weight decay on matrices leaves them alone (test_no_decay_on_steps).
    4. Converted layers are those of post-training quantization, and compute the same
       (test_a_converted_layer_gives_what_training_saw).
    5. Static scales of activations are calibrated once, before training, or learned; a forward pass moves none of them
       (test_looking_at_validation_text_moves_no_scale).
    DEVIATION: LSQ's activations here are signed, with one step a layer; the paper's follow a ReLU and are unsigned.
    DEVIATION: a learned step may be one for each row; n then counts the row's weights.

Read next: half.py. See also: ptq.py (the rival; give the float model as many extra steps before you compare).
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minialign.quant.calibration import MinMax
from minialign.quant.linear import QuantizedLinear
from minialign.quant.mappings import TINY, MappingConfig, for_each_value, measured_scales, quantize_tensor
from minialign.quant.scheme import SchemeConfig, integer_layer, observe
from minialign.quant.selection import ALL, KEEP, select
from minialign.runs.errors import UserError
from minialign.runs.submodules import replace_modules


def round_through(x: Tensor) -> Tensor:
    """round(x) forward, the gradient unchanged backward: the straight-through estimator."""
    return x + (x.round() - x).detach()


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor | None, config: MappingConfig) -> Tensor:
    """x̂ on the grid, x's shape, with the gradients above. The scale, above 0, may need a gradient, too."""
    scale, zero_point = for_each_value(x, config, scale, zero_point)
    z = 0 if zero_point is None else zero_point
    return scale * ((round_through(x / scale) + z).clamp(*config.codes) - z)


def fake_quantize_measured(x: Tensor, config: MappingConfig) -> Tensor:
    """x̂ with scales measured on x itself."""
    return fake_quantize(x, *measured_scales(x, config), config)


def initial_step(x: Tensor, config: MappingConfig) -> Tensor:
    """(1, 1) or (N, 1) steps 2 mean|x| / √q⁺ of (N, K).                          Esser et al. 2020, §2.1"""
    dims = (0, 1) if config.per == "tensor" else (1,)
    return (2 * x.detach().float().abs().mean(dims, keepdim=True) / math.sqrt(config.codes[1])).clamp(min=TINY)


def scaled_gradient(step: Tensor, factor: float) -> Tensor:
    """The step itself, exactly, with its gradient multiplied by a factor."""
    part = step * factor
    return step.detach() + (part - part.detach())


def as_scale(step: Tensor) -> Tensor:
    """(N,) or (1,) learned steps as scales (N, 1) or (1, 1), above 0 wherever the optimizer took them."""
    return step[:, None].abs().clamp(min=TINY)


def learned_scale(step: Tensor, shared: int, config: MappingConfig) -> Tensor:
    """The same for training: the gradient of a step that n numbers share is scaled by g = 1 / √(n q⁺)."""
    return as_scale(scaled_gradient(step, 1 / math.sqrt(shared * config.codes[1])))


class FakeQuantizedLinear(nn.Module):
    """A linear layer that computes as its quantized self will, and learns as the layer that it holds.

    Args:
        linear: holds the latent weights, which are trained; observer: what saw its input, for static schemes.
        learned_step: learn the scales of the weights, and of the input in static schemes (absmax, no groups).
    """

    def __init__(self, linear: nn.Linear, scheme: SchemeConfig, name: str = "this layer",
                 observer: MinMax | None = None, learned_step: bool = False):
        super().__init__()
        if scheme.method in ("llm-int8", "nf4"):
            raise UserError(f"{scheme.method} is for trained models; train with the method weights, dynamic or static")
        zero_points = "zero-point" in (scheme.mapping, scheme.activation_mapping)
        if learned_step and (zero_points or not scheme.weight_config.scales_rows):
            raise UserError("learned steps need absmax, and one scale a row or tensor; change the scheme or turn them "
                            "off")
        if linear.weight.dtype in (torch.float16, torch.bfloat16):
            raise UserError(f"{name} has weights of 16 bits, in which small steps are lost, and latent weights are to "
                            f"move by them; convert the model first, model.float()")
        if scheme.method == "static" and observer is None:
            raise UserError(f"{name} has no scale for its input yet: give `prepare` a calibration set")
        self.linear, self.scheme, self.name = linear, scheme, name
        scale = zero_point = self.weight_step = self.input_step = None
        if scheme.method == "static":
            scale, zero_point = observer.scales(scheme.activation_config)
        if learned_step:
            self.weight_step = nn.Parameter(initial_step(linear.weight, scheme.weight_config).flatten())  # (N,) or (1,)
        if learned_step and scale is not None:  # DEVIATION: starts at the calibrated scale, not at 2 mean |x| / √q⁺
            self.input_step, scale = nn.Parameter(scale.flatten()), None  # (1,)
        self.register_buffer("activation_scale", scale)
        self.register_buffer("activation_zero", zero_point)

    def fake_weight(self) -> Tensor:
        """(N, K) the weight on its grid."""
        weight, config = self.linear.weight, self.scheme.weight_config
        if self.weight_step is None:
            return fake_quantize_measured(weight, config)
        shared = weight.numel() // self.weight_step.numel()
        return fake_quantize(weight, learned_scale(self.weight_step, shared, config), None, config)

    def fake_input(self, x: Tensor) -> Tensor:
        """(..., K) the input on its grid."""
        config = self.scheme.activation_config
        if self.scheme.method == "weights":
            return x
        if self.scheme.method == "dynamic":
            return fake_quantize_measured(x.reshape(-1, x.shape[-1]), config).view(x.shape)
        if self.input_step is None:
            return fake_quantize(x, self.activation_scale, self.activation_zero, config)
        return fake_quantize(x, learned_scale(self.input_step, self.linear.in_features, config), None, config)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N)."""
        return F.linear(self.fake_input(x), self.fake_weight(), self.linear.bias)

    def converted(self) -> QuantizedLinear:
        """The layer of integers that computes the same."""
        weight, config = self.linear.weight.detach().float(), self.scheme.weight_config
        scales = None if self.weight_step is None else (as_scale(self.weight_step.detach()), None)
        input_scale = self.activation_scale if self.input_step is None else as_scale(self.input_step.detach())
        return integer_layer(quantize_tensor(weight, config, scales), self.linear.bias, self.name, self.scheme,
                             input_scale, self.activation_zero)


def prepare(model: nn.Module, scheme: SchemeConfig, batches: Iterable[Any] | None = None, learned_step: bool = False,
            include: Sequence[str] = ALL, keep: Sequence[str] = KEEP) -> nn.Module:
    """Put fake-quantized layers in the place of a model's linear layers, to be trained by any loop. The same model.

    Args:
        scheme: what it will be converted to: weights, dynamic or static; batches: a calibration set, for static ones.
        learned_step: learn the scales (LSQ); include, keep: patterns, see selection.py.
    """
    layers = select(model, include, keep).layers
    if scheme.smoothing:
        raise UserError("smoothing is for rounding afterwards; call `smooth` first, or choose a scheme without it")
    if scheme.rounding != "nearest":
        raise UserError("gptq is for rounding afterwards; train with a scheme that rounds to the nearest code")
    if scheme.method == "static" and batches is None:
        raise UserError("the method static needs a calibration set; give batches of text like that which the model "
                        "will read")
    observers = observe(model, layers, list(batches), scheme) if scheme.method == "static" else {}
    replace_modules(model, {name: FakeQuantizedLinear(linear, scheme, name, observers.get(name), learned_step)
                            for name, linear in layers.items()})
    return model


def convert(model: nn.Module) -> nn.Module:
    """The same model in evaluation mode, with integers for fake-quantized layers. Raises UserError without any."""
    fake = {name: module for name, module in model.named_modules() if isinstance(module, FakeQuantizedLinear)}
    if not fake:
        raise UserError("the model has no fake-quantized layers; call `prepare` before it is trained")
    replace_modules(model, {name: module.converted() for name, module in fake.items()})
    return model.eval()
