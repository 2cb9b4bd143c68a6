"""Answers that a checker once took for what they are not: wrong ones for right, right ones for wrong, usual mistakes
for unusual ones, and what made it raise."""

import math
import re
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from minialign.lab.exercises import check
from minialign.lab.exercises.catalogue import find, words


def rouge_1(pattern, lower):
    def answer(completion, reference):
        a, b = (Counter(re.findall(pattern, text.lower() if lower else text)) for text in (completion, reference))
        return 2 * (a & b).total() / (a.total() + b.total())

    return answer


@pytest.mark.parametrize("pattern, lower, key", [
    ("[A-Za-z0-9]+", False, "capitals"), ("[a-z0-9]+", False, "capitals"), ("[a-z]+", True, "different"),
    ("[a-z0-9]+", True, "right"),
])
def test_capitals_and_numbers_are_told(pattern, lower, key):
    assert check("rouge_1", rouge_1(pattern, lower)).key == key


def test_an_infinite_scale_is_none():
    assert check("clipped_scale", lambda x: math.inf).key == "positive"


def test_a_good_token_that_fell_keeps_its_gradient():
    def clipped_where_good(now, then, advantages, clip):
        ratio = (now - then).exp()
        plain, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
        return torch.where(advantages > 0, clipped, torch.maximum(plain, clipped))

    assert not check("ppo_loss", clipped_where_good)


def test_attention_has_to_look_at_who_is_allowed():
    assert not check("attention", lambda q, k, v, allowed: F.scaled_dot_product_attention(q, k, v, is_causal=True))


@pytest.mark.parametrize("rule", [lambda n: n.endswith(".bias"), lambda n: n.endswith("bias"),
                                  lambda n: "weight" not in n])
def test_only_exact_names_are_biases(rule):
    assert not check("bitfit_names", lambda model: sorted(n for n, _ in model.named_parameters() if rule(n)))


def test_rates_are_no_whole_numbers():
    assert not check("mixing_rates", lambda sizes, templates, cap: {t: min(sizes[t], cap) // templates[t]
                                                                    for t in sizes})


def test_bfloat16_is_not_enough_for_a_norm():
    def answer(x, weight):
        wide = x.bfloat16()
        return (weight.bfloat16() * wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).half()

    assert not check("rms_norm", answer)


def test_a_better_summary_may_say_something_that_is_not_understood():
    assert check("summary", "Anna baked some cake and won the first prize. Lily baked some pie and was sad. They ate "
                            "the cake together.")


def test_what_torch_cannot_do_is_told():
    def positions_of(mask):
        return (mask @ torch.ones(mask.shape[1], mask.shape[1]).bool().triu(1)) * mask

    class Round(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.round()

    told = check(positions_of)
    assert told.key == "error" and "not implemented" in told.text
    assert check("fake_quantize", lambda x, s: s * Round.apply(x / s).clamp(-7, 7)).key == "error"


def test_nothing_is_raised():
    assert check("best_of_16", 10**400).key == "kind"
    assert not check("absmax", lambda x: (torch.quantize_per_tensor(x, 0.02, 0, torch.qint8), 0.02))
    rare = "".join(map(chr, range(0x4E00, 0x4E00 + 800, 2)))
    assert check("template", "{text} {question}" + rare).key == "long"


def test_usual_mistakes_in_their_usual_form():
    def top_p(logits, p):
        ordered, order = logits.sort(dim=-1, descending=True)
        keep = ordered.softmax(dim=-1).cumsum(dim=-1) <= p
        keep[:, 0] = True
        return torch.empty_like(logits).scatter(-1, order, ordered.masked_fill(~keep, -torch.inf))

    def penalised_rewards(scores, policy_logprobs, reference_logprobs, mask, beta):
        rewards = -beta * (policy_logprobs - reference_logprobs)
        rewards[:, -1] += scores
        return rewards * mask

    def attention(q, k, v, allowed):
        return (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(allowed, -1e9).softmax(-1) @ v

    assert check(top_p).key == "crossing_lost" and check(penalised_rewards).key == "score_at_padding"
    assert check("whiten", lambda x, mask: x / x[mask].std(unbiased=False) * mask).key == "not_centred"
    assert check("attention", attention).key == "mask_inverted"
    assert check("integer_product", lambda x, s, w, t: (x.short() @ w.short().T) * s * t.T).key == "overflow"
    assert check("integer_product", lambda x, s, w, t: (x.int() @ w.int().T) * t.T).key == "one_scale"
    assert check("win_share", lambda outcomes: sum(p[0] for p in outcomes) / len(outcomes)).key != "majority"
    assert check("adapter", lambda h, down, up: h + F.gelu(h @ down.T, approximate="tanh") @ up.T).key == "tanh"


def test_the_mean_of_k3_with_the_wrong_sign_is_minus_kl():
    p, q = torch.randn(2, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(-1)
    mean = float((p * (q / p - 1 + (q / p).log())).sum())
    assert mean == pytest.approx(-float((p * (p / q).log()).sum()))
    assert "its mean is −KL" in words(find("k3"))["sign_of_the_log"]
