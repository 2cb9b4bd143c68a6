"""GPTQ: equal to its definition, better than rounding to the nearest for what a layer says, and put into models."""

import copy

import pytest
import torch
from conftest import TINY

from minialign.heads import LanguageModel
from minialign.quant.gptq import GPTQConfig, gptq, in_blocks, rounded
from minialign.quant.mappings import MappingConfig, quantize_tensor
from minialign.quant.ptq import quantize
from minialign.quant.scheme import SchemeConfig, scheme_named
from minialign.runs.errors import UserError

MAPPINGS = [MappingConfig("absmax", 4, "row"), MappingConfig("zero-point", 3, "row"),
            MappingConfig("zero-point", 4, "group", 8), MappingConfig("absmax", 4, "tensor")]


def layer(K=24, N=7, samples=200, seed=0):
    """A weight and correlated inputs (samples, K)."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(K, K, generator=g) / K**0.5
    return torch.randn(N, K, generator=g), torch.randn(samples, K, generator=g) @ mix


def by_definition(weight, hessian, mapping, damping, order):
    """Optimal brain quantization, the order given: H⁻¹ is updated by elimination after each column."""
    W, H = weight.double().clone(), hessian.double()
    H = H + damping * H.diagonal().mean() * torch.eye(len(H))
    inverse, codes = torch.linalg.inv(H), torch.zeros_like(W)
    scales = quantize_tensor(weight, mapping)
    for q in order:
        plain = MappingConfig(mapping.mapping, mapping.bits, "row")
        known = tuple(None if x is None else x.expand(len(W), 1) for x in (scales.scale, scales.zero_point))
        one = quantize_tensor(W[:, q : q + 1].float(), plain, known)
        codes[:, q] = one.values[:, 0]
        error = (W[:, q] - one.dequantize()[:, 0]) / inverse[q, q]
        W -= error[:, None] * inverse[q][None]
        W[:, q] = one.dequantize()[:, 0]
        inverse = inverse - torch.outer(inverse[:, q], inverse[q]) / inverse[q, q]
    return codes


@pytest.mark.parametrize("mapping", [m for m in MAPPINGS if m.per != "group"])
@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_is_optimal_brain_quantization_column_by_column(mapping, act_order):
    weight, x = layer()
    H = x.T @ x
    order = H.diagonal().argsort(descending=True).tolist() if act_order else range(len(H))
    found = gptq(weight, H, mapping, GPTQConfig(0.01, 5, act_order))
    assert torch.equal(found.values.double(), by_definition(weight, H, mapping, 0.01, order))


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_blocks_change_nothing(mapping):
    weight, x = layer()
    whole, *others = (gptq(weight, x.T @ x, mapping, GPTQConfig(block=block)) for block in (24, 1, 5, 8))
    for other in others:
        assert torch.equal(whole.values, other.values)
        torch.testing.assert_close(whole.scale, other.scale, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("mapping", MAPPINGS)
def test_what_the_layer_says_changes_less_than_with_the_nearest_codes(mapping, act_order):
    weight, x = layer()
    found, nearest = gptq(weight, x.T @ x, mapping, GPTQConfig(act_order=act_order)), quantize_tensor(weight, mapping)
    off = [float((x @ (q.dequantize() - weight).T).square().sum()) for q in (found, nearest)]
    assert off[0] < 0.7 * off[1]
    assert (found.dequantize() - weight).norm() > (nearest.dequantize() - weight).norm(), "at the weights' own cost"


def test_independent_inputs_leave_nothing_to_undo():
    weight, _ = layer()
    mapping = MappingConfig("absmax", 4, "row")
    assert torch.equal(gptq(weight, torch.eye(24), mapping).values, quantize_tensor(weight, mapping).values)


def test_an_input_that_is_always_0():
    weight, x = layer()
    x[:, 3] = 0
    found = gptq(weight, x.T @ x, MAPPINGS[0])
    assert found.values[:, 3].eq(0).all() and torch.isfinite(found.dequantize()).all()


def test_one_token_is_no_calibration_set_but_breaks_nothing():
    weight, x = layer(samples=1)
    assert torch.isfinite(gptq(weight, x.T @ x, MAPPINGS[0]).dequantize()).all()
    with pytest.raises(UserError, match="more calibration"):
        gptq(weight, torch.full((24, 24), float("nan")), MAPPINGS[0])


def test_names_stand_together_by_block():
    assert in_blocks(["body.blocks.0.q", "body.blocks.0.ff.inner", "body.blocks.1.q", "first", "last"]) == [
        ["body.blocks.0.q", "body.blocks.0.ff.inner"], ["body.blocks.1.q"], ["first"], ["last"]]


@pytest.fixture
def model():
    return LanguageModel(TINY, 0).eval()


def batches(count=4):
    g = torch.Generator().manual_seed(3)
    return [torch.randint(4, TINY.vocabulary, (4, 24), generator=g) for _ in range(count)]


def test_a_model_says_nearly_the_same_and_the_given_one_is_untouched_by_a_failure(model):
    plain, tokens = copy.deepcopy(model), batches(9)[-1]
    off = {}
    for scheme in (SchemeConfig("weights", bits=3, per="row", rounding=r) for r in ("nearest", "gptq")):
        small, report = quantize(copy.deepcopy(plain), scheme, batches())
        off[scheme.rounding] = (small(tokens) - plain(tokens)).norm().item()
        assert all(row.output_error is not None for row in report.rows if not row.kept)
    assert off["gptq"] < 0.9 * off["nearest"]
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(UserError, match="needs a calibration set"):
        quantize(model, scheme_named("gptq"))
    with pytest.raises(UserError, match="empty"):
        quantize(model, scheme_named("gptq"), [])
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_later_layers_see_what_rounded_ones_say(model):
    layers = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "blocks" in name}
    before = {name: m.weight.clone() for name, m in layers.items()}
    mapping = MappingConfig("absmax", 2, "row")
    found = rounded(model, layers, mapping, batches())
    assert all(torch.equal(m.weight, before[name]) for name, m in layers.items()), "the model is as it was"
    last = [name for name in layers if ".1." in name]
    alone = rounded(model, {name: layers[name] for name in last}, mapping, batches())
    assert any(not torch.equal(found[name].values, alone[name].values) for name in last)
    first = [name for name in layers if ".0." in name]
    again = rounded(model, {name: layers[name] for name in first}, mapping, batches())
    assert all(torch.equal(found[name].values, again[name].values) for name in first)


def test_nf4_has_no_codes_for_it():
    with pytest.raises(UserError, match="equally spaced"):
        SchemeConfig("nf4", rounding="gptq")


@pytest.mark.parametrize("size", [1.0, 1e-4])
def test_inputs_that_are_never_used_do_not_change_the_damping(size):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 32, generator=generator)
    x = size * torch.randn(32, 200, generator=generator) @ torch.diag(torch.linspace(0.1, 3, 200))
    x[1:16] += 2 * x[:1]
    x[16:] = 0
    mapping = MappingConfig("absmax", 3, "row")
    off = [((weight - q.dequantize()) @ x).norm() for q in
           (quantize_tensor(weight, mapping), gptq(weight, x @ x.T, mapping))]
    assert off[1] < 0.9 * off[0]
