"""How far one output of a model lies from its reference, as one number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

VOCABULARY = 1024
"""A last axis longer than this is taken for logits."""

_ROWS = 64  # bounds the scratch memory


def divergence(reference: Sequence[np.ndarray[Any, Any]], values: Sequence[Any]) -> float:
    """Mean KL(reference || values) in nats a row of logits; of other outputs the relative error.

    Both are lists of arrays [..., n]. The relative error is squared, Σ (v - r)² / Σ r².
    """
    if reference[0].shape[-1] <= VOCABULARY:
        noise = signal = 0.0
        for expected, found in zip(reference, values, strict=True):
            noise += float(np.sum(np.square(np.subtract(found, expected, dtype=np.float64))))
            signal += float(np.sum(np.square(expected, dtype=np.float64)))
        return noise / signal if signal else 0.0
    total, rows = 0.0, 0
    for expected, found in zip(reference, values, strict=True):
        truth = expected.reshape(-1, expected.shape[-1])
        other = np.asarray(found).reshape(truth.shape)
        for start in range(0, len(truth), _ROWS):
            part = slice(start, start + _ROWS)
            log_p, log_q = log_softmax(truth[part]), log_softmax(other[part])
            total += float(np.sum(np.exp(log_p) * (log_p - log_q), dtype=np.float64))
        rows += len(truth)
    return total / max(rows, 1)


def log_softmax(logits: Any) -> np.ndarray[Any, Any]:
    """Logarithms of the softmax over the last axis, float32."""
    shifted = logits.astype(np.float32) - logits.max(axis=-1, keepdims=True).astype(np.float32)
    total = np.exp(shifted).sum(axis=-1, dtype=np.float64, keepdims=True)
    result: np.ndarray[Any, Any] = shifted - np.log(total).astype(np.float32)
    return result
