r"""LLM.int8(): integers for almost everything, 16 bits for the few features that are far too large for them.

    O = { k : maxₜ |X[t, k]| ≥ α },   α = 6.0
    X Wᵀ ≈ X[:, O] W[:, O]ᵀ  +  s_x s_wᵀ ⊙ ( Q_x Q_wᵀ )      over the other columns    Dettmers et al. 2022, §3.2, Eq. 8

    s_x[t] = max |X[t, k]| / 127  over k ∉ O,   Q_x = round(X / s_x)        a scale for each row of X: a token
    s_w[n] = max |W[n, k]| / 127  over all k,   Q_w = round(W / s_w)        a scale for each row of W: an output

Large models have a few feature dimensions (columns of X) whose values are twenty times the others', in most tokens. One
of them in a row takes all the codes for itself: the scale that holds 60 rounds everything below 0.24 to 0. So these
columns, and the same columns of W, are multiplied in floating point.
Details that matter:
    1. Columns are found in X alone, over all tokens of the call, at run time; one large value makes its column an
       outlier (test_one_large_value_makes_its_whole_column_an_outlier). |x| = α counts
       (test_the_threshold_itself_counts).
    2. They are taken out *before* the scales are measured, or they would still spoil them
       (test_scales_are_measured_after_the_outliers_are_taken_out).
    3. A column that is taken out is 0 in Q_x, so that its integers of W add nothing (test_no_column_is_counted_twice).
    4. α = 0 and α = ∞ switch it off: plain vector-wise int8
       (test_a_threshold_of_0_or_infinity_is_plain_vector_wise_int8).
    5. The 16-bit part uses the *original* weights, as the paper's does
       (test_the_outlier_part_uses_the_original_weights). They must be kept for that: `outlier_weights` says for which
       columns. original: for all, 3 bytes a weight in memory; calibrated: for those that were outliers on a calibration
       set, 1 byte a weight and a little; dequantized: for none, their integers read back, as the bitsandbytes library
       does, which is 16 bits in name only. A column that was not kept is read back from its integers.
    DEVIATION: X[:, O] keeps the precision of x instead of being rounded to float16, which CPUs multiply slowly and
    which overflows at 65,504.

Read next: nf4.py. See also: half.py. Try it:  python -m minialign quantize RUN --scheme llm-int8 --text FILE
"""

import math

import torch
from torch import Tensor

from minialign.quant.linear import QuantizedLinear, integer_linear
from minialign.quant.mappings import MappingConfig, Quantized


def outlier_columns(x: Tensor, threshold: float) -> Tensor:
    """(K,) true for the columns of (T, K) in which some |x| ≥ threshold; none when the threshold is 0 or infinite."""
    if not 0 < threshold < math.inf or len(x) == 0:
        return x.new_zeros(x.shape[-1], dtype=torch.bool)
    return torch.maximum(x.amax(dim=0), -x.amin(dim=0)) >= threshold


class LLMInt8Linear(QuantizedLinear):
    """Vector-wise int8 with the outlier columns of the input in 16 bits.

    Args:
        weight: (N, K), absmax, one scale a row.
        bias: (N,) or None; name: of the layer, for errors.
        activation: mapping of x; the paper's is absmax for each row.
        threshold: α, in units of x; 0 or ∞ for no outliers.
        columns: (K,) bool, whose original weights are kept; None keeps none.
        original: (N, K) the weights as they were, needed with `columns`.
    """

    def __init__(self, weight: Quantized, bias: Tensor | None = None, name: str = "this layer",
                 activation: MappingConfig | None = None, threshold: float = 6.0, columns: Tensor | None = None,
                 original: Tensor | None = None):
        super().__init__(weight, bias, name, activation or MappingConfig(per="row"))
        self.threshold = threshold
        columns = self.weight.new_zeros(self.in_features, dtype=torch.bool) if columns is None else columns
        place = torch.where(columns, columns.cumsum(0) - 1, -1)  # (K,) row of a column in `original`; −1: not kept
        kept = self.weight_scale.new_zeros(0, self.out_features) if original is None else original.detach().T[columns]
        self.register_buffer("place", place.int())
        self.register_buffer("original", kept.to(torch.float16).contiguous())  # (kept, N)

    def product(self, x: Tensor) -> Tensor:
        """(T, K) float32 -> (T, N) float32, without bias: the outliers in floating point and the rest in integers."""
        columns = outlier_columns(x, self.threshold).nonzero().squeeze(1)  # (O,)
        large = x[:, columns]  # (T, O)
        if not bool(torch.isfinite(large).all()):
            raise self.not_finite()
        rest = self.encode(x.index_fill(1, columns, 0.0) if len(columns) else x)  # Q_x (T, K) and s_x, without outliers
        y = integer_linear(rest, self.quantized_weight(), self.weight_sum)  # (T, N)   s_x s_wᵀ ⊙ ( Q_x Q_wᵀ )
        return y.addmm_(large, self.outlier_weights(columns))  # Eq. 8

    def outlier_weights(self, columns: Tensor) -> Tensor:
        """(O, N) float32 weights of the columns with these numbers (O,): the original ones where they were kept."""
        place = self.place[columns].long()
        if bool((place >= 0).all()):
            return self.original[place].float()
        codes = Quantized(self.weight[:, columns], self.weight_scale, self.weight_zero, self.weight_config)
        weight = codes.dequantize().T.contiguous()
        weight[place >= 0] = self.original[place[place >= 0]].float()
        return weight

    def input_gradient(self, x: Tensor, gradient: Tensor) -> Tensor:
        """(T, K) of (T, N): outlier columns meet the weights that they were multiplied by."""
        columns = outlier_columns(x, self.threshold).nonzero().squeeze(1)  # (O,)
        back = super().input_gradient(x, gradient)
        return back.index_copy(1, columns, gradient @ self.outlier_weights(columns).T)

    def settings(self) -> dict:
        """How x is mapped, and α."""
        return {**super().settings(), "threshold": self.threshold}
