"""Our decoder with GPT-2's weights gives GPT-2's numbers."""

import pytest
import torch

from minialign.generation import SamplingConfig, generate
from minialign.heads import LanguageModel
from minialign.transformer import TransformerConfig

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def pair():
    """A random GPT-2 of the library and ours with the same weights."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 320, "n_positions": 64, "n_embd": 48, "n_layer": 3, "n_head": 4}
    peer = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)).eval()
    ours = LanguageModel(TransformerConfig(320, 64, 48, 3, 4, positions="learned", activation="gelu_tanh")).eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        ours.body.token_embedding.weight.copy_(peer.transformer.wte.weight)
        ours.body.position_embedding.weight.copy_(peer.transformer.wpe.weight)
        ours.body.norm.load_state_dict(peer.transformer.ln_f.state_dict())
        for mine, theirs in zip(ours.body.blocks, peer.transformer.h):
            mine.attention_norm.load_state_dict(theirs.ln_1.state_dict())
            mine.feed_forward_norm.load_state_dict(theirs.ln_2.state_dict())
            parts = zip(theirs.attn.c_attn.weight.split(48, dim=1), theirs.attn.c_attn.bias.split(48))
            for linear, (weight, bias) in zip((mine.attention.query, mine.attention.key, mine.attention.value), parts):
                linear.weight.copy_(weight.T)
                linear.bias.copy_(bias)
            for linear, conv in (
                (mine.attention.output, theirs.attn.c_proj),
                (mine.feed_forward.inner, theirs.mlp.c_fc),
                (mine.feed_forward.output, theirs.mlp.c_proj),
            ):
                linear.weight.copy_(conv.weight.T)
                linear.bias.copy_(conv.bias)
    return ours, peer


def test_logits_and_gradients_equal_those_of_transformers(pair):
    ours, peer = pair
    tokens = torch.randint(4, 320, (3, 20), generator=torch.Generator().manual_seed(1))
    mine, theirs = ours(tokens), peer(tokens).logits
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    mine.logsumexp(-1).sum().backward()
    theirs.logsumexp(-1).sum().backward()
    torch.testing.assert_close(ours.body.token_embedding.weight.grad, peer.transformer.wte.weight.grad, atol=1e-3, rtol=1e-3)


def test_greedy_generation_with_cache_and_left_padding_equals_that_of_transformers(pair):
    ours, peer = pair
    prompts = [[5, 9, 200, 31], [17, 250], [44, 45, 46, 47, 48, 49]]
    written = generate(ours, prompts, SamplingConfig(12, temperature=0), torch.Generator(), stop_early=False)
    theirs = peer.generate(
        input_ids=written.prompt, attention_mask=written.prompt_mask.long(), max_new_tokens=12, do_sample=False, eos_token_id=2, pad_token_id=0
    )[:, written.prompt.shape[1] :]
    assert torch.equal(written.response[:, : theirs.shape[1]], theirs)
