"""Bias correction: what rounding adds to the mean of a layer's output, taken away again.

Means are over calibration tokens, in two parts: one to correct by, one held out to judge by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.numerics.holdout import split

Double = NDArray[np.float64]


class NoTokensError(ValueError):
    """Nothing to take a mean of."""


@dataclass(frozen=True)
class Means:
    """Mean of a vector over the tokens of each part, [K] each."""

    fitted: Double
    held_out: Double

    def through(self, weight: NDArray[Any]) -> Means:
        """The means of X · W, W [K, N]: it is linear, so those of X are enough."""
        w = np.asarray(weight, np.float32)
        # W stays float32: a float64 copy of a head's would double its memory.
        return Means(_product(self.fitted, w), _product(self.held_out, w))


@dataclass(frozen=True)
class Correction:
    """What to add to a bias [N], and the error of the mean output on the held-out part."""

    shift: NDArray[np.float32]
    before: float
    after: float
    """Both relative to the norm of the mean output."""

    @property
    def helps(self) -> bool:
        """Whether the layer's squared error falls on the held-out part.

        A constant shift changes Σ ‖y - ŷ‖² by the change of ‖mean(y - ŷ)‖², times the tokens.
        """
        return self.after < self.before


def means(inputs: Sequence[NDArray[Any]]) -> Means:
    """Means of activations [..., K] over all but the last quarter of the arrays, and over that.

    ValueError if there are not two arrays, or one part is not finite; NoTokensError if one part has
    no tokens.
    """
    fitted, held_out = split(inputs)
    return Means(_mean(fitted), _mean(held_out))


def correction(expected: Means, actual: Means) -> Correction:
    """E[XW] - E[X̂Ŵ] from the fitted part, judged on the other; `expected`, `actual` [N].

    Source: Nagel et al., arXiv 1906.04721, with both means from data; so in AWEQ, arXiv 2311.01305.
    """
    shift = expected.fitted - actual.fitted
    error = expected.held_out - actual.held_out
    size = max(float(np.linalg.norm(expected.held_out)), 1e-30)
    return Correction(
        shift.astype(np.float32),
        float(np.linalg.norm(error)) / size,
        float(np.linalg.norm(error - shift)) / size,
    )


def _product(mean: Double, weight: NDArray[np.float32]) -> Double:
    step = max(1, (4 << 20) // max(1, len(weight)))
    parts = [mean @ weight[:, i : i + step] for i in range(0, weight.shape[1], step)]
    return np.concatenate(parts)


def _mean(arrays: Sequence[NDArray[Any]]) -> Double:
    rows = [np.asarray(each, np.float32).reshape(-1, each.shape[-1]) for each in arrays]
    count = sum(map(len, rows))
    if count == 0:
        raise NoTokensError("there is no calibration data for its input")
    total = np.sum([part.sum(axis=0, dtype=np.float64) for part in rows], axis=0)
    if not np.isfinite(total).all():
        raise ValueError("its input is not finite on the calibration data")
    return np.asarray(total / count, np.float64)
