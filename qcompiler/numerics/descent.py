"""Coordinate descent on the codes of a weight: what GPTQ leaves, since it never looks back.

The error of a layer's output is quadratic in the codes. Channel by channel, with all others as they
are, each code moves to the grid point next to the least-squares answer; no step can make the error
larger. With G = C - H Ŵ, where H = Xᵀ X and C is what H Ŵ should be, that answer is

    ŵ_k + G_k / H_kk

Source: QuantEase, arXiv 2309.01885, here started from GPTQ's codes and with its dampening.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.numerics.gptq import BLOCK, Double, Moments
from qcompiler.numerics.levels import nearest
from qcompiler.numerics.parallel import column_parts, mapped
from qcompiler.numerics.rounding import QuantizedWeight


def descend(
    weight: NDArray[Any],
    start: QuantizedWeight,
    statistics: Moments,
    *,
    dampening: float = 0.01,
    alpha: float = 0.0,
    sweeps: int = 2,
) -> QuantizedWeight:
    """Better codes for the scales and zero points of `start`, for a K × N `weight`.

    The target is the weight's own output, or with `alpha` (and `statistics.drift`) moved by that
    share towards the float model's. Channels that are zero throughout the data keep their codes.
    """
    hessian = statistics.hessian
    diagonal = np.diagonal(hessian)
    alive = np.flatnonzero(diagonal > 0.0)
    damped = hessian.copy()
    damped[np.diag_indices_from(damped)] = np.where(
        diagonal > 0.0, diagonal * (1.0 + dampening), 1.0
    )

    def descended(part: slice) -> NDArray[np.uint8]:
        old = start.columns(part)
        w = np.asarray(weight[:, part], np.float64)
        gradient = damped @ (w - old.dequantize())
        if alpha and statistics.drift is not None:
            gradient += alpha * (statistics.drift.T @ w)
        return _swept(old, damped, gradient, alive, sweeps)

    codes = mapped(descended, column_parts(*weight.shape))
    return replace(start, codes=np.concatenate(list(codes), axis=1))


def _swept(
    old: QuantizedWeight, damped: Double, gradient: Double, alive: NDArray[Any], sweeps: int
) -> NDArray[np.uint8]:
    """Codes after some sweeps over the channels `alive`; `gradient` is used up."""
    least, greatest = old.limits()
    scales = old.spread(old.scales.astype(np.float64))
    size = old.block
    codes = old.codes.astype(np.float64)
    for _ in range(sweeps):
        for start in range(0, len(alive), BLOCK):
            # Inside a block its own part of the gradient is kept up to date, the rest behind it.
            block = alive[start : start + BLOCK]
            near = gradient[block]
            within = damped[np.ix_(block, block)]
            moved = np.zeros_like(near)
            for i, k in enumerate(block):
                wanted = codes[k] + near[i] / (within[i, i] * scales[k])
                group = k // size
                code = nearest(wanted, least[group], greatest[group], old.form)
                changed = np.flatnonzero(code != codes[k])
                if changed.size:
                    delta = (code[changed] - codes[k, changed]) * scales[k, changed]
                    codes[k, changed] = code[changed]
                    moved[i, changed] = delta
                    near[:, changed] -= np.multiply.outer(within[:, i], delta)
            gradient -= damped[:, block] @ moved
    return codes.astype(np.uint8)
