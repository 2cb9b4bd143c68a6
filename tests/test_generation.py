"""Writing: the cache, the batch, the padding and the moment of stopping change nothing; chance is what the softmax says
it is."""

import math

import pytest
import torch
from conftest import build

from minialign.__main__ import run
from minialign.cache import Cache
from minialign.generation import (
    ENDED_AT_ONCE,
    NO_WORDS,
    Generated,
    SamplingConfig,
    continue_texts,
    end_mask,
    filter_logits,
    generate,
    prompt_ids,
    sample_token,
)
from minialign.heads import describe_model
from minialign.runs.errors import UserError
from minialign.runs.run_folder import RunFolder
from minialign.tokenizer import BEGIN, END, PAD

PROMPTS = [[1, 5, 6], [1, 7, 8, 9, 10, 11], [1], [1, 4]]
CLOSE = {"rtol": 0, "atol": 1e-5}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def chatty():
    """A model of 12 words, so that the end token comes up about once in twelve."""
    return build(vocabulary=12, initial_std=0.3)


def naive(model, prompt, config, uniforms):
    """One token after the other, each from a full pass without padding or cache, by looping over the probabilities."""
    written, logprobs = [], []
    for t in range(config.new_tokens):
        logits = model(torch.tensor([[*prompt, *written]]))[0, -1].detach()
        if config.temperature > 0:
            logits = logits / config.temperature
        logits = filter_logits(logits[None], config.top_k, config.top_p)[0]
        probabilities = logits.softmax(dim=-1).tolist()
        if config.temperature == 0:
            token = max(range(len(probabilities)), key=lambda i: probabilities[i])
        else:
            token, total = 0, probabilities[0]
            while total <= uniforms[t]:
                token += 1
                total += probabilities[token]
        written.append(token)
        logprobs.append(math.log(probabilities[token]))
        if token == END:
            break
    return written, logprobs


@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig(10, temperature=0),
        SamplingConfig(10),
        SamplingConfig(10, temperature=0.7),
        SamplingConfig(10, top_k=3),
        SamplingConfig(10, top_p=0.6),
        SamplingConfig(10, temperature=1.5, top_k=6, top_p=0.9),
    ],
)
@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_batched_cached_writing_equals_the_naive_loop(config, positions):
    model = build(vocabulary=12, initial_std=0.3, positions=positions)
    written = generate(model, PROMPTS, config, seeded())
    uniforms = torch.rand(config.new_tokens, len(PROMPTS), generator=seeded())
    for i, prompt in enumerate(PROMPTS):
        tokens, logprobs = naive(model, prompt, config, uniforms[:, i].tolist())
        assert written.completion[i][written.mask[i]].tolist() == tokens
        torch.testing.assert_close(written.logprobs[i][written.mask[i]], torch.tensor(logprobs), rtol=0, atol=1e-4)


@pytest.mark.parametrize("temperature, top_k, top_p", [(1.0, 0, 1.0), (0.5, 0, 1.0), (1.0, 4, 1.0), (1.0, 0, 0.7),
                                                       (1.8, 5, 0.8)])
def test_the_logprob_is_that_of_the_distribution_sampled_from(chatty, temperature, top_k, top_p):
    written = generate(chatty, PROMPTS * 8, SamplingConfig(8, temperature, top_k, top_p), seeded())
    whole = torch.cat([written.prompt, written.completion], dim=1)
    logits = chatty(whole, torch.cat([written.prompt_mask, torch.ones_like(written.mask)], dim=1))[:,
        written.prompt.shape[1] - 1 : -1]
    for i, t in written.mask.nonzero().tolist():
        probabilities = (logits[i, t].detach() / temperature).softmax(dim=-1)
        ranked = probabilities.sort(descending=True).indices.tolist()
        if top_k:
            ranked = ranked[:top_k]
        shares, kept = probabilities / probabilities[ranked].sum(), []
        while not kept or (float(shares[kept].sum()) < top_p and len(kept) < len(ranked)):
            kept.append(ranked[len(kept)])
        token = int(written.completion[i, t])
        assert token in kept
        assert float(written.logprobs[i, t]) == pytest.approx(math.log(probabilities[token]
            / probabilities[kept].sum()), abs=1e-4)


# one token


def test_a_grid_of_uniform_numbers_draws_each_token_in_proportion():
    logits = torch.tensor([[1.0, -math.inf, 0.0, 2.5, -1.0, -math.inf]])
    n = 10_000
    grid = (torch.arange(n) + 0.5) / n
    counts = sample_token(logits.softmax(-1).expand(n, -1), grid).bincount(minlength=6)
    assert ((counts - n * logits[0].softmax(dim=-1)).abs() <= 1.5).all() and counts[1] == counts[5] == 0


