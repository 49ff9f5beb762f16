"""How finely activations must share int8 scales: the error each granularity leaves in the output.

X [T, K] is the input of layers W_i [K, N_i] over calibration tokens. Rounded to int8 it leaves

    error = max over i of ‖(X - Q(X)) · W_i‖ / ‖X · W_i‖

Unlike the error of X itself, this counts a channel by what the layers make of it. Q is what
`insert-qdq` writes and the ops compute: one scale for everything, fixed beforehand, one a row, or
one a group of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.numerics.reference import quantize_activations
from qcompiler.numerics.scale_search import judged_columns, sampled

BY_COST = ("per-tensor", "per-token", "per-group")
"""What is tried, the cheapest at run time first."""
TOKENS = 1024
"""Rows of X that judge."""


def activation_errors(
    inputs: Sequence[NDArray[Any]], weights: Sequence[NDArray[Any]], group_size: int
) -> dict[str, float] | None:
    """The error of each granularity in BY_COST, "per-tensor" with a static scale.

    `inputs` are the samples of X, at least one, [..., K] each; `weights` are [K, N_i]. Some of the
    tokens in the last quarter of the inputs judge. The static range is that of the other inputs,
    so that one too tight for data it has not seen shows; a lone input judges its own. The error is
    inf where that range is zero.

    None where nothing can be judged: no tokens, or outputs that are all zero. ValueError if the
    activations are not finite.
    """
    start = len(inputs) - max(1, len(inputs) // 4)
    x = sampled(inputs[start:], TOKENS)
    peak = _peak(inputs[:start] or inputs)
    if not (np.isfinite(peak) and np.isfinite(x).all()):
        raise ValueError("its input is not finite on the calibration data")
    judges = [w for w in map(judged_columns, weights) if np.any(x @ w)]
    if not judges:
        return None
    channels = x.shape[1]
    blocks = {"per-token": channels, "per-group": min(group_size, channels)}
    errors = {"per-tensor": np.inf}
    if peak > 0.0:
        static = quantize_activations(x, channels, peak / 127.0).dequantized()
        errors["per-tensor"] = _error(x, static, judges)
    for name, block in blocks.items():
        errors[name] = _error(x, quantize_activations(x, block).dequantized(), judges)
    return errors


def cheapest(errors: Mapping[str, float], tolerance: float) -> str:
    """The first granularity within `tolerance`, or the more exact of the dynamic ones.

    `errors` as `activation_errors` gives them. Where none is good enough, a static scale is no
    choice, whatever its error: it alone may meet values far out of its range later.
    """
    good = [name for name in BY_COST if errors[name] <= tolerance]
    return good[0] if good else min(BY_COST[1:], key=lambda name: errors[name])


def _peak(inputs: Sequence[NDArray[Any]]) -> float:
    return max(float(np.abs(each).max(initial=0.0)) for each in inputs)


def _error(x: NDArray[Any], rounded: NDArray[Any], weights: Sequence[NDArray[Any]]) -> float:
    return max(_norm((x - rounded) @ w) / _norm(x @ w) for w in weights)


def _norm(values: NDArray[Any]) -> float:
    return float(np.sqrt(np.sum(np.square(values), dtype=np.float64)))
