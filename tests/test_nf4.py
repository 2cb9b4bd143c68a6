"""NormalFloats: their levels, what comes back, the layer that a LoRA trains on, and its files."""

import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY

from minialign.heads import LanguageModel
from minialign.peft.lora import LoRAConfig, LoRALinear, merge, wrap
from minialign.quant.mappings import MappingConfig, quantize_tensor, relative_error
from minialign.quant.nf4 import NF4Config, NF4Linear, dynamic_levels, normal_levels, pack, quantize_nf4, unpack
from minialign.quant.ptq import quantize
from minialign.quant.saving import load_quantized, save_quantized
from minialign.quant.scheme import SchemeConfig, scheme_named
from minialign.runs.errors import UserError

CONFIGS = [NF4Config(), NF4Config(double=False), NF4Config(32, True, 8)]


def weights(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.05


def test_levels_are_quantiles_of_a_normal_distribution():
    """By bisection of the error function, without the library's inverse."""
    def quantile(p):
        low, high = -9.0, 9.0
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if 0.5 * (1 + math.erf(middle / 2**0.5)) < p else (low, middle)
        return low

    tail = 0.5 * (1 / 32 + 1 / 30)
    above = [quantile(0.5 + (0.5 - tail) * i / 8) for i in range(9)]
    below = [-quantile(0.5 + (0.5 - tail) * i / 7) for i in range(7, 0, -1)]
    assert normal_levels().tolist() == pytest.approx([x / above[-1] for x in below + above], abs=1e-6)
    assert len(normal_levels()) == 16 and len(dynamic_levels()) == len(set(dynamic_levels().tolist())) == 256


def test_the_levels_of_the_scales_are_middles_of_equal_steps_in_each_power_of_ten():
    levels = dynamic_levels().double()
    assert torch.equal(levels, levels.sort().values) and float(levels[-1]) == 1.0 and 0.0 in levels.tolist()
    for power in range(7):
        top = 10.0 ** (power - 6)
        inside = levels[(levels > top / 10) & (levels < top)]
        expected = [top * (0.1 + 0.9 * (i + 0.5) / 2**power) for i in range(2**power)]
        assert inside.tolist() == pytest.approx(expected, rel=1e-5)
        assert torch.equal(levels[(levels < -top / 10) & (levels > -top)], -inside.flip(0))
    assert NF4Config(block=2, scale_block=1)


def test_each_value_takes_its_nearest_level_and_codes_are_used_alike():
    x = weights(256, 256)
    found = quantize_nf4(x, NF4Config(double=False))
    scaled = x.view(-1, 64) / x.view(-1, 64).abs().amax(dim=1, keepdim=True)
    nearest = (scaled[..., None] - normal_levels()).abs().amin(dim=-1)
    came_back = (found.dequantize().view(-1, 64) / x.view(-1, 64).abs().amax(dim=1, keepdim=True) - scaled).abs()
    assert torch.allclose(came_back, nearest, atol=1e-6)
    shares = torch.bincount(unpack(found.packed), minlength=16) / x.numel()
    assert shares.min() > 0.01 and shares.max() < 0.13  # equally spaced ones: .0002 and .3


def test_normal_weights_lose_less_than_with_equally_spaced_levels():
    """Less than absmax with its 15 levels; zero-point, which has both ends of each block to itself, is its equal."""
    x = weights(128, 256)
    absmax, zero_point = (relative_error(quantize_tensor(x, MappingConfig(mapping, 4, "group", 64)).dequantize(), x)
                          for mapping in ("absmax", "zero-point"))
    assert relative_error(quantize_nf4(x).dequantize(), x) < 0.9 * absmax
    assert relative_error(quantize_nf4(x).dequantize(), x) == pytest.approx(zero_point, rel=0.05)


@pytest.mark.parametrize("config", CONFIGS)
def test_zero_is_a_level_and_comes_back(config):
    x = weights(3, 200)
    x[:, ::3] = 0
    found = quantize_nf4(x, config).dequantize()
    assert found[:, ::3].eq(0).all() and quantize_nf4(torch.zeros(5, 7), config).dequantize().abs().max() < 1e-30


def test_the_largest_weight_of_a_block_comes_back():
    x = weights(8, 64)
    x[:, 0] = torch.tensor([0.3, -0.3] * 4)
    found = quantize_nf4(x, NF4Config(double=False)).dequantize()
    assert torch.equal(found[:, 0], x[:, 0])


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (64,), (33, 70), (2, 3, 4)])
def test_any_shape_comes_back_and_the_last_block_may_be_shorter(shape, config):
    x = weights(*shape)
    found = quantize_nf4(x, config)
    assert found.dequantize().shape == x.shape and len(found.packed) == (x.numel() + 1) // 2
    assert relative_error(found.dequantize(), x) < 0.15


