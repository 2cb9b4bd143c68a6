"""SmoothQuant: the same model before rounding, a better one after it where inputs have outliers."""

import copy
import dataclasses

import pytest
import torch
from conftest import TINY

from minialign.heads import LanguageModel
from minialign.peft import lora
from minialign.quant.ptq import quantize
from minialign.quant.scheme import SCHEMES, SchemeConfig
from minialign.quant.smoothquant import readers, smooth, smoothing_scales
from minialign.runs.errors import UserError


def batches(count=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(4, TINY.vocabulary, (4, 24), generator=g) for _ in range(count)]


def model_with_outliers(**changes):
    """A model whose norms make two features forty times as large as the others, as large models have them."""
    model = LanguageModel(dataclasses.replace(TINY, **changes), 0).eval()
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith(("attention_norm", "feed_forward_norm")):
                module.weight[:2] = 40.0
            if "convolutions" in name and hasattr(module, "weight"):
                module.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    return model


def off(model, plain, tokens):
    with torch.no_grad():
        return ((model(tokens) - plain(tokens)).norm() / plain(tokens).norm()).item()


def test_scales_are_those_of_the_equation():
    weights = [torch.tensor([[0.5, -1.0, 1.0]]), torch.tensor([[-2.0, 0.5, 1.0]])]
    found = smoothing_scales(torch.tensor([8.0, 2.0, 0.0]), weights, 0.75)
    assert found.tolist() == pytest.approx([8**0.75 / 2**0.25, 2**0.75 / 1, 1.0])


@pytest.mark.parametrize("changes", [{}, {"short_convolution": 4}, {"kind": "encoder"}])
@pytest.mark.parametrize("alpha", [0.3, 0.5, 1.0])
def test_smoothing_changes_nothing_but_the_ranges(changes, alpha):
    plain = model_with_outliers(**changes)
    model, tokens = copy.deepcopy(plain), batches(1, 9)[0]
    scales = smooth(model, batches(), alpha)
    assert off(model, plain, tokens) < 1e-5
    assert all(s[:2].min() > 2 * s[2:].median() for s in scales.values()), "outliers are divided by most"


def test_layers_of_one_norm_share_their_scales():
    model = model_with_outliers()
    before = copy.deepcopy(model)
    scales = smooth(model, batches())
    for norm, layers in readers(model).items():
        for name in layers:
            wanted = before.get_submodule(name).weight * scales[norm]
            torch.testing.assert_close(model.get_submodule(name).weight, wanted)
    assert {len(layers) for layers in readers(model).values()} == {1, 3}


def test_a_feature_that_is_always_0():
    model = model_with_outliers()
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith("_norm"):
                module.weight[5], module.bias[5] = 0.0, 0.0
    plain = copy.deepcopy(model)
    scales = smooth(model, batches())
    assert all(s[5] == 1 for s in scales.values()) and off(model, plain, batches(1, 9)[0]) < 1e-5


def test_with_outliers_eight_bits_lose_less_than_plain_ones_do():
    plain, tokens, found = model_with_outliers(), batches(1, 9)[0], {}
    for name in ("vector-wise", "smoothquant"):
        found[name] = off(quantize(copy.deepcopy(plain), SCHEMES[name], batches())[0], plain, tokens)
    assert found["smoothquant"] < 0.6 * found["vector-wise"]


def test_a_failure_leaves_the_model_as_it_was():
    model = model_with_outliers()
    with torch.no_grad():
        model.body.blocks[1].feed_forward.output.bias[0] = float("inf")
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(UserError):
        quantize(model, SCHEMES["smoothquant"], batches())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    with pytest.raises(UserError, match="needs a calibration set"):
        quantize(model, SCHEMES["smoothquant"])
    with pytest.raises(UserError, match="nowhere to move"):
        smooth(torch.nn.Sequential(torch.nn.Linear(3, 3)), [torch.ones(1, 3)])
    with pytest.raises(UserError, match="smoothing"):
        SchemeConfig(smoothing=1.5)


@pytest.mark.parametrize("other", ["lora", "int8"])
def test_a_reader_that_cannot_be_smoothed_is_refused_and_the_model_untouched(other):
    model = model_with_outliers()
    if other == "lora":
        lora.wrap(model, lora.LoRAConfig(rank=2))
    else:
        quantize(model, SCHEMES["vector-wise"], include=("*.query",))
    before = model(batches()[0])
    with pytest.raises(UserError, match="attention.query is a .* cannot be smoothed"):
        smooth(model, batches())
    assert torch.equal(model(batches()[0]), before)