def test_sampled_frequencies_match_the_softmax():
    logits = 2 * torch.randn(30, generator=seeded(1))
    n, probabilities = 20_000, logits.softmax(dim=-1)
    counts = sample_token(logits.softmax(-1).expand(n, -1), torch.rand(n, generator=seeded(2))).bincount(minlength=30)
    chi_square = float(((counts - n * probabilities) ** 2 / (n * probabilities)).sum())
    assert chi_square < 29 + 4 * math.sqrt(2 * 29)  # 29 degrees of freedom: mean 29, deviation √58


def test_a_token_of_probability_0_is_never_drawn():
    highest = 1 - 2**-24  # the largest number that torch.rand returns
    for logits in ([-math.inf, 0.0, 1.0, -math.inf], [-math.inf, -math.inf, 3.0, -math.inf]):
        for uniform in (0.0, 1e-9, 0.5, highest):
            token = int(sample_token(torch.tensor([logits]).softmax(-1), torch.tensor([uniform])))
            assert logits[token] > -math.inf, (logits, uniform)
    flat = torch.zeros(1000, 1024)
    assert sample_token(flat.softmax(-1), torch.full((1000,), highest)).max() <= 1023


@pytest.mark.parametrize("k", [1, 2, 5, 11])
def test_top_k_keeps_the_k_likeliest(k):
    logits = torch.randn(4, 12, generator=seeded())
    kept = filter_logits(logits, k, 1.0) > -math.inf
    for row, keep in zip(logits.tolist(), kept):
        assert set(keep.nonzero().flatten().tolist()) == set(sorted(range(12), key=lambda i: -row[i])[:k])


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_fewest_tokens_that_hold_the_share(p):
    logits = 2 * torch.randn(50, 12, generator=seeded())
    kept = filter_logits(logits, 0, p) > -math.inf
    for probabilities, keep in zip(logits.double().softmax(dim=-1).tolist(), kept):
        expected, total = set(), 0.0
        for i in sorted(range(12), key=lambda i: -probabilities[i]):
            if total >= p:
                break
            expected.add(i)
            total += probabilities[i]
        assert set(keep.nonzero().flatten().tolist()) == expected


def test_filters_that_keep_everything_change_nothing():
    logits = torch.randn(4, 12, generator=seeded())
    for k, p in ((0, 1.0), (12, 1.0), (99, 1.0)):
        assert torch.equal(filter_logits(logits, k, p), logits)


def test_top_p_looks_at_what_top_k_has_left():
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    kept = filter_logits(logits, 2, 0.6)[0] > -math.inf  # among the first two the first holds 4/7 < 0.6
    assert kept.tolist() == [True, True, False, False]
    assert (filter_logits(logits, 2, 0.5)[0] > -math.inf).tolist() == [True, False, False, False]


# the whole batch


def test_left_padding_changes_no_answer(chatty):
    config = SamplingConfig(6)
    alone = generate(chatty, [PROMPTS[0]] * 2, config, seeded())
    beside_a_longer = generate(chatty, [PROMPTS[0], [1, *range(4, 12)] * 2], config, seeded())
    n = int(alone.mask[0].sum())
    assert beside_a_longer.completion[0, :n].tolist() == alone.completion[0, :n].tolist()
    torch.testing.assert_close(beside_a_longer.logprobs[0, :n], alone.logprobs[0, :n], **CLOSE)


def test_an_answer_does_not_depend_on_the_other_rows(chatty, monkeypatch):
    config = SamplingConfig(12)
    together = generate(chatty, PROMPTS, config, seeded())
    uniforms = torch.rand(config.new_tokens, len(PROMPTS), generator=seeded())
    for i, prompt in enumerate(PROMPTS):
        monkeypatch.setattr(torch, "rand", lambda *_, generator, i=i: uniforms[:, i : i + 1])
        alone = generate(chatty, [prompt], config, seeded())
        n = alone.mask.shape[1]
        assert alone.completion[0].tolist() == together.completion[i, :n].tolist()
        assert not together.mask[i, n:].any()


def test_the_same_generator_gives_the_same_text_and_another_another(chatty):
    first, second, other = (generate(chatty, PROMPTS, SamplingConfig(12), seeded(s)).completion for s in (0, 0, 1))
    assert torch.equal(first, second)
    assert first.shape != other.shape or not torch.equal(first, other)


