"""GGUF: what is written comes back, and nothing that a file says is believed."""

import struct

import numpy as np
import pytest
import torch
from gguf_files import f32, gguf_bytes, llama_facts, llama_tensors, q4_1, q8_0, tiny_file, tiny_llama

from minialign.lab.interchange.gguf import read_gguf
from minialign.lab.interchange.gguf_llama import llama_from_gguf, tokenizer_from_gguf
from minialign.runs.errors import UserError


@pytest.fixture
def write(tmp_path):
    """A function that writes bytes as a file and returns its path."""

    def write(content):
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return path

    return write


def test_blocks_are_read_as_counted_by_hand(write):
    low, high = [(7 * i + i // 16) % 16 for i in range(32)], [(5 * i + 3 + i // 16) % 16
        for i in range(32)]  # the halves differ
    signed = [4 * i - 64 for i in range(32)]
    tensors = {
        "four": ((2, 32), 3, q4_1(0.5, -3.0, low) + q4_1(0.25, 1.5, high)),
        "eight": ((1, 32), 8, q8_0(0.125, signed)),
        "half": ((2, 3), 1, np.arange(6, dtype="<f2").tobytes()),
        "plain": f32(torch.arange(6.0).view(3, 2)),
    }
    gguf = read_gguf(write(gguf_bytes({"name": "x"}, tensors)))
    assert gguf.tensors["four"].numbers().tolist() == [[0.5 * q - 3.0 for q in low], [0.25 * q + 1.5 for q in high]]
    assert gguf.tensors["eight"].numbers().tolist() == [[0.125 * q for q in signed]]
    assert gguf.tensors["half"].numbers().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert gguf.tensors["plain"].numbers().tolist() == [[0, 1], [2, 3], [4, 5]]
    assert all(tensor.numbers().dtype == np.float32 for tensor in gguf.tensors.values())


def test_every_kind_of_fact_comes_back(write):
    facts = {"a": "é", "b": 7, "c": True, "d": 0.5, "e": ["x", "yz", ""], "f": [1, -2, 3]}
    assert read_gguf(write(gguf_bytes(facts, {}))).facts == facts
    assert read_gguf(write(gguf_bytes(facts, {}, version=2))).facts == facts


def test_a_llama_comes_out_of_a_gguf_as_it_went_in(tmp_path):
    before = tiny_llama()
    after = llama_from_gguf(read_gguf(tiny_file(tmp_path / "tiny.gguf")))
    for (name, a), (other, b) in zip(before.named_parameters(), after.named_parameters(), strict=True):
        assert name == other and torch.equal(a, b), name
    assert not after.training and after.special == (1, 2, 2)
    assert after.config.eps == pytest.approx(before.config.eps)
    tokens = torch.arange(3, 20)[None]
    torch.testing.assert_close(after(tokens), before(tokens))


def test_a_head_of_its_own_is_read(tmp_path):
    model = tiny_llama()
    head = torch.randn_like(model.body.token_embedding.weight)
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf_bytes(llama_facts(), {**llama_tensors(model), "output.weight": f32(head)}))
    assert torch.equal(llama_from_gguf(read_gguf(path)).head.weight, head)


def test_the_tokenizer_of_a_gguf_gives_any_text_back(tmp_path):
    tokenizer = tokenizer_from_gguf(read_gguf(tiny_file(tmp_path / "tiny.gguf")))
    for text in ("hello world 1606", "  two\n\tlines, ", "café ☃ 漢字 🙂", "<|im_end|>", ""):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    hell = tokenizer.encode("hello")
    assert tokenizer.name(hell[0]) == "hell" and len(hell) == 2  # the merges were used
    assert len(tokenizer.encode("123")) == 3 and (tokenizer.begin, tokenizer.end, tokenizer.pad) == (1, 2, 2)


