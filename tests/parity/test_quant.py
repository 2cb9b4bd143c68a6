"""Our mappings, layers and gradients are those of torch's own quantization functions; LLM.int8() is that of
bitsandbytes on the CPU.

Known differences, each with a test:
    torch  its symmetric observer spreads max|x| over 127.5 steps and lets −128 be used: our scale is 127.5 / 127 of it.
                 It multiplies by 1 / s where we divide by s, so that a value within a rounding error of a half may fall
                 on the other side.
    bitsandbytes the constant that takes both absmax out of an integer sum is 6.200124e-05 in its Python kernel, and 1 /
    127² = 6.2000124e-05.
                 A row's scale still counts what an outlier column holds below the threshold; ours, as the paper, takes
                 out the whole column first. The "16-bit" part multiplies by dequantized integers, ours by the original
                 weights unless asked otherwise. x is rounded to float16 before anything else. In train mode another
                 path runs, which quantizes weights only: compare in eval mode.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minialign.quant.calibration import MinMax, MovingAverage
from minialign.quant.fast_products import int8_matmul
from minialign.quant.linear import StaticLinear
from minialign.quant.llm_int8 import outlier_columns
from minialign.quant.mappings import MappingConfig, quantize_tensor
from minialign.quant.qat import fake_quantize, scaled_gradient
from minialign.quant.scheme import SCHEMES, SchemeConfig, quantized_layer

pytestmark = pytest.mark.filterwarnings("ignore")
G = torch.Generator().manual_seed(0)
X = {"normal": torch.randn(33, 70, generator=G), "positive": torch.rand(33, 70, generator=G) + 2,
     "skewed": -torch.randn(33, 70, generator=G).exp()}


def linear(K=70, N=24):
    torch.manual_seed(0)
    return nn.Linear(K, N)


def nearly_all_equal(ours, theirs, share=1e-3):
    difference = (ours.int() - theirs.int()).abs()
    assert int(difference.max()) <= 1 and float((difference > 0).float().mean()) <= share


# torch


@pytest.mark.piece("{mapping}: integers of a tensor, and what comes back", "torch")
@pytest.mark.parametrize("kind", X)
@pytest.mark.parametrize("mapping", ["absmax", "zero-point"])
def test_the_integers_of_a_tensor_are_those_of_torch(kind, mapping):
    x, mapped = X[kind], quantize_tensor(X[kind], MappingConfig(mapping))
    zero = 0 if mapped.zero_point is None else int(mapped.zero_point)
    theirs = torch.quantize_per_tensor(x, float(mapped.scale), zero, torch.qint8)
    nearly_all_equal(mapped.values, theirs.int_repr())
    same = mapped.values == theirs.int_repr()
    torch.testing.assert_close(mapped.dequantize()[same], theirs.dequantize()[same])


@pytest.mark.piece("{mapping}: integers of rows", "torch")
@pytest.mark.parametrize("mapping", ["absmax", "zero-point"])
def test_the_integers_of_rows_are_those_of_torch_s_channels(mapping, measured):
    for x in X.values():
        mapped = quantize_tensor(x, MappingConfig(mapping, per="row"))
        zeros = torch.zeros(len(x)) if mapped.zero_point is None else mapped.zero_point[:, 0]
        theirs = torch.quantize_per_channel(x, mapped.scale[:, 0].double(), zeros.long(), 0, torch.qint8)
        nearly_all_equal(mapped.values, theirs.int_repr())
        measured.see(mapped.values, theirs.int_repr())


@pytest.mark.piece("zero-point: scale", "torch")
@pytest.mark.parametrize("kind", X)
def test_scale_and_zero_point_are_those_of_torch_s_observer(kind):
    observer = torch.ao.quantization.MinMaxObserver(dtype=torch.qint8, qscheme=torch.per_tensor_affine)
    observer(X[kind])
    scale, zero_point = observer.calculate_qparams()
    mapped = quantize_tensor(X[kind], MappingConfig("zero-point"))
    torch.testing.assert_close(mapped.scale.flatten(), scale.float())
    assert int(mapped.zero_point) == int(zero_point)


@pytest.mark.piece("absmax: scale, but for 127.5 / 127", "torch")
def test_the_symmetric_scale_differs_from_torch_s_by_127_5_over_127(measured):
    observer = torch.ao.quantization.MinMaxObserver(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric)
    observer(X["normal"])
    ours = quantize_tensor(X["normal"], MappingConfig()).scale
    theirs = float(observer.calculate_qparams()[0]) * 127.5 / 127
    measured.see(ours, theirs)
    assert float(ours) == pytest.approx(theirs, rel=1e-6)


@pytest.mark.piece("calibration: ranges by minimum and maximum, and by moving average", "torch")
def test_ranges_are_those_of_torch_s_observers():
    theirs = (torch.ao.quantization.MinMaxObserver(),
              torch.ao.quantization.MovingAverageMinMaxObserver(averaging_constant=0.1))
    for ours, other in zip((MinMax(), MovingAverage(0.1)), theirs):
        for scale in (1.0, 3.0, 0.5):
            ours.see(X["normal"] * scale)
            other(X["normal"] * scale)
        torch.testing.assert_close(torch.stack(ours.range(MappingConfig())),
                                   torch.stack([other.min_val, other.max_val]))


@pytest.mark.piece("a linear layer quantized dynamically", "torch")
def test_the_dynamic_layer_is_torch_s_dynamic_linear():
    layer, x = linear(), X["normal"]
    ours = quantized_layer(layer, SchemeConfig(activation_mapping="zero-point", activation_bits=7,
                                               activation_per="tensor"))
    weight = torch.quantize_per_channel(layer.weight.detach(), ours.weight_scale[:, 0].double(), torch.zeros(24).long(),
                                        0, torch.qint8)
    assert torch.equal(weight.int_repr(), ours.weight)
    packed = torch.ops.quantized.linear_prepack(weight, layer.bias.detach())
    # 7 bits: its AVX2 kernel adds pairs of products in 16 bits
    theirs = torch.ops.quantized.linear_dynamic(x, packed, reduce_range=True)
    torch.testing.assert_close(ours(x), theirs, atol=2e-3, rtol=1e-3)
    assert (ours(x) - theirs).abs().mean() < 1e-4


@pytest.mark.piece("a linear layer quantized statically, {mapping}", "torch")
@pytest.mark.parametrize("mapping", ["absmax", "zero-point"])
def test_the_static_layer_is_torch_s_rounding_of_both_sides(mapping):
    layer, x, config = linear(), X["normal"], MappingConfig(mapping)
    calibrated, weight = quantize_tensor(X["normal"] * 0.7, config), quantize_tensor(layer.weight,
        MappingConfig(per="row"))
    ours = StaticLinear(weight, layer.bias, activation=config, scale=calibrated.scale, zero_point=calibrated.zero_point)
    zero, (low, high) = 0 if calibrated.zero_point is None else int(calibrated.zero_point), config.codes
    x_hat = torch.fake_quantize_per_tensor_affine(x, float(calibrated.scale), zero, low, high)
    w_hat = torch.fake_quantize_per_channel_affine(layer.weight.detach(), weight.scale[:, 0], torch.zeros(24).int(), 0,
                                                   -127, 127)
    torch.testing.assert_close(ours(x), F.linear(x_hat, w_hat, layer.bias).detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.piece("fake quantization at 2 to 8 bits and its gradient, {mapping}", "torch")
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("mapping", ["absmax", "zero-point"])
def test_fake_quantization_and_its_gradient_are_torch_s(mapping, bits):
    config = MappingConfig(mapping, bits)
    low, high = config.codes
    scale, zero = torch.tensor(1.5 / high), torch.tensor(1 if mapping == "zero-point" else 0, dtype=torch.int32)
    results = []
    for function in (lambda x: fake_quantize(x, scale, zero, config), lambda x: torch.fake_quantize_per_tensor_affine(x,
            float(scale), int(zero), low, high)):
        x = X["normal"].clone().requires_grad_()
        y = function(x)
        y.square().sum().backward()
        results.append((y.detach(), x.grad))
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs)
    assert (results[0][1] == 0).any() and (results[0][1] != 0).any()


@pytest.mark.piece("fake quantization of rows and its gradient", "torch")
def test_fake_quantization_of_rows_is_torch_s():
    config, scale = MappingConfig(bits=4), torch.rand(33, 1, generator=G) * 0.2 + 0.05
    results = []
    for function in (
        lambda x: fake_quantize(x, scale, None, config),
        lambda x: torch.fake_quantize_per_channel_affine(x, scale[:, 0], torch.zeros(33).int(), 0, -7, 7),
    ):
        x = X["normal"].clone().requires_grad_()
        y = function(x)
        y.square().sum().backward()
        results.append((y.detach(), x.grad))
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.piece("learned step size: gradients", "torch")
def test_the_gradient_of_a_learned_step_is_torch_s():
    x, start, factor = X["normal"], torch.tensor([0.2]), 1 / math.sqrt(X["normal"].numel() * 7)
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    fake_quantize(a, scaled_gradient(ours, factor), None, MappingConfig(bits=4)).square().sum().backward()
    torch._fake_quantize_learnable_per_tensor_affine(b, theirs, torch.zeros(1), -7, 7, factor).square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(a.grad, b.grad)


# bitsandbytes


@pytest.fixture
def bnb():
    return pytest.importorskip("bitsandbytes")


def halves(*shape, seed=1, outliers=()):
    """Inputs that float16 holds exactly, so that rounding to it makes no difference."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).half().float()
    x[:, list(outliers)] *= 32
    return x


