"""Progressive groups: codes that become int8 by integers, and floats by one scale a column.

    w ≈ s1 · ((code - zero_point) · s2),    |(code - zero_point) · s2| ≤ 127

s1 is a float of a column, s2 an integer of a group, so that a kernel can multiply int8 matrices
and turn the result into floats once. Codes of b bits leave 8 - b bits of a byte to s2, which is at
most 2^(8 - b). With s1 = max|w| / p that is enough for an asymmetric group over the whole range,
and rounding to nearest in steps of s2 stays within 127: where a step is a share h of the range, 2p,
at most, p is 127 / (1 + h). For 4 bits that is 119, and half a step 8. Symmetric groups over all of
the range clip their ends by less than half a step. Source of both for 4 bits: QServe, arXiv
2405.04532.

s1 has 17 significant bits, so that s1 · s2 and s1 times an int8 have no error in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.formats import WeightFormat

Float = NDArray[np.float32]

_BITS = 17  # significant bits of s1
LEAST = np.float32(2.0**-100)
"""The least scale of a column: a normal float32, and so are its products."""


def protected(form: WeightFormat) -> int:
    """Of 127: the largest int8 value of a column before it is rounded in groups.

    Less where few levels are so far apart that s2 would be too large.
    """
    return int(min(127 / (1 + form.gap), form.most_multiple * form.top / 2))


def units(weight: NDArray[Any], form: WeightFormat) -> Float:
    """s1 of the columns of a K × N weight, [N]: max|w| / `protected`, rounded up.

    Of zeros it is 1, or next to nothing for a grid, which may lack a zero.
    """
    wanted = np.abs(weight).max(axis=0, initial=0.0).astype(np.float64) / protected(form)
    least = 1.0 if form.grid is None else LEAST
    wanted = np.where(wanted > 0.0, np.maximum(wanted, LEAST), least)
    last = _last_bit(wanted)
    return (np.ceil(wanted / last) * last).astype(np.float32)


def storable_units(wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """The s1 next to each of `wanted`, which are positive."""
    wanted = np.maximum(wanted, LEAST)
    last = _last_bit(wanted)
    return np.asarray(np.rint(wanted / last) * last, np.float64)


def _last_bit(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """What the last of `_BITS` significant bits of each value counts."""
    # A value is f · 2^e with 0.5 ≤ f < 1: an integer of `_BITS` bits times 2^(e - `_BITS`).
    return np.asarray(np.exp2(np.frexp(values)[1] - _BITS), np.float64)


def snapped(scales: Float, unit: Float, form: WeightFormat) -> Float:
    """The one of ±s1 · 1 .. `most_multiple` for each scale; `unit` is s1, broadcast.

    The nearest, but the next larger where that would clip the ends of the range by more than half
    a step: of 5 and 6 bits multiples are few, and clipping costs more than long steps.
    """
    wanted = np.abs(scales) / unit
    steps = np.maximum(np.rint(wanted), np.ceil(wanted * np.float32(1.0 - 2.0**-form.bits)))
    steps = np.clip(steps, 1, form.most_multiple)
    return np.asarray(np.copysign(steps, scales) * unit, np.float32)


def code_reach(scales: Float, unit: Float) -> NDArray[np.uint8]:
    """How far a code may lie from its zero point, for scales that are multiples of `unit`.

    Rounding to nearest goes no further. Codes that make up for errors of others can, where the
    distance to the last code times s2 is above 127.
    """
    return (127 // np.rint(np.abs(scales) / unit)).astype(np.uint8)
