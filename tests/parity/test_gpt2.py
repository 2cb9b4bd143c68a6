"""Our decoder with GPT-2's weights gives GPT-2's numbers; both read the same folder."""

import pytest
import torch
from checkpoints import padded, save

from minialign.generation import SamplingConfig, generate
from minialign.lab.pretrained.gpt2 import load_gpt2

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(params=["model with its head", "body alone"])
def pair(request, tmp_path):
    """A random GPT-2 of the library and ours from the folder that it left; the first GPT-2 was published without the
    head's prefix."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 320, "n_positions": 64, "n_embd": 48, "n_layer": 3, "n_head": 4, "bos_token_id": 319,
             "eos_token_id": 319}
    peer = save(transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)), tmp_path)
    if request.param == "body alone":
        peer.transformer.save_pretrained(tmp_path)
    return load_gpt2(tmp_path), peer


@pytest.mark.piece("GPT-2: logits and two gradients", "transformers")
def test_logits_and_gradients_equal_those_of_transformers(pair):
    ours, peer = pair
    tokens = torch.randint(4, 320, (3, 20), generator=torch.Generator().manual_seed(1))
    mine, theirs = ours(tokens), peer(tokens).logits
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    mine.logsumexp(-1).sum().backward()
    theirs.logsumexp(-1).sum().backward()
    torch.testing.assert_close(ours.body.token_embedding.weight.grad, peer.transformer.wte.weight.grad, atol=1e-3,
                               rtol=1e-3)
    torch.testing.assert_close(ours.body.blocks[1].attention.key.weight.grad,
                               peer.transformer.h[1].attn.c_attn.weight.grad.T[48:96], atol=1e-3, rtol=1e-3)


@pytest.mark.piece("GPT-2: greedy tokens with cache and left padding", "transformers")
def test_greedy_generation_with_cache_and_left_padding_equals_that_of_transformers(pair):
    ours, peer = pair
    prompts = [[5, 9, 200, 31], [17, 250], [44, 45, 46, 47, 48, 49]]
    written = generate(ours, prompts, SamplingConfig(12, temperature=0), torch.Generator(), stop_early=False)
    tokens, mask = padded(prompts, "left", value=319)
    theirs = peer.generate(input_ids=tokens, attention_mask=mask, max_new_tokens=12, do_sample=False,
                           pad_token_id=319)[:, tokens.shape[1] :]
    assert torch.equal(written.prompt, tokens)
    assert torch.equal(written.completion[:, : theirs.shape[1]], theirs)