def their_layer(bnb, layer, threshold):
    theirs = bnb.nn.Linear8bitLt(layer.in_features, layer.out_features, has_fp16_weights=False, threshold=threshold)
    theirs.load_state_dict(layer.state_dict())
    return theirs.to("cpu").eval()


def half_linear(K=64, N=24):
    layer = linear(K, N)
    layer.weight.data = layer.weight.data.half().float()
    layer.bias.data = layer.bias.data.half().float()
    return layer


CONSTANT = 6.200124e-05 * 127 * 127  # theirs over ours


@pytest.mark.piece("LLM.int8(): outlier columns and scales", "bitsandbytes")
def test_integers_scales_and_outlier_columns_are_those_of_bitsandbytes(bnb):
    x = halves(12, 64, outliers=(3, 40))
    values, scale, columns = bnb.functional.int8_vectorwise_quant(x.half(), threshold=6.0)
    assert torch.equal(columns.sort().values, outlier_columns(x, 6.0).nonzero().flatten())
    # the scale of what is below the threshold in all columns
    plain = quantize_tensor(x.masked_fill(x.abs() >= 6.0, 0.0), MappingConfig(per="row"))
    torch.testing.assert_close(plain.scale.flatten() * 127, scale.float())
    nearly_all_equal(plain.values.index_fill(1, columns, 0), values, share=3e-3)
    ours = quantize_tensor(x.index_fill(1, columns, 0.0), MappingConfig(per="row"))
    assert (ours.scale <= plain.scale).all() and (ours.scale < plain.scale).any()


