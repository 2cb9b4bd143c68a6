"""Losses on comparisons are those of TRL: DPO through TRL's own method on the same model, and the reward model's over k
answers to a prompt."""

import inspect
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from minialign.heads import LanguageModel, ScalarModel
from minialign.rlhf.dpo import DPOConfig, batch_loss, reference_logprobs
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


def test_the_dpo_loss_of_every_prompt_is_that_of_trl_s_trainer():
    policy, reference = LanguageModel(SHAPE, 0).eval(), LanguageModel(SHAPE, 1).eval()
    data = Comparisons(RANKED, 1, 0)
    known = reference_logprobs(reference, data)
    for place, ranked in enumerate(RANKED):
        ours = batch_loss(policy, data.batch([place]), known, DPOConfig(0.3))
        torch.testing.assert_close(ours, theirs(policy, reference, ranked, 0.3), atol=1e-5, rtol=1e-5)


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


def test_the_k_wise_reward_loss_is_the_mean_of_trl_s_over_the_pairs_of_a_prompt():
    source = inspect.getsource(trl.RewardTrainer.compute_loss).splitlines()
    code = next(line.strip() for line in source if "logsigmoid" in line and "margin" not in line)
    model, data = ScalarModel(LanguageModel(SHAPE, 2).body, seed=3), Comparisons(RANKED, 1, 0)
    for place in range(3):
        chosen, rejected = pair_scores(model, data.batch([place]))
        space = {"nn": torch.nn, "rewards_chosen": chosen, "rewards_rejected": rejected}
        exec(code, space)
        torch.testing.assert_close(reward_loss(model, data.batch([place])), space["loss"])
