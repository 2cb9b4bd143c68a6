"""The two mappings and the products of integers, against definitions, bounds and torch's int64."""

import itertools
import math

import pytest
import torch

from minialign.lab.quantization_diagrams import show_mapping
from minialign.quant import fast_products as products
from minialign.quant.fast_products import by_float_blocks, by_int_mm, by_reference, fastest_kernel, int8_matmul
from minialign.quant.linear import integer_linear
from minialign.quant.mappings import MappingConfig, quantize_tensor, round_trip_error, show_codes
from minialign.runs.errors import UserError

G = torch.Generator().manual_seed(0)
NORMAL = torch.randn(6, 50, generator=G)
KINDS = {
    "symmetric": NORMAL,
    "all positive": NORMAL.abs() + 3,
    "all negative": -NORMAL.abs() - 3,
    "skewed": NORMAL.exp(),
    "constant": torch.full((6, 50), 10.0),
    "negative constant": torch.full((6, 50), -0.3),
    "zeros": torch.zeros(6, 50),
    "tiny": NORMAL * 1e-42,
    "huge": NORMAL * 1e37,
}


def ints(*shape, low=-127, seed=0):
    return torch.randint(low, 128, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(seed))


# mappings


@pytest.mark.parametrize("mapping", ["absmax", "zero-point"])
@pytest.mark.parametrize("kind", KINDS)
def test_zero_is_exact_and_no_value_moves_more_than_half_a_step(kind, mapping):
    x = torch.cat([KINDS[kind], torch.zeros(6, 1)], dim=1)
    for bits, per in itertools.product(range(2, 9), ("tensor", "row", "column", "group")):
        config = MappingConfig(mapping, bits, per, group=16)
        mapped = quantize_tensor(x, config)
        back = mapped.dequantize()
        assert torch.isfinite(mapped.scale).all() and torch.isfinite(back).all()
        assert (back[:, -1] == 0).all()
        low, high = config.codes
        assert int(mapped.values.min()) >= low and int(mapped.values.max()) <= high
        step = mapped.scale.repeat_interleave(16, dim=1).squeeze(2)[:, :51] if per == "group" else mapped.scale
        assert ((x - back).abs() <= step * 0.5001 + 1e-6 * x.abs()).all()


@pytest.mark.parametrize("bits", range(2, 9))
def test_both_ends_of_a_symmetric_range_come_back(bits):
    x = torch.tensor([[-3.0, 0.1, 3.0]])
    mapped = quantize_tensor(x, MappingConfig("absmax", bits))
    assert mapped.values[0, 0] == -mapped.values[0, 2] == -(2 ** (bits - 1) - 1)  # −128 is never used
    torch.testing.assert_close(mapped.dequantize()[0, [0, 2]], x[0, [0, 2]])


def test_a_row_of_zeros_stays_zeros_and_its_scale_is_finite():
    x = torch.stack([torch.zeros(8), torch.linspace(-1, 1, 8)])
    mapped = quantize_tensor(x, MappingConfig(per="row"))
    assert (mapped.values[0] == 0).all() and (mapped.dequantize()[0] == 0).all()
    assert (mapped.scale > 0).all() and torch.isfinite(1 / mapped.scale).all()


def test_halves_are_rounded_to_the_even_neighbour():
    x = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, 127.0]])  # the scale is 1
    assert quantize_tensor(x, MappingConfig()).values.tolist() == [[0, 2, 2, 0, -2, 127]]


def test_zero_point_moves_the_grid_onto_one_sided_data_and_absmax_does_not():
    positive = torch.rand(1000, generator=G)
    zero_point, absmax = (round_trip_error(positive, MappingConfig(name, 4)) for name in ("zero-point", "absmax"))
    assert zero_point < 0.6 * absmax
    both = torch.rand(1000, generator=G) * 2 - 1
    zero_point, absmax = (round_trip_error(both, MappingConfig(name, 8)) for name in ("zero-point", "absmax"))
    assert zero_point == pytest.approx(absmax, rel=0.1)


def test_a_group_may_be_wider_than_what_is_left():
    x = torch.randn(3, 10, generator=G)
    mapped = quantize_tensor(x, MappingConfig(per="group", group=4))
    assert mapped.scale.shape == (3, 3, 1) and mapped.values.shape == x.shape
    for start in (0, 4, 8):
        part = quantize_tensor(x[:, start : start + 4], MappingConfig(per="row")).dequantize()
        torch.testing.assert_close(mapped.dequantize()[:, start : start + 4], part)


