"""Progressive groups: codes that become int8 by integers, and floats by one scale a column.

    w ≈ s1 · ((code - zero_point) · s2),    |(code - zero_point) · s2| ≤ 127

s1 is a float of a column, s2 an integer of a group, so that a kernel can multiply int8 matrices
and turn the result into floats once. Codes of b bits leave 8 - b bits of a byte to s2, which is at
most 2^(8 - b). With s1 = max|w| / (127 - 2^(7 - b)) that is enough for an asymmetric group over the
whole range, and rounding to nearest in steps of s2 stays within 127: for 4 bits 119 + 8. Symmetric
groups over all of the range clip their ends by less than half a step. Source of both for 4 bits:
QServe, arXiv 2405.04532.

s1 has 17 significant bits, so that s1 · s2 and s1 times an int8 have no error in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.numerics.planes import most_multiple

Float = NDArray[np.float32]

_BITS = 17  # significant bits of s1
LEAST = np.float32(2.0**-100)
"""The least scale of a column: a normal float32, and so are its products."""


def protected(bits: int) -> int:
    """Of 127: the largest int8 value of a column before it is rounded in groups."""
    return 127 - (1 << (7 - bits))


def units(weight: NDArray[Any], bits: int) -> Float:
    """s1 of the columns of a K × N weight, [N]: max|w| / `protected`, rounded up; 1 for zeros."""
    wanted = np.abs(weight).max(axis=0, initial=0.0).astype(np.float64) / protected(bits)
    wanted = np.where(wanted > 0.0, np.maximum(wanted, LEAST), 1.0)
    # wanted = f · 2^e with 0.5 ≤ f < 1: an integer of `_BITS` bits times 2^(e - `_BITS`).
    last = np.exp2(np.frexp(wanted)[1] - _BITS)
    return (np.ceil(wanted / last) * last).astype(np.float32)


def snapped(scales: Float, unit: Float, bits: int) -> Float:
    """The one of ±s1 · 1 .. 2^(8 - bits) for each scale; `unit` is s1, broadcast.

    The nearest, but the next larger where that would clip the ends of the range by more than half
    a step: of 5 and 6 bits multiples are few, and clipping costs more than long steps.
    """
    wanted = np.abs(scales) / unit
    steps = np.maximum(np.rint(wanted), np.ceil(wanted * np.float32(1.0 - 2.0**-bits)))
    steps = np.clip(steps, 1, most_multiple(bits))
    return np.asarray(np.copysign(steps, scales) * unit, np.float32)


def code_reach(scales: Float, unit: Float) -> NDArray[np.uint8]:
    """How far a code may lie from its zero point, for scales that are multiples of `unit`.

    Rounding to nearest goes no further. Codes that make up for errors of others can, where the
    distance to the last code times s2 is above 127.
    """
    return (127 // np.rint(np.abs(scales) / unit)).astype(np.uint8)