def test_chance_comes_from_the_generator_alone(chatty):
    torch.manual_seed(1)
    first = generate(chatty, PROMPTS, SamplingConfig(12), seeded())
    torch.manual_seed(2)
    assert torch.equal(first.completion, generate(chatty, PROMPTS, SamplingConfig(12), seeded()).completion)


def test_a_generator_goes_on_where_it_stopped_however_early_the_rows_ended(chatty):
    early, full = seeded(), seeded()
    generate(chatty, [[1]], SamplingConfig(30), early, stop_early=True)
    generate(chatty, [[1]], SamplingConfig(30), full, stop_early=False)
    assert torch.equal(early.get_state(), full.get_state())


def test_greedy_takes_the_likeliest_whatever_the_generator(chatty):
    first, second = (generate(chatty, PROMPTS, SamplingConfig(8, temperature=0), seeded(s)).completion for s in (0, 1))
    assert torch.equal(first, second)


def test_stopping_early_gives_the_same_answers(chatty):
    for seed in range(5):
        early, full = (generate(chatty, [[1], [1, 5]], SamplingConfig(40), seeded(seed), stop_early=choice)
                       for choice in (True, False))
        R = early.completion.shape[1]
        assert full.completion.shape[1] == 40 and R <= 40
        assert torch.equal(full.completion[:, :R], early.completion) and torch.equal(full.logprobs[:, :R],
            early.logprobs)
        assert (full.completion[:, R:] == PAD).all() and not full.mask[:, R:].any()
        assert R == 40 or int(early.mask.sum(dim=1).max()) == R


def test_what_stands_after_the_end_token_has_no_influence(chatty, monkeypatch):
    config = SamplingConfig(20)
    before = generate(chatty, PROMPTS, config, seeded(), stop_early=False)
    assert before.ended().any() and not before.mask.all()
    uniforms = torch.rand(20, len(PROMPTS), generator=seeded())
    other = torch.where(before.mask.T, uniforms, 1 - uniforms)
    monkeypatch.setattr(torch, "rand", lambda *_, generator: other)
    after = generate(chatty, PROMPTS, config, seeded(), stop_early=False)
    for name in ("prompt", "prompt_mask", "completion", "mask", "logprobs"):
        assert torch.equal(getattr(after, name), getattr(before, name)), name


def test_the_end_token_belongs_to_the_answer_and_nothing_follows_it(chatty):
    written = generate(chatty, PROMPTS * 10, SamplingConfig(20), seeded())
    assert 0 < written.ended().sum() < 40
    for row, mask, logprobs, ended in zip(written.completion, written.mask, written.logprobs, written.ended()):
        n = int(mask.sum())
        assert mask[:n].all() and not mask[n:].any()
        assert (END in row[:n].tolist()) == bool(ended) and END not in row[: n - 1].tolist()
        assert (row[n:] == PAD).all() and (logprobs[n:] == 0).all() and (logprobs[:n] < 0).all()


def test_the_end_mask_keeps_the_first_end_also_when_padding_would_look_like_it():
    tokens = torch.tensor([[5, END, END, 7], [END, 5, 6, 7], [5, 6, 7, 8], [5, 6, 7, END]])
    assert end_mask(tokens).int().tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]


def test_writing_switches_dropout_off_and_leaves_the_model_in_its_mode():
    model = build(vocabulary=12, initial_std=0.3, dropout=0.5)
    quiet = generate(model, PROMPTS, SamplingConfig(8), seeded()).completion
    assert not model.training
    assert torch.equal(generate(model.train(), PROMPTS, SamplingConfig(8), seeded()).completion, quiet)
    assert model.training and all(module.training for module in model.modules())


def test_generation_gives_every_part_its_mode_back():
    model = build(vocabulary=12, dropout=0.5).train()
    model.body.blocks[0].eval()  # a part that somebody froze
    modes = [module.training for module in model.modules()]
    generate(model, PROMPTS, SamplingConfig(4), seeded())
    assert [module.training for module in model.modules()] == modes and len(set(modes)) == 2
    with pytest.raises(UserError):  # after a fault, too
        generate(model, [[1] * 40], SamplingConfig(40), seeded())
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_model_in_another_number_format_keeps_it_in_its_cache(dtype):
    model = build(vocabulary=12, initial_std=0.3).to(dtype)
    cache = Cache(model.config, 1, 8)
    with torch.no_grad():
        model.body(torch.tensor([[1, 5, 6]]), None, cache)
    assert cache.store.dtype == dtype
    assert generate(model, [[1, 5]], SamplingConfig(4), seeded()).completion.shape[0] == 1


