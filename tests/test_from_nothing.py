"""The toy decoder that needs no base, and its corpus."""

import pytest

from minialign.heads import load_model
from minialign.lab.demo.from_nothing import FAST, VALID, ToyConfig, corpus, pretrain_decoder, tokenizer_of
from minialign.runs.errors import UserError


def test_passages_are_told_once_and_stay_as_they_were_told():
    config = ToyConfig(**FAST)
    texts = corpus(config, 3)[0]
    texts.clear()
    assert len(corpus(config, 3)[0]) == config.passages - VALID != len(corpus(ToyConfig(passages=400), 3)[0])


def test_the_toy_tokenizer_has_the_worlds_names_whole():
    config = ToyConfig(passages=700)
    tokenizer = tokenizer_of(config, corpus(config, 0)[0])
    assert all(len(tokenizer.encode(f" {name}")) == 1 for name in ("Mira", "Tom", "Grandma", "kite", "yes"))


def test_a_corpus_without_room_for_validation_is_an_error():
    with pytest.raises(UserError, match="passages is 300"):
        ToyConfig(passages=300)


def test_a_decoder_that_is_there_is_not_made_again(tmp_path, monkeypatch):
    config = ToyConfig(passages=340, vocabulary=300, width=16, heads=2, layers=1, steps=2, batch=4)
    assert load_model(pretrain_decoder(config, 0, tmp_path))[0].config.width == 16
    monkeypatch.setattr("minialign.lab.demo.from_nothing.pretrain", None)
    pretrain_decoder(config, 0, tmp_path)
