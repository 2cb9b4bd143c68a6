"""LoRA, bias training and prompt tuning against the PEFT library: the same outputs and gradients, and files that go
both ways, for GPT-2 and Llama."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from minialign.heads import Classifier
from minialign.lab.interchange.peft_library import load_from_library, save_for_library
from minialign.lab.pretrained.gpt2 import load_gpt2
from minialign.lab.pretrained.llama import load_llama
from minialign.peft import bitfit, dora, lora, prompt_tuning
from minialign.peft.bitfit import BitFitConfig
from minialign.peft.lora import LoRAConfig
from minialign.peft.prompt_tuning import PromptConfig
from minialign.peft.trainable import trained
from minialign.runs.errors import UserError

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")

TARGETS = {"gpt2": ("query", "value", "attention.output", "inner"), "llama": ("query", "value", "gate")}
THEIRS = {"gpt2": ["attn.c_attn", "mlp.c_fc"], "llama": ["q_proj", "k_proj", "down_proj"]}
LOAD = {"gpt2": load_gpt2, "llama": load_llama}


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    torch.manual_seed(0)
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    if family == "gpt2":
        theirs = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=2, n_head=2,
                                    initializer_range=0.3, **ends)
        )
    else:
        theirs = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=64,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=32,
                initializer_range=0.3,
                pad_token_id=0,
                **ends,
            )  # fmt: skip
        )
    path = tmp_path_factory.mktemp(family)
    theirs.save_pretrained(path)
    return path


@pytest.fixture
def theirs(family, folder):
    kind = transformers.GPT2LMHeadModel if family == "gpt2" else transformers.LlamaForCausalLM
    return kind.from_pretrained(folder).eval()


@pytest.fixture
def ours(family, folder):
    return LOAD[family](folder)


@pytest.fixture
def tokens():
    return torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(1))


def stir(model, seed=0, std=0.2):
    """Random numbers in all that trains, so that nothing is zero by its start."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in (p for p in model.parameters() if p.requires_grad):
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * std)


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.piece("LoRA of a {family}: logits from a file that we wrote", "peft")
@pytest.mark.parametrize("stabilised", [False, True])
def test_a_lora_goes_out_and_the_library_gives_the_same_logits(family, ours, theirs, tokens, tmp_path, stabilised):
    lora.wrap(ours, LoRAConfig(rank=2, alpha=6, targets=TARGETS[family], rank_stabilised=stabilised))
    stir(ours)
    save_for_library(ours, tmp_path, family)
    close(peft.PeftModel.from_pretrained(theirs, tmp_path).eval()(tokens).logits, ours(tokens))


@pytest.mark.piece("DoRA of a {family}: logits from a file that we wrote", "peft")
@pytest.mark.parametrize("targets", [None, ("query", "feed_forward.output")])
def test_a_dora_goes_out_and_in(family, ours, theirs, tokens, tmp_path, targets):
    dora.wrap(ours, dora.DoRAConfig(rank=2, alpha=6, targets=targets or TARGETS[family]))
    stir(ours)
    save_for_library(ours, tmp_path, family)
    close(peft.PeftModel.from_pretrained(theirs, tmp_path).eval()(tokens).logits, ours(tokens))


@pytest.mark.piece("LoRA, rank-stabilised LoRA and DoRA of a {family}: logits, gradients, "
                   "merged weights from a file of the library", "peft")
@pytest.mark.parametrize("option", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_a_lora_or_dora_of_the_library_comes_in_with_the_same_logits_gradients_and_merged_weights(family, ours, theirs,
        tokens, tmp_path, option):
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=THEIRS[family], fan_in_fan_out=family == "gpt2",
                             **option)
    library = peft.get_peft_model(theirs, config).eval()
    close(library(tokens).logits, ours(tokens))
    stir(library)
    library.save_pretrained(tmp_path)
    load_from_library(ours, tmp_path, family)
    expected, found = library(tokens).logits, ours(tokens)
    close(found, expected)
    for logits in (expected, found):
        F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
    inner = "mlp.c_fc" if family == "gpt2" else "mlp.down_proj"
    name = "inner" if family == "gpt2" else "output"
    layer = ours.get_submodule(f"body.blocks.1.feed_forward.{name}")
    side = next(module for path, module in library.named_modules() if path.endswith(f"1.{inner}"))
    close(layer.A.grad, side.lora_A["default"].weight.grad)
    close(layer.B.grad, side.lora_B["default"].weight.grad)
    if "use_dora" in option:
        close(layer.magnitude.grad, side.lora_magnitude_vector["default"].weight.grad)
    merged = library.merge_and_unload()
    close(lora.merged_plain(ours)(tokens), merged(tokens).logits)


