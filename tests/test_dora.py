"""DoRA: lengths and directions of rows, its gradient, its bases and its files."""

import copy

import pytest
import torch
from conftest import TINY, build

from minialign.heads import LanguageModel
from minialign.peft.dora import DoRAConfig, DoRALinear, wrap
from minialign.peft.lora import merge, merged_plain, unmerge
from minialign.peft.saving import load, save
from minialign.peft.trainable import trained
from minialign.quant.half import store_half
from minialign.quant.ptq import quantize
from minialign.quant.scheme import scheme_named
from minialign.runs.errors import UserError

TARGETS = DoRAConfig(rank=2, targets=("query", "value", "feed_forward.inner"))


@pytest.fixture
def base():
    return LanguageModel(TINY, 0).eval()


@pytest.fixture
def tokens():
    return torch.randint(4, TINY.vocabulary, (2, 9), generator=torch.Generator().manual_seed(0))


def stir(model):
    generator = torch.Generator().manual_seed(1)
    for parameter in trained(model).values():
        parameter.data += torch.randn(parameter.shape, generator=generator) * 0.1
    return model


def layer_of(model):
    return next(module for module in model.modules() if isinstance(module, DoRALinear))


def test_dora_starts_as_the_base(base, tokens):
    expected = base(tokens)
    torch.testing.assert_close(wrap(base, TARGETS)(tokens), expected, atol=1e-6, rtol=1e-5)


def test_without_settings_the_queries_and_values_are_wrapped(base, tokens):
    wrapped = wrap(base)
    named = {name.rpartition(".")[2] for name, module in wrapped.named_modules() if isinstance(module, DoRALinear)}
    assert named == set(DoRAConfig().targets)


def test_a_layer_is_that_of_the_equation(base):
    layer = layer_of(stir(wrap(base, TARGETS)))
    layer.base.bias.data.normal_(generator=torch.Generator().manual_seed(2))  # which has no part in length or direction
    changed = layer.base.weight + layer.scale * layer.B @ layer.A
    wanted = layer.magnitude[:, None] * changed / changed.norm(dim=1, keepdim=True)
    x = torch.randn(5, layer.base.in_features)
    torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, wanted, layer.base.bias), atol=1e-5, rtol=1e-4)
    lengths = (layer.weight() + layer.update).norm(dim=1)
    torch.testing.assert_close(lengths, layer.magnitude.detach().abs(), atol=1e-5, rtol=1e-5)


def test_the_norm_is_a_constant_for_the_gradient(base):
    layer = layer_of(stir(wrap(base, TARGETS)))
    x = torch.randn(5, layer.base.in_features)
    layer(x).square().sum().backward()
    changed = layer.base.weight + layer.scale * layer.B @ layer.A
    norm = changed.norm(dim=1, keepdim=True).detach()
    y = torch.nn.functional.linear(x, layer.magnitude[:, None] * changed / norm, layer.base.bias)
    wanted = torch.autograd.grad(y.square().sum(), [layer.A, layer.B, layer.magnitude])
    for own, other in zip((layer.A.grad, layer.B.grad, layer.magnitude.grad), wanted):
        torch.testing.assert_close(own, other, atol=1e-4, rtol=1e-4)


def test_lengths_and_updates_train_and_nothing_else(base):
    names = {name.rpartition(".")[2] for name in trained(wrap(base, TARGETS))}
    assert names == {"A", "B", "magnitude"}


def test_the_merged_model_is_the_unmerged_one_and_unmerging_is_exact(base, tokens):
    plain = copy.deepcopy(base)
    model = stir(wrap(base, TARGETS))
    expected = model(tokens)
    torch.testing.assert_close(merge(model)(tokens), expected, atol=1e-5, rtol=1e-4)
    unmerge(model)
    layer = layer_of(model)
    assert torch.equal(layer.base.weight, plain.get_submodule(model.tuning.targets[0]).weight)
    torch.testing.assert_close(merged_plain(model)(tokens), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["nf4", "weights", "vector-wise", "half"])
def test_dora_stands_on_a_quantized_base(base, tokens, kind):
    small = store_half(base, torch.bfloat16) if kind == "half" else quantize(base, scheme_named(kind))[0]
    expected = small(tokens)
    model = wrap(small, TARGETS)
    torch.testing.assert_close(model(tokens), expected, atol=1e-4, rtol=1e-3)
    model(tokens).square().mean().backward()
    assert layer_of(model).magnitude.grad.abs().max() > 0
    with pytest.raises(UserError, match="merge first and quantize then"):
        merge(model)


def test_a_file_gives_the_lengths_back(base, tokens, tmp_path):
    fresh = copy.deepcopy(base)
    model = stir(wrap(base, TARGETS))
    save(model, tmp_path)
    torch.testing.assert_close(load(fresh, tmp_path)(tokens), model(tokens), atol=0, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_row_of_zeros_stays_one(dtype):
    model = build().to(dtype)
    with torch.no_grad():
        model.body.blocks[0].attention.query.weight[3] = 0.0
    tokens = torch.arange(20, 40).view(2, 10)
    before = model(tokens)
    tuned = wrap(model)
    close = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(tuned(tokens), before, atol=close, rtol=close)
    tuned(tokens).logsumexp(dim=-1).sum().backward()
    assert all(p.grad.isfinite().all() for p in tuned.parameters() if p.grad is not None)
