"""How finely activations must share int8 scales: the error each granularity leaves in the output.

X [T, K] is the input of a layer W [K, N] over calibration tokens, Y = X · W. Rounded to int8 it
leaves the error

    error² = mean over n of ‖(X - Q(X)) · W_n‖² / ‖Y_n - mean(Y_n)‖²

the largest over the layers that read X. Q is what `insert-qdq` writes and the ops compute: one
scale for everything, fixed beforehand, or one a row.

‖(X - Q(X)) · W‖ / ‖Y‖ would be simpler, and hides what matters. A few output channels with large
values, or a large mean that every token has alike, make errors of the others look small: V behind
Q and K in one matrix, or all that is not a massive activation. Here each channel counts the same,
by what tells tokens apart. On SmolLM2 the simpler one calls a static scale for Q, K and V good to
1.8% where V is off by 4.6%, and one for a down projection good to 3% where most channels are lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.formats import Granularity
from qcompiler.numerics.bias import Double
from qcompiler.numerics.reference import quantize_activations
from qcompiler.numerics.scale_search import Float, judged_columns, sampled

TOKENS = 1024
"""Rows of X that judge."""
_CONSTANT = 1e-9  # an output that varies by less of its energy is constant, but for float32


def activation_errors(
    inputs: Sequence[NDArray[Any]], weights: Sequence[NDArray[Any]]
) -> dict[Granularity, float] | None:
    """The errors per tensor, with a static scale, and per token.

    `inputs` are the samples of X, at least one, [..., K] each; `weights` are [K, N_i]. Some of the
    tokens in the last quarter of the inputs judge. The static range is that of the other inputs,
    so that one too tight for data it has not seen shows; a lone input judges its own. The error is
    inf where that range is zero.

    None where nothing can be judged: no tokens, or outputs that are the same for all. ValueError if
    the activations are not finite.
    """
    start = len(inputs) - max(1, len(inputs) // 4)
    x = sampled(inputs[start:], TOKENS)
    peak = _peak(inputs[:start] or inputs)
    if not (np.isfinite(peak) and np.isfinite(x).all()):
        raise ValueError("its input is not finite on the calibration data")
    if not len(x):
        return None
    judges = [judge for judge in (_judge(x, judged_columns(w)) for w in weights) if judge]
    if not judges:
        return None
    static = np.inf
    if peak > 0.0:
        static = _error(x, quantize_activations(x, peak / 127.0).dequantized(), judges)
    by_token = _error(x, quantize_activations(x).dequantized(), judges)
    return {Granularity.PER_TENSOR: static, Granularity.PER_TOKEN: by_token}


def cheapest(errors: Mapping[Granularity, float], tolerance: float) -> Granularity:
    """Per tensor where that leaves no more than `tolerance`, else per token.

    `errors` as `activation_errors` gives them. Where neither is good enough, a static scale is no
    choice, even if its error is the smaller: it alone may meet values far out of its range later.
    """
    if errors[Granularity.PER_TENSOR] <= tolerance:
        return Granularity.PER_TENSOR
    return Granularity.PER_TOKEN


def activation_loss(x: NDArray[Any], weights: Sequence[NDArray[Any]]) -> float:
    """What rounding the rows of X [T, K] adds to the outputs: the mean over t of ‖(x - Q(x)) · W‖².

    With one scale a row. `weights` are [K, N_i]; a sample of columns stands for all.
    """
    lost = x - quantize_activations(x).dequantized()
    total = 0.0
    for weight in weights:
        columns = judged_columns(weight)
        total += float(_energies(lost @ columns).sum()) * weight.shape[1] / columns.shape[1]
    return total / len(x)


def _peak(inputs: Sequence[NDArray[Any]]) -> float:
    return max(float(np.abs(each).max(initial=0.0)) for each in inputs)


def _judge(x: Float, weight: Float) -> tuple[Float, Double] | None:
    """The columns of a weight whose outputs vary, and the energy of that [N]; None for none."""
    y = x @ weight
    varying = _energies(y - y.mean(axis=0))
    told = varying > _CONSTANT * _energies(y)
    return (weight[:, told], varying[told]) if told.any() else None


def _error(x: Float, rounded: Float, judges: Sequence[tuple[Float, Double]]) -> float:
    lost = x - rounded
    return max(float(np.sqrt(np.mean(_energies(lost @ w) / varying))) for w, varying in judges)


def _energies(columns: NDArray[Any]) -> Double:
    return np.asarray(np.sum(np.square(columns), axis=0, dtype=np.float64))
