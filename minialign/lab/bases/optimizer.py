r"""What bases are trained with: Muon for the matrices of the blocks, AdamW for the rest, as one optimizer.

Muon makes each step's direction orthogonal before it is taken (Jordan et al. 2024; `torch.optim.Muon`).
At equal tokens it is ahead of AdamW, in copying (who: .93 against .70 after 3.8 million, rates of .02 and 3e-3) and in
comparing (presence: .87 against .60 after 1.5 million, rates of .005 and 1e-3).
"""

import torch
from torch import nn


class MuonAndAdamW:
    """Both, one after the other; `parts` are saved and restored by name.

    Args:
        model: whose parameters learn.
        rate, muon_rate: peaks of the learning rates; the loop sets AdamW's and Muon's keeps its ratio to it.
        weight_decay: of AdamW on matrices, and of Muon.
    """

    def __init__(self, model: nn.Module, rate: float, muon_rate: float, weight_decay: float):
        blocks = {name for name, p in model.named_parameters()
                  if p.dim() == 2 and "embedding" not in name and "convolutions" not in name}
        matrices = [p for name, p in model.named_parameters() if name in blocks]
        rest = [p for name, p in model.named_parameters() if name not in blocks]
        groups = [{"params": [p for p in rest if p.dim() >= 2], "weight_decay": weight_decay},
                  {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0}]
        self.parts = {"adamw": torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True),
                      "muon": torch.optim.Muon(matrices, lr=muon_rate, momentum=0.95, weight_decay=weight_decay)}
        for group in self.parts["muon"].param_groups:
            group["times"] = muon_rate / rate

    @property
    def param_groups(self) -> list[dict]:
        """Those of both."""
        return [group for part in self.parts.values() for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        for part in self.parts.values():
            part.zero_grad(set_to_none)

    def step(self) -> None:
        """One step of both."""
        for part in self.parts.values():
            part.step()
