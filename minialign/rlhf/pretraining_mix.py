r"""PPO-ptx: learn a little pretraining text in every step of PPO, so that less of what the model could do is forgotten.

    J(φ) = E[ r(x, y) − β log(π/π_ref) ] + γ E_{x ∼ pretraining} [ log π(x) ]            Ouyang et al. 2022, §3.5, Eq. 2

The *alignment tax* is what the text that nobody optimises for costs afterwards: nats per token more than before PPO
(Askell et al. 2021, §1.1; Ouyang et al. 2022, §4.2: with γ the losses on public data sets shrink or go). The KL penalty
alone does not prevent it: it is paid on completions to prompts only. Details that matter:
    1. The gradients of both terms are clipped and stepped as one (test_the_mix_adds_its_gradient_to_that_of_ppo).
    2. A resumed run draws the same rows (test_a_resumed_run_with_a_mix_ends_with_the_same_bits).
    3. The tax is measured on text that was not mixed in (test_the_tax_is_the_difference_of_held_out_losses).
    DEVIATION: γ is 27.8 in the paper; here both terms are means over tokens, and γ of about 1 weighs them alike.

Read next: rollout_table.py. See also: ppo.py.
Try it:  python -m minialign ppo --policy RUN --reward RUN --prompts FILE --pretraining TEXT
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from minialign.evaluation import Interval, mean_interval
from minialign.heads import LanguageModel
from minialign.logprobs import token_logprobs
from minialign.runs.devices import device_of
from minialign.runs.settings import check_ranges


@dataclass(frozen=True)
class MixConfig:
    """How much pretraining text is mixed into PPO."""

    mix_weight: float = 1.0  # γ, of the text's loss per token beside the policy's
    mix_rows: int = 8  # rows of text, each as long as the context, in a minibatch

    def __post_init__(self):
        check_ranges(self, {"mix_weight": (0, 1e6), "mix_rows": (1, 1e6)})


class PretrainingMix:
    """Text that PPO goes on learning: (rows, T + 1) packed ids (batching.pack), and how much of it."""

    def __init__(self, rows: Tensor, config: MixConfig):
        self.rows, self.config = rows, config

    def loss(self, policy: LanguageModel, generator: torch.Generator) -> Tensor:
        """Mean −log π of the tokens of some random rows, nats, without γ."""
        drawn = torch.randint(len(self.rows), (self.config.mix_rows,), generator=generator)
        return -text_logprobs(policy, self.rows[drawn]).mean()


def text_logprobs(policy: LanguageModel, rows: Tensor) -> Tensor:
    """(B, T) log π of each next token of packed rows (B, T + 1), nats."""
    rows = rows.to(device_of(policy))
    return token_logprobs(policy(rows[:, :-1]), rows[:, 1:])


@torch.no_grad()
def alignment_tax(policy: LanguageModel, reference: LanguageModel, rows: Tensor) -> Interval:
    """Nats per token that held-out text costs the policy more than the reference, mean over (rows, T + 1) packed rows;
    below 0 it costs less. Raises UserError for fewer than two rows, from which no interval can be had."""
    extra = [text_logprobs(reference, part).mean(dim=1) - text_logprobs(policy, part).mean(dim=1)
             for part in rows.split(16)]
    return mean_interval(torch.cat(extra).tolist())
