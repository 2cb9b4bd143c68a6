"""Speculative decoding: the text is the target's, whatever the draft."""

import dataclasses
from collections import Counter

import pytest
import torch
from conftest import TINY
from typed import complaint, type_in

from minialign.cache import Cache
from minialign.distill.speculative import Reader, accepted_count, probabilities, residual, speculate
from minialign.generation import SamplingConfig, generate, sample_token
from minialign.heads import LanguageModel, describe_model
from minialign.runs.errors import UserError
from minialign.runs.run_folder import RunFolder
from minialign.tokenizer import train_tokenizer

SMALL = dataclasses.replace(TINY, vocabulary=12, context=64, initial_std=0.6)


def models(**changes):
    shape = dataclasses.replace(SMALL, **changes)
    return LanguageModel(shape, 0).eval(), LanguageModel(dataclasses.replace(shape, layers=1), 1).eval()


def test_acceptance_and_replacement_together_are_the_target():
    """By enumeration: Σ over guesses of q(x) · accepted, and of what replaces them, is p."""
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        p, q = (torch.rand(7, generator=g).pow(3) for _ in range(2))
        p, q = p / p.sum(), q / q.sum()
        accepted = torch.minimum(p, q)  # q(x) min(1, p(x) / q(x))
        torch.testing.assert_close(accepted + (1 - accepted.sum()) * residual(p, q), p)
    assert torch.equal(residual(p, p), p)


def test_guesses_are_accepted_up_to_the_first_that_is_not():
    p, q = torch.tensor([[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]]), torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
    guesses = torch.tensor([0, 1, 0])
    for uniforms, count in (((0.39, 0.9, 0.9), 3), ((0.41, 0.0, 0.0), 0), ((0.1, 0.999, 0.9), 3)):
        assert accepted_count(p, q, guesses, torch.tensor(uniforms)) == count
    assert accepted_count(p, q, torch.tensor([0, 1, 1]), torch.tensor([0.1, 0.1, 0.3])) == 2


@pytest.mark.parametrize("changes", [{}, {"short_convolution": 4}, {"positions": "learned"}])
@pytest.mark.parametrize("ahead", [1, 3, 6])
def test_greedy_text_is_the_targets(changes, ahead):
    target, draft = models(**changes)
    config, generator = SamplingConfig(20, 0.0), torch.Generator().manual_seed(0)
    for prompt in ([1], [1, 5, 7, 4], [1, 9, 9]):
        wanted = generate(target, [prompt], config, generator).ids()[0]
        for model in (draft, target):
            found = speculate(target, model, prompt, config, generator, ahead)
            assert found.ids == wanted and found.passes <= len(wanted) and found.accepted <= found.guessed
        assert found.accepted == found.guessed, "its own guesses are all accepted"


@pytest.mark.parametrize("config", [SamplingConfig(2, 1.0), SamplingConfig(2, 1.3, 5, 0.9)])
def test_text_is_distributed_as_the_targets_own(config):
    """χ² of 400 texts of two tokens against the product of the target's probabilities, at the .001 level."""
    target, draft = models(short_convolution=3)
    prompt, exact = [1, 5, 7], {}

    def walk(ids, chance):
        if len(ids) == 2 or (ids and ids[-1] == target.special.end):
            exact[tuple(ids)] = chance
            return
        with torch.no_grad():
            p = probabilities(target(torch.tensor([[*prompt, *ids]]))[:, -1], config)[0]
        for token in p.nonzero().flatten().tolist():
            walk([*ids, token], chance * p[token].item())

    walk([], 1.0)
    generator, n = torch.Generator().manual_seed(1), 400
    seen = Counter(tuple(speculate(target, draft, prompt, config, generator, 2).ids) for _ in range(n))
    assert set(seen) <= set(exact) and sum(exact.values()) == pytest.approx(1, abs=1e-4)
    common = [ids for ids, chance in exact.items() if n * chance >= 5]
    rest = n - sum(seen[ids] for ids in common), n * (1 - sum(exact[ids] for ids in common))
    chi = sum((seen[ids] - n * exact[ids]) ** 2 / (n * exact[ids]) for ids in common)
    chi += (rest[0] - rest[1]) ** 2 / rest[1] if rest[1] > 5 else 0
    freedom = len(common)
    assert chi < freedom + 3.1 * (2 * freedom) ** 0.5 + 3.1**2