def test_scales_of_rows_and_columns_are_those_of_each_by_itself():
    x = torch.randn(4, 5, generator=G)
    rows = quantize_tensor(x, MappingConfig(per="row")).dequantize()
    columns = quantize_tensor(x, MappingConfig(per="column")).dequantize()
    torch.testing.assert_close(rows, torch.stack([quantize_tensor(r, MappingConfig()).dequantize() for r in x]))
    one_by_one = torch.stack([quantize_tensor(c, MappingConfig()).dequantize() for c in x.T], dim=1)
    torch.testing.assert_close(columns, one_by_one)
    alone = quantize_tensor(x[0], MappingConfig(per="column"))  # a row without a second dimension
    assert alone.scale.shape == x[0].shape
    torch.testing.assert_close(alone.dequantize(), quantize_tensor(x[:1], MappingConfig(per="column")).dequantize()[0])


def test_more_bits_and_smaller_shares_lose_less():
    x = torch.randn(32, 64, generator=G) * torch.logspace(-1, 1, 32)[:, None]
    errors = [round_trip_error(x, MappingConfig(bits=b)) for b in range(2, 9)]
    assert errors == sorted(errors, reverse=True)
    absolute = []
    for per in ("tensor", "row", "group"):
        back = quantize_tensor(x, MappingConfig(bits=4, per=per, group=16)).dequantize()
        absolute.append(float((x - back).norm(dim=1).div(x.norm(dim=1)).mean()))
    assert absolute == sorted(absolute, reverse=True)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mapping", ["absmax", "zero-point"])
def test_a_value_that_is_not_finite_is_an_error(mapping, wrong):
    x = torch.ones(3, 4)
    x[1, 2] = wrong
    for per in ("tensor", "row", "column", "group"):
        with pytest.raises(UserError, match="not finite"):
            quantize_tensor(x, MappingConfig(mapping, per=per))