@pytest.mark.piece("products of 8-bit integers", "bitsandbytes")
def test_products_of_integers_are_those_of_bitsandbytes(bnb):
    a, b = (torch.randint(-127, 128, shape, dtype=torch.int8, generator=G) for shape in ((9, 100), (7, 100)))
    assert torch.equal(int8_matmul(a, b), bnb.functional.int8_linear_matmul(a, b))


@pytest.mark.piece("vector-wise 8-bit layer, but for a constant", "bitsandbytes")
def test_plain_int8_is_bitsandbytes_but_for_its_constant(bnb):
    layer, x = half_linear(), halves(12, 64)
    ours = quantized_layer(layer, SCHEMES["vector-wise"])
    with torch.no_grad():
        theirs = their_layer(bnb, layer, 0.0)(x)
    torch.testing.assert_close((ours(x) - layer.bias) * CONSTANT + layer.bias, theirs, atol=2e-3, rtol=2e-3)
    assert abs(CONSTANT - 1) == pytest.approx(1.8e-5, rel=0.05)


@pytest.mark.piece("LLM.int8() with dequantized outlier weights", "bitsandbytes")
def test_with_dequantized_outlier_weights_it_is_bitsandbytes_and_with_the_original_ones_it_is_better(bnb, measured):
    layer, x = half_linear(), halves(12, 64, outliers=(3, 40))
    with torch.no_grad():
        exact, theirs = layer(x), their_layer(bnb, layer, 6.0)(x)
        def off(y):
            return float((y - exact).norm() / exact.norm())
        same = quantized_layer(layer, SchemeConfig("llm-int8", outlier_weights="dequantized"))(x)
        better = quantized_layer(layer, SCHEMES["llm-int8"])(x)
    measured.see(same, theirs)
    assert (same - theirs).norm() / theirs.norm() < 1.5e-3  # what is left is the larger scale of some rows
    assert off(same) < 1.05 * off(theirs) and off(better) < 0.7 * off(theirs)


@pytest.mark.piece("LLM.int8(): a row of zeros", "bitsandbytes")
def test_a_row_of_zeros_gives_the_bias_in_both(bnb):
    layer, x = half_linear(), halves(3, 64)
    x[1] = 0
    with torch.no_grad():
        theirs = their_layer(bnb, layer, 6.0)(x)
    ours = quantized_layer(layer, SCHEMES["llm-int8"])(x)
    torch.testing.assert_close(ours[1], layer.bias.detach())
    torch.testing.assert_close(theirs[1], layer.bias.detach(), atol=1e-3, rtol=1e-3)
