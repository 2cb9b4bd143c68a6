r"""Full fine-tuning: every weight may move. The measure of all the others.

    θ ← θ − η ∇L(θ)            all of θ                              Devlin et al. 2019 (BERT), §3.2

Read next: feature_based.py, the other extreme.
"""

from dataclasses import dataclass

from torch import nn

from minialign.peft.trainable import fingerprint, note, refuse_stored


@dataclass(frozen=True)
class FullConfig:
    """Nothing to choose."""


def wrap(model: nn.Module, config: FullConfig | None = None) -> nn.Module:
    """Let everything train. Raises UserError for a quantized model."""
    base = fingerprint(model)
    refuse_stored(model, "full")
    return note(model.requires_grad_(True), "full", config or FullConfig(), base, ())