def test_bits_a_weight_are_those_of_the_paper():
    x = weights(1024, 1024)
    assert quantize_nf4(x).bytes * 8 / x.numel() == pytest.approx(4.127, abs=1e-3)
    assert quantize_nf4(x, NF4Config(double=False)).bytes * 8 / x.numel() == 4.5


def test_two_codes_share_a_byte_the_first_in_its_upper_half():
    assert pack(torch.tensor([1, 2, 15, 0])).tolist() == [0x12, 0xF0]
    codes = torch.randint(16, (40,))
    assert torch.equal(unpack(pack(codes)), codes)


@pytest.mark.parametrize("change, message", [(dict(block=63), "must be even"), (dict(block=0), "block")])
def test_a_block_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        NF4Config(**change)
    with pytest.raises(UserError, match=message):
        SchemeConfig("nf4", **change)


def test_a_weight_that_is_not_finite_is_an_error():
    x = weights(4, 64)
    x[1, 1] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        quantize_nf4(x)


def test_training_beside_it_keeps_no_weight_in_full():
    layer, x = NF4Linear(quantize_nf4(weights(48, 32)), torch.ones(48)), weights(5, 32).requires_grad_(True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        y = layer(x)
    y.square().sum().backward()
    again = x.detach().clone().requires_grad_(True)
    F.linear(again, layer.quantized_weight().dequantize(), torch.ones(48)).square().sum().backward()
    assert max(kept, default=0) < 48 * 32 and torch.allclose(x.grad, again.grad, atol=1e-5)


def test_a_lora_on_such_a_base_trains_and_is_not_merged():
    model = LanguageModel(dataclasses.replace(TINY, width=32), 0)
    quantized, report = quantize(model, scheme_named("nf4"))
    before = {name: buffer.clone() for name, buffer in quantized.named_buffers()}
    wrap(quantized, LoRAConfig(rank=2))
    assert any(isinstance(m, LoRALinear) and isinstance(m.base, NF4Linear) for m in quantized.modules())
    tokens = torch.randint(4, TINY.vocabulary, (2, 9))
    optimizer = torch.optim.Adam([p for p in quantized.parameters() if p.requires_grad], 1e-2)
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(quantized(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad(), loss.backward(), optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    after = {name.replace(".base.", "."): buffer for name, buffer in quantized.named_buffers()}
    assert all(torch.equal(after[name], buffer) for name, buffer in before.items())
    with pytest.raises(UserError, match="merge first and quantize then"):
        merge(quantized)


@pytest.mark.parametrize("double", [True, False])
def test_a_file_gives_the_model_back(tmp_path, double):
    model = LanguageModel(dataclasses.replace(TINY, width=32), 0).eval()
    small, _ = quantize(copy.deepcopy(model), SchemeConfig("nf4", double=double))
    size = save_quantized(small, tmp_path / "small.safetensors")
    again = load_quantized(copy.deepcopy(model), tmp_path / "small.safetensors")
    tokens = torch.randint(4, TINY.vocabulary, (2, 9))
    assert torch.equal(again(tokens), small(tokens)) and size == (tmp_path / "small.safetensors").stat().st_size
    other = LanguageModel(dataclasses.replace(TINY, width=48), 0)
    with pytest.raises(UserError, match="cannot be read|another model"):
        load_quantized(other, tmp_path / "small.safetensors")
