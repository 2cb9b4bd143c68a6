r"""BitFit: only the biases train.

    θ_b ← θ_b − η ∇L           b: the additive term of every linear layer and norm        Ben Zaken et al. 2022, §3

Less than a thousandth of a large model; a few percent of a toy. Details that matter:
    1. All biases, those of the norms too; chosen by their exact last name, not by a part of it
       (test_bitfit_trains_exactly_the_biases).
    2. A key's bias adds the same number to all scores of a query, and the softmax takes it away again: with learned
       positions its gradient is 0 up to round-off. Rotary positions turn it with its key, so there it has one
       (test_a_keys_bias_has_a_gradient_only_where_it_turns).
    3. The subset of the paper: the biases of the query and of the feed-forward's first layer (`subset`).
    4. The head of a task trains with them.
    5. Needs a ten times larger learning rate than full fine-tuning: there is little to move.

Read next: adapters.py. Try it:  python -m minialign finetune --method bitfit --base RUN --data FILE.jsonl
"""

from dataclasses import dataclass

from torch import nn

from minialign.peft.trainable import fingerprint, freeze, heads_of, note, refuse_stored
from minialign.runs.errors import UserError
from minialign.runs.submodules import matching

SUBSET = ("*attention.query.bias", "*feed_forward.inner.bias")  # of the paper, in the names of transformer.py


@dataclass(frozen=True)
class BitFitConfig:
    """Which biases train."""

    subset: bool = False  # only those of the query and of the feed-forward's first layer
    names: tuple[str, ...] = ()  # in place of both: exact names or shell patterns, for models with other names


def biases_of(model: nn.Module) -> list[str]:
    """Names of a model's biases, without those of a head that was put on it for a task."""
    heads = tuple(f"{name}." for name in heads_of(model))
    return [name for name, _ in model.named_parameters() if name.rpartition(".")[2] == "bias"
            and not name.startswith(heads)]


def wrap(model: nn.Module, config: BitFitConfig | None = None) -> nn.Module:
    """Freeze everything but the biases and the head.

    Raises:
        UserError: a model without biases, a quantized one, or a name that none has.
    """
    config = config or BitFitConfig()
    base = fingerprint(model)
    refuse_stored(model, "bitfit")
    chosen = biases_of(model)
    if not chosen:
        raise UserError("this model has no biases (Llama-type models have none), so BitFit has nothing to train; use "
                        "lora or adapters")
    if config.subset or config.names:
        chosen = matching(chosen, config.names or SUBSET, "bias")
    freeze(model)
    for name in chosen:
        model.get_parameter(name).requires_grad_(True)
    return note(model, "bitfit", config, base, chosen)
