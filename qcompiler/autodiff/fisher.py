"""Gradients at a model's output whose covariance is the second derivative of a divergence there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qcompiler.numerics.divergence import VOCABULARY

Array = np.ndarray[Any, Any]

_ROWS = 64  # computed at a time: a vocabulary has many columns


def fisher_probe(seed: int) -> Callable[[int, Array], Array]:
    """A seed for `gradients` at logits: u = sqrt(p) e - p (sqrt(p) · e) for each row.

    p is the softmax of the row (the last axis), e standard normal. E[u uᵀ] = diag(p) - p pᵀ, the
    Fisher information of a categorical distribution in its logits, and the second derivative of the
    KL divergence there. Feed and seed alone determine the numbers drawn.
    """

    def probe(index: int, logits: Array) -> Array:
        draws = np.random.default_rng((seed, index))
        rows = np.asarray(logits).reshape(-1, logits.shape[-1])
        made = np.empty(rows.shape, np.float32)
        for start in range(0, len(rows), _ROWS):
            some = rows[start : start + _ROWS].astype(np.float32)
            p = np.exp(some - some.max(-1, keepdims=True))
            p /= p.sum(-1, keepdims=True)
            u = np.sqrt(p)
            u *= draws.standard_normal(p.shape, np.float32)
            u -= p * u.sum(-1, keepdims=True)
            made[start : start + _ROWS] = u
        return made.reshape(logits.shape)

    return probe


def divergence_probe(seed: int) -> Callable[[int, Array], Array]:
    """A seed u for `gradients`, so that E[(u · δ)²] / 2 is what a small change δ of the output of a
    feed costs, as `numerics.divergence` counts it: KL in the mean over rows of logits, of other
    outputs the relative error squared.
    """
    fisher = fisher_probe(seed)

    def probe(index: int, y: Array) -> Array:
        if y.shape[-1] > VOCABULARY:
            rows = y.size // y.shape[-1]
            return np.asarray(fisher(index, y) / np.float32(np.sqrt(rows)))
        draws = np.random.default_rng((seed, index))
        signal = float(np.sum(np.square(y, dtype=np.float64)))
        made = draws.standard_normal(y.shape, np.float32)
        return np.asarray(made * np.float32(np.sqrt(2.0 / signal) if signal else 0.0))

    return probe
