"""NormalFloats are those of the bitsandbytes library on the CPU: levels, codes, scales and what comes back."""

import pytest
import torch

from minialign.quant.nf4 import NF4Config, NormalFloat, dynamic_levels, normal_levels, quantize_nf4

functional = pytest.importorskip("bitsandbytes.functional")
pytestmark = pytest.mark.filterwarnings("ignore")
SHAPES = [(64, 64), (37, 50), (300, 256), (1000, 333), (1, 7)]


def both(shape, double, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.05
    packed, state = functional.quantize_4bit(x, blocksize=64, compress_statistics=double, quant_type="nf4")
    return quantize_nf4(x, NF4Config(double=double)), packed.flatten(), state


@pytest.mark.piece("NF4: the 16 levels, and the 256 of the scales", "bitsandbytes")
def test_the_levels_are_the_librarys():
    assert torch.allclose(normal_levels(), functional.get_4bit_type("nf4", device="cpu"), atol=3e-7)
    assert torch.equal(dynamic_levels(), functional.create_dynamic_map())


@pytest.mark.piece("NF4: codes, scales, what comes back", "bitsandbytes")
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_and_scales_are_the_librarys(shape):
    ours, packed, state = both(shape, double=False)
    whole = ours.shape.numel() // 2  # what half a byte is filled up with is nobody's
    assert torch.equal(ours.packed[:whole], packed[:whole]) and torch.equal(ours.scale, state.absmax)
    assert torch.allclose(ours.dequantize(), functional.dequantize_4bit(packed[:, None], state), atol=1e-7)


@pytest.mark.piece("NF4: double-quantized scales", "bitsandbytes")
@pytest.mark.parametrize("shape", SHAPES[:-1])  # the library divides a single scale, less its mean, by 0
def test_double_quantized_scales_are_the_librarys_or_nearer(shape):
    ours, packed, state = both(shape, double=True)
    assert torch.equal(ours.scale_mean, state.offset) and torch.equal(ours.scale_scale, state.state2.absmax)
    theirs = NormalFloat(packed, state.absmax, state.state2.absmax, state.offset, ours.shape, ours.config)
    assert torch.allclose(theirs.dequantize(), functional.dequantize_4bit(packed[:, None], state), atol=1e-7)
    other, exact = ours.scale != state.absmax, both(shape, double=False)[0].scale
    assert other.float().mean() < 0.005
    assert ((ours.scales() - exact).abs()[other] <= (theirs.scales() - exact).abs()[other]).all()