@pytest.mark.parametrize("wrong", [{"mapping": "log"}, {"bits": 1}, {"bits": 9}, {"per": "head"}, {"group": 0}])
def test_a_mapping_that_does_not_exist_is_an_error(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        MappingConfig(**wrong)


def test_bytes_count_integers_scales_and_zero_points():
    x = torch.randn(4, 10, generator=G)
    assert quantize_tensor(x, MappingConfig(per="row")).bytes == 40 + 4 * 4
    assert quantize_tensor(x, MappingConfig("zero-point", per="row")).bytes == 40 + 4 * 4 + 4 * 4


def test_the_table_of_codes_shows_scale_and_zero_point():
    text = show_codes(torch.tensor([0.0, 2.55]), MappingConfig("zero-point"))
    assert "scale 0.01, zero-point -128" in text
    assert text.splitlines()[-1].split() == ["2.55000", "->", "127", "->", "2.55000"]


def test_the_diagrams_draw_both_mappings_of_any_tensor():
    for x in (KINDS[kind] for kind in ("all negative", "skewed", "zeros")):
        fig = show_mapping(x, bits=3)
        assert len(fig.axes) == 2
        titles = [axes.get_title() for axes in fig.axes]
        assert "absmax" in titles[0] and "zero-point" in titles[1]
        fig.canvas.draw()


# products of integers


@pytest.mark.parametrize("kernel", ["int_mm", "float", "reference"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (17, 64, 33), (2, 1025, 3), (2, 3000, 4), (0, 4, 3)])
def test_every_kernel_gives_the_integers_of_int64(kernel, shape):
    T, K, N = shape
    a, b = ints(T, K, low=-128), ints(N, K, low=-128, seed=1)
    expected = a.long() @ b.long().T
    found = int8_matmul(a, b, kernel)
    assert found.dtype == torch.int32 and torch.equal(found.long(), expected)


@pytest.mark.parametrize("kernel", ["int_mm", "float", None])
def test_a_long_sum_of_large_products_is_exact(kernel):
    a = torch.full((2, 4096), 127, dtype=torch.int8)
    b = a.clone()
    a[0, 0], b[1, 5] = 126, 3  # so that the sums are odd, which a float32 above 2²⁴ cannot hold
    exact = a.long() @ b.long().T
    assert torch.equal(int8_matmul(a, b, kernel).long(), exact)
    assert not torch.equal((a.float() @ b.float().T).long(), exact)  # the pitfall itself


def test_a_block_of_floats_is_exact_at_its_very_limit():
    a = torch.full((1, 1024), -128, dtype=torch.int8)
    assert int(by_float_blocks(a, a)) == 2**24 == int(by_reference(a, a))


def test_shapes_that_the_kernel_does_not_take_are_padded():
    for T, K, N in ((1, 3, 5), (16, 8, 8), (17, 9, 10), (20, 16, 16)):
        a, b = ints(T, K), ints(N, K, seed=1)
        assert torch.equal(by_int_mm(a, b, takes=(17, 8, 8)), by_reference(a, b))


def test_a_sum_that_an_int32_cannot_hold_and_other_types_are_errors():
    with pytest.raises(UserError, match="may overflow int32"):
        int8_matmul(torch.zeros(1, 40_000, dtype=torch.int8), torch.zeros(1, 40_000, dtype=torch.int8))
    with pytest.raises(UserError, match="int8 on both sides"):
        int8_matmul(torch.zeros(1, 4), torch.zeros(1, 4, dtype=torch.int8))


def test_the_kernel_is_chosen_by_the_processor_and_then_by_the_clock(monkeypatch):
    fastest_kernel.cache_clear()
    monkeypatch.setattr(products, "has_integer_products", lambda device="cpu": False)
    assert fastest_kernel("cpu", 8, 16, 16) == "float"
    fastest_kernel.cache_clear()
    monkeypatch.setattr(products, "has_integer_products", lambda device="cpu": True)
    assert fastest_kernel("cpu", 8, 16, 16) in ("float", "int_mm") and fastest_kernel("cuda", 8, 16, 16) == "int_mm"
    fastest_kernel.cache_clear()
    monkeypatch.undo()
    assert fastest_kernel("mps", 8, 16, 16) == "float"  # torch has no integer product there


def test_scales_are_an_outer_product():
    x, w = torch.tensor([[1.0, -2.0], [10.0, 5.0]]), torch.tensor([[0.5, 0.25], [3.0, -1.0], [0.0, 8.0]])
    config = MappingConfig(per="row")
    a, b = quantize_tensor(x, config), quantize_tensor(w, config)
    found = integer_linear(a, b)
    for t, n in itertools.product(range(2), range(3)):
        total = sum(int(a.values[t, k]) * int(b.values[n, k]) for k in range(2))
        assert float(found[t, n]) == pytest.approx(total * float(a.scale[t]) * float(b.scale[n]), rel=1e-5)
    torch.testing.assert_close(found, x @ w.T, atol=0.1, rtol=0.02)
    c = 127 * 127  # the constant 1 / 127² that the absmax of both leave
    assert float(found[0, 0]) == pytest.approx(2.0 * 0.5 / c * int(a.values[0].long() @ b.values[0].long()), rel=1e-6)


@pytest.mark.parametrize("x_mapping", ["absmax", "zero-point"])
@pytest.mark.parametrize("w_mapping", ["absmax", "zero-point"])
@pytest.mark.parametrize("x_per, w_per", [("row", "row"), ("tensor", "tensor"), ("row", "tensor"), ("tensor", "row")])
def test_the_terms_of_the_zero_points_give_the_product_of_what_was_mapped(x_mapping, w_mapping, x_per, w_per):
    x, w = torch.rand(5, 40, generator=G) + 1, torch.randn(7, 40, generator=G) - 0.5
    a = quantize_tensor(x, MappingConfig(x_mapping, per=x_per))
    b = quantize_tensor(w, MappingConfig(w_mapping, per=w_per))
    found = integer_linear(a, b)
    torch.testing.assert_close(found.double(), a.dequantize().double() @ b.dequantize().double().T, atol=1e-4,
                               rtol=1e-5)


@pytest.mark.parametrize("config", [MappingConfig(per="row"), MappingConfig("zero-point", per="row"),
                                    MappingConfig(per="group", group=4), MappingConfig(per="group", group=6)])
def test_what_shares_a_scale_is_in_the_last_dimension_whatever_stands_before_it(config):
    x = torch.randn(3, 5, 10, generator=torch.Generator().manual_seed(0))
    whole, rows = quantize_tensor(x, config), quantize_tensor(x.flatten(0, 1), config)
    assert torch.equal(whole.values.flatten(0, 1), rows.values) and torch.equal(whole.scale.flatten(0, 1), rows.scale)
    assert torch.equal(whole.dequantize().flatten(0, 1), rows.dequantize())


def test_absmax_is_shown_with_the_zero_point_0():
    assert "zero-point 0, codes -127…127" in show_codes(torch.tensor([1.0, 127.0]), MappingConfig())