def test_prompts_begin_with_the_begin_token_and_answers_come_back_in_their_order(decoder, tokenizer):
    prompts = ["Rosa lost the red kite in the barn.", "", "Finn", "Who?", "The boat was green."]
    ids = prompt_ids(tokenizer, prompts)
    assert all(row[0] == BEGIN for row in ids) and [tokenizer.decode(row) for row in ids] == prompts
    config = SamplingConfig(6, temperature=0)
    alone = [generate(decoder, [row], config, seeded()).texts(tokenizer)[0] for row in ids]
    for batch in (1, 2, 64):
        assert continue_texts(decoder, tokenizer, prompts, config, seeded(), batch) == alone
    assert continue_texts(decoder, tokenizer, [], config, seeded()) == []


def test_a_text_has_no_special_tokens_in_it(decoder, tokenizer):
    written = generate(decoder, [[1]] * 4, SamplingConfig(12), seeded())
    texts = written.texts(tokenizer)
    for text, row, mask in zip(texts, written.completion, written.mask):
        assert text == tokenizer.decode(row[mask].tolist()) and "<end>" not in text and "<pad>" not in text


# an encoder-decoder: the encoder reads the prompt, the decoder begins with the begin token


@pytest.fixture
def writer():
    """An encoder-decoder of 12 words."""
    return build(kind="encoder-decoder", vocabulary=12, initial_std=0.3)


def naive_answer(model, prompt, config, uniforms):
    """`naive` for an encoder-decoder: full passes over one unpadded prompt and what was written."""
    return naive(lambda tokens: model(tokens, torch.tensor([prompt])), [BEGIN], config, uniforms)


@pytest.mark.parametrize("config", [SamplingConfig(10, temperature=0), SamplingConfig(10),
                                    SamplingConfig(10, temperature=1.5, top_k=6, top_p=0.9)])
@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_an_encoder_decoder_writes_what_the_naive_loop_writes(config, positions):
    model = build(kind="encoder-decoder", vocabulary=12, initial_std=0.3, positions=positions)
    written = generate(model, PROMPTS, config, seeded())
    uniforms = torch.rand(config.new_tokens, len(PROMPTS), generator=seeded())
    for i, prompt in enumerate(PROMPTS):
        tokens, logprobs = naive_answer(model, prompt, config, uniforms[:, i].tolist())
        assert written.completion[i][written.mask[i]].tolist() == tokens
        torch.testing.assert_close(written.logprobs[i][written.mask[i]], torch.tensor(logprobs), rtol=0, atol=1e-4)
        assert written.prompt[i][written.prompt_mask[i]].tolist() == prompt and written.prompt[i, 0] == prompt[0]


def test_several_answers_of_an_encoder_decoder_are_those_to_the_repeated_prompt(writer):
    config = SamplingConfig(10)
    several = generate(writer, PROMPTS, config, seeded(), completions=3)
    repeated = generate(writer, [prompt for prompt in PROMPTS for _ in range(3)], config, seeded())
    assert torch.equal(several.completion, repeated.completion) and torch.equal(several.mask, repeated.mask)
    torch.testing.assert_close(several.logprobs, repeated.logprobs, **CLOSE)
    assert several.prompt.shape[0] == 4 and len({tuple(row) for row in several.completion[:3].tolist()}) > 1


def test_an_encoder_decoder_reads_each_prompt_once(writer):
    read = {"encoder": [], "decoder": []}
    for part, seen in read.items():
        getattr(writer.body, part).register_forward_pre_hook(lambda _, arguments,
            seen=seen: seen.append(tuple(arguments[0].shape)))
    keys = []
    for block in writer.body.decoder.blocks:
        block.cross_attention.key.register_forward_hook(lambda _, arguments, result: keys.append(tuple(result.shape)))
    generate(writer, PROMPTS, SamplingConfig(7), seeded(), stop_early=False, completions=2)
    assert read == {"encoder": [(4, 6)], "decoder": [(4, 1)] + [(8, 1)] * 6}
    assert keys == [(4, 6, 32)] * 2  # once for each layer


def test_padding_and_other_prompts_change_no_answer_of_an_encoder_decoder(writer):
    config = SamplingConfig(8, temperature=0)
    alone = [generate(writer, [prompt], config, seeded()) for prompt in PROMPTS]
    together = generate(writer, PROMPTS, config, seeded())
    for i, one in enumerate(alone):
        n = int(one.mask.sum())
        assert together.completion[i][together.mask[i]].tolist() == one.completion[0, :n].tolist()
        torch.testing.assert_close(together.logprobs[i, :n], one.logprobs[0, :n], **CLOSE)


