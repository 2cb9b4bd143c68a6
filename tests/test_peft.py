"""Fine-tuning in all its ways: what trains, what stays, what a file holds, and that each method is what its paper
says."""

import copy
import json
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, build
from torch import nn

from minialign.batching import pad
from minialign.classification import LabelledTexts, class_loss, examine_classes
from minialign.generation import SamplingConfig, generate
from minialign.heads import Classifier, LanguageModel, ScalarModel, build_body
from minialign.peft import adapters, bitfit, feature_based, full, lora, prompt_tuning
from minialign.peft.adapters import AdapterConfig
from minialign.peft.bitfit import BitFitConfig
from minialign.peft.feature_based import CachedFeatures, examine_features, feature_loss
from minialign.peft.lora import LoRAConfig, LoRALinear
from minialign.peft.many_tasks import serve, stored_bytes
from minialign.peft.methods import CONFIGS, METHODS, configuration
from minialign.peft.prompt_tuning import PromptConfig
from minialign.peft.saving import ABOUT, TENSORS, load, read_saved, save, seal
from minialign.peft.trainable import counts, show, trained
from minialign.pretrain.causal_lm import next_token_loss
from minialign.quant.half import store_half
from minialign.quant.ptq import quantize
from minialign.quant.scheme import SCHEMES, scheme_named
from minialign.runs.errors import UserError
from minialign.runs.submodules import matching
from minialign.training import TrainingConfig, adamw, gradient_step

KINDS = ("decoder", "encoder", "encoder-decoder")
SMALL = {
    "full": full.FullConfig(),
    "bitfit": BitFitConfig(),
    "adapters": AdapterConfig(bottleneck=4),
    "lora": LoRAConfig(rank=2),
    "prompt-tuning": PromptConfig(length=3),
}


def run(model, tokens):
    """Logits, whatever the architecture."""
    if isinstance(model, LanguageModel) and model.config.kind == "encoder-decoder":
        return model(tokens, tokens.flip(1), torch.ones_like(tokens, dtype=torch.bool))
    return model(tokens)


