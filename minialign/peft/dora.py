r"""DoRA: a weight's length and its direction, tuned apart; the direction by a LoRA.

    W' = m ⊙ (W₀ + s B A) / ‖W₀ + s B A‖        m: (out,), the length of each row (an output)    Liu et al. 2024, Eq. 5
    m starts as ‖W₀‖, B at 0, so the model begins as it was

Under full fine-tuning the matrices whose lengths change more change their directions less (§3.2); a LoRA, which moves
both with the same few numbers, changes them together. The paper's columns are our rows: it writes W₀ as (in, out).
Details that matter:
    1. The norm under the fraction carries no gradient: it is taken as a constant, which saves memory and costs nothing
       (§4.3; test_the_norm_is_a_constant_for_the_gradient).
    2. At the start m and the norm cancel, to the last bit of rounding (test_dora_starts_as_the_base).
    3. Merging forms W' in fp32 and keeps W₀ aside, as LoRA does; a quantized base is read back for its norms and is not
       merged (test_dora_stands_on_a_quantized_base).
    DEVIATION: dropout acts on A's input alone, as in lora.py; the paper does not say.

Read next: many_tasks.py. Try it:  python -m minialign finetune --method dora --base RUN --data FILE.jsonl
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minialign.peft.lora import LoRAConfig, LoRALinear
from minialign.peft.lora import wrap as wrap_with

DoRAConfig = LoRAConfig  # of the LoRA that tunes the directions; the lengths of its targets' rows have no settings


class DoRALinear(LoRALinear):
    """A frozen linear layer whose rows get new lengths and, by a low-rank update, new directions."""

    def __init__(self, base: nn.Linear, config: LoRAConfig, generator: torch.Generator):
        super().__init__(base, config, generator)
        self.magnitude = nn.Parameter(self.weight().norm(dim=1).to(self.A.dtype))  # (out,) m

    def weight(self) -> Tensor:
        """(out, in) W₀ in fp32, read back where it is quantized."""
        kept = self.original if self.merged else getattr(self.base, "weight", getattr(self.base, "stored", None))
        if kept is None or not kept.is_floating_point():
            kept = self.base.quantized_weight().dequantize()
        return kept.detach().float()

    def ratio(self) -> Tensor:
        """(out,) m / ‖W₀ + s B A‖, the norm without gradient."""
        norm = (self.weight() + super().update.detach()).norm(dim=1).to(self.magnitude.dtype)
        return self.magnitude / norm.clamp(min=torch.finfo(norm.dtype).tiny)  # a row of zeros stays one

    @property
    def update(self) -> Tensor:
        """(out, in) W' − W₀, in fp32: what is added to W₀ when they are merged."""
        return self.ratio().float()[:, None] * (self.weight() + super().update) - self.weight()

    def forward(self, x: Tensor) -> Tensor:
        if self.merged:
            return self.base(x)
        low = F.dropout(x, self.dropout, self.training) @ self.A.T  # (..., r)
        bias = self.base.bias
        plain = self.base(x) if bias is None else self.base(x) - bias
        y = self.ratio().to(x.dtype) * (plain + (low * self.scale) @ self.B.T)
        return y if bias is None else y + bias


def wrap(model: nn.Module, config: DoRAConfig | None = None) -> nn.Module:
    """Give each target lengths of its own and an update of its directions; they and the head train. Raises UserError
    where no layer has such a name."""
    return wrap_with(model, config or DoRAConfig(), DoRALinear)
