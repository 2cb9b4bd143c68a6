"""Our T5 with a checkpoint's weights gives the numbers of the `transformers` library, read from the same folder."""

import json

import pytest
import torch
from checkpoints import padded, save

from minialign.generation import SamplingConfig, generate
from minialign.lab.pretrained.t5 import distance_buckets, load_t5

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

INPUTS = [[5, 9, 40, 31, 12, 7, 88, 14, 15], [17, 25, 3], [44, 45, 46, 47, 48, 49]]
TARGETS = [[0, 5, 6, 7], [0, 9, 8, 4], [0, 71, 72, 73]]
SHAPE = {"vocab_size": 96, "d_model": 40, "d_kv": 8, "d_ff": 56, "num_layers": 3, "num_decoder_layers": 2,
         "num_heads": 4, "decoder_start_token_id": 0}
SHAPE |= {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12}


@pytest.fixture(params=["first", "1.1", "1.1 saved again"])
def pair(request, tmp_path):
    """The library's and ours: the first T5 (relu, tied, scaled), 1.1 (gated gelu, a head of its own), and 1.1 as new
    versions of the library save it."""
    torch.manual_seed(0)
    gated = request.param != "first"
    config = transformers.T5Config(**SHAPE, feed_forward_proj="gated-gelu" if gated else "relu",
                                   tie_word_embeddings=not gated)
    peer = transformers.T5ForConditionalGeneration(config)
    if gated:
        peer.lm_head.weight = torch.nn.Parameter(torch.randn(96, 40))
    save(peer, tmp_path)
    if request.param == "1.1":  # as the published folders say it
        settings = json.loads((tmp_path / "config.json").read_text())
        del settings["scale_decoder_outputs"]
        (tmp_path / "config.json").write_text(json.dumps({**settings, "tie_word_embeddings": False}))
    return load_t5(tmp_path), transformers.T5ForConditionalGeneration.from_pretrained(tmp_path).eval()


@pytest.mark.piece("T5: logits and five gradients", "transformers")
def test_logits_and_gradients_equal_those_of_transformers(pair):
    ours, peer = pair
    inputs, mask = padded(INPUTS, "right")
    tokens = torch.tensor(TARGETS)
    mine = ours(tokens, inputs, mask.bool())
    theirs = peer(input_ids=inputs, attention_mask=mask, decoder_input_ids=tokens).logits
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    mine.logsumexp(-1).sum().backward()
    theirs.logsumexp(-1).sum().backward()
    for a, b in (
        (ours.body.encoder.token_embedding.weight, peer.shared.weight),
        (ours.body.encoder.position_bias.weight,
         peer.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight),
        (ours.body.decoder.position_bias.weight,
         peer.decoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight),
        (ours.body.decoder.blocks[1].cross_attention.key.weight,
         peer.decoder.block[1].layer[1].EncDecAttention.k.weight),
        (ours.body.encoder.blocks[1].feed_forward_norm.weight, peer.encoder.block[1].layer[1].layer_norm.weight),
    ):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-3, rtol=1e-3)


@pytest.mark.piece("T5: greedy tokens with cache and padding", "transformers")
def test_greedy_generation_with_cache_and_padding_equals_that_of_transformers(pair):
    ours, peer = pair
    written = generate(ours, INPUTS, SamplingConfig(14, temperature=0), torch.Generator(), stop_early=False)
    inputs, mask = padded(INPUTS, "right")
    theirs = peer.generate(input_ids=inputs, attention_mask=mask, max_new_tokens=14, do_sample=False)[:, 1:]
    assert torch.equal(written.prompt, inputs) and theirs.shape[1] > 3
    assert torch.equal(written.completion[:, : theirs.shape[1]], theirs)


def test_an_untied_head_is_not_scaled(pair):
    ours, peer = pair
    assert ours.config.scaled == peer.config.scale_decoder_outputs == (ours.head is None)


@pytest.mark.piece("T5: buckets of distances", "transformers")
@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_of_all_distances_equal_those_of_transformers(bidirectional):
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = torch.arange(-300, 301)
    for buckets, furthest in ((32, 128), (8, 12), (16, 300)):
        theirs = T5Attention._relative_position_bucket(distance, bidirectional, buckets, furthest)
        assert torch.equal(distance_buckets(distance, bidirectional, buckets, furthest), theirs)
