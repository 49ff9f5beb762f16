"""How finely activations must share int8 scales: the error each granularity leaves in the output.

X [T, K] is the input of a layer W [K, N] over calibration tokens, Y = X · W. Rounded to int8 it
leaves the error

    error² = mean over n of ‖(X - Q(X)) · W_n‖² / ‖Y_n - mean(Y_n)‖²

the largest over the layers that read X. Q is what `insert-qdq` writes and the ops compute: one
scale for everything, fixed beforehand, one a row, or one a group of a row.

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

BY_COST = (Granularity.PER_TENSOR, Granularity.PER_TOKEN, Granularity.PER_GROUP)
"""What is tried, the cheapest at run time first."""
DYNAMIC = BY_COST[1:]
"""Those whose scales are computed from the values they are for."""
TOKENS = 1024
"""Rows of X that judge."""
_CONSTANT = 1e-9  # an output that varies by less of its energy is constant, but for float32


def activation_errors(
    inputs: Sequence[NDArray[Any]], weights: Sequence[NDArray[Any]], group_size: int
) -> dict[Granularity, float] | None:
    """The error of each granularity in BY_COST, per tensor with a static scale.

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
    channels = x.shape[1]
    blocks = {
        Granularity.PER_TOKEN: channels,
        Granularity.PER_GROUP: min(group_size, channels),
    }
    errors = {Granularity.PER_TENSOR: np.inf}
    if peak > 0.0:
        static = quantize_activations(x, channels, peak / 127.0).dequantized()
        errors[Granularity.PER_TENSOR] = _error(x, static, judges)
    for each, block in blocks.items():
        errors[each] = _error(x, quantize_activations(x, block).dequantized(), judges)
    return errors


def cheapest(errors: Mapping[Granularity, float], tolerance: float) -> Granularity:
    """The first granularity within `tolerance`, or the more exact of the dynamic ones.

    `errors` as `activation_errors` gives them. Where none is good enough, a static scale is no
    choice, whatever its error: it alone may meet values far out of its range later.
    """
    good = [each for each in BY_COST if errors[each] <= tolerance]
    return good[0] if good else min(DYNAMIC, key=lambda each: errors[each])


def activation_losses(
    x: NDArray[Any], weights: Sequence[NDArray[Any]], group_sizes: Sequence[int]
) -> dict[tuple[Granularity, int], float]:
    """What rounding the rows of X [T, K] adds to the outputs: the mean over t of ‖(x - Q(x)) · W‖².

    One for each pair of a granularity in DYNAMIC and a group size; the first is the same for all.
    `weights` are [K, N_i]; a sample of columns stands for all.
    """
    judged = [(judged_columns(w), w.shape[1]) for w in weights]

    def loss(block: int) -> float:
        lost = x - quantize_activations(x, block).dequantized()
        total = 0.0
        for columns, count in judged:
            total += float(_energies(lost @ columns).sum()) * count / columns.shape[1]
        return total / len(x)

    channels = x.shape[1]
    whole = loss(channels)
    found: dict[tuple[Granularity, int], float] = {}
    for size in dict.fromkeys(group_sizes):
        found[Granularity.PER_TOKEN, size] = whole
        found[Granularity.PER_GROUP, size] = whole if size >= channels else loss(size)
    return found


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
