"""GRPO's advantages, losses and gradients are those of TRL, whose own lines and method are run on our tensors."""

import inspect
import textwrap
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from minialign.rlhf.grpo import GRPOConfig, group_advantages, mean_loss, token_losses

grpo_trainer = pytest.importorskip("trl.trainer.grpo_trainer")
pytestmark = pytest.mark.filterwarnings("ignore")
NAMES = {"answer": "grpo", "tokens": "bnpo", "budget": "dr_grpo"}  # ours -> TRL's loss_type
LENGTHS = [7, 1, 3, 6, 7, 2]


def tensors(seed=0):
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(7)[None] < torch.tensor(LENGTHS)[:, None]
    now, then, reference = (-torch.rand(6, 7, generator=g) * 2 for _ in range(3))
    return mask, now * mask, (now + 0.4 * (then + 1)) * mask, reference * mask, torch.randn(6, generator=g)


def theirs(average, mask, now, then, reference, advantages, config):
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (now, torch.zeros_like(now), None), aux_loss_enabled=False,
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, importance_sampling_level="token", beta=config.beta,
        loss_type=NAMES[average], epsilon_low=config.clip, epsilon_high=config.clip_high or config.clip,
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None), use_vllm=False,
        vllm_importance_sampling_correction=False, model=SimpleNamespace(training=False),
        _entropy_bonus_enabled=False, current_gradient_accumulation_steps=1, max_completion_length=config.new_tokens,
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x, num_processes=1,
                                    reduce=lambda x, **_: x),
        _metrics={"eval": defaultdict(list)})
    inputs = {"prompt_ids": torch.zeros(6, 2, dtype=torch.long), "prompt_mask": torch.ones(6, 2, dtype=torch.long),
              "completion_ids": torch.zeros(6, 7, dtype=torch.long), "completion_mask": mask.long(),
              "advantages": advantages, "old_per_token_logps": then, "ref_per_token_logps": reference,
              "num_items_in_batch": mask.sum()}
    return grpo_trainer.GRPOTrainer._compute_loss(trainer, trainer.model, inputs)


@pytest.mark.piece("GRPO: loss and gradient, averaged by {average}", "trl")
@pytest.mark.parametrize("average", NAMES)
@pytest.mark.parametrize("clip_high, beta", [(0.0, 0.04), (0.28, 0.0), (0.5, 0.3)])
def test_losses_and_gradients_on_ragged_answers(average, clip_high, beta):
    config = GRPOConfig(average=average, clip_high=clip_high, beta=beta, new_tokens=9)
    mask, now, then, reference, advantages = tensors()
    found = []
    for loss in (lambda x: mean_loss(token_losses(x, then, reference, advantages, config)[0], mask, config),
                 lambda x: theirs(average, mask, x, then, reference, advantages, config)):
        x = now.clone().requires_grad_(True)
        value = loss(x)
        value.backward()
        found.append((value.item(), x.grad))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6) and torch.allclose(found[0][1], found[1][1], atol=1e-6)
    assert found[0][1].abs().max() > 1e-3


@pytest.mark.piece("GRPO: advantages, scaled by {scale}", "trl")
@pytest.mark.parametrize("scale", ["group", "none"])
def test_advantages(scale):
    source = inspect.getsource(grpo_trainer.GRPOTrainer._generate_and_score_completions).splitlines()
    start = next(i for i, line in enumerate(source) if line.strip().startswith('if self.scale_rewards in ["group"'))
    end = next(i for i, line in enumerate(source) if i > start and "(std_rewards + 1e-4)" in line)
    rewards = torch.tensor([1.0, 0, 0, 1, 0.5, 0.5, 0.5, 0.5, 3, -1, 2, 7])
    space = {**vars(grpo_trainer), "self": SimpleNamespace(scale_rewards=scale), "rewards": rewards,
             "num_generations": 4, "mean_grouped_rewards": rewards.view(-1, 4).mean(dim=1).repeat_interleave(4)}
    exec(textwrap.dedent("\n".join(source[start : end + 1])), space)
    assert torch.allclose(group_advantages(rewards.view(3, 4), scale).flatten(), space["advantages"], atol=1e-6)
