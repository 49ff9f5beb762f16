"""How far one output of a model lies from its reference, as one number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

VOCABULARY = 1024
"""A last axis longer than this is taken for logits."""

ROWS_AT_ONCE = 64
"""Rows worked on together: bounds the scratch memory to so many vocabularies."""


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
    rows = [
        row_divergence(expected.reshape(-1, expected.shape[-1]), found.reshape(-1, found.shape[-1]))
        for expected, found in zip(reference, values, strict=True)
    ]
    every = np.concatenate(rows)
    return float(every.mean()) if every.size else 0.0


def row_divergence(
    reference: np.ndarray[Any, Any], logits: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """KL(reference || logits) of each row in nats, float64 [T], of two [T, V]."""
    kl = np.empty(len(reference), np.float64)
    for start in range(0, len(reference), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        log_p, log_q = _log_softmax(reference[rows]), _log_softmax(logits[rows])
        kl[rows] = (np.exp(log_p) * (log_p - log_q)).sum(axis=1, dtype=np.float64)
    return kl


def _log_softmax(logits: Any) -> np.ndarray[Any, Any]:
    """Logarithms of the softmax over the last axis, float32."""
    shifted = logits.astype(np.float32) - logits.max(axis=-1, keepdims=True).astype(np.float32)
    total = np.exp(shifted).sum(axis=-1, dtype=np.float64, keepdims=True)
    result: np.ndarray[Any, Any] = shifted - np.log(total).astype(np.float32)
    return result
