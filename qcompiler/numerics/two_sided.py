"""Rounding that looks at both sides of a weight: inputs and outputs.

The error E = W - Ŵ of a weight [K, N] costs tr(H_O Eᵀ H E), H the moments of the layer's input and
H_O what its outputs count (`curvature`). With H_O = C Cᵀ, C lower triangular, that is the error of
E C in the input's moments alone. Blocks of columns are rounded from the last to the first. For the
columns B, with all behind them rounded,

    (E C)_B = (E_B + E_behind C[behind, B] C[B, B]⁻¹) C[B, B]

so the target of B moves by the errors behind, and its own codes are chosen as for a weight by
itself. Source: YAQA, arXiv 2505.22988, whose rounding goes one element at a time on both sides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.numerics.gptq import Double
from qcompiler.numerics.rounding import QuantizedWeight

BLOCK = 64
"""Columns that are rounded together."""

MOST_OUTPUTS = 8192
"""From here on, H_O is larger than what it is for."""

_LEAST = 0.01  # of the mean diagonal, added to H_O


def shrunk(outputs: Double, share: float) -> Double:
    """H_O with its entries off the diagonal made smaller by `share`: they are known from few
    tokens, and more errors than there are would look alike."""
    kept = (1.0 - share) * outputs
    diagonal = np.diagonal(outputs)
    kept[np.diag_indices_from(kept)] = diagonal + _LEAST * float(np.mean(diagonal))
    return kept


def by_columns(
    weight: NDArray[Any],
    start: QuantizedWeight,
    outputs: Double,
    choose: Callable[[Double, QuantizedWeight], QuantizedWeight],
) -> QuantizedWeight:
    """The codes of `start` for a K × N `weight`, by columns; `outputs` is H_O [N, N], definite.

    `choose` gives codes for some columns: their target [K, n], and what they start from.
    """
    factor = np.linalg.cholesky(outputs)
    codes = np.empty_like(start.codes)
    errors = np.empty(weight.shape)
    for first in reversed(range(0, weight.shape[1], BLOCK)):
        part, behind = slice(first, first + BLOCK), slice(first + BLOCK, None)
        w = np.asarray(weight[:, part], np.float64)
        moved = np.linalg.solve(factor[part, part].T, factor[behind, part].T).T
        chosen = choose(w + errors[:, behind] @ moved, start.columns(part))
        codes[:, part] = chosen.codes
        errors[:, part] = w - chosen.dequantize()
    return replace(start, codes=codes)
