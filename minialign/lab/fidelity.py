r"""What quantization costs: how much worse a model predicts, and how far its opinions have moved.

    perplexity      exp(mean −log π(tokenₜ | window before it))      hardly tells good schemes apart: errors cancel
    KL              mean Σ_v π(v) log(π(v) / π̂(v)), nats a token      never cancels: 0 only when nothing changed
    agreement       share of places where both would say the same token

π is the model before, π̂ after. Read next: quant/ptq.py. Details that matter:
    1. Windows do not overlap, and the first token of each is not predicted (test_fidelity_equals_its_definition).
    2. An encoder says what stands at hidden places, every seventh (test_an_encoder_is_compared_at_hidden_places).
    3. A model compared with itself has KL 0 and agrees everywhere (test_a_model_is_faithful_to_itself).
    4. A model that is compared with many others reads the rows once (test_what_is_remembered_is_what_the_model_says).
"""

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from minialign.heads import evaluating
from minialign.logprobs import token_logprobs
from minialign.pretrain.masked_lm import MASK
from minialign.runs.devices import device_of
from minialign.runs.errors import UserError

EVERY = 7  # one place of so many is hidden from an encoder, about the 15 % that it was trained with


@dataclass
class Fidelity:
    """How a model before and after compare on a text."""

    before: float  # perplexity, a token
    after: float  # perplexity, a token
    kl: float  # nats a token, of the model after from the model before
    agreement: float  # share of equal first choices
    tokens: int  # that were predicted

    def to_dict(self) -> dict[str, float]:
        """As JSON holds it."""
        return asdict(self)


def windows(ids: list[int], window: int, most: int) -> Tensor:
    """(rows, window) ids: as many whole windows as `most` tokens hold; one shorter window when the text is short.

    Raises UserError for fewer than two tokens.
    """
    ids = ids[: max(2, most)]
    if len(ids) < 2:
        raise UserError(f"the text has {len(ids)} tokens; two are needed, one to be read and one to be predicted")
    window = min(window, len(ids))
    return torch.tensor(ids[: len(ids) // window * window]).view(-1, window)


def kind_of(model: nn.Module) -> str:
    """A model's kind; without a configuration it is a decoder."""
    return getattr(getattr(model, "config", None), "kind", "decoder")


class Remembered(nn.Module):
    """What a model says of rows (R, T), the ones that `fidelity` will be given: 4 V bytes a token."""

    def __init__(self, model: nn.Module, rows: Tensor):
        super().__init__()
        if kind_of(model) == "encoder":
            raise UserError("an encoder is asked with words hidden, which its plain answers do not tell; give fidelity "
                            "the model itself")
        with torch.no_grad(), evaluating(model):
            rows = rows.to(device_of(model))
            self.said = {tuple(row[:-1].tolist()): model(row[None, :-1])[0] for row in rows}  # (T - 1, V) each

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, T, V). Raises UserError for rows that it was not shown."""
        try:
            return torch.stack([self.said[tuple(row.tolist())] for row in tokens])
        except KeyError:
            raise UserError("the model was not asked about these rows; give Remembered the same rows as fidelity"
                            ) from None


def questions(rows: Tensor, kind: str, hidden_word: int = MASK) -> tuple[Tensor, Tensor, Tensor | None]:
    """What a model of some kind reads of windows (B, T), the M tokens that it shall say, and at which places (B, T);
    None: at all that it reads. `hidden_word` stands where an encoder is asked; published ones have their own."""
    if kind != "encoder":
        return rows[:, :-1], rows[:, 1:].flatten(), None
    T = rows.shape[1]
    hidden = (torch.arange(T, device=rows.device) % EVERY == min(EVERY // 2, T // 2)).expand_as(rows)
    return rows.masked_fill(hidden, hidden_word), rows[hidden], hidden


@torch.no_grad()
def fidelity(before: nn.Module, after: nn.Module, rows: Tensor, batch: int = 4) -> Fidelity:
    """Compare two models, (B, T) ids -> (B, T, V) logits, on windows (rows, T) of text, `batch` of them together."""
    nats, kl, same, count = [0.0, 0.0], 0.0, 0, 0
    with evaluating(before), evaluating(after):
        for part in rows.to(device_of(nn.ModuleList([before, after]))).split(batch):
            tokens, said, places = questions(part, kind_of(before), getattr(before, "hidden_word", MASK))
            logits = [model(tokens) for model in (before, after)]  # (B, T, V) each
            logits = [x.flatten(0, 1) if places is None else x[places] for x in logits]  # (M, V) each
            for i in (0, 1):
                nats[i] -= float(token_logprobs(logits[i].float(), said).double().sum())
            first, second = (x.float().log_softmax(dim=-1) for x in logits)
            kl += float((first.exp() * (first - second)).sum(dim=-1).double().sum())
            same += int((first.argmax(dim=-1) == second.argmax(dim=-1)).sum())
            count += said.numel()
    return Fidelity(math.exp(nats[0] / count), math.exp(nats[1] / count), kl / count, same / count, count)
