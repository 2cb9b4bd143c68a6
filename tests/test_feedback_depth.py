"""Feedback at depth: several reward models as one, win rates at equal length, best of n beside PPO, hacking and
calibration where people look."""

import copy
import math

import pytest
import torch

from minialign.generation import SamplingConfig
from minialign.heads import LanguageModel, ScalarModel
from minialign.lab.commands.hacking import command as hacking
from minialign.lab.report.reward import calibration_figure
from minialign.rlhf.best_of_n import beside_best_of_n, best_of_n_kl
from minialign.rlhf.equal_length import resampled, win_rates
from minialign.rlhf.ppo import PPOConfig, train_ppo
from minialign.rlhf.reward_checks import calibration
from minialign.rlhf.reward_model import Ensemble, score_completions, score_rows
from minialign.runs.errors import UserError
from minialign.runs.files import write_jsonl
from minialign.runs.run_folder import RunFolder
from minialign.tokenizer import train_tokenizer
from minialign.transformer import TransformerConfig

SHAPE = TransformerConfig(320, 24, 32, 1, 2, initial_std=0.2)
PROMPTS = [[1, 30, 31, 32], [1, 40], [1, 50, 51, 52, 53, 54], [1, 60, 61]]


def three():
    return [ScalarModel(LanguageModel(SHAPE, seed).body, seed=seed).eval() for seed in range(3)]


def judged(prompts=60, seed=0):
    """Judgements of texts in which the longer one wins more often."""
    g = torch.Generator().manual_seed(seed)
    words = torch.randint(1, 30, (prompts, 2), generator=g)
    won = torch.rand(prompts, 5, generator=g) < torch.sigmoid(0.3 + 0.8 * (words[:, :1] / words[:, 1:]).log())
    return won.double().tolist(), ["w " * int(n) for n in words[:, 0]], ["w " * int(n) for n in words[:, 1]]


def test_an_ensemble_scores_like_its_members_together():
    members = three()
    rows = [(p, [70, 2]) for p in PROMPTS]
    each = torch.stack([score_rows(member, rows) for member in members])
    torch.testing.assert_close(score_rows(Ensemble(members), rows), each.mean(0))
    cautious = each.mean(0) - 0.5 * each.std(0, correction=0)
    torch.testing.assert_close(score_rows(Ensemble(members, 0.5), rows), cautious)
    found = score_completions(Ensemble(members, 0.5), PROMPTS, [[70, 2]] * 4, range(4)).detach()
    torch.testing.assert_close(found, cautious, atol=1e-5, rtol=1e-5)
    for bad in (([], 0.0), (members, -1.0), (members, float("nan"))):
        with pytest.raises(UserError, match="no ensemble"):
            Ensemble(*bad)
    with pytest.raises(UserError, match="contexts of 20, 24"):
        Ensemble([*members, ScalarModel(LanguageModel(TransformerConfig(320, 20, 32, 1, 2)).body)])


def test_ppo_climbs_an_ensemble_as_it_climbs_one_model(tmp_path):
    policy, members = LanguageModel(SHAPE, 0).eval(), three()
    config = PPOConfig(updates=2, prompts=4, minibatch=4, epochs=1, new_tokens=5, missing_end="subtract")
    same = Ensemble([members[0], copy.deepcopy(members[0])], 1.0)  # they never disagree: no different from one
    vectors = [torch.nn.utils.parameters_to_vector(train_ppo(policy, reward, PROMPTS, config,
        RunFolder(tmp_path / name))[0].parameters())
               for name, reward in (("one", members[0]), ("two", same), ("three", Ensemble(members)))]  # fmt: skip
    assert torch.equal(vectors[0], vectors[1]) and not torch.equal(vectors[0], vectors[2])


def fitted(outcomes, ratios, steps=50):
    """σ(a) of one fit, in plain Python."""
    x = [math.log(max(r, 1e-3)) for r in ratios]
    a = b = 0.0
    for _ in range(steps):
        p = [1 / (1 + math.exp(-(a + b * v))) for v in x]
        ga = math.fsum(y - q for y, q in zip(outcomes, p)) - 0.01 * a
        gb = math.fsum((y - q) * v for y, q, v in zip(outcomes, p, x)) - 0.01 * b
        w = [q * (1 - q) for q in p]
        haa, hab = math.fsum(w) + 0.01, math.fsum(u * v for u, v in zip(w, x))
        hbb = math.fsum(u * v * v for u, v in zip(w, x)) + 0.01
        determinant = haa * hbb - hab * hab
        a, b = a + (hbb * ga - hab * gb) / determinant, b + (haa * gb - hab * ga) / determinant
    return 1 / (1 + math.exp(-a))


