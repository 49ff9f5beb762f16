"""A grid fitted to a weight, by trying its neighbours.

A level, or a level and all above it, moves by one, or the zero points do, wherever the weight is
better for it once it is quantized anew: scales and zero points follow the levels. Lloyd's
algorithm, IEEE Transactions on Information Theory 28 (1982) 129, keeps those as they are for a
step, and so stands still on grids this coarse.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.formats import Grid, WeightFormat
from qcompiler.numerics.planes import MOST_LEVEL
from qcompiler.numerics.rounding import quantize_weight

_ELEMENTS = 1 << 15  # of a weight that judge a grid
_WORTH = 0.998  # of the squared error: less gain is chance
_ROUNDS = 8


def fitted(
    weight: NDArray[Any], form: WeightFormat, importance: NDArray[Any] | None = None
) -> WeightFormat:
    """The format, which has a grid, with levels for a K × N weight.

    `importance` [K]: E[x_k²], what squared errors of a channel count; None: all alike. Some columns
    judge, evenly spaced. ValueError for a weight that `quantize_weight` refuses.
    """
    columns = max(8, _ELEMENTS // max(1, len(weight)))
    part = weight[:, :: -(-weight.shape[1] // columns) or 1]
    counts = np.ones(len(weight)) if importance is None else np.asarray(importance, np.float64)

    def error(tried: WeightFormat) -> float:
        rounded = quantize_weight(part, tried, search="output", importance=counts)
        return float(counts @ np.square(rounded.dequantize() - part, dtype=np.float64).sum(axis=1))

    best, least = form, error(form)
    for _ in range(_ROUNDS):
        before = best
        assert before.grid is not None
        for grid in filter(_possible, _neighbours(before.grid)):
            tried = replace(form, grid=grid)
            found = error(tried)
            if found < least * _WORTH:
                best, least = tried, found
        if best is before:
            break
    return best


def _neighbours(grid: Grid) -> Iterator[Grid]:
    """What one move makes of a grid."""
    levels = grid.levels
    for by in (1, -1):
        for i in range(1, len(levels)):
            moved = tuple(level + by for level in levels[i:])
            yield replace(grid, levels=levels[:i] + moved)
            yield replace(grid, levels=levels[:i] + moved[:1] + levels[i + 1 :])
        yield replace(grid, zeros=range(grid.zeros[0] + by, grid.zeros[-1] + by + 1))


def _possible(grid: Grid) -> bool:
    ascending = all(a < b for a, b in pairwise(grid.levels))
    return ascending and grid.levels[-1] <= MOST_LEVEL and grid.zeros[0] >= 0


__all__ = ["fitted"]