def train(model, tokens, steps=5, rate=1e-2):
    """A few steps of AdamW with decay on whatever trains; returns the losses."""
    optimizer, losses = adamw(model, rate, 0.1), []
    model.train()
    for _ in range(steps):
        loss = F.cross_entropy(run(model, tokens).flatten(0, -2), tokens.roll(-1, 1).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


def classifier(seed=0, **changes):
    torch.manual_seed(seed)
    body = build(seed, kind="encoder", **changes).body
    return Classifier(body, 3, seed)


# what every method shares


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", SMALL)
def test_what_is_frozen_does_not_move(method, kind, tokens):
    model = METHODS[method].wrap(build(kind=kind, dropout=0.1), SMALL[method])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    moving = set(trained(model))
    def loss():
        return float(F.cross_entropy(run(model.eval(), tokens).flatten(0, -2),
                                             tokens.roll(-1, 1).flatten()).detach())
    at_first = loss()
    train(model, tokens, rate=3e-2)
    assert loss() < at_first
    for name, p in model.named_parameters():
        if name not in moving:
            assert torch.equal(p, before[name]) and p.grad is None, name
    assert any(not torch.equal(p, before[name]) for name, p in trained(model).items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", [name for name in SMALL if name not in ("adapters", "prompt-tuning")])
def test_a_wrapped_model_begins_as_the_base(method, kind, tokens):
    base = build(kind=kind)
    expected = run(base, tokens)
    assert torch.equal(run(METHODS[method].wrap(base, SMALL[method]), tokens), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", SMALL)
def test_a_saved_method_loads_onto_a_fresh_base_with_equal_logits(method, kind, tokens, tmp_path):
    model = METHODS[method].wrap(build(kind=kind), SMALL[method])
    train(model, tokens, steps=3)
    save(model, tmp_path / method)
    again = load(build(kind=kind), tmp_path / method)
    assert torch.equal(run(again, tokens), run(model, tokens))
    assert again.tuning.method == method and set(trained(again)) == set(trained(model))


def test_a_head_is_saved_with_the_method(tokens, tmp_path):
    model = lora.wrap(classifier(), LoRAConfig(rank=2))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    optimizer = torch.optim.AdamW(trained(model).values(), 1e-2)
    F.cross_entropy(model(tokens, mask), torch.tensor([0, 1, 2])).backward()
    optimizer.step()
    save(model, tmp_path)
    assert torch.equal(load(classifier(), tmp_path)(tokens, mask), model(tokens, mask))
    assert {"head.weight", "head.bias"} <= set(trained(model))


def test_a_file_for_another_base_is_refused_and_the_model_untouched(tmp_path, tokens):
    save(lora.wrap(build(seed=0), LoRAConfig(rank=2)), tmp_path)
    other = build(seed=1)
    before = {name: t.clone() for name, t in other.state_dict().items()}
    with pytest.raises(UserError, match="was made for another base"):
        load(other, tmp_path)
    assert set(other.state_dict()) == set(before) and all(torch.equal(t, before[n]) for n,
                                                          t in other.state_dict().items())
    assert all(p.requires_grad for p in other.parameters())


@pytest.mark.parametrize("damage, message", [("cut", "not a whole safetensors file"),
                                             ("flip", "not those that were written"), ("mixed", "not of one save")])
def test_a_damaged_file_is_refused_and_the_model_untouched(tmp_path, damage, message):
    save(lora.wrap(build(), LoRAConfig(rank=2)), tmp_path / "a")
    save(lora.wrap(build(), LoRAConfig(rank=2, seed=5)), tmp_path / "b")
    path = tmp_path / "a" / TENSORS
    if damage == "mixed":
        path.write_bytes((tmp_path / "b" / TENSORS).read_bytes())
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    model = build()
    with pytest.raises(UserError, match=message):
        load(model, tmp_path / "a")
    assert not any(isinstance(m, LoRALinear) for m in model.modules())


def test_an_unknown_method_or_setting_in_a_file_lists_the_known(tmp_path):
    save(lora.wrap(build(), LoRAConfig(rank=2)), tmp_path)
    about, tensors = read_saved(tmp_path)
    record = {**about, "method": "ia3"}
    del record["seal"]
    (tmp_path / ABOUT).write_text(json.dumps({**record, "seal": seal(record, tensors)}))
    with pytest.raises(UserError, match="'ia3' is not known; known are full"):
        load(build(), tmp_path)
    with pytest.raises(UserError, match="ranks"):
        configuration("lora", {"ranks": 3})
    with pytest.raises(UserError, match="known are full"):
        configuration("magic", {})


@pytest.mark.parametrize("method", SMALL)
def test_a_model_is_wrapped_once(method):
    model = METHODS[method].wrap(build(), SMALL[method])
    with pytest.raises(UserError, match=f"wrapped by {method} already"):
        lora.wrap(model, LoRAConfig())


def test_names_are_matched_whole():
    names = ["body.blocks.0.attention.query", "body.blocks.0.attention.query_norm", "body.relative_attention_bias",
             "body.bias"]
    assert matching(names, ["query"], "layer") == names[:1]
    assert matching(names, ["bias"], "layer") == names[3:]
    assert matching(names, ["*query*"], "layer") == names[:2]
    with pytest.raises(UserError, match="no layer is called 'quary'; there are attention.query"):
        matching(names, ["query", "quary"], "layer")


def test_the_table_says_what_trains():
    model = lora.wrap(build(), LoRAConfig(rank=2, targets=("attention.query",)))
    some, all_ = counts(model)
    assert some == 2 * 2 * (32 * 2) and all_ > some
    shown = show(model)
    assert "blocks.1.attention.query.B" in shown and f"lora: {some:,} of {all_:,}" in shown and "key" not in shown
    assert "lora: attention.query ×2" in shown.splitlines() and show(build()).endswith("parameters train (100.00%)")
    assert model.tuning.config.rank == 2


def test_saving_needs_a_wrapped_model_that_is_not_merged(tmp_path):
    with pytest.raises(UserError, match="not wrapped by any method"):
        save(build(), tmp_path)
    with pytest.raises(UserError, match="unmerge it before you save it"):
        save(lora.merge(lora.wrap(build(), LoRAConfig())), tmp_path)


def test_the_projects_own_loop_trains_what_a_method_leaves_free(tokens):
    from minialign.batching import next_token_batch

    model = lora.wrap(build(), LoRAConfig(rank=2))
    batch = next_token_batch(tokens.tolist())
    optimizer = adamw(model, 1e-2, 0.1)
    assert sum(p.numel() for group in optimizer.param_groups for p in group["params"]) == counts(model)[0]
    first, _ = gradient_step(model, optimizer, [batch], next_token_loss, TrainingConfig(), batch.count)
    for _ in range(5):
        last, _ = gradient_step(model, optimizer, [batch], next_token_loss, TrainingConfig(), batch.count)
    assert last < first


# LoRA


def layer(rank=2, **changes):
    torch.manual_seed(0)
    linear = nn.Linear(12, 8).requires_grad_(False)
    return LoRALinear(linear, LoRAConfig(rank=rank, **changes), torch.Generator().manual_seed(0))


def test_lora_starts_as_the_base_and_only_b_has_a_gradient():
    wrapped, x = layer(), torch.randn(5, 12)
    assert torch.equal(wrapped(x), wrapped.base(x))
    wrapped(x).square().sum().backward()
    assert wrapped.B.grad.abs().sum() > 0 and wrapped.A.grad.abs().sum() == 0 and wrapped.base.weight.grad is None


@pytest.mark.parametrize("stabilised, scale", [(False, 16 / 4), (True, 16 / 2)])
def test_the_merged_model_is_the_unmerged_one(stabilised, scale):
    wrapped, x = layer(rank=4, alpha=16.0, rank_stabilised=stabilised), torch.randn(5, 12)
    nn.init.normal_(wrapped.B)
    expected = x @ (wrapped.base.weight + scale * wrapped.B @ wrapped.A).T + wrapped.base.bias
    torch.testing.assert_close(wrapped(x), expected)
    wrapped.merge()
    torch.testing.assert_close(wrapped(x), expected)
    assert torch.equal(wrapped(x), wrapped.base(x)), "merged, it costs what the plain layer costs"


def test_a_is_drawn_with_the_fan_in_of_the_layer():
    """U(±1/√in) has deviation 1/√(3 in); with the other axis it would be √(in/r) times as large."""
    wide = LoRALinear(nn.Linear(600, 8), LoRAConfig(rank=8), torch.Generator().manual_seed(0))
    A = wide.A.detach()
    assert A.shape == (8, 600) and float(A.abs().max()) <= 1 / math.sqrt(600)
    assert float(A.std()) == pytest.approx(1 / math.sqrt(3 * 600), rel=0.05)
    torch.manual_seed(0)
    reference = nn.init.kaiming_uniform_(torch.empty(8, 600), a=math.sqrt(5))
    assert float(reference.std()) == pytest.approx(float(A.std()), rel=0.05)


def test_merging_and_unmerging_is_exact_and_cannot_be_done_twice(tokens):
    model = lora.wrap(build(), LoRAConfig(rank=2, targets=("query", "inner")))
    train(model, tokens, steps=2)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    unmerged = run(model, tokens)
    lora.merge(model)
    torch.testing.assert_close(run(model, tokens), unmerged, atol=1e-5, rtol=1e-4)
    with pytest.raises(UserError, match="merging it twice would add it twice"):
        lora.merge(model)
    with pytest.raises(UserError, match="merging it twice"):
        next(iter(lora.lora_layers(model).values())).merge()
    lora.unmerge(model)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    with pytest.raises(UserError, match="nothing to unmerge"):
        lora.unmerge(model)
    with pytest.raises(UserError, match="has no LoRA"):
        lora.merge(build())


def test_a_merged_plain_model_has_the_base_names_and_can_be_wrapped_again(tokens):
    model = lora.wrap(build(), LoRAConfig(rank=2))
    train(model, tokens, steps=2)
    expected, names = run(model, tokens), list(build().state_dict())
    plain = lora.merged_plain(model)
    assert list(plain.state_dict()) == names
    torch.testing.assert_close(run(plain, tokens), expected, atol=1e-5, rtol=1e-4)
    assert counts(plain)[0] == counts(plain)[1], "plain again, it can be trained on"
    lora.wrap(plain, LoRAConfig())


@pytest.mark.parametrize("merging", [lora.merge, lora.merged_plain])
def test_where_one_layer_cannot_be_merged_none_is(merging):
    model, _ = quantize(build(), scheme_named("weights"), include=("*blocks.1.*",))
    lora.wrap(model, LoRAConfig(rank=2))
    with pytest.raises(UserError, match="merge first and quantize then"):
        merging(model)
    assert not any(layer.merged for layer in lora.lora_layers(model).values())


@pytest.mark.parametrize("merging", [lora.merge, lora.merged_plain])
def test_a_weight_that_serves_elsewhere_is_not_merged(merging):
    """The embedding would give other vectors, and the model another answer."""
    model = nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 10, bias=False))
    model[1].weight = model[0].weight
    lora.wrap(model, LoRAConfig(rank=2, targets=("1",)))
    with pytest.raises(UserError, match="shares its weight"):
        merging(model)
    assert not model[1].merged


def test_a_half_precision_base_is_merged_in_fp32():
    """In bf16 an update of a thousandth of a weight is lost in the product as well as in the sum; formed in fp32 it is
    rounded once."""
    wrapped = layer(rank=4)
    nn.init.normal_(wrapped.B, std=0.05)
    exact = (wrapped.base.weight.bfloat16().float() + wrapped.scale
             * wrapped.B.bfloat16().float() @ wrapped.A.bfloat16().float()).bfloat16()
    half = wrapped.to(torch.bfloat16)
    half.merge()
    assert half.base.weight.dtype == torch.bfloat16 and torch.equal(half.base.weight, exact)


def test_dropout_touches_the_update_alone():
    wrapped, x = layer(dropout=0.5), torch.randn(64, 12)
    wrapped.train()
    assert torch.equal(wrapped(x), wrapped.base(x)), "B is 0, so whatever is dropped changes nothing"
    nn.init.normal_(wrapped.B)
    assert not torch.equal(wrapped(x), wrapped(x))
    wrapped.eval()
    assert torch.equal(wrapped(x), wrapped(x))


def test_a_task_s_head_trains_whole_and_gets_no_update(tmp_path):
    def make():
        return Classifier(copy.deepcopy(build().body), 2, 0)
    for method, config in ((lora, LoRAConfig(rank=2, targets=("*",))), (adapters,
            AdapterConfig(bottleneck=2, targets=("*",)))):
        model = method.wrap(make(), config)
        assert type(model.head) is nn.Linear and {"head.weight", "head.bias"} <= set(trained(model))
        save(model, tmp_path / method.__name__)
        load(make(), tmp_path / method.__name__)


def test_an_update_is_not_merged_into_numbers_that_stand_for_others():
    model = lora.wrap(build(), LoRAConfig(rank=2))
    codes = quantize(model, SCHEMES["weights"])[0]
    with pytest.raises(UserError, match="merge first and quantize then"):
        lora.merge(codes)


# a quantized base

STORED = {name: lambda model, name=name: quantize(model, SCHEMES[name], [torch.arange(20, 320).view(-1, 12)],
                                                  embeddings=True)[0]
          for name in ("vector-wise", "llm-int8", "static", "weights")} | {
    "half": lambda model: store_half(model, torch.bfloat16)}


@pytest.mark.parametrize("method", [adapters, lora, prompt_tuning])
@pytest.mark.parametrize("stored", STORED)
def test_a_quantized_base_is_tuned_as_its_float_self(stored, method, tokens):
    """Every gradient has the direction that it has on the base as it was, down to the first layer."""
    def tuned(model):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = method.wrap(model, {prompt_tuning: PromptConfig(length=3)}.get(method))
            for name, parameter in trained(model).items():
                if name.endswith((".B", "up.weight")):
                    nn.init.normal_(parameter, std=0.03)
        F.cross_entropy(model(tokens).flatten(0, -2), tokens.roll(-1, 1).flatten()).backward()
        return {name: parameter.grad for name, parameter in trained(model).items()}
    expected, found = tuned(build()), tuned(STORED[stored](build()))
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        assert found[name].dtype == torch.float32
        assert F.cosine_similarity(found[name].flatten(), gradient.flatten(), dim=0) > 0.98, name


@pytest.mark.parametrize("stored", STORED)
def test_a_lora_on_a_quantized_base_learns_is_saved_and_served(stored, tokens, tmp_path):
    model = lora.wrap(STORED[stored](build()), LoRAConfig(rank=2, targets=("*",)))
    losses = train(model, tokens)
    assert losses[-1] < losses[0]
    save(model, tmp_path)
    again, served = load(STORED[stored](build()), tmp_path), serve(STORED[stored](build()), {"it": tmp_path})
    with torch.no_grad(), served.rows("it") as many:
        assert torch.equal(again(tokens), model.eval()(tokens))
        torch.testing.assert_close(many(tokens), model(tokens), atol=1e-4, rtol=1e-3)
    with pytest.raises(UserError, match="merge first and quantize then"):
        lora.merge(model)


@pytest.mark.parametrize("method", [full, bitfit])
@pytest.mark.parametrize("stored", STORED)
def test_stored_numbers_are_not_trained_and_that_is_said(stored, method):
    with pytest.raises(UserError, match=r"query is a \w+Linear, whose numbers are stored and cannot be trained"):
        method.wrap(STORED[stored](build()))


def test_other_layers_get_no_update_by_accident():
    model = lora.wrap(build(), LoRAConfig(targets=("query", "value")))
    assert {name.split(".")[-2] for name in trained(model)} == {"query", "value"}
    assert len(trained(model)) == 2 * 2 * TINY.layers


def test_a_rank_above_the_break_even_warns_with_both_counts():
    """Erratum E1: for a 32 × 32 matrix A and B together are smaller only below r = 16."""
    with pytest.warns(UserWarning, match="rank 17 is above the break-even 16.0: the update has 1,088 numbers, the "
                                         "matrix 1,024"):
        lora.wrap(build(), LoRAConfig(rank=17, targets=("blocks.0.attention.query",)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lora.wrap(build(), LoRAConfig(rank=16, targets=("blocks.0.attention.query",)))


def test_no_gradient_is_computed_below_the_lowest_trained_layer(tokens):
    model = lora.wrap(build(), LoRAConfig(targets=("blocks.1.attention.query",)))
    seen = {}
    model.body.blocks[0].register_forward_hook(lambda module, inputs, output: seen.update(below=output.requires_grad))
    model.body.blocks[1].register_forward_hook(lambda module, inputs, output: seen.update(above=output.requires_grad))
    model(tokens)
    assert seen == {"below": False, "above": True}


def kept_bytes(model, tokens):
    """Bytes that autograd keeps for the backward pass, the weights themselves left out."""
    weights, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def pack(t):
        if t.untyped_storage().data_ptr() not in weights:
            kept[t.untyped_storage().data_ptr()] = t  # held, so that no address is given out twice
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = model(tokens).sum()
    loss.backward()
    return sum(t.untyped_storage().nbytes() for t in kept.values())


def test_no_activation_is_kept_below_the_lowest_trained_layer(tokens):
    """A model twice as deep below it keeps not one byte more; a trained layer below would."""
    def wrapped(layers, lowest):
        return lora.wrap(build(layers=layers),
                                                   LoRAConfig(targets=(f"blocks.{lowest}.attention.query",)))
    alone = kept_bytes(wrapped(1, 0), tokens)
    assert alone == kept_bytes(wrapped(4, 3), tokens) < kept_bytes(wrapped(4, 2), tokens)


def test_a_frozen_layer_keeps_no_input_for_a_weight_that_does_not_train():
    """A weight's gradient needs the layer's input, its input's gradient only the weight."""
    x = torch.randn(64, 32, requires_grad=True)
    frozen, free = nn.Linear(32, 32).requires_grad_(False), nn.Linear(32, 32)
    assert kept_bytes(frozen, x) == 0 and kept_bytes(free, x) >= x.numel() * 4
    update = LoRALinear(frozen, LoRAConfig(rank=2), torch.Generator())
    assert kept_bytes(update, x) == x.numel() * 4 + 64 * 2 * 4, "the input once, for A, and what A made of it, for B"


@pytest.mark.parametrize("changes", [{"rank": 0}, {"targets": ()}, {"dropout": 1.0}, {"alpha": -1.0}])
def test_impossible_settings_are_refused(changes):
    with pytest.raises(UserError):
        LoRAConfig(**changes)


def test_an_unknown_target_lists_the_known():
    with pytest.raises(UserError, match="'q_proj'; there are attention.query, attention.key"):
        lora.wrap(build(), LoRAConfig(targets=("q_proj",)))


def test_lora_wraps_any_module():
    other = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    assert counts(lora.wrap(other, LoRAConfig(rank=1, targets=("0", "2"))))[0] == 8 + 6


# many tasks


@pytest.fixture
def three_tasks(tokens, tmp_path):
    folders, models = {}, {}
    configs = {"a": LoRAConfig(rank=2), "b": LoRAConfig(rank=3, targets=("query", "inner")),
               "c": LoRAConfig(rank=1, alpha=4)}
    for i, (name, config) in enumerate(configs.items()):
        models[name] = lora.wrap(build(), config)
        train(models[name], tokens.roll(i, 1), steps=3, rate=5e-2)
        folders[name] = save(models[name], tmp_path / name)
    return folders, models


def test_a_mixed_batch_equals_separate_models(three_tasks, tokens):
    folders, models = three_tasks
    serving = serve(build(), folders)
    rows = ["b", None, "a"]
    expected = torch.stack([run(models[task] if task else build(), tokens)[i] for i, task in enumerate(rows)])
    with serving.rows(rows) as model:
        torch.testing.assert_close(run(model, tokens), expected, atol=1e-5, rtol=1e-4)
    for task in folders:
        with serving.rows(task) as model:
            torch.testing.assert_close(run(model, tokens), run(models[task], tokens), atol=1e-5, rtol=1e-4)
    assert stored_bytes(folders) < 3 * sum(p.numel() * 4 for p in build().parameters())


def test_without_tasks_the_base_answers(three_tasks, tokens):
    serving = serve(build(), three_tasks[0])
    assert torch.equal(run(serving.model, tokens), run(build(), tokens))
    with serving.rows(None):
        assert torch.equal(run(serving.model, tokens), run(build(), tokens))


def test_several_answers_of_each_row_are_for_its_task(three_tasks, tokens):
    folders, models = three_tasks
    serving, greedy = serve(build(), folders), SamplingConfig(4, temperature=0.0)
    prompts = [row[:5].tolist() for row in tokens[:2]]
    with serving.rows(["a", "b"]) as model:
        written = generate(model, prompts, greedy, torch.Generator(), stop_early=False, completions=2).completion
    for i, task in enumerate(("a", "b")):
        alone = generate(models[task], [prompts[i]], greedy, torch.Generator(), stop_early=False).completion
        assert torch.equal(written[2 * i], alone[0]) and torch.equal(written[2 * i + 1], alone[0])


def test_what_cannot_be_served_says_why(three_tasks, tokens, tmp_path):
    folders, _ = three_tasks
    with pytest.raises(UserError, match="no task 'z'; known are a, b, c"), serve(build(), folders).rows("z"):
        pass
    with pytest.raises(UserError, match="3 rows is no multiple of the 2 tasks"), serve(build(),
            folders).rows(["a", "b"]) as model:
        run(model, tokens)
    with pytest.raises(UserError, match="another base"):
        serve(build(seed=3), folders)
    save(bitfit.wrap(build()), tmp_path / "bitfit")
    with pytest.raises(UserError, match="holds bitfit; only LoRAs"):
        serve(build(), {"x": tmp_path / "bitfit"})
    save(lora.wrap(classifier(), LoRAConfig(rank=2)), tmp_path / "head")
    with pytest.raises(UserError, match="trains a head of its own"):
        serve(classifier(), {"x": tmp_path / "head"})
    with pytest.raises(UserError, match="no task to serve"):
        serve(build(), {})


# BitFit


def test_bitfit_trains_exactly_the_biases():
    model = bitfit.wrap(build())
    assert set(trained(model)) == {name for name, _ in build().named_parameters() if name.split(".")[-1] == "bias"}
    assert any("norm" in name for name in trained(model))
    part = bitfit.wrap(build(), BitFitConfig(subset=True))
    assert {".".join(name.split(".")[-2:]) for name in trained(part)} == {"query.bias", "inner.bias"}
    named = bitfit.wrap(build(), BitFitConfig(names=("output.bias",)))
    assert {".".join(name.split(".")[-2:]) for name in trained(named)} == {"output.bias"}


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_a_keys_bias_has_a_gradient_only_where_it_turns(positions, tokens):
    model = bitfit.wrap(build(positions=positions))
    F.cross_entropy(run(model, tokens).flatten(0, 1), tokens.flatten()).backward()
    sizes = {part: max(float(p.grad.abs().max()) for name, p in trained(model).items() if f"{part}.bias" in name)
             for part in ("query", "key", "value")}
    assert sizes["query"] > 1e-3 * sizes["value"] and (sizes["key"] < 1e-4 * sizes["value"]) is (positions == "learned")


def test_a_model_without_biases_is_refused():
    with pytest.raises(UserError, match="has no biases"):
        bitfit.wrap(nn.Sequential(nn.Linear(3, 3, bias=False)))


def test_a_head_trains_with_the_biases():
    assert {"head.weight", "head.bias"} <= set(trained(bitfit.wrap(classifier())))


# adapters


def slow_adapter(h, down, up):
    """The paper's sentence, word for word: project down, bend, project up, add."""
    return h + (F.gelu(h @ down.weight.T + down.bias) @ up.weight.T + up.bias)


def test_an_adapter_is_what_the_paper_draws(tokens):
    model = adapters.wrap(build(), AdapterConfig(bottleneck=4, initial_std=0.3))
    part = model.body.blocks[0].attention.output
    h = torch.randn(2, 5, 32)
    torch.testing.assert_close(part(h), slow_adapter(part.base(h), part.down, part.up))
    assert part.down.weight.shape == (4, 32)


def test_a_fresh_adapter_changes_next_to_nothing(tokens):
    base = run(build(), tokens)
    near, far = (run(adapters.wrap(build(), AdapterConfig(bottleneck=8, initial_std=std)), tokens)
                 for std in (1e-2, 1.0))
    assert (near - base).abs().max() < 0.02 * base.abs().max() < (far - base).abs().max()
    assert torch.equal(run(adapters.wrap(build(), AdapterConfig(initial_std=0.0)), tokens), base)


def test_adapters_stand_after_both_sublayers_or_after_the_feed_forward_alone():
    def of(model):
        return {".".join(name.split(".")[-2:]) for name in model.tuning.targets}
    assert of(adapters.wrap(build())) == {"attention.output", "feed_forward.output"}
    assert of(adapters.wrap(build(kind="encoder-decoder"))) == {"attention.output", "cross_attention.output",
        "feed_forward.output"}
    pfeiffer = adapters.wrap(build(), AdapterConfig(placement="pfeiffer", norms=False))
    assert of(pfeiffer) == {"feed_forward.output"} and not any("norm" in name for name in trained(pfeiffer))
    assert any("norm" in name for name in trained(adapters.wrap(build())))
    with pytest.raises(UserError, match="choose one of houlsby, pfeiffer"):
        AdapterConfig(placement="parallel")


# prompt tuning


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_a_tuned_prompt_of_token_vectors_is_that_text_before_the_text(kind, tokens):
    base, words = build(kind=kind), (30, 31, 32)
    expected = base(torch.cat([torch.tensor([words]).expand(3, -1), tokens], dim=1))[:, 3:]
    model = prompt_tuning.wrap(build(kind=kind), PromptConfig(3, "text", words))
    torch.testing.assert_close(model(tokens), expected, atol=1e-5, rtol=1e-4)
    assert counts(model)[0] == 3 * 32


MIXED = [{}, {"short_convolution": 4}]  # what mixes each token with those before it


@pytest.mark.parametrize("mixed", MIXED)
def test_the_prompt_shifts_positions_and_no_label(mixed, tokens):
    """Padded on the left or on the right, each row's logits are those of the row alone, and as many as it has
    tokens."""
    model = prompt_tuning.wrap(build(**mixed), PromptConfig(4, seed=1))
    rows = [tokens[0].tolist(), tokens[1, :7].tolist()]
    alone = [model(torch.tensor([row]))[0] for row in rows]
    for side in ("left", "right"):
        padded, mask = pad(rows, side=side)
        together = model(padded, mask)
        assert together.shape[:2] == padded.shape
        for i in range(2):
            torch.testing.assert_close(together[i][mask[i]], alone[i], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mixed", MIXED)
@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
def test_generation_with_a_tuned_prompt(kind, mixed, tokens):
    model = prompt_tuning.wrap(build(kind=kind, **mixed), PromptConfig(4, "random", seed=1))
    prompts = [tokens[0, :6].tolist(), tokens[1, :3].tolist()]
    written = generate(model, prompts, SamplingConfig(5, temperature=0.0), torch.Generator(), stop_early=False)
    for row, prompt in zip(written.completion, prompts):
        said = []
        for _ in range(5):
            if kind == "decoder":
                logits = model(torch.tensor([[*prompt, *said]]))
            else:
                logits = model(torch.tensor([[1, *said]]), torch.tensor([prompt]),
                               torch.ones(1, len(prompt), dtype=torch.bool))
            said.append(int(logits[0, -1].argmax()))
        assert row[: said.index(2) + 1 if 2 in said else 5].tolist() == said[: said.index(2) + 1 if 2 in said else 5]


def test_a_prompt_takes_room_in_the_context():
    model = prompt_tuning.wrap(build(), PromptConfig(4))
    model(torch.zeros(1, TINY.context - 4, dtype=torch.long) + 30)
    with pytest.raises(UserError, match="do not fit the model's context"):
        model(torch.zeros(1, TINY.context - 3, dtype=torch.long) + 30)
    with pytest.raises(UserError, match="leaves no room"):
        prompt_tuning.wrap(build(), PromptConfig(TINY.context))


def test_the_three_starts_of_a_prompt():
    table = build().body.token_embedding.weight
    def prompt(**settings):
        return prompt_tuning.wrap(build(), PromptConfig(5,
            **settings)).body.token_embedding.prompt
    assert all(any(torch.equal(vector, row) for row in table) for vector in prompt(start="vocabulary"))
    assert torch.equal(prompt(start="text", text_ids=(30, 31)), table[[30, 31, 30, 31, 30]])
    assert not any(torch.equal(vector, row) for vector in prompt(start="random") for row in table)
    for bad in ({"start": "zeros"}, {"start": "text"}, {"text_ids": (3,)}, {"length": 0}):
        with pytest.raises(UserError):
            PromptConfig(**bad)
    with pytest.raises(UserError, match="needs a model with a `body`"):
        prompt_tuning.wrap(nn.Linear(3, 3))


# feature-based


def test_features_are_the_same_every_time(tokens):
    model = feature_based.wrap(classifier(dropout=0.3))
    model.train()
    rows = tokens.tolist()
    assert torch.equal(feature_based.extract(model.body, rows), feature_based.extract(model.body, rows, batch=2))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    assert torch.equal(model(tokens, mask), model(tokens, mask)) and set(trained(model)) == {"head.weight", "head.bias"}


ROWS, LABELS = [[5, 9, 40, 31, 12], [17, 25, 8], [30, 6, 22, 9], [11, 45, 50, 7, 13, 28]], [0, 1, 2, 1]


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_the_head_on_features_is_the_head_on_the_body(kind):
    model = feature_based.wrap(Classifier(build(kind=kind).body, 3))
    texts = LabelledTexts(ROWS, LABELS, 4, 0)
    cached = CachedFeatures(model, texts)
    optimizer = adamw(model, 3e-2, 0.0)
    losses = [gradient_step(model, optimizer, cached.microbatches(step, 1), feature_loss, TrainingConfig(), 4)[0]
              for step in range(100)]
    assert losses[-1] < 0.2 * losses[0]
    padded, mask = pad(ROWS)
    torch.testing.assert_close(model(padded, mask), model.head(cached.features), atol=1e-5, rtol=1e-4)
    assert model(padded, mask).argmax(1).tolist() == LABELS
    assert examine_features(model, cached) == pytest.approx(examine_classes(model, texts), abs=1e-5)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_training_on_features_is_training_through_the_frozen_body(kind):
    heads = []
    for cache in (False, True):
        model = feature_based.wrap(Classifier(build(kind=kind, dropout=0.2).body, 3))
        texts = LabelledTexts(ROWS, LABELS, 2, 0)
        data, loss = (CachedFeatures(model, texts), feature_loss) if cache else (texts, class_loss)
        optimizer = adamw(model, 1e-2, 0.1)
        model.train()
        for step in range(6):
            gradient_step(model, optimizer, data.microbatches(step, 2), loss, TrainingConfig(), 2)
        heads.append(model.head.weight.detach())
    torch.testing.assert_close(heads[0], heads[1], atol=1e-5, rtol=1e-4)


def test_features_need_a_head(tmp_path, tokens):
    with pytest.raises(UserError, match="trains a head on a body"):
        feature_based.wrap(build())
    model = feature_based.wrap(classifier())
    save(model, tmp_path)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    assert torch.equal(load(classifier(), tmp_path)(tokens, mask), model(tokens, mask))


def test_every_method_has_a_configuration_and_a_name():
    assert set(METHODS) == set(CONFIGS)
    for method, config in CONFIGS.items():
        assert configuration(method, {}) == config()


def test_a_value_model_can_be_tuned_too(tokens):
    model = lora.wrap(ScalarModel(copy.deepcopy(build().body)), LoRAConfig(rank=2))
    model(tokens).mean().backward()
    assert {"head.weight", "head.bias"} <= set(trained(model))


def test_a_body_is_built_for_each_kind():
    assert all(build_body(build(kind=kind).config) is not None for kind in KINDS)


def test_all_layers_are_merged_or_none():
    model = lora.wrap(build(), LoRAConfig(rank=2))
    layers = list(lora.lora_layers(model).values())
    layers[1].merge()
    with pytest.raises(UserError, match="merged already"):
        lora.merge(model)
    assert [layer.merged for layer in layers] == [False, True, False, False]


def test_what_was_quantized_after_merging_is_not_unmerged(tokens):
    model = lora.wrap(build(), LoRAConfig(rank=2))
    quantize(lora.merge(model), SCHEMES["vector-wise"])
    before = run(model, tokens)
    with pytest.raises(UserError, match="do not unmerge what is quantized"):
        lora.unmerge(model)
    assert torch.equal(run(model, tokens), before)


def test_what_is_put_in_is_in_the_mode_of_what_was_there():
    for training in (True, False):
        model = lora.wrap(build().train(training), LoRAConfig(rank=2, dropout=0.5))
        assert {module.training for module in model.modules()} == {training}


def test_adapters_that_begin_as_the_identity_learn(tokens):
    model = adapters.wrap(build(), AdapterConfig(bottleneck=4, initial_std=0.0))
    assert torch.equal(run(model, tokens), run(build(), tokens))
    train(model, tokens)
    changed = [module.up.weight.abs().max() > 0 for module in model.modules() if isinstance(module, adapters.Adapted)]
    assert changed and all(changed)
    with pytest.raises(UserError, match="alpha"):
        LoRAConfig(alpha=0.0)
