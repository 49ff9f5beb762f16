"""Tables of rotary embeddings, and the few numbers they come from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TOLERANCE = 1e-6
"""Largest difference of a table computed anew; two units in the last place are 1.2e-7."""


def angles(frequencies: NDArray[np.float32], positions: int) -> NDArray[np.float32]:
    """Position times frequency in float32, [positions, h]."""
    steps = np.arange(positions, dtype=np.float32)
    result: NDArray[np.float32] = steps[:, None] * frequencies[None]
    return result


def frequencies(
    cosines: NDArray[np.float32], sines: NDArray[np.float32]
) -> NDArray[np.float32] | None:
    """The frequencies [h] whose `angles` have these cosines and sines [positions, h].

    None where there are none, or the tables were computed in another precision. Found from the
    phase at position 1, corrected at positions 2, 4, 8 .. and by least squares over all.
    """
    if cosines.ndim != 2 or cosines.shape != sines.shape or cosines.shape[0] < 2:
        return None
    turns = cosines.astype(np.float64) + 1j * sines
    if not np.isfinite(turns).all():
        return None
    positions = np.arange(len(turns), dtype=np.float64)
    found = np.angle(turns[1])
    step = 2
    while step < len(turns):
        found = found + np.angle(turns[step] * np.exp(-1j * found * step)) / step
        step *= 2
    left = np.angle(turns * np.exp(-1j * np.outer(positions, found)))
    found = found + positions @ left / (positions @ positions)
    single = found.astype(np.float32)
    again = angles(single, len(turns))
    off = max(np.abs(np.cos(again) - cosines).max(), np.abs(np.sin(again) - sines).max())
    return single if off <= TOLERANCE else None
