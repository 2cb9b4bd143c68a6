r"""Several reward models as one: what they all like is liked; what they disagree on may be distrusted.

    r = mean of m models' scores − c · their deviation            Coste et al. 2024, §3.2; c = 0 is the plain mean

A policy that climbs one model finds its errors; the errors of models that differ in seed or data are not all the same,
so the mean hides some of them and the deviation shows others. Every member must be normalised on the same reference
answers (reward_model.py, detail 6). DEVIATION: the paper subtracts the variance, here the deviation, so that c is a
pure number and r keeps its unit.

Read next: ppo.py. Try it:  python -m minialign ppo --policy RUN --reward RUN --reward RUN --caution 0.5 --prompts FILE
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from minialign.heads import ScalarModel
from minialign.rlhf.reward_checks import ensemble_scores
from minialign.runs.errors import UserError


class Ensemble(nn.Module):
    """Reward models that score as one (test_an_ensemble_scores_like_its_members_together).

    Args:
        members: at least one; caution: c, deviations of their disagreement that a score loses, at least 0.
    Raises:
        UserError: no members, a negative caution, or members that read contexts of different lengths.
    """

    def __init__(self, members: Sequence[ScalarModel], caution: float = 0.0):
        super().__init__()
        if not members or not 0 <= caution < 1e6:
            raise UserError(f"{len(members)} reward models (at least 1) with a caution of {caution} (at least 0) make "
                            f"no ensemble")
        contexts = {member.config.context for member in members}
        if len(contexts) > 1:
            raise UserError(f"the reward models read contexts of {', '.join(map(str, sorted(contexts)))} tokens; use "
                            f"models of one context")
        self.members, self.caution = nn.ModuleList(members), caution
        self.config = members[0].config

    @property
    def body(self) -> nn.Module:
        """The first member's: what a value function begins as."""
        return self.members[0].body

    def together(self, score: Callable[[ScalarModel], Tensor]) -> Tensor:
        """(N,) the ensemble's scores, from what gives those of one member."""
        return ensemble_scores(torch.stack([score(member) for member in self.members]), self.caution)
