"""Quantized layers, calibration, post-training quantization and LLM.int8(): against definitions, with every pitfall a
test."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minialign.heads import LanguageModel, ScalarModel
from minialign.quant.calibration import OBSERVERS, Histogram, MeanSquaredError, MinMax, MovingAverage, Percentile
from minialign.quant.fast_products import fast_weight_product, int8_matmul
from minialign.quant.linear import DynamicLinear, QuantizedLinear, StaticLinear, WeightOnlyLinear, dequantized_linear
from minialign.quant.llm_int8 import LLMInt8Linear, outlier_columns
from minialign.quant.mappings import MappingConfig, quantize_tensor
from minialign.quant.ptq import module_bytes, quantize
from minialign.quant.qat import FakeQuantizedLinear
from minialign.quant.scheme import SCHEMES, SchemeConfig, quantized_layer, scheme_named
from minialign.quant.selection import select
from minialign.runs.errors import UserError
from minialign.transformer import TransformerConfig

SHAPE = TransformerConfig(320, 48, 32, 2, 2, initial_std=0.2)
TOKENS = torch.randint(20, 320, (4, 24), generator=torch.Generator().manual_seed(0))
BATCHES = [TOKENS[:2], TOKENS[2:]]
FOUR_BITS = ("4-bit-weights", "nf4", "gptq")
STATIC = ("static", "static-zero-point")


def linear(K=64, N=16, seed=0, bias=True):
    torch.manual_seed(seed)
    return nn.Linear(K, N, bias=bias)


def inputs(T=12, K=64, seed=1, outliers=()):
    x = torch.randn(T, K, generator=torch.Generator().manual_seed(seed))
    x[:, list(outliers)] *= 30
    return x


def off(found, expected):
    return float(((found - expected).norm() / expected.norm()).detach())


def observed(scheme, *batches):
    observer = OBSERVERS[scheme.observer]()
    for batch in batches:
        observer.see(batch)
    return observer


# layers


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_stays_close_to_the_layer_that_it_replaces(name):
    layer, x = linear(), inputs()
    observer = observed(SCHEMES[name], x) if name in STATIC else None
    with torch.no_grad():
        error = off(quantized_layer(layer, SCHEMES[name], observer=observer)(x), layer(x))
    assert 0 < error < (0.12 if name in FOUR_BITS else 0.03)


@pytest.mark.parametrize("name", [n for n in SCHEMES if n not in ("weights", *FOUR_BITS, *STATIC)])
def test_an_integer_layer_equals_the_product_of_what_was_mapped(name):
    scheme, layer, x = SCHEMES[name], linear(), inputs()
    expected = F.linear(quantize_tensor(x, scheme.activation_config).dequantize(),
                        quantize_tensor(layer.weight, scheme.weight_config).dequantize(), layer.bias)
    torch.testing.assert_close(quantized_layer(layer, scheme)(x), expected, atol=1e-5, rtol=1e-5)


def test_the_bias_is_added_once_and_never_quantized():
    layer, x = linear(), torch.zeros(3, 64)
    for name, scheme in SCHEMES.items():
        quantized = quantized_layer(layer, scheme, observer=observed(scheme, inputs()) if name in STATIC else None)
        assert torch.equal(quantized(x), layer.bias.detach().expand(3, -1)), name
        assert quantized.bias.dtype == torch.float32
    assert quantized_layer(linear(bias=False), SCHEMES["vector-wise"])(x).abs().max() == 0


def test_leading_dimensions_the_type_and_an_empty_input_are_kept():
    layer, x = linear(), inputs(24).view(2, 3, 4, 64)
    for name, scheme in SCHEMES.items():
        quantized = quantized_layer(layer, scheme, observer=observed(scheme, x) if name in STATIC else None)
        assert quantized(x).shape == (2, 3, 4, 16)
        assert quantized(x.bfloat16()).dtype == torch.bfloat16
        assert quantized(x[:, :0]).shape == (2, 0, 4, 16) and quantized(x[0, 0, 0]).shape == (16,), name


def test_the_fast_way_for_single_tokens_is_close():
    layer, x = linear(), inputs(2)
    plain, fast = (quantized_layer(layer, SchemeConfig("weights", single_token=flag)) for flag in (False, True))
    assert 0 < off(fast(x), plain(x)) < 0.01
    assert fast(x.view(1, 2, 64)).shape == (1, 2, 16)
    torch.testing.assert_close(fast(inputs(9)), plain(inputs(9)))  # with more tokens it is the same
    with pytest.raises(UserError, match="single"):
        WeightOnlyLinear(quantize_tensor(layer.weight, MappingConfig("zero-point")), single_token=True)


@pytest.mark.parametrize("K", [1, 8, 70, 100])
def test_single_tokens_of_any_width_are_computed(K):
    # torch's kernel gave NaN or ended the process where the width was no multiple of 16
    x, layer = inputs(2, K), quantized_layer(linear(K), SchemeConfig("weights", single_token=True))
    torch.testing.assert_close(layer(x), dequantized_linear(x, layer.quantized_weight(), layer.bias))


@pytest.mark.parametrize("per", ["tensor", "row"])
def test_the_fast_way_for_weights_is_the_plain_formula(per):
    layer, x = quantized_layer(linear(64, 1100), SchemeConfig("weights", per=per)), inputs(9)
    assert fast_weight_product(x, layer.quantized_weight()) is not None
    torch.testing.assert_close(layer(x), dequantized_linear(x, layer.quantized_weight(), layer.bias))
    groups = quantized_layer(linear(64, 1100), SCHEMES["4-bit-weights"])
    assert fast_weight_product(x, groups.quantized_weight()) is None


def test_weights_only_lets_gradients_through_to_its_input():
    x = inputs().requires_grad_()
    quantized = quantized_layer(linear(), SchemeConfig("weights", single_token=True))
    quantized(x).sum().backward()
    torch.testing.assert_close(x.grad[0], quantized.quantized_weight().dequantize().sum(0))


def input_gradient(layer, x, cotangent):
    x = x.clone().requires_grad_()
    return torch.autograd.grad((layer(x) * cotangent).sum(), x)[0]


@pytest.mark.parametrize("name", [name for name in SCHEMES if not name.startswith(("llm-int8", "nf4"))])
def test_the_gradient_of_an_integer_layer_is_that_of_its_fake_quantized_self(name):
    """The straight-through estimator of qat.py, whose gradients torch computes; static scales cut some values off."""
    x, cotangent = inputs().view(3, 4, 64), torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(2))
    observer = observed(SCHEMES[name], x / 2) if name in STATIC else None
    fake = FakeQuantizedLinear(linear(), SCHEMES[name], observer=observer)
    expected = input_gradient(fake, x, cotangent)
    layer = fake.converted()
    torch.testing.assert_close(input_gradient(layer, x, cotangent), expected, atol=1e-5, rtol=1e-5)
    assert bool((expected == 0).any()) == (name in STATIC)
    assert torch.equal(layer(x.clone().requires_grad_()), layer(x)), "a gradient changes no number"
    half = x.bfloat16().requires_grad_()
    layer(half).sum().backward()
    assert half.grad.dtype == torch.bfloat16


def test_outlier_columns_pass_the_gradient_of_the_weights_that_they_met():
    layer, x = linear(), inputs(outliers=(3, 40))
    cotangent = torch.randn(12, 16, generator=torch.Generator().manual_seed(2))
    columns = outlier_columns(x, 6.0)
    assert columns.nonzero().flatten().tolist() == [3, 40]
    for kept in ("original", "dequantized"):
        mixed = quantized_layer(layer, SchemeConfig("llm-int8", outlier_weights=kept))
        back = mixed.quantized_weight().dequantize()
        weight = torch.where(columns, layer.weight.detach().half().float(), back) if kept == "original" else back
        torch.testing.assert_close(input_gradient(mixed, x, cotangent), cotangent @ weight)
        torch.testing.assert_close(input_gradient(mixed, x * ~columns, cotangent), cotangent @ back)


def test_scales_of_tokens_do_not_depend_on_their_neighbours_and_those_of_the_call_do():
    x = inputs(2)
    x[1] *= 100
    layer = linear()
    by_token, by_call = (quantized_layer(layer, SchemeConfig(activation_per=per)) for per in ("row", "tensor"))
    assert torch.equal(by_token(x)[:1], by_token(x[:1]))
    assert not torch.equal(by_call(x)[:1], by_call(x[:1]))


def test_groups_have_no_place_in_an_integer_product():
    weight = quantize_tensor(linear().weight, MappingConfig(per="group"))
    with pytest.raises(UserError, match="group"):
        DynamicLinear(weight)
    with pytest.raises(UserError, match="group"):
        SchemeConfig("dynamic", per="group")


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_activations_that_are_not_finite_are_an_error_that_names_the_layer(wrong):
    x = inputs()
    x[3, 5] = wrong
    for name in ("absmax", "zero-point", "vector-wise", "llm-int8", "static"):
        observer = observed(SCHEMES[name], inputs()) if name == "static" else None
        layer = quantized_layer(linear(), SCHEMES[name], "blocks.1.key", observer)
        with pytest.raises(UserError, match="blocks.1.key.*NaN or infinite"):
            layer(x)


# static


def test_a_static_layer_before_calibration_says_so():
    with pytest.raises(UserError, match="no scale for its input yet: calibrate first"):
        quantized_layer(linear(), SCHEMES["static"])(inputs())
    with pytest.raises(UserError, match="choose tensor"):
        StaticLinear(quantize_tensor(linear().weight, MappingConfig()), activation=MappingConfig(per="row"))


def test_static_scales_do_not_move_when_the_model_is_used():
    model = quantize(LanguageModel(SHAPE), SCHEMES["static"], BATCHES)[0]
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for mode in (True, False):
        model.train(mode)
        model(TOKENS)
    assert before and all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_what_lies_outside_the_calibrated_range_takes_its_end():
    layer = linear(bias=False)
    static = quantized_layer(layer, SCHEMES["static"], observer=observed(SCHEMES["static"], torch.tensor([-1.0, 1.0])))
    for end in (1.0, -1.0):  # −127, never −128
        torch.testing.assert_close(static(torch.full((1, 64), 7.0 * end)), static(torch.full((1, 64), end)))
        assert set(static.encode(torch.full((1, 64), 7.0 * end)).values.flatten().tolist()) == {127 * int(end)}


def test_static_equals_dynamic_on_the_batch_that_it_was_calibrated_on():
    layer, x = linear(), inputs()
    for mapping in ("absmax", "zero-point"):
        static = SchemeConfig("static", activation_per="tensor", activation_mapping=mapping)
        dynamic = SchemeConfig("dynamic", activation_per="tensor", activation_mapping=mapping)
        assert torch.equal(quantized_layer(layer, static, observer=observed(static, x))(x),
                           quantized_layer(layer, dynamic)(x))


def test_no_observer_is_left_in_the_model():
    model = quantize(LanguageModel(SHAPE), SCHEMES["static"], BATCHES)[0]
    before = {type(module).__name__ for module in LanguageModel(SHAPE).modules()}
    assert {type(module).__name__ for module in model.modules()} <= before | {"StaticLinear"}


def test_calibration_that_fails_leaves_the_model_as_it_was():
    model = LanguageModel(SHAPE).train()
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(UserError, match="the calibration set is empty"):
        quantize(model, SCHEMES["static"], [])
    with pytest.raises(UserError, match="needs a calibration set"):
        quantize(model, SCHEMES["static"])
    with pytest.raises(UserError, match="do not fit"):
        quantize(model, SCHEMES["static"], [torch.full((1, 49), 30)])
    assert [name for name, _ in model.named_modules()] == names and model.training


def test_a_layer_that_no_batch_reaches_is_an_error():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = linear(), linear()

        def forward(self, x):
            return self.a(x)

    model = Half()
    with pytest.raises(UserError, match="^b .* was reached by no batch"):
        quantize(model, SCHEMES["static"], [inputs()])


def test_calibration_text_with_nan_is_an_error_that_names_the_layer():
    with pytest.raises(UserError, match="^0: its input holds NaN"):
        quantize(nn.Sequential(linear()), SCHEMES["static"], [torch.full((2, 64), math.nan)])


def test_batches_may_be_tensors_tuples_or_dictionaries():
    mask = torch.ones_like(TOKENS, dtype=torch.bool)
    for batch in (TOKENS, (TOKENS, mask), {"tokens": TOKENS, "mask": mask}):
        assert quantize(LanguageModel(SHAPE), SCHEMES["static"], [batch])[1].rows[0].output_error > 0


# observers


def test_each_observer_finds_its_range():
    config, batches = MappingConfig(), [torch.tensor([-1.0, 2.0]), torch.tensor([-4.0, 1.0])]
    low, high = observed(SchemeConfig("static", activation_per="tensor"), *batches).range(config)
    assert (float(low), float(high)) == (-4.0, 2.0)
    average = MovingAverage(0.25)
    for batch in batches:
        average.see(batch)
    assert [float(v) for v in average.range(config)] == [-1.75, 1.75]
    x = torch.cat([torch.linspace(-1, 1, 9999), torch.tensor([50.0])])
    percentile = Percentile(0.99)
    percentile.see(x)
    low, high = percentile.range(config)
    assert float(low) == pytest.approx(-0.99, abs=0.03) and float(high) == pytest.approx(0.99, abs=0.03)
    whole = Percentile(1.0)
    whole.see(x)
    assert [float(v) for v in whole.range(config)] == [-1.0, 50.0]


def test_the_mse_range_is_better_than_min_max_where_one_value_is_wild():
    x = torch.cat([torch.randn(20_000, generator=torch.Generator().manual_seed(0)), torch.tensor([40.0])])
    config = MappingConfig(bits=4)
    errors = []
    for observer in (MinMax(), MeanSquaredError()):
        observer.see(x)
        low, high = observer.range(config)
        scale = max(abs(float(low)), abs(float(high))) / 7
        errors.append(float((x - (x / scale).round().clamp(-7, 7) * scale).square().mean()))
    assert errors[1] < 0.5 * errors[0]
    lengths = []
    for bits in (2, 4, 8):
        lengths.append(float(observer.range(MappingConfig(bits=bits))[1]))
    assert lengths == sorted(lengths)  # the finer the grid, the more of the range is worth covering


def test_the_histogram_keeps_every_value_when_it_grows():
    histogram = Histogram()
    for size in (0.0, 1e-3, 1.0, 0.5, 700.0):
        histogram.see(torch.linspace(-size, size, 501))
    assert float(histogram.counts.sum()) == 5 * 501 and histogram.reach >= 700
    inside = histogram.counts[histogram.centres().abs() < 2].sum()
    assert 4 * 501 <= float(inside) < 4 * 501 + 10


@pytest.mark.parametrize("make", [lambda: MovingAverage(0.0), lambda: Percentile(0.4)])
def test_an_observer_with_an_impossible_setting_is_an_error(make):
    with pytest.raises(UserError, match="must be above"):
        make()


def test_every_observer_can_be_chosen():
    errors = {}
    for name in OBSERVERS:
        report = quantize(LanguageModel(SHAPE), SchemeConfig("static", activation_per="tensor", observer=name),
                          BATCHES)[1]
        errors[name] = max(row.output_error for row in report.rows)
    assert max(errors.values()) < 0.1 and len(set(errors.values())) > 2


# which layers


def test_embeddings_norms_and_the_head_stay_as_they_are():
    model = LanguageModel(SHAPE)
    before = copy.deepcopy(model)
    quantize(model, SCHEMES["vector-wise"])
    quantized = {name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    parts = ("attention.query", "attention.key", "attention.value", "attention.output", "feed_forward.inner",
             "feed_forward.output")
    expected = {f"body.blocks.{i}.{part}" for i in range(2) for part in parts}
    assert quantized == expected
    left = {name: p for name, p in model.named_parameters()}
    assert left and all("norm" in name or "embedding" in name for name in left)
    assert all(torch.equal(p, before.get_parameter(name)) and p.dtype == torch.float32 for name, p in left.items())


def test_the_scalar_head_stays():
    model = ScalarModel(LanguageModel(SHAPE).body)
    report = quantize(model, SCHEMES["weights"])[1]
    kept = {row.name: row.kept for row in report.rows}
    assert type(model.head) is nn.Linear and kept["head"] == "in the list of what stays"


def test_a_layer_with_a_shared_weight_stays():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.inner, self.words = nn.Embedding(10, 8), nn.Linear(8, 8), nn.Linear(8, 10, bias=False)
            self.words.weight = self.table.weight

    selection = select(Tied())
    assert list(selection.layers) == ["inner"] and selection.kept == {"words": "shares its weight with table.weight"}


def test_subclasses_of_linear_stay():
    model = nn.TransformerEncoderLayer(16, 2, 32)
    selection = select(model)
    assert list(selection.layers) == ["linear1", "linear2"] and "owner" in selection.kept["self_attn.out_proj"]


def test_a_layer_in_two_places_is_replaced_in_both():
    shared = linear(8, 8)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    quantize(model, SCHEMES["vector-wise"])
    assert isinstance(model[0], DynamicLinear) and model[0] is model[2]


def test_patterns_are_for_whole_names():
    selection = select(LanguageModel(SHAPE), include=("*.attention.*",), keep=("body.blocks.0.*",))
    assert list(selection.layers) == [f"body.blocks.1.attention.{part}" for part in ("query", "key", "value", "output")]
    assert selection.kept["body.blocks.0.attention.query"] == "in the list of what stays"
    assert selection.kept["body.blocks.1.feed_forward.inner"] == "not included"


def test_a_pattern_that_fits_nothing_is_an_error():
    model = LanguageModel(SHAPE)
    for patterns in ({"include": ("*.q_proj",)}, {"keep": ("uery",)}):
        with pytest.raises(UserError, match="no linear layer is called '.*'; there are attention.query"):
            select(model, **patterns)
    with pytest.raises(UserError, match="no linear layer is left"):
        select(model, keep=("body.*",))
    with pytest.raises(UserError, match="no nn.Linear"):
        select(nn.Sequential(nn.ReLU()))


# the report


@pytest.mark.parametrize("scheme", ["vector-wise", "gptq", "smoothquant"])
def test_a_weight_that_is_not_finite_is_an_error_that_names_the_layer_and_leaves_the_model(scheme):
    for part, block in itertools.product(("weight", "bias"), (0, 1)):
        model = LanguageModel(SHAPE)
        getattr(model.body.blocks[block].feed_forward.output, part).data.view(-1)[3] = math.nan
        with pytest.raises(UserError, match=f"body.blocks.{block}.feed_forward.output: its {part}s? holds? NaN"):
            quantize(model, SCHEMES[scheme], [torch.arange(20, 40)[None]])
        assert not any(isinstance(module, QuantizedLinear) for module in model.modules())


def test_a_layer_s_output_error_is_its_own():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 16))
    x = inputs()
    middle, expected = model[0](x), model(x)
    report = quantize(model, SchemeConfig(bits=3, activation_bits=3), [x])[1]
    assert report.rows[1].output_error == pytest.approx(off(model[1](middle), expected), rel=1e-4)
    assert off(model(x), expected) > report.rows[1].output_error


def test_bytes_count_scales_and_zero_points():
    # bytes an output beside its integers: scale, sum
    for name, each in (("weights", 4), ("zero-point", None), ("vector-wise", 4 + 4)):
        layer = linear(64, 16)
        report = quantize(nn.Sequential(layer), SCHEMES[name])[1]
        expected = 64 * 16 + 16 * 4 + (16 * each if each else 4 + 4 + 16 * 4)
        assert report.rows[0].bytes_after == expected == report.bytes_after
        assert report.rows[0].bytes_before == report.bytes_before == (64 * 16 + 16) * 4


def test_the_report_is_a_table_with_reasons():
    model = ScalarModel(LanguageModel(SHAPE).body)
    report = quantize(model, SCHEMES["llm-int8"], BATCHES)[1]
    text = str(report)
    assert "stays: in the list of what stays" in text and "body.blocks.1.attention.query" in text
    assert f"bytes before, {report.bytes_after:,} after" in text
    assert all(len(line) < 160 for line in text.splitlines())
    assert report.bytes_after == module_bytes(model) and report.to_dict()["rows"][0]["output_error"] > 0


@pytest.mark.parametrize("name", SCHEMES)
def test_a_quantized_language_model_says_nearly_the_same(name):
    model = LanguageModel(SHAPE).eval()
    with torch.no_grad():
        before = model(TOKENS)
        model, report = quantize(model, SCHEMES[name], BATCHES)
        agree = (model(TOKENS).argmax(-1) == before.argmax(-1)).float().mean()
    assert 0 < off(model(TOKENS), before) < (0.4 if name in FOUR_BITS else 0.15) and agree > 0.6
    assert not model.training and report.bytes_after < report.bytes_before


@pytest.mark.parametrize("wrong", [{"method": "magic"}, {"observer": "me"}, {"threshold": -1.0},
                                   {"outlier_weights": "no"}, {"per": "column"}, {"bits": 1}])
def test_a_scheme_that_does_not_exist_is_an_error(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        SchemeConfig(**wrong)


def test_contradicting_settings_and_unknown_names_are_errors():
    with pytest.raises(UserError, match="activation_per must be tensor"):
        SchemeConfig("static")
    with pytest.raises(UserError, match="single_token is for"):
        SchemeConfig("dynamic", single_token=True)
    with pytest.raises(UserError, match="there is no scheme 'int9'; choose one of weights"):
        scheme_named("int9")


# LLM.int8()


def int8(layer, **settings):
    return quantized_layer(layer, SchemeConfig("llm-int8", **settings))


def test_one_large_value_makes_its_whole_column_an_outlier():
    x = inputs()
    x[4, 9] = -7.0
    assert outlier_columns(x, 6.0).nonzero().flatten().tolist() == [9]
    assert outlier_columns(x.T, 6.0).nonzero().flatten().tolist() == [4]  # columns of X, whatever W is


def test_the_threshold_itself_counts():
    x = torch.tensor([[5.999, 6.0, -6.0, 6.001]])
    assert outlier_columns(x, 6.0).tolist() == [False, True, True, True]


def test_outlier_columns_go_through_the_original_weights_and_the_rest_through_integers():
    layer, x, columns = linear(), inputs(outliers=(3, 40)), [3, 40]
    rest = x.clone()
    rest[:, columns] = 0
    config = MappingConfig(per="row")
    rest, weight = quantize_tensor(rest, config).dequantize(), quantize_tensor(layer.weight, config).dequantize()
    expected = rest @ weight.T + layer.bias
    expected = expected + x[:, columns] @ layer.weight[:, columns].half().float().T
    torch.testing.assert_close(int8(layer)(x), expected, atol=1e-4, rtol=1e-5)


def test_scales_are_measured_after_the_outliers_are_taken_out():
    layer, x = linear(), inputs(outliers=(3, 40))
    with torch.no_grad():
        plain, ours = off(quantized_layer(layer, SCHEMES["vector-wise"])(x), layer(x)), off(int8(layer)(x), layer(x))
    assert ours < 0.2 * plain
    rest = int8(layer).encode(x.index_fill(1, torch.tensor([3, 40]), 0.0))
    assert float(rest.scale.max()) < 6.0 / 127 and (rest.values[:, [3, 40]] == 0).all()


def test_no_column_is_counted_twice():
    layer, x = linear(bias=False), torch.zeros(2, 64)
    x[:, 5] = 10.0
    torch.testing.assert_close(int8(layer)(x), 10.0 * layer.weight[:, 5].half().float().expand(2, -1))


@pytest.mark.parametrize("threshold", [0.0, math.inf])
def test_a_threshold_of_0_or_infinity_is_plain_vector_wise_int8(threshold):
    layer, x = linear(), inputs(outliers=(3,))
    assert torch.equal(int8(layer, threshold=threshold)(x), quantized_layer(layer, SCHEMES["vector-wise"])(x))


def test_without_outliers_it_is_plain_vector_wise_int8():
    layer, x = linear(), inputs().clamp(-5, 5)
    assert torch.equal(int8(layer)(x), quantized_layer(layer, SCHEMES["vector-wise"])(x))


def test_all_columns_may_be_outliers():
    layer = linear()
    torch.testing.assert_close(int8(layer)(inputs() * 1000), layer(inputs() * 1000), atol=0.5, rtol=1e-3)


def test_the_outlier_part_uses_the_original_weights():
    layer, x = linear(), inputs(outliers=(3,))
    torch.testing.assert_close(int8(layer).outlier_weights(torch.tensor([3])), layer.weight[:, [3]].T.half().float())
    plain = int8(layer, outlier_weights="dequantized")
    read_back = plain.quantized_weight().dequantize()
    torch.testing.assert_close(plain.outlier_weights(torch.tensor([3])), read_back[:, [3]].T)
    with torch.no_grad():
        assert off(int8(layer)(x), layer(x)) < off(plain(x), layer(x))


def test_only_calibrated_columns_keep_their_weights_and_others_are_read_back():
    layer, x = linear(), inputs(outliers=(3, 40))
    columns = torch.zeros(64, dtype=torch.bool)
    columns[3] = True
    compact = quantized_layer(layer, SCHEMES["llm-int8-compact"], columns=columns)
    found = compact.outlier_weights(torch.tensor([3, 40]))
    torch.testing.assert_close(found[0], layer.weight[:, 3].half().float())
    torch.testing.assert_close(found[1], compact.quantized_weight().dequantize()[:, 40])
    assert module_bytes(compact) < 0.6 * module_bytes(int8(layer)) and compact.original.shape == (1, 16)
    assert torch.isfinite(compact(x)).all()


def test_the_share_of_outlier_columns_is_reported():
    layer = nn.Sequential(linear())
    report = quantize(layer, SCHEMES["llm-int8-compact"], [inputs(outliers=(3,)), inputs()])[1]
    assert report.rows[0].outliers == pytest.approx(0.5 / 64) and layer[0].original.shape == (1, 16)
    assert isinstance(layer[0], LLMInt8Linear) and "threshold" in layer[0].settings()


def test_planted_outliers_break_int8_and_the_16_bit_part_repairs_it():
    model = LanguageModel(SHAPE).eval()
    with torch.no_grad():
        before = model(TOKENS)
        # larger by 60 after the norm, smaller by 60 in the next weight: the same function
        for block in model.body.blocks:
            attention = (block.attention.query, block.attention.key, block.attention.value)
            for norm, layers in ((block.attention_norm, attention),
                                 (block.feed_forward_norm, (block.feed_forward.inner,))):
                norm.weight[7] *= 60
                norm.bias[7] *= 60
                for layer in layers:
                    layer.weight[:, 7] /= 60
        torch.testing.assert_close(model(TOKENS), before, atol=1e-4, rtol=1e-4)
        errors = {name: off(quantize(copy.deepcopy(model), SCHEMES[name])[0](TOKENS), before)
                  for name in ("absmax", "vector-wise", "llm-int8")}
    assert errors["llm-int8"] < 0.2 * errors["vector-wise"] < 0.2 * errors["absmax"] * 1.05


@pytest.mark.parametrize("kernel", ["float", "int_mm"])
def test_integer_products_are_exact_in_half_precision_surroundings_too(kernel):
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-127, 128, (16, 96), dtype=torch.int8, generator=g) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(int8_matmul(a, b, kernel), (a.long() @ b.long().T).int())
