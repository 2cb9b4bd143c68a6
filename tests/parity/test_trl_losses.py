"""Losses on comparisons are those of TRL: DPO through TRL's own method on the same model, and the reward model's over k
answers to a prompt."""

import inspect
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from minialign.heads import LanguageModel, ScalarModel
from minialign.rlhf.dpo import DPOConfig, batch_loss, reference_logprobs
from minialign.rlhf.kto import KTOConfig, kto_losses
from minialign.rlhf.ranked import Comparisons, Ranked
from minialign.rlhf.reward_model import pair_scores, reward_loss
from minialign.transformer import TransformerConfig

trl = pytest.importorskip("trl")
pytestmark = pytest.mark.filterwarnings("ignore")
SHAPE = TransformerConfig(320, 48, 32, 2, 2, initial_std=0.2)
RANKED = [
    Ranked([1, 30, 31], [[40, 41, 2], [50, 2], [60, 61, 62, 2], [70, 2]], [(0, 1), (0, 2), (2, 1), (3, 0), (3, 1),
                                                                          (2, 3)]),
    Ranked([1, 33], [[42, 2], [52, 53, 2]], [(1, 0)]),
    Ranked([1, 34, 35, 36], [[46, 2], [56, 57, 58, 2]], [(0, 1)]),
]


class Speaks(torch.nn.Module):
    """Our model, called as TRL calls its own."""

    is_gradient_checkpointing = False

    def __init__(self, model):
        super().__init__()
        self.own = model
        self.eval()

    def forward(self, input_ids, **_):
        return SimpleNamespace(logits=self.own(input_ids))


def theirs(policy, reference, ranked, beta, loss_types=("sigmoid",), weights=(1.0,), label_smoothing=0.0):
    """TRL's DPO loss of all pairs of one prompt: its method, called on our models and tensors."""
    # all chosen ones, then all rejected ones
    rows = [ranked.prompt + ranked.completions[side] for pair in zip(*ranked.pairs) for side in pair]
    T = max(map(len, rows))
    ids = torch.tensor([row + [0] * (T - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])[:, None]
    completion = (torch.arange(T)[None] >= len(ranked.prompt)) & (torch.arange(T)[None] < lengths)
    trainer = SimpleNamespace(
        model=Speaks(policy),
        ref_model=Speaks(reference),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=False,
        f_divergence_type="reverse_kl",
        loss_types=list(loss_types),
        loss_weights=list(weights),
        beta=beta,
        label_smoothing=label_smoothing,
        use_weighting=False,
        _total_train_tokens=0,
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x, unwrap_model=lambda m: m,
                                    device="cpu"),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        _metrics={"eval": defaultdict(list)},
    )
    inputs = {"input_ids": ids, "attention_mask": ids != 0, "completion_mask": completion.long()}
    return trl.DPOTrainer._compute_loss(trainer, trainer.model, inputs, False)


@pytest.mark.piece("DPO: loss", "trl")
def test_the_dpo_loss_of_every_prompt_is_that_of_trl_s_trainer():
    policy, reference = LanguageModel(SHAPE, 0).eval(), LanguageModel(SHAPE, 1).eval()
    data = Comparisons(RANKED, 1, 0)
    known = reference_logprobs(reference, data)
    for place, ranked in enumerate(RANKED):
        ours = batch_loss(policy, data.batch([place]), known, DPOConfig(0.3))
        torch.testing.assert_close(ours, theirs(policy, reference, ranked, 0.3), atol=1e-5, rtol=1e-5)


