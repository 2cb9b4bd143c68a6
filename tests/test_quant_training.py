"""Quantization-aware training, half precision, and quantized models as files."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minialign.heads import LanguageModel
from minialign.quant import half
from minialign.quant.half import HalfEmbedding, HalfLinear, compute_half, overflow_report, store_half
from minialign.quant.linear import StaticLinear
from minialign.quant.mappings import MappingConfig, quantize_tensor
from minialign.quant.ptq import module_bytes, quantize
from minialign.quant.qat import (
    FakeQuantizedLinear,
    convert,
    fake_quantize,
    fake_quantize_measured,
    initial_step,
    prepare,
    round_through,
)
from minialign.quant.saving import load_quantized, pack_bits, save_quantized, unpack_bits
from minialign.quant.scheme import SCHEMES, SchemeConfig
from minialign.runs.errors import UserError
from minialign.runs.tensors import tensor_file, tensors_of
from minialign.training import adamw
from minialign.transformer import TransformerConfig

SHAPE = TransformerConfig(320, 48, 32, 2, 2, initial_std=0.2)
TOKENS = torch.randint(20, 320, (4, 24), generator=torch.Generator().manual_seed(0))
BATCHES = [TOKENS[:2], TOKENS[2:]]
TRAINABLE = ["weights", "4-bit-weights", "absmax", "zero-point", "row-wise", "vector-wise", "static",
             "static-zero-point"]
LEARNED = [SchemeConfig("weights", bits=3, per="tensor"), SchemeConfig("dynamic", bits=4),
           SchemeConfig("static", bits=4, activation_per="tensor")]


def linear(K=64, N=16, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(K, N)


def inputs(T=12, K=64, seed=1):
    return torch.randn(T, K, generator=torch.Generator().manual_seed(seed))


def prepared(scheme, learned=False, **settings):
    model = nn.Sequential(linear())
    return prepare(model, scheme, [inputs()] if scheme.method == "static" else None, learned, **settings)


# fake quantization


def test_the_gradient_is_1_inside_the_range_and_0_outside():
    x = torch.tensor([-9.0, -7.6, -7.4, -7.0, -0.5, 0.2, 0.5, 1.5, 2.5, 6.9, 7.4, 7.6, 20.0], requires_grad=True)
    y = fake_quantize(x, torch.tensor(1.0), None, MappingConfig(bits=4))
    y.sum().backward()
    assert y.tolist() == [-7, -7, -7, -7, 0, 0, 0, 2, 2, 7, 7, 7, 7]  # halves go to the even neighbour
    assert x.grad.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0]


def test_plain_rounding_would_never_learn_anything():
    x = torch.tensor([0.3, 1.7], requires_grad=True)
    (gradient,) = torch.autograd.grad(x.round().sum(), x)
    (through,) = torch.autograd.grad(round_through(x).sum(), x)
    assert gradient.tolist() == [0, 0] and through.tolist() == [1, 1]
    assert torch.equal(round_through(x), x.round())


@pytest.mark.parametrize("mapping", ["absmax", "zero-point"])
@pytest.mark.parametrize("per", ["tensor", "row", "group"])
def test_fake_numbers_are_those_of_the_mapping(mapping, per):
    x, config = inputs().exp(), MappingConfig(mapping, 4, per, group=10)
    torch.testing.assert_close(fake_quantize_measured(x, config), quantize_tensor(x, config).dequantize(), atol=1e-6,
                               rtol=1e-6)


def test_the_gradient_of_a_learned_step_is_that_of_the_paper():
    x, s = torch.tensor([-5.0, -0.8, 0.3, 1.2, 9.0]), torch.tensor(0.5, requires_grad=True)
    config = MappingConfig(bits=3)  # −3 … 3
    for i, v in enumerate(x):
        (found,) = torch.autograd.grad(fake_quantize(v, s, None, config), s)
        ratio = float(v) / 0.5
        expected = {True: round(ratio) - ratio}.get(abs(round(ratio)) <= 3, math.copysign(3, ratio))
        assert float(found) == pytest.approx(expected, abs=1e-6), i


def test_a_learned_step_s_gradient_is_scaled_by_the_number_of_weights():
    layer = FakeQuantizedLinear(linear(), SchemeConfig("weights", bits=4, per="tensor"), learned_step=True)
    mean = float(layer.linear.weight.detach().abs().mean())
    assert float(layer.weight_step.detach()) == pytest.approx(2 * mean / math.sqrt(7))
    layer.fake_weight().sum().backward()
    step = layer.weight_step.detach().clone().requires_grad_()
    fake_quantize(layer.linear.weight.detach(), step, None, MappingConfig(bits=4)).sum().backward()
    torch.testing.assert_close(layer.weight_step.grad, step.grad / math.sqrt(64 * 16 * 7))
    assert initial_step(inputs(), MappingConfig(per="row")).shape == (12, 1)


def test_measured_scales_carry_no_gradient_and_learned_ones_do():
    for scheme in LEARNED:
        fixed, learned = prepared(scheme), prepared(scheme, learned=True)
        assert [name for name, _ in fixed.named_parameters()] == ["0.linear.weight", "0.linear.bias"]
        steps = [name for name, _ in learned.named_parameters() if "step" in name]
        assert steps == ["0.weight_step", "0.input_step"][: 2 if scheme.method == "static" else 1]
        learned(inputs()).square().sum().backward()
        assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in learned.parameters())
    one = MappingConfig(bits=4)
    w = torch.tensor([[0.1, 0.25, 1.0]], requires_grad=True)
    fake_quantize_measured(w, one)[0, 1].backward()
    assert w.grad.tolist() == [[0, 1, 0]]  # the largest weight, which decides the scale, gets nothing


def test_no_decay_on_steps():
    model = prepared(SchemeConfig(), learned=True)
    groups = adamw(model, 1e-3, 0.1).param_groups
    decayed = {id(p) for g in groups if g["weight_decay"] > 0 for p in g["params"]}
    assert id(model[0].linear.weight) in decayed and id(model[0].weight_step) not in decayed


def test_the_optimizer_moves_the_latent_weights_in_full_precision():
    model = prepared(SchemeConfig("weights", bits=3))
    layer = model[0]
    before, fake = layer.linear.weight.detach().clone(), layer.fake_weight().detach()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    (model(inputs()) - 1).square().mean().backward()
    optimizer.step()
    moved = layer.linear.weight.detach() - before
    assert 0 < moved.abs().max() < 0.1 * (fake.max() - fake.min()) / 7  # far less than a step of the grid
    assert len(layer.linear.weight.unique()) > 1000 and len(layer.fake_weight()[0].unique()) <= 7


@pytest.mark.parametrize("name", TRAINABLE)
def test_a_converted_layer_gives_what_training_saw(name):
    model = prepared(SCHEMES[name])
    with torch.no_grad():
        expected = model(inputs(seed=5))
        torch.testing.assert_close(convert(model)(inputs(seed=5)), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("scheme", LEARNED, ids=lambda scheme: scheme.method)
def test_a_converted_layer_keeps_its_learned_steps(scheme):
    model = prepared(scheme, learned=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (model(inputs()) - 1).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        expected = model(inputs(seed=5))
        torch.testing.assert_close(convert(model)(inputs(seed=5)), expected, atol=1e-6, rtol=1e-6)


def test_without_training_it_converts_to_what_post_training_quantization_gives():
    for name in TRAINABLE:
        ours = convert(prepare(LanguageModel(SHAPE), SCHEMES[name], BATCHES))
        theirs, _ = quantize(LanguageModel(SHAPE), SCHEMES[name], BATCHES)
        found, expected = tensors_of(ours), tensors_of(theirs)
        assert found.keys() == expected.keys() and all(torch.equal(t, expected[key]) for key, t in found.items()), name


def test_looking_at_validation_text_moves_no_scale():
    model = prepare(LanguageModel(SHAPE), SCHEMES["static"], BATCHES)
    before = {name: t.clone() for name, t in tensors_of(model).items()}
    for mode in (True, False):
        model.train(mode)(TOKENS.flip(1))
    assert all(torch.equal(t, before[name]) for name, t in tensors_of(model).items())


def task():
    """A net that has learned to imitate another one, and the data."""
    torch.manual_seed(0)
    teacher, student = (nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4)) for _ in range(2))
    x = torch.randn(512, 16)
    with torch.no_grad():
        y = teacher(x)
    return learn(student, x, y, 300), x, y


def learn(model, x, y, steps=150):
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()
    return model


def test_training_with_few_bits_beats_quantizing_afterwards_with_equal_extra_steps():
    student, x, y = task()
    scheme = SchemeConfig("weights", bits=2)
    afterwards = quantize(learn(copy.deepcopy(student), x, y), scheme)[0]
    for learned in (False, True):
        trained = convert(learn(prepare(copy.deepcopy(student), scheme, learned_step=learned), x, y))
        assert F.mse_loss(trained(x), y) < F.mse_loss(afterwards(x), y)


def test_what_cannot_be_trained_quantized_is_an_error():
    with pytest.raises(UserError, match="llm-int8 is for trained models"):
        prepare(LanguageModel(SHAPE), SCHEMES["llm-int8"])
    with pytest.raises(UserError, match="learned steps need absmax"):
        prepare(LanguageModel(SHAPE), SCHEMES["zero-point"], learned_step=True)
    with pytest.raises(UserError, match="needs a calibration set"):
        prepare(LanguageModel(SHAPE), SCHEMES["static"])
    with pytest.raises(UserError, match="calibration set"):
        FakeQuantizedLinear(linear(), SCHEMES["static"])
    with pytest.raises(UserError, match="0 has weights of 16 bits.*model.float"):
        prepare(nn.Sequential(linear()).bfloat16(), SchemeConfig())
    with pytest.raises(UserError, match="no fake-quantized layers"):
        convert(LanguageModel(SHAPE))
    model = prepare(LanguageModel(SHAPE), SCHEMES["vector-wise"], include=("*.query",))
    assert sum(isinstance(m, FakeQuantizedLinear) for m in model.modules()) == 2


# half precision


def test_what_overflows_and_what_vanishes():
    assert torch.tensor(70_000.0).half().isinf() and float(torch.tensor(70_000.0).bfloat16()) == 70_144
    assert float(torch.tensor(65_519.0).half()) == 65_504 and torch.tensor(65_520.0).half().isinf()
    assert float(torch.tensor(1e-8).half()) == 0 and float(torch.tensor(1e-8).bfloat16()) > 0


@pytest.mark.parametrize("dtype", half.HALVES.values(), ids=list(half.HALVES))
def test_stored_in_16_bits_a_model_takes_half_the_bytes_and_says_nearly_the_same(dtype):
    model = LanguageModel(SHAPE).eval()
    with torch.no_grad():
        before, size = model(TOKENS), module_bytes(model)
        after = store_half(model, dtype)(TOKENS)
    assert 0 < (after - before).norm() / before.norm() < (0.002 if dtype == torch.float16 else 0.02)
    assert module_bytes(model) < 0.53 * size and after.dtype == torch.float32
    assert isinstance(model.body.token_embedding, HalfEmbedding)
    assert isinstance(model.body.blocks[0].attention.key, HalfLinear)


def test_a_shared_weight_is_stored_once():
    model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 10, bias=False))
    model[1].weight = model[0].weight
    store_half(model, torch.bfloat16)
    assert module_bytes(model) == 10 * 8 * 2 and model[0].stored is model[1].stored
    with pytest.raises(UserError, match="neither"):
        store_half(nn.Sequential(nn.ReLU()), torch.bfloat16)


@pytest.mark.parametrize("dtype", half.HALVES.values(), ids=list(half.HALVES))
def test_norms_are_computed_in_float32(dtype):
    exact = nn.Sequential(nn.LayerNorm(64), linear())
    with torch.no_grad():
        exact[0].weight.fill_(1.001)
        exact[0].bias.fill_(1e-3)
    kept = compute_half(exact, dtype)[0].norm
    for found, value in ((kept.weight, 1.001), (kept.bias, 1e-3)):
        assert torch.equal(found, torch.full((64,), value)), "not rounded on the way"
    norm = compute_half(nn.Sequential(nn.LayerNorm(64), nn.RMSNorm(64), nn.Linear(64, 64)), dtype)
    assert norm[0].norm.weight.dtype == norm[1].norm.weight.dtype == torch.float32 and norm[2].weight.dtype == dtype
    x = (inputs() * 300).to(dtype)
    expected = nn.RMSNorm(64)(x.float()).to(dtype)
    assert torch.equal(norm[1](x), expected) and norm[1](x).dtype == dtype

    class HandNorm(nn.Module):
        def forward(self, x):
            return x * torch.rsqrt((x * x).mean(dim=-1, keepdim=True))

    by_hand = compute_half(nn.Sequential(HandNorm(), linear()), dtype)[0]
    torch.testing.assert_close(by_hand(x), expected)  # 300² is beyond float16
    with torch.no_grad():
        plain, model = LanguageModel(SHAPE).eval()(TOKENS), compute_half(LanguageModel(SHAPE).eval(), dtype)
        found = model(TOKENS)
    assert found.dtype == dtype and (found.float() - plain).norm() / plain.norm() < 0.05


def test_a_weight_that_does_not_fit_is_an_error_that_names_it():
    for convert_to in (store_half, compute_half):
        model = nn.Sequential(linear())
        model[0].weight.data[0, 0] = 70_000.0
        with pytest.raises(UserError, match="0.weight holds 7e[+]04.*: use bf16, or mend"):
            convert_to(model, torch.float16)
        assert type(model[0]) is nn.Linear and model[0].weight.dtype == torch.float32
        convert_to(model, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_bf16_is_no_remedy_for_what_it_cannot_hold_either(dtype):
    model = nn.Sequential(linear())
    model[0].weight.data[0, 0] = math.nan
    with pytest.raises(UserError, match="0.weight holds nan; .*: mend the checkpoint"):
        store_half(model, dtype)


def test_the_overflow_report_names_the_layer():
    model = nn.Sequential(linear(64, 64), nn.LayerNorm(64), linear(64, 8, seed=1))
    model[0].weight.data[3] = 1e4
    model[0].bias.data[3] = 1e5
    model[2].weight.data[2], model[2].bias.data[2] = 0.0, 1e-8
    names = [name for name, _ in model.named_modules()]
    report = overflow_report(model, [inputs(), inputs(seed=2)], torch.float16)
    assert report[0].name == "0" and report[0].largest > 65_504 and 0 < report[0].overflows <= 1 / 64
    (last,) = (row for row in report if row.name == "2")
    assert last.overflows == 0 and last.vanishes == pytest.approx(1 / 8)
    assert [name for name, _ in model.named_modules()] == names
    assert all(row.overflows == row.vanishes == 0 for row in overflow_report(model, [inputs()], torch.bfloat16))


# files


@pytest.mark.parametrize("bits", range(2, 9))
def test_packed_integers_come_back(bits):
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    values = torch.randint(low, high, (7, 13), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    values[0, :2] = torch.tensor([low, high - 1])
    packed = pack_bits(values, bits)
    assert packed.dtype == torch.uint8 and len(packed) == math.ceil(7 * 13 * bits / 8)
    assert torch.equal(unpack_bits(packed, bits, (7, 13)), values)
    with pytest.raises(ValueError, match="integers"):
        unpack_bits(packed[1:], bits, (7, 13))


@pytest.mark.parametrize("name", SCHEMES)
def test_a_saved_model_comes_back_with_the_same_bits(name, tmp_path):
    model, _ = quantize(LanguageModel(SHAPE), SCHEMES[name], BATCHES)
    save_quantized(model, tmp_path / "model.safetensors")
    loaded = load_quantized(LanguageModel(SHAPE, seed=9), tmp_path / "model.safetensors")
    assert torch.equal(loaded(TOKENS), model(TOKENS)) and not loaded.training
    found, expected = tensors_of(loaded), tensors_of(model)
    assert found.keys() == expected.keys() and all(torch.equal(t, expected[key]) for key, t in found.items())


def test_trained_and_16_bit_models_come_back_too(tmp_path):
    file = tmp_path / "model.safetensors"
    trained = convert(prepare(LanguageModel(SHAPE), SchemeConfig("static", bits=3, activation_per="tensor"), BATCHES,
                              learned_step=True))
    save_quantized(trained, file)
    loaded = load_quantized(LanguageModel(SHAPE, seed=9), file)
    assert torch.equal(loaded(TOKENS), trained(TOKENS))
    assert isinstance(loaded.body.blocks[0].attention.key, StaticLinear)
    stored = store_half(LanguageModel(SHAPE), torch.float16)
    save_quantized(stored, file)
    assert torch.equal(load_quantized(LanguageModel(SHAPE, seed=9), file)(TOKENS), stored(TOKENS))
    tied = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 10, bias=False))
    tied[1].weight = tied[0].weight
    fresh = copy.deepcopy(tied)
    save_quantized(store_half(tied, torch.float16), file)
    loaded = load_quantized(fresh, file)
    assert loaded[0].stored is loaded[1].stored and torch.equal(loaded[1].stored, tied[0].stored)


def test_sizes_are_those_of_the_file(tmp_path):
    sizes = {}
    schemes = {name: scheme for name, scheme in SCHEMES.items() if not scheme.smoothing}  # which needs a norm
    for name, scheme in {**schemes, "3-bit": SchemeConfig("weights", bits=3),
                         "2-bit": SchemeConfig("weights", bits=2)}.items():
        model, _ = quantize(nn.Sequential(linear(256, 256)), scheme, [torch.randn(4, 256)])
        sizes[name] = save_quantized(model, tmp_path / name)
        assert sizes[name] == (tmp_path / name).stat().st_size
    n = 256 * 256
    head = 2500  # names, shapes and facts, and the bias
    expected = {"weights": n + 1024, "4-bit-weights": n // 2 + n // 32 * 4, "3-bit": n * 3 // 8 + 1024,
                "2-bit": n // 4 + 1024, "llm-int8": 3 * n + 2048}
    for name, least in expected.items():
        assert least < sizes[name] < least + head + 4 * 256, name


def test_a_file_that_was_cut_or_altered_is_an_error(tmp_path):
    file = tmp_path / "model.safetensors"
    model, _ = quantize(LanguageModel(SHAPE), SCHEMES["vector-wise"])
    save_quantized(model, file)
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[-7] ^= 1
    for wrong, message in ((whole[:-100], "not a whole safetensors file"), (whole[:5], "not a whole"),
                           (bytes(flipped), "the numbers are not those")):
        file.write_bytes(wrong)
        fresh = LanguageModel(SHAPE)
        with pytest.raises(UserError, match=message):
            load_quantized(fresh, file)
        assert type(fresh.body.blocks[0].attention.key) is nn.Linear
    with pytest.raises(UserError, match="no such file"):
        load_quantized(LanguageModel(SHAPE), tmp_path / "nothing")


def test_a_file_of_another_model_is_an_error(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(tensor_file(tensors_of(LanguageModel(SHAPE))))
    with pytest.raises(UserError, match="holds no quantized model"):
        load_quantized(LanguageModel(SHAPE), file)
    for scheme, patterns in (("vector-wise", ("*.query",)), ("4-bit-weights", ("*",))):
        model, _ = quantize(LanguageModel(SHAPE), SCHEMES[scheme], include=patterns)
        save_quantized(model, file)
        for other in (TransformerConfig(320, 48, 64, 2, 2), TransformerConfig(320, 48, 32, 1, 2),
                      TransformerConfig(320, 48, 32, 3, 2)):
            with pytest.raises(UserError, match="cannot be read|holds another model"):
                load_quantized(LanguageModel(other), file)


def test_what_is_prepared_is_not_quantized_or_prepared_again():
    model = prepare(LanguageModel(SHAPE).eval(), SCHEMES["vector-wise"])
    before = model(TOKENS)
    for again in (lambda: quantize(model, SCHEMES["vector-wise"]), lambda: prepare(model, SCHEMES["vector-wise"])):
        with pytest.raises(UserError, match="call `convert`"):
            again()
    assert torch.equal(model(TOKENS), before)
    with pytest.raises(UserError, match="smoothing"):
        prepare(LanguageModel(SHAPE), SCHEMES["smoothquant"])
