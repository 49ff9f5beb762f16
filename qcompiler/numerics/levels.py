"""Rounding to codes: whole numbers, or the levels of a grid."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.formats import Grid, WeightFormat


def nearest(values: NDArray[Any], least: Any, greatest: Any, form: WeightFormat) -> NDArray[Any]:
    """The code next to each of `values`, of those from `least` to `greatest`.

    Values and limits count in codes; limits are codes, and broadcast to the values. Whole numbers
    of the type of the values, which are used up.
    """
    if form.grid is None:
        return np.clip(np.rint(values, out=values), least, greatest, out=values)
    # All borders between levels are whole numbers or halves.
    halves = np.floor(2 * np.clip(values, least, greatest, out=values), out=values)
    return _by_halves(form.grid).astype(values.dtype)[halves.astype(np.intp)]


def inward(least: Any, greatest: Any, form: WeightFormat) -> tuple[NDArray[Any], NDArray[Any]]:
    """The least and the greatest code of those from one whole number to another, float64.

    They are one code where there is none between them: the one next to the second.
    """
    if form.grid is None:
        return np.asarray(least, np.float64), np.asarray(greatest, np.float64)
    levels = np.asarray(form.grid.levels)
    high = np.searchsorted(levels, greatest, side="right") - 1
    low = np.minimum(np.searchsorted(levels, least, side="left"), high)
    return levels[low].astype(np.float64), levels[high].astype(np.float64)


@lru_cache
def _by_halves(grid: Grid) -> NDArray[np.float32]:
    """The level of the values from i/2 to (i + 1)/2, for every i."""
    levels = np.asarray(grid.levels, np.float32)
    values = np.arange(2 * grid.levels[-1] + 1, dtype=np.float32) / 2 + np.float32(0.25)
    return levels[np.abs(values[:, None] - levels).argmin(axis=1)]


__all__ = ["inward", "nearest"]