def test_prompt_and_answer_of_an_encoder_decoder_each_have_the_whole_context(writer):
    assert generate(writer, [[1] * 48], SamplingConfig(48), seeded(), stop_early=False).completion.shape == (1, 48)
    for prompt, new_tokens in ((49, 8), (8, 49)):
        with pytest.raises(UserError, match=f"a prompt of {prompt} tokens and {new_tokens} new ones do not each fit "
                                            f"the model's context of 48"):
            generate(writer, [[1] * prompt], SamplingConfig(new_tokens), seeded())


# what cannot be


def test_an_encoder_does_not_write():
    with pytest.raises(UserError, match="an encoder reads and does not write"):
        generate(build(kind="encoder"), [[1]], SamplingConfig(8), seeded())


def test_no_prompts_are_an_error(decoder):
    with pytest.raises(UserError, match="no prompts"):
        generate(decoder, [], SamplingConfig(8), seeded())


def test_a_prompt_that_leaves_no_room_is_an_error_that_counts(decoder):
    generate(decoder, [[1] * 40, [1]], SamplingConfig(8), seeded())
    with pytest.raises(UserError, match="a prompt of 41 tokens and 8 new ones do not fit the model's context of 48"):
        generate(decoder, [[1], [1] * 41], SamplingConfig(8), seeded())


@pytest.mark.parametrize(
    "change", [{"new_tokens": 0}, {"temperature": -0.1}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1},
               {"temperature": math.nan}, {"top_p": math.nan}]
)
def test_settings_that_make_no_sense_are_errors(change):
    with pytest.raises(UserError):
        SamplingConfig(**change)


def test_a_temperature_near_0_is_greedy_and_not_nonsense(chatty):
    greedy = generate(chatty, PROMPTS, SamplingConfig(8, temperature=0), seeded()).completion
    for temperature in (1e-6, 1e-39):
        written = generate(chatty, PROMPTS, SamplingConfig(8, temperature=temperature), seeded())
        assert torch.equal(written.completion, greedy) and written.logprobs.isfinite().all()


def test_an_answer_without_words_says_so_to_people_and_stays_empty_for_programs(tokenizer):
    rows = [[END, PAD], [tokenizer.encode("a")[0], END], [tokenizer.encode(" ")[0], END], [BEGIN, BEGIN]]
    response = torch.tensor(rows)
    written = Generated(response[:, :0], response[:, :0] > 0, response, end_mask(response), torch.zeros(4, 2))
    assert written.texts(tokenizer) == ["", "a", " ", ""]
    assert written.shown(tokenizer) == [ENDED_AT_ONCE, "a", NO_WORDS, NO_WORDS]


def test_a_command_says_that_the_model_ended_at_once(decoder, tokenizer, tmp_path, capsys):
    with torch.no_grad():  # whatever it reads, the end token is the likeliest
        decoder.body.norm.weight.zero_()
        decoder.body.norm.bias.copy_(decoder.body.token_embedding.weight[END] * 1e4)
    folder = RunFolder(tmp_path)
    folder.begin(describe_model(decoder), tokenizer)
    folder.finish(decoder)
    for line, said in (("ask --prompt Why?", "(nothing: the model ended at once)\n"),
                       ("sample --prompt So", "So (nothing: the model ended at once)\n"),
                       ("sample --prompt So --show tokens", "S|o (nothing: the model ended at once)\n")):
        command, *options = line.split()
        assert run([command, str(tmp_path), *options, "--new-tokens", "4"]) == 0
        assert capsys.readouterr().out == said


def test_a_tiny_temperature_is_greedy_and_sixteen_bits_keep_every_token(chatty):
    tiny, greedy = (generate(chatty, PROMPTS, SamplingConfig(6, t), seeded()) for t in (1e-46, 0.0))
    assert torch.equal(tiny.completion, greedy.completion) and tiny.logprobs.isfinite().all()

    class Even(torch.nn.Module):
        config, special, training = chatty.config, chatty.special, False

        def __init__(self):
            super().__init__()
            self.body = chatty.body

        def logits(self, hidden):
            return torch.zeros(len(hidden), 1024, dtype=torch.bfloat16)

    seen = generate(Even(), [PROMPTS[0]] * 4000, SamplingConfig(1), seeded()).completion.unique()
    assert len(seen) > 950  # of 1,024 equally likely ones; in bfloat16 their sums had room for half of them
