"""Direct preference optimisation, against enumeration, a slow definition, and PPO's own optimum."""

import copy
import dataclasses
import math

import pytest
import torch

from minialign.heads import LanguageModel
from minialign.logprobs import completion_logprobs
from minialign.rlhf.dpo import (
    DPO,
    DPOConfig,
    batch_loss,
    dpo_loss,
    evaluate_dpo,
    ipo_loss,
    logratios,
    pair_losses,
    reference_logprobs,
    train_dpo,
)
from minialign.rlhf.kl import exact_kl
from minialign.rlhf.ranked import Comparisons, Ranked
from minialign.runs.errors import UserError
from minialign.runs.run_folder import RunFolder
from minialign.transformer import TransformerConfig

SHAPE = TransformerConfig(320, 48, 32, 2, 2, initial_std=0.2, dropout=0.1)
RANKED = [
    Ranked([1, 30, 31], [[40, 41, 2], [50, 2], [60, 61, 62, 2]], [(0, 1), (0, 2), (2, 1)]),
    Ranked([1, 33], [[42, 2], [52, 53, 2]], [(1, 0)]),
    Ranked([1], [[44, 45, 2], [54, 2]], [(0, 1)]),
    Ranked([1, 34, 35, 36], [[46, 2], [56, 2]], [(0, 1)]),
]
QUICK = dataclasses.replace(DPO, steps=12, batch=2, learning_rate=1e-2, validate_every=4, checkpoint_every=5)


@pytest.fixture
def policy():
    return LanguageModel(SHAPE, 0).eval()


def test_answer_logprobs_obey_the_chain_rule(policy):
    batch = Comparisons(RANKED, 1, 0).batch([0, 1, 2, 3])
    found = completion_logprobs(policy, batch.prompts, batch.completions, batch.of)[0].sum(dim=1)
    for value, answer, p in zip(found, batch.completions, batch.of):
        slow, said = 0.0, list(batch.prompts[p])
        for token in answer:
            slow += float(policy(torch.tensor([said]))[0, -1].log_softmax(-1)[token].detach())
            said.append(token)
        assert float(value.detach()) == pytest.approx(slow, abs=1e-4)


def test_before_the_first_step_the_loss_is_log_2(policy):
    data = Comparisons(RANKED, 1, 0)
    reference = reference_logprobs(policy, data)
    loss = batch_loss(policy.train(), data.batch([0, 1, 2, 3]), reference, DPOConfig())
    assert float(loss.detach()) == pytest.approx(4 * math.log(2), abs=1e-5)  # four prompts; dropout would have moved it
    found = evaluate_dpo(policy.eval(), data, reference, DPOConfig())
    assert found["validation"] == pytest.approx(math.log(2),
                                                abs=1e-6) and abs(found["gap"]) < 1e-5 and abs(found["chosen"]) < 1e-4


def test_the_gradient_weighs_a_pair_by_how_wrong_it_is():
    chosen, rejected = torch.tensor([0.0, 30.0, -30.0], requires_grad=True), torch.tensor([0.0, 0.0, 0.0])
    dpo_loss(chosen, rejected, 0.2).sum().backward()
    # Rafailov et al. 2023, §4: β σ(r̂_rejected − r̂_chosen)
    expected = -0.2 * torch.sigmoid(torch.tensor([0.0, -6.0, 6.0]))
    torch.testing.assert_close(chosen.grad, expected)


def test_the_loss_is_finite_for_hopeless_pairs_and_smoothing_charges_certainty():
    far = torch.tensor([4000.0, -4000.0])
    assert dpo_loss(far, torch.zeros(2), 0.1).tolist() == pytest.approx([0.0, 400.0])
    assert dpo_loss(far, torch.zeros(2), 0.1, 0.25).tolist() == pytest.approx([100.0, 300.0])
    gaps = torch.linspace(-8, 8, 321)
    losses = dpo_loss(gaps, torch.zeros(321), 1.0, 0.25)
    # the best gap is the log-odds of being right
    assert float(gaps[losses.argmin()]) == pytest.approx(math.log(3), abs=0.05)