@pytest.mark.piece("IPO: loss and the gradients of all weights", "trl")
def test_ipo_is_trl_s_with_its_gradients():
    policy, reference = LanguageModel(SHAPE, 0).eval(), LanguageModel(SHAPE, 1).eval()
    data = Comparisons(RANKED, 1, 0)
    known = reference_logprobs(reference, data)
    for place, ranked in enumerate(RANKED):
        found = []
        for loss in (batch_loss(policy, data.batch([place]), known, DPOConfig(0.3, loss="ipo")),
                     theirs(policy, reference, ranked, 0.3, ("ipo",))):
            policy.zero_grad()
            loss.backward()
            found.append((loss.detach(), [p.grad.clone() for p in policy.parameters()]))
        torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)


@pytest.mark.piece("DPO: loss with smoothed labels and imitation", "trl")
def test_smoothed_labels_and_imitation_are_those_of_trl_s_trainer():
    """TRL calls the smoothed loss "aot": of a single pair, where there is nothing to sort, it is conservative DPO; and
    imitation "sft"."""
    policy, reference = LanguageModel(SHAPE, 0).eval(), LanguageModel(SHAPE, 1).eval()
    alone = [Ranked(ranked.prompt, ranked.completions, [pair]) for ranked in RANKED for pair in ranked.pairs]
    data = Comparisons(alone, 1, 0)
    known = reference_logprobs(reference, data)
    for place, ranked in enumerate(alone):
        found = theirs(policy, reference, ranked, 0.3, ("aot", "sft"), (1.0, 0.7), 0.2)
        torch.testing.assert_close(batch_loss(policy, data.batch([place]), known, DPOConfig(0.3, 0.2, 0.7)), found,
                                   atol=1e-5, rtol=1e-5)


@pytest.mark.piece("reward model: the loss of k completions of a prompt", "trl")
def test_the_k_wise_reward_loss_is_the_mean_of_trl_s_over_the_pairs_of_a_prompt():
    source = inspect.getsource(trl.RewardTrainer.compute_loss).splitlines()
    code = next(line.strip() for line in source if "logsigmoid" in line and "margin" not in line)
    model, data = ScalarModel(LanguageModel(SHAPE, 2).body, seed=3), Comparisons(RANKED, 1, 0)
    for place in range(3):
        chosen, rejected = pair_scores(model, data.batch([place]))
        space = {"nn": torch.nn, "rewards_chosen": chosen, "rewards_rejected": rejected}
        exec(code, space)
        torch.testing.assert_close(reward_loss(model, data.batch([place])), space["loss"])


@pytest.mark.piece("KTO: losses and point of reference", "trl")
def test_kto_s_losses_and_point_of_reference_are_those_of_trl():
    """The lines of TRL's method from the estimate of the KL to its losses, on our log-probabilities."""
    kto_trainer = pytest.importorskip("trl.trainer.kto_trainer")
    source = inspect.getsource(kto_trainer.KTOTrainer._compute_loss).splitlines()
    wanted = ("kl = (KL_logps", "chosen_losses = 1 - F.sigmoid(self.beta * (chosen_logratios - kl))",
              "rejected_losses = 1 - F.sigmoid(self.beta * (kl - rejected_logratios))")
    lines = [next(line.strip() for line in source if line.strip().startswith(begin)) for begin in wanted]
    g = torch.Generator().manual_seed(0)
    ratios, others, liked = torch.randn(8, generator=g) * 3, torch.randn(8, generator=g) * 2, torch.arange(8) % 3 > 0
    for shift in (2.0, -2.0):
        space = {**vars(kto_trainer), "self": SimpleNamespace(beta=0.3), "KL_logps": others + shift,
                 "ref_KL_logps": 0 * others, "chosen_logratios": ratios[liked], "rejected_logratios": ratios[~liked]}
        exec(lines[0], space)
        space["kl"] = space["kl"].clamp(min=0)  # what it does to the mean over processes
        exec("\n".join(lines[1:]), space)
        ours = kto_losses(ratios, liked, (others + shift).mean().clamp(min=0), KTOConfig(0.3))
        torch.testing.assert_close(ours[liked], space["chosen_losses"])
        torch.testing.assert_close(ours[~liked], space["rejected_losses"])