@pytest.mark.piece("prompt tuning of a {family}: logits and gradient", "peft")
def test_a_tuned_prompt_goes_out_and_in(family, ours, folder, theirs, tokens, tmp_path):
    prompt_tuning.wrap(ours, PromptConfig(3, "random"))
    stir(ours, std=1.0)
    save_for_library(ours, tmp_path / "out", family)
    library = peft.PeftModel.from_pretrained(theirs, tmp_path / "out").eval()
    mask = torch.ones_like(tokens)
    for parameter in library.prompt_encoder.parameters():
        parameter.requires_grad_(True)
    expected, found = library(input_ids=tokens, attention_mask=mask).logits[:, 3:], ours(tokens)
    close(expected, found)
    for logits in (expected, found):
        F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
    ((_, own),) = trained(ours).items()
    (side,) = library.prompt_encoder.parameters()
    close(own.grad, side.grad)
    expected = expected.detach()
    library.save_pretrained(tmp_path / "in")
    again = load_from_library(LOAD[family](folder), tmp_path / "in", family)
    close(again(tokens), expected)


@pytest.mark.piece("BitFit of a {family}: gradients", "peft")
def test_bias_training_moves_the_biases_as_the_library_does(family, folder, ours, theirs, tokens):
    if family == "llama":
        with pytest.raises(UserError, match="has no biases"):
            bitfit.wrap(ours)
        return
    library = peft.get_peft_model(theirs, peft.LoraConfig(r=1, target_modules=["attn.c_attn"], fan_in_fan_out=True,
                                                          bias="all")).eval()
    bitfit.wrap(ours)
    for logits in (library(tokens).logits, ours(tokens)):
        F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
    side = {name: p for name, p in library.named_parameters() if name.endswith("bias")}
    assert all(p.requires_grad for p in side.values())
    mine = ours.body.blocks[1]
    def find(end):
        return next(p.grad for name, p in side.items() if end in name)
    close(mine.feed_forward.inner.bias.grad, find("h.1.mlp.c_fc"))
    close(mine.attention_norm.bias.grad, find("h.1.ln_1"))
    close(torch.cat([mine.attention.query.bias.grad, mine.attention.key.bias.grad, mine.attention.value.bias.grad]),
          find("h.1.attn.c_attn"))


BIASES = {"all of them": BitFitConfig(), "the paper's subset": BitFitConfig(subset=True),
          "some": BitFitConfig(names=("norm.bias", "body.blocks.1.*.bias"))}


@pytest.fixture
def gpt2(family):
    if family == "llama":
        pytest.skip("a Llama has no biases")


@pytest.mark.piece("BitFit of a {family}: logits from a file that we wrote", "peft")
@pytest.mark.parametrize("which", BIASES)
def test_biases_go_out_and_the_library_gives_the_same_logits(gpt2, folder, ours, theirs, tokens, tmp_path, which):
    bitfit.wrap(ours, BIASES[which])
    stir(ours)
    save_for_library(ours, tmp_path, "gpt2")
    library = peft.PeftModel.from_pretrained(theirs, tmp_path, is_trainable=True).eval()
    close(library(tokens).logits, ours(tokens))
    again = load_from_library(load_gpt2(folder), tmp_path, "gpt2")
    close(again(tokens), ours(tokens))
    assert which != "all of them" or (set(trained(again)) == set(trained(ours))
                                      and again.tuning.config == BitFitConfig())
    F.cross_entropy(library(tokens).logits.flatten(0, 1), tokens.flatten()).backward()
    update = {name: p.grad for name, p in library.named_parameters() if "lora_" in name}
    assert len(update) == 2 and not any(grad.any() for grad in update.values()), "the update of zeros never moves"