def test_its_optimum_is_that_of_the_reward_with_a_price_on_kl():
    r"""With choices by σ(r₁ − r₂) and every pair seen, the minimum is π_ref exp(r/β)/Z: checked by descent on six
    answers."""
    g = torch.Generator().manual_seed(0)
    reference, reward, beta = torch.randn(6, generator=g), torch.randn(6, generator=g), 0.5
    logits = reference.clone().requires_grad_(True)
    i, j = torch.triu_indices(6, 6, 1)
    wins = torch.sigmoid(reward[i] - reward[j])
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        ratio = logits.log_softmax(-1) - reference.log_softmax(-1)
        loss = (wins * dpo_loss(ratio[i], ratio[j], beta) + (1 - wins) * dpo_loss(ratio[j], ratio[i], beta)).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(logits.detach().softmax(-1), (reference + reward / beta).softmax(-1), atol=1e-3,
                               rtol=1e-3)


def test_the_chosen_rise_by_half_the_gap_less_the_kl():
    g = torch.Generator().manual_seed(1)
    reference, reward = torch.randn(8, generator=g), torch.randn(8, generator=g)
    fell = []
    for policy in (reference + reward / 3, reference + 4 * torch.randn(8, generator=g)):
        ratio, weight = policy.log_softmax(-1) - reference.log_softmax(-1), reference.softmax(-1)
        # (8, 8) P(pair, the first is chosen)
        pairs = weight[:, None] * weight[None] * torch.sigmoid(reward[:, None] - reward[None]) * 2
        chosen, rejected = (pairs * ratio[:, None]).sum(), (pairs * ratio[None]).sum()
        kl = exact_kl(reference, policy)
        torch.testing.assert_close(pairs.sum(), torch.tensor(1.0))
        torch.testing.assert_close(chosen, (chosen - rejected) / 2 - kl, atol=1e-5, rtol=1e-5)
        fell.append(bool(chosen < 0))
    assert fell == [False, True]