def test_a_bootstrap_is_what_fitting_every_draw_by_itself_gives():
    outcomes, answers, rivals = judged()
    found = win_rates(outcomes, answers, rivals, draws=40, seed=3)
    shares, ratios = [sum(o) / 5 for o in outcomes], [len(a.split()) / len(b.split()) for a, b in zip(answers, rivals)]
    assert found.at_equal_length.mean == pytest.approx(fitted(shares, ratios), abs=1e-9)
    slow = []
    for counts in resampled(60, 40, 3).long().tolist():
        drawn = [i for i, count in enumerate(counts) for _ in range(count)]
        slow.append(fitted([shares[i] for i in drawn], [ratios[i] for i in drawn]))
    assert len(drawn) == 60 and found.at_equal_length.low == pytest.approx(sorted(slow)[1], abs=1e-9)
    assert found.at_equal_length.high == pytest.approx(sorted(slow)[38], abs=1e-9)


def test_a_side_that_wins_by_length_alone_is_no_better_at_equal_length():
    outcomes, answers, rivals = judged(800)
    longer = [a + "w " * 20 for a in answers]
    by_length = [[float(len(a.split()) > len(b.split()))] for a, b in zip(longer, rivals)]
    found = win_rates(by_length, longer, rivals, 100)
    assert found.won.mean > 0.9 > 0.5 > found.at_equal_length.low  # everything it wins it wins by length
    fair = win_rates(outcomes, answers, rivals, 200)
    assert fair.at_equal_length.low < 1 / (1 + 2.718281828**-0.3) < fair.at_equal_length.high
    # separable, and an empty text
    assert win_rates([[1.0], [1.0]], ["a", "b"], ["a", ""], 50).at_equal_length.high <= 1
    with pytest.raises(UserError, match="equally many"):
        win_rates(outcomes, answers[:3], rivals)


def test_best_of_n_stands_beside_the_policy_on_the_same_prompts():
    tokenizer = train_tokenizer(["a tale of a cat and a dog"] * 3, 320)
    policy, reward = LanguageModel(SHAPE, 0).eval(), three()[1]
    found = beside_best_of_n(policy, policy, reward, tokenizer, ["a cat", "a dog", "a tale", "cat"], 8,
                             SamplingConfig(4), 0)
    assert found.rival.mean > found.policy.mean and found.kl == best_of_n_kl(8)
    alone = beside_best_of_n(policy, policy, reward, tokenizer, ["a cat", "a dog"], 1, SamplingConfig(4), 0)
    assert alone.kl == 0.0


def test_the_calibration_has_the_diagonal_and_the_judges_that_do_not_read_in_its_figure():
    fig = calibration_figure(calibration([0.3, -0.2, 1.5, 0.9, -0.1, 2.0]),
                             {"only the length": 0.61, "only the position": 0.53})
    labels = fig.axes[0].get_legend_handles_labels()[1]
    assert {"calibrated", "reward model", "only the length 0.61", "only the position 0.53"} == set(labels)
    low, high = fig.axes[0].get_ylim()
    assert low <= 0.53 and high >= 1.0


def test_hacking_shows_a_run_s_widest_gaps_and_names_a_line_that_it_cannot_read(tmp_path, capsys):
    samples = [{"prompt": f"p{i}", "text": f"text {i}", "proxy": float(i), "gold": 1.0 if i == 0 else 0.0}
               for i in range(5)]
    write_jsonl(tmp_path / "evaluation" / "samples.jsonl", [*samples, {"prompt": "p", "text": "a reference",
        "gold": 0.9}])
    hacking.main([str(tmp_path), "--count", "2"], standalone_mode=False)
    said = capsys.readouterr().out
    assert said.splitlines()[0].endswith("better than the model thinks") and "liked beyond its worth" in said
    assert [f"'text {i}'" in said for i in range(5)] == [True, False, False, False, True] and "reference" not in said
    write_jsonl(tmp_path / "bad.jsonl", [samples[0], samples[1] | {"gold": "good"}])
    with pytest.raises(UserError, match=r"bad.jsonl, line 2: 'gold' is good, not a number"):
        hacking.main([str(tmp_path / "bad.jsonl")], standalone_mode=False)
    write_jsonl(tmp_path / "old.jsonl", [{"prompt": "p", "text": "t", "gold": 0.9}])
    with pytest.raises(UserError, match="run it again"):
        hacking.main([str(tmp_path / "old.jsonl")], standalone_mode=False)
