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

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.numerics.gptq import Double, Moments
from qcompiler.numerics.levels import nearest
from qcompiler.numerics.parallel import column_parts, mapped
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
    cut = column_parts(rows, columns)
    parts = [_Part(weight[:, part], start.columns(part), found.hessian) for part in cut]
    if not all(mapped(_Part.is_nearest, parts)):
        raise ValueError("its codes have been chosen from data already")
    a, b = _shift(np.concatenate(list(mapped(_Part.lost, parts)), axis=1), found)
    shifts = zip(parts, (b[part] for part in cut), strict=True)
    codes = mapped(lambda each: each[0].best(a, each[1]), shifts)
    return replace(start, codes=np.concatenate(list(codes), axis=1))


@dataclass(frozen=True)
class _Part:
    """Some columns of a weight, and what they are rounded to."""

    weight: Float
    start: QuantizedWeight
    hessian: Double

    def is_nearest(self) -> bool:
        """Whether no weight has another code much nearer to it than the one it has."""
        far, near = (
            np.abs(each.dequantize() - self.weight) for each in (self.start, self._of(self.weight))
        )
        return not np.any(far - near > _TIE * np.abs(self.start.spread(self.start.scales)))

    def lost(self) -> Double:
        """H E."""
        return np.asarray(self.hessian @ self._error(self.start), np.float64)

    def best(self, a: Double, b: Double) -> NDArray[np.uint8]:
        """For each column the codes of the step of `a` times `b` [n] that costs least."""
        codes, costs = self.start.codes, self._costs(self.start)
        for step in STEPS:
            tried = self._of(self.weight + np.multiply.outer(a, step * b).astype(np.float32))
            cost = self._costs(tried)
            better = cost < costs
            codes = np.where(better, tried.codes, codes)
            costs = np.where(better, cost, costs)
        return codes

    def _error(self, rounded: QuantizedWeight) -> Double:
        return np.subtract(rounded.dequantize(), self.weight, dtype=np.float64)

    def _costs(self, rounded: QuantizedWeight) -> Double:
        """What the error of each column costs, [n]."""
        error = self._error(rounded)
        return np.asarray(np.sum(error * (self.hessian @ error), axis=0), np.float64)

    def _of(self, values: Float) -> QuantizedWeight:
        """The codes next to `values` on the scales and zero points there are."""
        start = self.start
        least, greatest = (start.spread(each.astype(np.float32)) for each in start.limits())
        zero: Any = np.float32(start.form.middle)
        if start.zero_points is not None:
            zero = start.spread(start.zero_points.astype(np.float32))
        codes = nearest(values / start.spread(start.scales) + zero, least, greatest, start.form)
        return replace(start, codes=codes.astype(np.uint8))


def _shift(lost: Double, found: Moments) -> tuple[Double, Double]:
    """a [K] and b [N] from H E, zeros where there is no error to take back."""
    _, factor = found.factor(DAMPENING, act_order=False)  # (H + μ D)⁻¹ = Uᵀ U
    a, b = np.zeros(len(lost)), np.zeros(lost.shape[1])
    b[np.argmax(np.square(lost).sum(axis=0))] = 1.0
    for _ in range(_ITERATIONS):
        pull = factor @ (lost @ b)
        size = float(np.linalg.norm(pull))
        if size == 0.0:
            return a, np.zeros_like(b)
        a = -(factor.T @ (pull / size))  # so long that aᵀ (H + μ D) a = 1
        b = -(lost.T @ a)
    return a, b


__all__ = ["DAMPENING", "STEPS", "compensated"]
