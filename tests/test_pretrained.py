"""Pretrained models without the libraries that made them: folders and what may be wrong with them, padding, caches,
buckets.

That the numbers are those of the library is tested in tests/parity.
"""

import json
import math

import pytest
import torch
from gguf_files import tiny_llama
from safetensors.torch import save_file

from minialign.batching import pad
from minialign.cache import Cache
from minialign.generation import SamplingConfig, generate
from minialign.lab.interchange.folder import PretrainedTokenizer, read_tokenizer
from minialign.lab.pretrained import minilm, smollm2
from minialign.lab.pretrained.bert import Bert, BertConfig, load_bert, sentence_vectors
from minialign.lab.pretrained.gpt2 import load_gpt2
from minialign.lab.pretrained.llama import load_llama
from minialign.lab.pretrained.rms_norm import RMSNorm
from minialign.lab.pretrained.t5 import T5, T5Config, distance_buckets, load_t5
from minialign.ranking import option_logprobs
from minialign.runs.errors import UserError
from minialign.tokenizer import SpecialIds, train_tokenizer

ROWS = [[5, 9, 40, 31, 12], [17, 25], [44, 45, 46]]


def loud(model):
    """Weights large enough for opinions to differ."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


@pytest.fixture
def t5():
    """Gated, with a head of its own."""
    torch.manual_seed(0)
    config = T5Config(64, 32, width=24, head_size=8, heads=2, inner=20, encoder_layers=2, layers=3, buckets=8,
                      furthest=12, gated=True, activation="gelu_tanh")
    return loud(T5(config, own_head=True))


@pytest.fixture
def bert():
    """With its head for masked words."""
    torch.manual_seed(0)
    return loud(Bert(BertConfig(300, context=32, width=24, layers=2, heads=3, inner=20), masked_words=True))


def test_the_norm_is_the_formula():
    norm = RMSNorm(3, eps=0.5)
    norm.weight.data = torch.tensor([1.0, 2.0, -1.0])
    scale = 1 / math.sqrt((9 + 16 + 0) / 3 + 0.5)
    torch.testing.assert_close(norm(torch.tensor([3.0, -4.0, 0.0])), torch.tensor([3 * scale, -8 * scale, 0.0]))
    wide = norm(torch.tensor([3000.0, -4000.0, 0.0], dtype=torch.float16))  # squares do not fit fp16
    assert bool(torch.isfinite(wide).all()) and wide.dtype == torch.float32  # its weight is in fp32


def test_distances_fall_into_buckets_as_counted_by_hand():
    """8 buckets, furthest 8: backwards 0, 1, 2, 3 exactly; then 4..7 by the logarithm, the last from 8 on."""
    backwards = distance_buckets(-torch.arange(12), False, 8, 8).tolist()
    assert backwards == [0, 1, 2, 3, 4, 5, 6, 7, 7, 7, 7, 7]
    assert distance_buckets(torch.arange(1, 4), False, 8, 8).tolist() == [0, 0, 0]
    # four each way: 0, 1, then two ranges
    both = distance_buckets(torch.tensor([-9, -2, -1, 0, 1, 2, 9]), True, 8, 8).tolist()
    assert both == [3, 2, 1, 0, 5, 6, 7]


# Llama


def test_left_padding_changes_no_logit_of_llama():
    model = tiny_llama()
    tokens, mask = pad(ROWS, side="left")
    with torch.no_grad():
        together = model(tokens, mask)
        for row, ids in enumerate(ROWS):
            torch.testing.assert_close(together[row, -len(ids) :], model(torch.tensor([ids]))[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("padded", [False, True])
def test_cached_steps_of_llama_equal_the_full_pass(padded):
    """A first piece, one of several tokens, then one at a time."""
    model = tiny_llama()
    tokens, mask = pad([row * 3 for row in ROWS], side="left") if padded else (torch.arange(3, 27).view(2, 12), None)
    cache = Cache(model.config, len(tokens), tokens.shape[1])
    pieces = [slice(0, 5), slice(5, 9), *(slice(i, i + 1) for i in range(9, tokens.shape[1]))]
    with torch.no_grad():
        steps = torch.cat([model(tokens[:, piece], None if mask is None else mask[:, piece], cache)
                           for piece in pieces], dim=1)
        whole = model(tokens, mask)
    real = torch.ones(tokens.shape, dtype=torch.bool) if mask is None else mask
    torch.testing.assert_close(steps[real], whole[real], atol=1e-4, rtol=1e-5)
    assert cache.store.shape[3] == model.config.key_value_heads == 2


def test_a_batch_of_llama_writes_what_each_row_writes_alone_and_ends_at_its_own_end_token():
    model = tiny_llama()
    sampling = SamplingConfig(10, temperature=0)
    alone = [generate(model, [row], sampling, torch.Generator(), stop_early=False) for row in ROWS]
    said = alone[0].completion[0].tolist()
    model.special = SpecialIds(1, said[3], 7)
    length = said.index(said[3]) + 1
    together = generate(model, ROWS, sampling, torch.Generator())
    assert int(together.prompt[1, 0]) == 7 and bool(together.ended()[0])
    for row in range(3):
        kept = together.completion[row][together.mask[row]]
        assert torch.equal(kept, alone[row].completion[0, : len(kept)])
    assert not together.mask[0, length:].any() and (together.completion[0, length:] == 7).all()
    # nothing is computed after the last row's end
    assert generate(model, ROWS[:1], sampling, torch.Generator()).completion.shape == (1, length)


def test_more_tokens_than_the_context_are_refused(bert):
    with pytest.raises(UserError, match="97 tokens do not fit the model's context of 96"):
        tiny_llama()(torch.ones(1, 97, dtype=torch.long))
    tokens, mask = pad([[5] * 4], side="left", length=120)
    assert tiny_llama()(tokens, mask).shape == (1, 120, 263)  # padding needs no room
    with pytest.raises(UserError, match="33 tokens do not fit the model's context of 32"):
        bert(torch.ones(1, 33, dtype=torch.long))


# T5


def test_padding_the_input_changes_no_logit_of_t5(t5):
    inputs, mask = pad(ROWS)
    tokens = torch.tensor([[0, 8, 9]] * 3)
    with torch.no_grad():
        together = t5(tokens, inputs, mask)
        for row, ids in enumerate(ROWS):
            torch.testing.assert_close(together[row], t5(tokens[:1], torch.tensor([ids]))[0], atol=1e-5, rtol=1e-5)


def test_cached_steps_of_t5_equal_the_full_pass(t5):
    inputs, mask = pad(ROWS)
    tokens = torch.randint(2, 64, (3, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        memory = t5.body.encoder(inputs, mask)
        cache = Cache(t5.config, 3, 9)
        pieces = [slice(0, 2), slice(2, 5), *(slice(i, i + 1) for i in range(5, 9))]
        steps = torch.cat([t5.body.decoder(tokens[:, piece], None, cache, memory, mask) for piece in pieces], dim=1)
        torch.testing.assert_close(steps, t5.body.decoder(tokens, None, None, memory, mask), atol=1e-5, rtol=1e-5)


def test_options_are_ranked_with_the_model_s_own_begin_and_end(t5):
    options = [[[8, 9], [10]], [[11], [12, 13, 14]]]
    found = option_logprobs(t5, ROWS[:2], options)
    begin, end, _ = t5.special
    for prompt, choices, logprobs in zip(ROWS, options, found):
        for option, logprob in zip(choices, logprobs):
            said = [*option, end]
            logits = t5(torch.tensor([[begin, *option]]), torch.tensor([prompt]))[0].log_softmax(-1)
            torch.testing.assert_close(logprob, sum(logits[t, token] for t, token in enumerate(said)).detach(),
                                       atol=1e-4, rtol=1e-4)


# BERT


def test_padding_on_the_right_changes_no_vector_of_bert(bert):
    tokens, mask = pad(ROWS)
    with torch.no_grad():
        together = bert.body(tokens, mask)
        for row, ids in enumerate(ROWS):
            torch.testing.assert_close(together[row, : len(ids)], bert.body(torch.tensor([ids]))[0], atol=1e-5,
                                       rtol=1e-5)


def test_a_sentence_s_vector_does_not_depend_on_the_others(bert):
    tokenizer = PretrainedTokenizer(train_tokenizer(["the red kite"], 276).library, SpecialIds(1, 2, 0))
    texts = ["the kite was red", "a", "", "the longest of them all by far: it is cut, since nothing has so much room"]
    vectors = sentence_vectors(bert, tokenizer, texts, batch=3, longest=20)
    for vector, text in zip(vectors, texts):
        torch.testing.assert_close(vector, sentence_vectors(bert, tokenizer, [text], longest=20)[0], atol=1e-5,
                                   rtol=1e-5)
        assert float(vector.norm()) == pytest.approx(1, abs=1e-5)
    assert sentence_vectors(bert, tokenizer, []).shape == (0, 24)


def test_a_bert_without_a_head_says_so_and_an_encoder_does_not_write(bert):
    with pytest.raises(UserError, match="no head for masked words"):
        Bert(bert.config)(torch.ones(1, 2, dtype=torch.long))
    with pytest.raises(UserError, match="an encoder reads and does not write"):
        generate(bert, ROWS, SamplingConfig(2), torch.Generator())


# folders

GPT2 = {"model_type": "gpt2", "vocab_size": 20, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2}


def gpt2_tensors(seed=0):
    """A GPT-2 of one layer in its published layout."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"wte.weight": (20, 8), "wpe.weight": (16, 8), "h.0.attn.c_attn.weight": (8, 24),
              "h.0.attn.c_attn.bias": (24,), "h.0.attn.bias": (1, 1, 16, 16)}
    shapes |= {"h.0.attn.c_proj.weight": (8, 8), "h.0.mlp.c_fc.weight": (8, 32), "h.0.mlp.c_fc.bias": (32,),
               "h.0.mlp.c_proj.weight": (32, 8)}
    shapes |= {f"{name}.{part}": (8,) for name in ("ln_f", "h.0.ln_1", "h.0.ln_2") for part in ("weight", "bias")}
    shapes |= {"h.0.attn.c_proj.bias": (8,), "h.0.mlp.c_proj.bias": (8,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write(folder, tensors, settings=GPT2, **changes):
    """A checkpoint folder; a change to None takes a setting out."""
    folder.mkdir(exist_ok=True)
    settings = {name: value for name, value in {**settings, **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(settings))
    if tensors:
        save_file(tensors, folder / "model.safetensors")
    return folder


def test_queries_keys_and_values_are_the_columns_of_gpt2_s_one_matrix(tmp_path):
    tensors = gpt2_tensors()
    model = load_gpt2(write(tmp_path, tensors))
    assert torch.equal(model.body.blocks[0].attention.key.weight, tensors["h.0.attn.c_attn.weight"][:, 8:16].T)
    assert torch.equal(model.body.blocks[0].attention.value.bias, tensors["h.0.attn.c_attn.bias"][16:])
    assert torch.equal(model.body.blocks[0].feed_forward.inner.weight, tensors["h.0.mlp.c_fc.weight"].T)
    assert model.special == (19, 19, 19) and not model.training and all(p.requires_grad for p in model.parameters())


def test_a_checkpoint_in_parts_and_in_half_precision_is_read_whole(tmp_path):
    tensors = {name: tensor.half() for name, tensor in gpt2_tensors().items()}
    names = sorted(tensors)
    write(tmp_path, None)
    for part, chosen in (("a", names[:6]), ("b", names[6:])):
        save_file({name: tensors[name] for name in chosen}, tmp_path / f"model-{part}.safetensors")
    index = {"weight_map": {name: f"model-{'a' if name in names[:6] else 'b'}.safetensors" for name in names}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    model = load_gpt2(tmp_path)
    assert torch.equal(model.body.token_embedding.weight, tensors["wte.weight"].float())
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"wte.weight": "../elsewhere.safetensors"}}')
    with pytest.raises(UserError, match="files in this folder"):
        load_gpt2(tmp_path)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model_type": "bert"}, "model_type is 'bert', and this reader is for 'gpt2'"),
        ({"n_embd": None}, "'n_embd' is missing"),
        ({"n_embd": "8"}, "'8'; it must be a whole number"),
        ({"n_head": 3}, "does not divide by 3 heads"),
        ({"n_layer": 2}, "only in one of the two"),
        ({"resid_pdrop": 5}, "'resid_pdrop' is 5; it must be a number from 0 to 1"),
        ({"eos_token_id": "<end>"}, "'eos_token_id' is '<end>'"),
        ({"n_layer": 2_000_000_000}, "a whole number from 1 to"),
        ({"n_positions": 17}, "has shape .16, 8., the model's is .17, 8."),
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"n_inner": 30}, "needs a multiple of n_embd"),
        ({"vocab_size": 2**31 - 1, "n_embd": 2**31 - 1, "n_head": 1, "n_inner": 2**31 - 1}, "cannot be|has shape"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        load_gpt2(write(tmp_path, gpt2_tensors(), **changes))


def test_settings_of_the_other_models_that_are_not_understood_are_refused(tmp_path):
    one = {"x": torch.zeros(1)}
    with pytest.raises(UserError, match="feed_forward_proj is 'gated-silu'"):
        load_t5(write(tmp_path / "t5", one, {"model_type": "t5", "feed_forward_proj": "gated-silu"}))
    with pytest.raises(UserError, match="'relative_attention_max_distance' is 16; it must be a whole number from 17"):
        sizes = {"num_layers": 1, "vocab_size": 9, "d_model": 8, "d_kv": 4, "num_heads": 2, "d_ff": 8,
                 "relative_attention_max_distance": 16}
        load_t5(write(tmp_path / "t5", one, {"model_type": "t5", **sizes}))
    with pytest.raises(UserError, match="position_embedding_type is 'relative_key'"):
        load_bert(write(tmp_path / "bert", one, {"model_type": "bert", "position_embedding_type": "relative_key"}))
    llama = {"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "vocab_size": 9,
             "max_position_embeddings": 9, "num_hidden_layers": 1}
    with pytest.raises(UserError, match="rope_type is 'llama3'"):
        load_llama(write(tmp_path / "llama", one, {**llama, "intermediate_size": 8,
                                                   "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}))
    with pytest.raises(UserError, match="cannot share 3 heads"):
        load_llama(write(tmp_path / "llama", one, {**llama, "intermediate_size": 8, "num_key_value_heads": 3}))


def test_damaged_and_missing_weights_are_refused_in_words(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load_gpt2(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"config.json: there is no such file"):
        load_gpt2(tmp_path)
    with pytest.raises(UserError, match="there is no model.safetensors"):
        load_gpt2(write(tmp_path, None))
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(UserError, match="only pickled weights"):
        load_gpt2(tmp_path)
    file = write(tmp_path, gpt2_tensors()) / "model.safetensors"
    content = file.read_bytes()
    for damaged in (content[:-5], content[:20], b"", b"\xff" * 8 + content[8:]):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match="not a whole safetensors file"):
            load_gpt2(tmp_path)
    tensors = gpt2_tensors()
    tensors["h.0.ln_1.bias"][3] = float("inf")
    with pytest.raises(UserError, match=r"h.0.ln_1.bias holds NaN or infinity"):
        load_gpt2(write(tmp_path, tensors))
    with pytest.raises(UserError, match="its head has a table of its own"):
        load_gpt2(write(tmp_path, {**gpt2_tensors(), "lm_head.weight": torch.zeros(20, 8)}))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="a list, not an object"):
        load_gpt2(tmp_path)


def test_a_fetched_file_that_was_altered_is_refused(tmp_path, monkeypatch):
    """As the cache holds it: one bit of the weights is enough."""
    file = tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf"
    file.write_bytes(b"GGUF, but another")
    monkeypatch.setattr(smollm2, "fetch", lambda *arguments: [file])
    with pytest.raises(UserError, match="was altered after it was fetched"):
        smollm2.load_smollm2()
    monkeypatch.setattr(minilm, "fetch", lambda *arguments: [write(tmp_path / "f", gpt2_tensors())
        / "model.safetensors"])
    with pytest.raises(UserError, match="was altered after it was fetched"):
        minilm.load_minilm()


def test_a_tokenizer_of_a_folder_neither_pads_nor_cuts(tmp_path):
    library = train_tokenizer(["the red kite"], 276).library
    library.enable_padding(length=64)
    library.enable_truncation(4)
    (tmp_path / "tokenizer.json").write_text(library.to_str())
    tokenizer = read_tokenizer(tmp_path, SpecialIds(1, 2, 0))
    assert len(tokenizer.encode("eleven ones")) == 11 and tokenizer.special == (1, 2, 0)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="not a tokenizer"):
        read_tokenizer(tmp_path, SpecialIds())
    with pytest.raises(UserError, match="no such file"):
        read_tokenizer(tmp_path / "nowhere", SpecialIds())
