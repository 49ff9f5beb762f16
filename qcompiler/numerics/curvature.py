"""What errors in a layer's output cost at the model's output, to second order.

A layer's output is Y [T, N], its input X [T, K]. A change E [K, N] of its weight changes row t of Y
by Eᵀ x_t. Near the float model the divergence at its output is quadratic in these changes. With
gradients g of a probe of it (`autodiff.divergence_probe`), a feed's is

    Σ_t E[(g_tᵀ Eᵀ x_t)²] / 2

where what the changes of different tokens do is unrelated. The gradients are kept in factors, in
which that becomes scale / (2 T) · Σ_t s_t tr(H_O Eᵀ x_t x_tᵀ E):

    scale   the sum over a feed's tokens of the mean square over n of g_tn
    s_t     that mean square, over its mean: which tokens matter
    H_O     Σ_t g_t g_tᵀ over its mean diagonal: which outputs matter, and which together

Sources: the moments of GuidedQuant, arXiv 2505.07004, with one block of outputs; the factored
Hessian of YAQA, arXiv 2505.22988, its sketch that takes tokens as independent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Double = NDArray[np.float64]


@dataclass(frozen=True)
class Curvature:
    """The second order of the divergence in a layer's output [T, N], in factors."""

    tokens: Sequence[NDArray[np.float32]]
    """What each token counts, one array a feed, of mean 1."""
    outputs: Double
    """[N, N]: what outputs count, of mean diagonal 1."""
    scale: float
    """The sum over a feed's tokens, in the mean over feeds, of the gradients' mean square."""


def curvature(gradients: Iterable[NDArray[Any]]) -> Curvature:
    """From the gradients [..., N] at a layer's output, one array a feed.

    ValueError where all of them are zero.
    """
    squares: list[NDArray[np.float64]] = []
    outputs: Double | None = None
    for each in gradients:
        rows = np.asarray(each, np.float32).reshape(-1, each.shape[-1])
        squares.append(np.mean(np.square(rows, dtype=np.float64), axis=1))
        part = (rows.T @ rows).astype(np.float64)
        outputs = part if outputs is None else np.add(outputs, part, out=outputs)
    mean = float(np.mean(np.concatenate(squares))) if squares else 0.0
    if outputs is None or not mean > 0.0:
        raise ValueError("no gradient reaches its output")
    outputs /= float(np.trace(outputs)) / len(outputs)
    scale = sum(float(np.sum(each)) for each in squares) / len(squares)
    return Curvature([(each / mean).astype(np.float32) for each in squares], outputs, scale)


def weighed(rows: NDArray[Any], tokens: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows [T, K] with what each counts in their second moments: √s_t x_t."""
    return np.asarray(rows, np.float32) * np.sqrt(tokens)[:, None]