def test_the_reference_is_read_once_and_never_moves(policy, tmp_path):
    before = copy.deepcopy(policy.state_dict())
    trained, facts = train_dpo(policy, RANKED, RANKED[:2], DPOConfig(beta=0.3), QUICK, RunFolder(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(before.values(), policy.state_dict().values()))
    assert not {p.data_ptr() for p in policy.parameters()} & {p.data_ptr() for p in trained.parameters()}
    data = Comparisons(RANKED[:2], 1, 0)
    reference = reference_logprobs(policy, data)
    again = evaluate_dpo(trained, data, reference, DPOConfig(beta=0.3))
    assert {name: facts[name] for name in again} == pytest.approx(again)
    assert facts["accuracy"] == 1.0 and facts["validation"] < 0.5 and facts["gap"] > 0.3
    assert facts["gap"] == pytest.approx(0.3 * (facts["chosen"] - facts["rejected"]), rel=1e-4)
    seen = [record for record in RunFolder(tmp_path).metrics() if "chosen" in record]
    assert [record["step"] for record in seen] == [4, 8, 12]
    assert seen[0]["gap"] < seen[-1]["gap"] and seen[-1]["rejected"] < 0


def test_dpo_trains_only_the_lora_of_a_policy_with_one(policy, tmp_path):
    from minialign.peft import lora

    wrapped = lora.wrap(policy, lora.LoRAConfig(rank=2))
    free = {name for name, p in wrapped.named_parameters() if p.requires_grad}
    before = copy.deepcopy(wrapped.state_dict())
    trained, _ = train_dpo(wrapped, RANKED, RANKED[:2], DPOConfig(), QUICK, RunFolder(tmp_path))
    assert free and {name for name, p in trained.named_parameters() if p.requires_grad} == free
    moved = {name for name, x in trained.state_dict().items() if not torch.equal(x, before[name])}
    assert moved and moved <= free


def test_imitation_holds_the_chosen_answers_up(policy, tmp_path):
    fallen = [Ranked(r.prompt, [[70, 71, 72, 73, 74, 75, 76, 2], [70, 71, 72, 73, 74, 75, 77, 2]], [(0, 1)])
              for r in RANKED]  # alike but for a word
    settings = dataclasses.replace(QUICK, steps=20)
    alone = train_dpo(policy, fallen, fallen, DPOConfig(beta=0.05), settings, RunFolder(tmp_path / "alone"))[1]
    held = train_dpo(policy, fallen, fallen, DPOConfig(beta=0.05, imitation=1.0), settings,
                     RunFolder(tmp_path / "held"))[1]
    assert held["chosen"] > alone["chosen"] + 1 and held["accuracy"] == alone["accuracy"] == 1.0


def test_a_batch_of_prompts_is_the_sum_of_its_prompts(policy):
    moved = LanguageModel(SHAPE, 1).eval()
    data = Comparisons(RANKED, 1, 0)
    reference = reference_logprobs(policy, data)
    config = DPOConfig(beta=0.3, label_smoothing=0.1, imitation=0.5)
    whole = batch_loss(moved, data.batch([0, 1, 2, 3]), reference, config)
    parts = sum(batch_loss(moved, data.batch([k]), reference, config) for k in range(4))
    torch.testing.assert_close(whole, parts, atol=1e-4, rtol=1e-5)
    _, ratios = logratios(moved, data.batch([0]), reference)
    losses = [float(dpo_loss(ratios[a], ratios[b], 0.3).detach()) for a, b in RANKED[0].pairs]
    plain = batch_loss(moved, data.batch([0]), reference, DPOConfig(beta=0.3))
    assert float(plain.detach()) == pytest.approx(sum(losses) / 3, abs=1e-5)


@pytest.mark.parametrize("change", [{"beta": 0.0}, {"label_smoothing": 0.5}, {"imitation": -1.0}, {"beta": math.nan},
                                    {"loss": "kto"}, {"loss": "ipo", "label_smoothing": 0.1}])
def test_settings_that_make_no_sense_are_errors_that_name_them(change):
    with pytest.raises(UserError, match=next(iter(change))):
        DPOConfig(**change)


def test_ipo_wants_a_gap_and_no_more():
    """Its optimum is a gap of 1/(2β): the gradient vanishes there, and pulls back beyond it; that of DPO never does."""
    gap = torch.tensor([0.0, 2.5, 5.0, 9.0], requires_grad=True)
    losses = ipo_loss(gap, torch.zeros(4), 0.1)
    assert losses.tolist() == [25.0, 6.25, 0.0, 16.0]
    assert torch.autograd.grad(losses.sum(), gap)[0].tolist() == [-10.0, -5.0, 0.0, 8.0]
    assert (torch.autograd.grad(dpo_loss(gap, torch.zeros(4), 0.1).sum(), gap)[0] < 0).all()


def test_ipo_counts_a_completion_by_its_mean(policy):
    data = Comparisons([Ranked([1, 5], [[6, 2], [7, 8, 9, 2]], [(0, 1)])], 1, 0)
    batch, ratios = data.batch([0]), torch.tensor([3.0, 8.0])
    assert pair_losses(ratios, batch, DPOConfig(0.5, loss="ipo")).item() == pytest.approx((3 / 2 - 8 / 4 - 1) ** 2)


def test_imitation_adds_the_mean_over_the_chosen_answers_tokens(policy):
    moved = LanguageModel(SHAPE, 1).eval()
    data = Comparisons([Ranked([1, 5], [[6, 2], [7, 8, 9, 2]], [(1, 0)])], 1, 0)
    batch, known = data.batch([0]), reference_logprobs(policy, data)
    plain, more = (float(batch_loss(moved, batch, known, DPOConfig(imitation=c)).detach()) for c in (0.0, 0.5))
    chosen = float(logratios(moved, batch, known)[0][1].detach())
    assert more - plain == pytest.approx(-0.5 * chosen / 4, abs=1e-5)


def test_in_half_precision_too_every_gap_begins_at_0(policy, tmp_path):
    settings = dataclasses.replace(QUICK, steps=1, bf16=True, learning_rate=1e-9, batch=4)
    run = RunFolder(tmp_path)
    train_dpo(policy, RANKED, RANKED, DPOConfig(), settings, run)
    assert run.metrics()[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