def test_a_gguf_that_is_cut_anywhere_is_refused_in_words(tmp_path, write):
    whole = tiny_file(tmp_path / "tiny.gguf").read_bytes()
    for length in [0, 3, 4, 10, 23, 40, 400, 5000, len(whole) // 2, len(whole) - 1]:
        with pytest.raises(UserError, match=r"model.gguf: .*(cut short|not a GGUF file|can hold|altered)"):
            read_gguf(write(whole[:length]))


def test_a_gguf_whose_header_is_altered_anywhere_is_read_or_refused_in_words(tmp_path, write):
    """Never another exception, never a request for memory that the file cannot fill."""
    facts = {**llama_facts(), "tokenizer.ggml.tokens": ["a", "aa"], "tokenizer.ggml.token_type": [1, 1],
             "tokenizer.ggml.merges": ["a a"]}
    whole = gguf_bytes(facts, {"token_embd.weight": f32(torch.zeros(1, 32)),
                               "x": ((2, 32), 3, q4_1(1, 1, [3] * 32) * 2)})
    refused = 0
    for place in range(len(whole) - 200):
        altered = bytes([(whole[place] + (1, 64, 128, 255)[place % 4]) % 256])
        try:
            gguf = read_gguf(write(whole[:place] + altered + whole[place + 1 :]))
            [tensor.numbers() for tensor in gguf.tensors.values()]
            tokenizer_from_gguf(gguf)
            llama_from_gguf(gguf)
        except UserError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"general.architecture": "qwen2"}, "architecture 'qwen2'; only 'llama'"),
        ({"general.architecture": None}, "architecture None"),
        ({"llama.embedding_length": None}, "'llama.embedding_length' is missing"),
        ({"llama.block_count": 3}, "only in one of the two"),
        ({"llama.block_count": 2_000_000_000}, "a whole number from 1 to 20"),
        ({"llama.feed_forward_length": 2**31 - 1, "llama.embedding_length": 2**31 - 1}, "cannot be|has shape"),
        ({"llama.block_count": "many"}, "'many'; it must be a whole number"),
        ({"llama.feed_forward_length": 32}, "has shape"),
        ({"llama.attention.head_count_kv": 3}, "cannot share 3 heads"),
        ({"llama.rope.scaling.type": "yarn"}, "stretches its rotary positions"),
        ({"tokenizer.ggml.tokens": None}, "'tokenizer.ggml.tokens' is missing"),
    ],
)
def test_a_gguf_of_another_model_is_refused(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        llama_from_gguf(read_gguf(tiny_file(tmp_path / "tiny.gguf", **changes)))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"tokenizer.ggml.model": "llama"}, "its tokenizer is 'llama'"),
        ({"tokenizer.ggml.pre": "qwen2"}, "cut as 'qwen2'"),
        ({"tokenizer.ggml.merges": ["one two three"]}, "do not fit together"),
        ({"tokenizer.ggml.merges": ["un known"]}, "do not fit together"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "do not fit together"),
        ({"tokenizer.ggml.token_type": [1]}, "do not fit together"),
    ],
)
def test_a_tokenizer_of_another_kind_is_refused(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        tokenizer_from_gguf(read_gguf(tiny_file(tmp_path / "tiny.gguf", **changes)))


def test_formats_and_versions_that_are_not_read_are_named(write, tmp_path):
    with pytest.raises(UserError, match="tensor 'w' is stored as Q6_K; read here are F32, F16, Q4_1, Q8_0"):
        read_gguf(write(gguf_bytes({}, {"w": ((256,), 14, b"\0" * 210)})))
    with pytest.raises(UserError, match="tensor 'w' is stored as BF16; read here"):
        read_gguf(write(gguf_bytes({}, {"w": ((256,), 30, b"\0" * 512)})))
    with pytest.raises(UserError, match="stored as number 99"):
        read_gguf(write(gguf_bytes({}, {"w": ((256,), 99, b"\0" * 210)})))
    with pytest.raises(UserError, match="rows of 31 numbers"):
        read_gguf(write(gguf_bytes({}, {"w": ((31,), 8, b"\0" * 64)})))
    with pytest.raises(UserError, match="GGUF version 1"):
        read_gguf(write(b"GGUF" + struct.pack("<IQQ", 1, 0, 0)))
    with pytest.raises(UserError, match="not a GGUF file"):
        read_gguf(write(b"PK\3\4 a zip"))
    with pytest.raises(UserError, match="no such file"):
        read_gguf(tmp_path / "nothing.gguf")


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    model = tiny_llama()
    with torch.no_grad():
        model.body.blocks[1].feed_forward.gate.weight[3, 4] = float("nan")
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf_bytes(llama_facts(), llama_tensors(model)))
    with pytest.raises(UserError, match="feed_forward.gate.weight holds NaN or infinity"):
        llama_from_gguf(read_gguf(path))
