"""Rank-1 compensation: W + a bᵀ is rounded in place of W, and nothing is left of it at run time.

Y = X · W, X [T, K] a layer's input over T calibration tokens, W [K, N] its weight, Ŵ what W is
rounded to, H = Xᵀ X. An error E = Ŵ - W costs tr(Eᵀ H E) at the output. Where some directions of X
hold much of H, as a mean that is not zero and outlier channels do, what all codes of a column lose
there together counts far more than what each of them loses, and a shift of the column by a, small
beside a step, takes it back: some codes of many tip over.

Only such an H makes it worth while. By the weighted squares Σ h_k e_k² each code next to its own
weight is the best there is, for the scales that it has, and no shift can help.

Rounding leaves as much noise of its own wherever a column is shifted to, and a shift that tips many
codes replaces the noise there was. So a shift costs what it does to the mean of the error, plus
μ a_k² h_kk in each channel, with D = diag(H):

    min  tr((E + a bᵀ)ᵀ H (E + a bᵀ)) + μ tr((a bᵀ)ᵀ D (a bᵀ))

    a = -(H + μ D)⁻¹ H E b,   b the first right singular vector of (H + μ D)^(-1/2) H E
    b_n = -aᵀ H e_n / aᵀ (H + μ D) a

That finds a, and about how far each column is to go. How far it goes is tried: among a few
multiples of b_n, 0 included, each column takes the one whose codes have the least e_nᵀ H e_n.
Scales and zero points stay as they are.

Source: ABQ-LLM, arXiv 2408.08554, which learns a and b from the output of a block, by gradients.
The closed form and the search are ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.numerics.gptq import COLUMNS, Double, Moments
from qcompiler.numerics.levels import nearest
from qcompiler.numerics.progressive import code_reach, units
from qcompiler.numerics.rounding import QuantizedWeight

Float = NDArray[np.float32]

DAMPENING = 4.0
"""μ."""
STEPS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""Multiples of b_n that are tried beside 0."""
_ITERATIONS = 16
_TIE = 1e-3  # of a scale: rounding tells no better between two codes


def compensated(weight: NDArray[Any], start: QuantizedWeight, found: Moments) -> QuantizedWeight:
    """Codes of W + a bᵀ on the scales and zero points of `start`, for a K × N `weight`.

    A column that no shift makes better keeps the codes it has: by `found` none gets worse.
    Channels that are zero throughout the data have no part in a.

    ValueError for shapes that don't fit, weights or moments that are not finite, and codes of
    `start` that are not those next to W.
    """
    rows, columns = start.codes.shape
    if weight.shape != (rows, columns) or found.hessian.shape != (rows, rows):
        raise ValueError(
            f"a weight of shape {weight.shape} has no codes of shape {start.codes.shape} and "
            f"moments of shape {found.hessian.shape}"
        )
    if not np.isfinite(weight).all():
        raise ValueError("the weight holds NaN or infinity")
    weight = np.asarray(weight, np.float32)
    unit = units(weight, start.form) if start.form.narrow else start.scales
    start = replace(start, reach=code_reach(start.scales, unit))
    if not _is_nearest(weight, start):
        raise ValueError("its codes have been chosen from data already")
    lost, costs = _lost(weight, start, found.hessian)
    a, b = _shift(lost, found)
    codes = start.codes.copy()
    for step in STEPS:
        for part in _parts(rows, columns):
            old = start.columns(part)
            moved = weight[:, part] + np.multiply.outer(a, step * b[part]).astype(np.float32)
            tried = _rounded(moved, old)
            error = (tried.dequantize() - weight[:, part]).astype(np.float64)
            cost = np.sum(error * (found.hessian @ error), axis=0)
            better = cost < costs[part]
            costs[part] = np.where(better, cost, costs[part])
            codes[:, part] = np.where(better, tried.codes, codes[:, part])
    return replace(start, codes=codes)


def _parts(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, COLUMNS // max(rows, 1))
    return (slice(first, first + step) for first in range(0, columns, step))


def _is_nearest(weight: Float, start: QuantizedWeight) -> bool:
    """Whether no weight has another code much nearer to it than the one it has."""
    for part in _parts(*weight.shape):
        old, values = start.columns(part), weight[:, part]
        far, near = (np.abs(each.dequantize() - values) for each in (old, _rounded(values, old)))
        if np.any(far - near > _TIE * np.abs(old.spread(old.scales))):
            return False
    return True


def _lost(weight: Float, start: QuantizedWeight, hessian: Double) -> tuple[Double, Double]:
    """H E [K, N], and what the error of each column costs [N]."""
    lost, costs = np.empty(weight.shape), np.empty(weight.shape[1])
    for part in _parts(*weight.shape):
        error = (start.columns(part).dequantize() - weight[:, part]).astype(np.float64)
        lost[:, part] = hessian @ error
        costs[part] = np.sum(error * lost[:, part], axis=0)
    return lost, costs


def _shift(lost: Double, found: Moments) -> tuple[Double, Double]:
    """a [K] and b [N], zeros where there is no error to take back."""
    _, factor = found.factor(DAMPENING, act_order=False)  # (H + μ D)⁻¹ = Uᵀ U
    b = np.zeros(lost.shape[1])
    b[np.argmax(np.square(lost).sum(axis=0))] = 1.0
    a = np.zeros(len(lost))
    for _ in range(_ITERATIONS):
        pull = factor @ (lost @ b)
        size = float(np.linalg.norm(pull))
        if size == 0.0:
            return np.zeros_like(a), np.zeros_like(b)
        # aᵀ (H + μ D) a = 1 for this length.
        a = -(factor.T @ (pull / size))
        b = -(lost.T @ a)
        length = float(np.linalg.norm(b))
        if length == 0.0:
            break
        b /= length
    return a, b * length


def _rounded(values: Float, start: QuantizedWeight) -> QuantizedWeight:
    """The codes next to `values` on the scales and zero points of `start`."""
    least, greatest = (start.spread(each.astype(np.float32)) for each in start.limits())
    zero: Any = np.float32(start.form.middle)
    if start.zero_points is not None:
        zero = start.spread(start.zero_points.astype(np.float32))
    codes = nearest(values / start.spread(start.scales) + zero, least, greatest, start.form)
    return replace(start, codes=codes.astype(np.uint8))


__all__ = ["DAMPENING", "STEPS", "compensated"]
