"""The toy T5, T0 and GPT-3 that are made from nothing: their corpus, tokenizer and split."""

import copy
import dataclasses

import pytest

from minialign.instruct.mixture import MixtureConfig, draw
from minialign.lab.demo.from_nothing import FAST, VALID, ToyConfig, corpus, split_of, tokenizer_of
from minialign.runs.errors import UserError
from minialign.world.datasets import HELD_OUT, PROMPTS


def test_held_out_examples_are_the_same_for_every_seed_and_share_no_passage_with_training():
    config = ToyConfig(**FAST)
    one, two = (split_of(config, seed) for seed in (0, 1))
    assert one.held_out == two.held_out and one.train != two.train
    assert {e["cluster"] for found in one.held_out.values() for e in found} == set(HELD_OUT)


def test_passages_and_examples_are_told_once_and_stay_as_they_were_told():
    config = ToyConfig(**FAST)
    split, texts = split_of(config, 3), corpus(config, 3)[0]
    kept = copy.deepcopy(split)
    draw(split.train, PROMPTS, MixtureConfig(100, seed=3))
    split.train["mood"].append({}), split.held_out["check"].append({}), texts.clear()
    other = dataclasses.replace(config, tune_steps=7, gpt_width=24)  # what is not told by these
    assert split_of(other, 3) == kept and len(corpus(other, 3)[0]) == config.passages - VALID
    assert split_of(config, 4).train != kept.train and split_of(dataclasses.replace(config, examples=13),
        3).train != kept.train


def test_the_toy_tokenizer_has_the_worlds_names_whole():
    config = ToyConfig(passages=700)
    tokenizer = tokenizer_of(config, corpus(config, 0)[0])
    assert all(len(tokenizer.encode(f" {name}")) == 1 for name in ("Mira", "Tom", "Grandma", "kite", "yes"))


def test_a_corpus_without_room_for_validation_is_an_error():
    with pytest.raises(UserError, match="passages is 300"):
        ToyConfig(passages=300)