@pytest.mark.piece("BitFit of a {family}: logits from a file of the library", "peft")
def test_the_library_s_bias_training_comes_in_with_the_same_logits(gpt2, ours, theirs, tokens, tmp_path):
    library = peft.get_peft_model(theirs, peft.LoraConfig(r=1, target_modules=["attn.c_attn"], fan_in_fan_out=True,
                                                          bias="all")).eval()
    for name, p in library.named_parameters():
        p.requires_grad_(name.endswith("bias"))  # how one trains biases alone there: B stays 0
    stir(library)
    library.save_pretrained(tmp_path)
    close(load_from_library(ours, tmp_path, "gpt2")(tokens), library(tokens).logits)
    assert set(trained(ours)) == {name for name, _ in ours.named_parameters() if name.endswith(".bias")}


@pytest.mark.piece("biases of some layers of a {family}: logits from a file of the library", "peft")
def test_biases_of_the_wrapped_layers_alone_come_in_too(gpt2, ours, theirs, tokens, tmp_path):
    library = peft.get_peft_model(theirs, peft.LoraConfig(r=1, target_modules=["mlp.c_fc"], fan_in_fan_out=True,
                                                          bias="lora_only")).eval()
    for name, p in library.named_parameters():
        p.requires_grad_(name.endswith("c_fc.base_layer.bias"))
    stir(library)
    library.save_pretrained(tmp_path)
    close(load_from_library(ours, tmp_path, "gpt2")(tokens), library(tokens).logits)
    assert set(trained(ours)) == {f"body.blocks.{i}.feed_forward.inner.bias" for i in range(2)}


def test_what_is_more_than_biases_is_refused_and_the_model_untouched(gpt2, folder, ours, theirs, tokens, tmp_path):
    library = peft.get_peft_model(theirs, peft.LoraConfig(r=1, target_modules=["attn.c_attn"], fan_in_fan_out=True,
                                                          bias="all"))
    stir(library)
    library.save_pretrained(tmp_path / "both")
    before = ours(tokens)
    with pytest.raises(UserError, match="trains matrices and biases together"):
        load_from_library(ours, tmp_path / "both", "gpt2")
    save_for_library(bitfit.wrap(load_gpt2(folder)), tmp_path / "biases", "gpt2")
    file = tmp_path / "biases" / "adapter_model.safetensors"
    good = load_file(file)
    name = "base_model.model.transformer.h.1.attn.c_attn.bias"
    for wrong in ({name: good[name][:5]}, {name.replace("h.1", "h.7"): good[name].clone()}):
        save_file(good | wrong, file)
        with pytest.raises(UserError, match="is no bias of this model"):
            load_from_library(ours, tmp_path / "biases", "gpt2")
    save_file({name: tensor for name, tensor in good.items() if "lora" in name}, file)
    with pytest.raises(UserError, match="holds no biases"):
        load_from_library(ours, tmp_path / "biases", "gpt2")
    assert torch.equal(ours(tokens), before) and getattr(ours, "tuning", None) is None
    with pytest.raises(UserError, match="without a head"):
        save_for_library(bitfit.wrap(Classifier(ours.body, 2)), tmp_path / "head", "gpt2")


def test_a_llama_has_no_biases_to_exchange(family, ours, theirs, tmp_path):
    if family == "gpt2":
        pytest.skip("a GPT-2 has biases")
    library = peft.get_peft_model(theirs, peft.LoraConfig(r=1, target_modules=["q_proj"], bias="all"))
    library.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="a llama has no biases, so there is no BitFit of it; use lora"):
        load_from_library(ours, tmp_path, family)


@pytest.mark.parametrize("change, message", [({"use_qalora": True}, "sets use_qalora"),
                                             ({"use_dora": True}, "has no counterpart"),
                                             ({"peft_type": "IA3"}, "holds 'IA3'")])
def test_what_the_library_can_say_and_we_cannot_is_an_error(family, ours, tmp_path, change, message):
    save_for_library(lora.wrap(ours, LoRAConfig(rank=2)), tmp_path, family)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        load_from_library(lora.merged_plain(ours), tmp_path, family)
    with pytest.raises(UserError, match="choose one of llama, gpt2"):
        load_from_library(ours, tmp_path, "bloom")
