r"""Token tables in int8: the vectors of the vocabulary, and the head that shares them.

    lookup   e_t = s_t q_t                       one scale a token
    head     logits = (h Qᵀ) ⊙ sᵀ                the same integers, read a second time

By default embeddings and heads stay in floating point. In a small model they are much of it (SmolLM2-135M: a fifth of
the parameters), so they can be included. The logits carry the rounding directly: measure KL before trusting it.
Details that matter:
    1. A head that shares its table still does (test_a_shared_table_is_stored_once_and_serves_both).
    2. Models that multiply by `embedding.weight` themselves find a float32 one there, made when it is asked for
       (test_a_model_that_multiplies_by_the_table_finds_it). An empty place called `head` takes the int8 head, which is
       faster.

Read next: saving.py. See also: ptq.py.
Try it:  python -m minialign quantize RUN --scheme weights --embeddings --text FILE
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minialign.quant.linear import WeightOnlyLinear
from minialign.quant.mappings import MappingConfig, quantize_tensor
from minialign.runs.errors import UserError


class QuantizedTable(nn.Module):
    """An embedding whose vectors are int8, one scale each; `scores` is the table as a layer of V outputs."""

    def __init__(self, scores: WeightOnlyLinear):
        super().__init__()
        self.num_embeddings, self.embedding_dim = scores.out_features, scores.in_features
        self.scores = scores  # (..., D) -> (..., V)

    @property
    def weight(self) -> Tensor:
        """(V, D) float32, made when asked for."""
        return self.scores.quantized_weight().dequantize()

    def forward(self, tokens: Tensor) -> Tensor:
        """(...) ids -> (..., D) float32."""
        return F.embedding(tokens, self.scores.weight).float() * self.scores.weight_scale[tokens]


class TableHead(nn.Module):
    """A head that multiplies by a shared table; it has no numbers of its own but a bias, (V,) or None."""

    def __init__(self, table: QuantizedTable, bias: Tensor | None = None):
        super().__init__()
        self.table = table
        self.register_buffer("bias", None if bias is None else bias.detach().float().clone())

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V) logits."""
        logits = self.table.scores(hidden)
        return logits if self.bias is None else logits + self.bias


def quantized_tables(model: nn.Module, single_token: bool = False) -> dict[str, nn.Module]:
    """What to put in the place of a model's embeddings and of the heads that share them, by name, for
    `replace_modules`. Heads may take the kernel for single tokens. Raises UserError for vectors that are not finite."""
    new, tables = {}, {}  # tables: by the weight that they stand for
    for name, module in model.named_modules():
        if type(module) is nn.Embedding and module.max_norm is None:
            key = id(module.weight)
            if key not in tables:
                if not bool(torch.isfinite(module.weight).all()):
                    raise UserError(f"{name}: its vectors are not finite (NaN or infinite); take a checkpoint from "
                                    f"before they went wrong")
                mapped = quantize_tensor(module.weight, MappingConfig(per="row"))
                tables[key] = QuantizedTable(WeightOnlyLinear(mapped, None, name, single_token))
            new[name] = tables[key]
    for name, module in model.named_modules():
        if type(module) is nn.Linear and id(module.weight) in tables:
            new[name] = TableHead(tables[id(module.weight)], module.bias)
    writes = getattr(getattr(model, "config", None), "kind", "decoder") != "encoder"
    if tables and writes and getattr(model, "head", model) is None:  # an empty place, for a head that reads the table
        new["head"] = TableHead(max(tables.values(), key=lambda table: table.num_embeddings))
    return new