def test_a_model_in_16_bits_keeps_every_token():
    p = probabilities(torch.zeros(1, 1024, dtype=torch.bfloat16), SamplingConfig())
    seen = sample_token(p.expand(4000, -1), torch.rand(4000, generator=torch.Generator().manual_seed(0))).unique()
    assert len(seen) > 950  # of 1,024 equally likely ones; in bfloat16 their sums had room for half of them


@pytest.mark.parametrize("changes", [{}, {"short_convolution": 4}])
def test_a_cache_forgets_what_it_is_told_to(changes):
    target, _ = models(**changes)
    reader, again = Reader(target, [1, 5], 20), Reader(target, [1, 5], 20)
    with torch.no_grad():
        reader.read([6, 7, 8])
        reader.cache.rewind(2)
        found = reader.read([9, 4])
        torch.testing.assert_close(found[-2:], again.read([6, 9, 4])[-2:], atol=1e-5, rtol=1e-4)
    with pytest.raises(AssertionError):
        Cache(target.config, 1, 4).rewind(1)


def test_a_draft_with_another_vocabulary_is_refused():
    target, draft = models()
    for model, message in ((LanguageModel(dataclasses.replace(SMALL, vocabulary=13)), "the draft has 13 tokens"),
                           (LanguageModel(dataclasses.replace(SMALL, kind="encoder-decoder")), "for two decoders"),
                           (LanguageModel(dataclasses.replace(SMALL, context=8)), "context of 8")):
        with pytest.raises(UserError, match=message):
            speculate(target, model, [1, 5], SamplingConfig(10), torch.Generator())
    with pytest.raises(UserError, match="guesses a pass"):
        speculate(target, draft, [1], SamplingConfig(4), torch.Generator(), 0)


def test_a_reader_lets_a_student_guess(tmp_path, capsys):
    tokenizers = [train_tokenizer([text] * 9, 290) for text in ("Mira lost the kite.", "Tom found it in the barn.")]
    for name, layers, which in (("large", 2, 0), ("small", 1, 0), ("odd", 1, 1)):
        tokenizer = tokenizers[which]
        model = LanguageModel(dataclasses.replace(TINY, vocabulary=tokenizers[0].size, layers=layers), 0)
        run = RunFolder(tmp_path / name)
        run.begin({**describe_model(model), "stage": "pretrain"}, tokenizer)
        run.finish(model)
    line = "sample {d}/large --prompt Mira --temperature 0 --new-tokens 12"
    assert type_in(line, d=tmp_path) == 0
    plain = capsys.readouterr().out
    assert type_in(line + " --draft {d}/small", d=tmp_path) == 0
    said = capsys.readouterr()
    assert said.out == plain and "guesses accepted" in said.err
    assert type_in(line + " --draft {d}/odd", d=tmp_path) == 2
    assert "its tokenizer is another one" in complaint(capsys)


def test_what_fits_without_a_draft_is_told_what_a_draft_needs():
    target, draft = models()
    room = SMALL.context - 4
    with pytest.raises(UserError, match="room for 4 tokens more than the text"):
        speculate(target, draft, [1, 5, 6, 7], SamplingConfig(room), torch.Generator(), ahead=4)
    with pytest.raises(UserError, match="a prompt of 4 tokens and"):
        speculate(target, draft, [1, 5, 6, 7], SamplingConfig(room + 1), torch.Generator(), ahead=4)
