"""What errors in a layer's output cost at the model's output, to second order.

A layer's output is Y [T, N], its input X [T, K]. A change E [K, N] of its weight changes row t of Y
by Eᵀ x_t. Near the float model the divergence at its output is quadratic in these changes. With
gradients g of a probe of it (`autodiff.divergence_probe`), a feed's is

    Σ_t E[(g_tᵀ Eᵀ x_t)²] / 2

where what the changes of different tokens do is unrelated. For errors that have nothing to do with
one another, the gradients come in factors to scale / (2 T) · Σ_tkn s_t o_n x_tk² E_kn²:

    scale   the sum over a feed's tokens of the mean square over n of g_tn
    s_t     that mean square, over its mean: which tokens matter
    o_n     Σ_t g_tn², over its mean: which outputs matter

Source of the weights by token: GuidedQuant, arXiv 2505.07004, with one block of outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Curvature:
    """The second order of the divergence in a layer's output [T, N], in factors."""

    tokens: Sequence[NDArray[np.float32]]
    """What each token counts, one array a feed, of mean 1."""
    outputs: NDArray[np.float64]
    """[N]: what each output counts, of mean 1."""
    scale: float
    """The sum over a feed's tokens, in the mean over feeds, of the gradients' mean square."""


def curvature(gradients: Iterable[NDArray[Any]]) -> Curvature:
    """From the gradients [..., N] at a layer's output, one array a feed.

    Where all of them are zero nothing that happens there costs anything: `scale` is 0.
    """
    tokens: list[NDArray[np.float64]] = []
    outputs: Any = 0.0
    for each in gradients:
        squares = np.square(each, dtype=np.float64).reshape(-1, each.shape[-1])
        tokens.append(squares.mean(axis=1))
        outputs = outputs + squares.sum(axis=0)
    scale = float(np.mean([each.sum() for each in tokens]))
    if scale == 0.0:
        ones = [np.ones(len(each), np.float32) for each in tokens]
        return Curvature(ones, np.ones_like(outputs), 0.0)
    mean = np.mean(np.concatenate(tokens))
    by_token = [(each / mean).astype(np.float32) for each in tokens]
    return Curvature(by_token, outputs / np.mean(outputs), scale)


def weighed(rows: NDArray[Any], tokens: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows [T, K] with what each counts in their second moments: √s_t x_t."""
    return np.asarray(rows, np.float32) * np.sqrt(tokens)[:, None]
