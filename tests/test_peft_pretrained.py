"""Every method, with the same call, on models of the shapes that real weights come in: GPT-2, Llama, BERT, T5."""

import pytest
import torch
from conftest import build
from gguf_files import tiny_llama

from minialign.batching import pad
from minialign.generation import SamplingConfig, generate
from minialign.heads import Classifier
from minialign.lab.pretrained.bert import Bert, BertConfig
from minialign.lab.pretrained.t5 import T5, T5Config
from minialign.peft import bitfit, prompt_tuning
from minialign.peft.adapters import AdapterConfig
from minialign.peft.bitfit import BitFitConfig
from minialign.peft.feature_based import FeatureConfig
from minialign.peft.full import FullConfig
from minialign.peft.lora import LoRAConfig
from minialign.peft.methods import METHODS
from minialign.peft.prompt_tuning import PromptConfig
from minialign.peft.saving import load, save
from minialign.peft.trainable import trained
from minialign.runs.errors import UserError
from minialign.training import adamw

SMALL = {"full": FullConfig(), "bitfit": BitFitConfig(), "adapters": AdapterConfig(bottleneck=3),
         "lora": LoRAConfig(rank=2), "prompt-tuning": PromptConfig(3)}
ROWS = [[5, 9, 40, 31, 12], [17, 25, 8]]


def gpt2():
    return build(positions="learned", activation="gelu_tanh")


def bert():
    torch.manual_seed(0)
    return Bert(BertConfig(64, context=32, width=24, layers=2, heads=3, inner=20, dropout=0.0),
                masked_words=True).eval()


def t5():
    torch.manual_seed(0)
    config = T5Config(64, 32, width=24, head_size=8, heads=2, inner=20, encoder_layers=2, layers=2, buckets=8,
                      furthest=12, gated=True, dropout=0.0)
    return T5(config, own_head=True).eval()


MODELS = {"gpt2": gpt2, "llama": tiny_llama, "bert": bert, "t5": t5}
WITHOUT_BIASES = ("llama", "t5")
PAIRS = [(name, method) for name in MODELS for method in SMALL if not (method == "bitfit" and name in WITHOUT_BIASES)]


def run(model, tokens, mask):
    return model(tokens[:, :1], tokens, mask) if model.config.kind == "encoder-decoder" else model(tokens, mask)


@pytest.mark.parametrize("name, method", PAIRS)
def test_every_method_trains_every_model_and_its_file_loads(name, method, tmp_path):
    tokens, mask = pad(ROWS)
    model = METHODS[method].wrap(MODELS[name](), SMALL[method])
    frozen = {key: p.clone() for key, p in model.named_parameters() if not p.requires_grad}
    optimizer = adamw(model, 1e-2, 0.1)
    for _ in range(2):
        logits = run(model, tokens, mask)
        optimizer.zero_grad()
        (logits.logsumexp(-1) - logits[..., 7]).mean().backward()
        optimizer.step()
    assert all(p.grad is not None for p in trained(model).values())
    assert all(torch.equal(p, frozen[key]) for key, p in model.named_parameters() if key in frozen)
    save(model, tmp_path)
    torch.testing.assert_close(run(load(MODELS[name](), tmp_path), tokens, mask), run(model, tokens, mask), atol=0,
                               rtol=0)


@pytest.mark.parametrize("name", WITHOUT_BIASES)
def test_bitfit_says_that_a_model_has_no_biases(name):
    with pytest.raises(UserError, match="has no biases"):
        bitfit.wrap(MODELS[name]())


def test_the_table_of_distances_is_no_bias():
    """T5's `position_bias.weight` holds the word, and BERT's own head has real ones."""
    assert any("position_bias.weight" in name for name, _ in t5().named_parameters())
    names = set(trained(bitfit.wrap(bert())))
    assert names == {name for name, _ in bert().named_parameters() if name.split(".")[-1] == "bias"} and {"head.bias",
        "head.norm.bias"} <= names
    subset = set(trained(bitfit.wrap(bert(), BitFitConfig(subset=True))))
    assert {"body.blocks.1.attention.query.bias",
            "body.blocks.1.feed_forward.inner.bias"} <= subset and not any("key" in name for name in subset)


@pytest.mark.parametrize("make", [bert, tiny_llama])
@pytest.mark.parametrize("method", [*SMALL, "feature-based"])
def test_a_head_on_a_real_body_can_be_tuned_by_every_method(make, method):
    if method == "bitfit" and make is tiny_llama:
        return
    tokens, mask = pad(ROWS)
    model = METHODS[method].wrap(Classifier(make().body, 2), {**SMALL, "feature-based": FeatureConfig()}[method])
    model(tokens, mask).square().sum().backward()
    assert {"head.weight", "head.bias"} <= {name for name, p in trained(model).items() if p.grad is not None}


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_a_tuned_prompt_on_a_real_model_pads_and_writes_as_alone(name):
    model = prompt_tuning.wrap(MODELS[name](), PromptConfig(3, "random", seed=2))
    greedy = SamplingConfig(5, temperature=0.0)
    together = generate(model, ROWS, greedy, torch.Generator(), stop_early=False).completion
    for row, ids in zip(together, ROWS):
        assert torch.equal(row, generate(model, [ids], greedy, torch.Generator(), stop_early=False).completion[0])


def test_a_prompt_before_bert_is_of_the_first_segment():
    words = (30, 31)
    tokens, mask = torch.tensor(ROWS[:1]), torch.ones(1, 5, dtype=torch.bool)
    segments = torch.tensor([[0, 0, 1, 1, 1]])
    longer = torch.cat([torch.tensor([words]), tokens], dim=1)
    expected = bert()(longer, torch.ones(1, 7, dtype=torch.bool), torch.tensor([[0, 0, 0, 0, 1, 1, 1]]))[:, 2:]
    model = prompt_tuning.wrap(bert(), PromptConfig(2, "text", words))
    torch.testing.assert_close(model(tokens, mask, segments), expected, atol=1e-5, rtol=1e-4)


def test_the_subset_of_biases_takes_none_of_the_masked_word_head():
    chosen = trained(bitfit.wrap(bert(), BitFitConfig(subset=True)))
    assert {name.split(".", 3)[-1] for name in chosen} == {"attention.query.bias",
                                                           "feed_forward.inner.bias"} and len(chosen) == 2 * 2
