"""Progressive groups: 4-bit codes that become int8 by integers, and floats by one scale a column.

    w ≈ s1 · ((code - zero_point) · s2),    |(code - zero_point) · s2| ≤ 127

s1 is a float of a column, s2 an integer of a group, so that a kernel can multiply int8 matrices
and turn the result into floats once. s1 = max|w| / 119: rounding to nearest in steps of s2 ≤ 16
then stays within 119 + 8 = 127. Source of both: QServe, arXiv 2405.04532.

The Q/DQ form has a float16 scale a group, here s1 · s2 without any error: s1 has 7 significant bits
and s2 adds at most 4, as 16 adds none; float16 has 11. Below 2^-14 a float16 still holds every
multiple of 2^-24 exactly, so s1 is rounded to one of those: coarser, never inexact. Both can be
read back: all scales of a column are multiples of s1. QServe keeps s2 in a byte and s1 apart, as
the ops of the integer form do (`integer_form`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]

PROTECTED = 119
"""Of 127: the largest int8 value of a column before it is rounded in groups."""
STEP_MAX = 16
"""Largest s2. It covers an asymmetric group over the whole protected range, 2 · 119 / 15; symmetric
groups over all of it clip their ends by less than half a step."""
_BITS = 7  # significant bits of s1
_LEAST = -24  # float16 holds multiples of 2^-24


def units(weight: NDArray[Any]) -> Float:
    """s1 of the columns of a K × N weight, [N]: max|w| / 119, rounded up."""
    wanted = np.abs(weight).max(axis=0, initial=0.0).astype(np.float64) / PROTECTED
    wanted = np.maximum(wanted, 2.0**_LEAST)
    # wanted = f · 2^e with 0.5 ≤ f < 1: an integer of `_BITS` bits times 2^(e - `_BITS`).
    last = np.exp2(np.maximum(np.frexp(wanted)[1] - _BITS, _LEAST))
    return (np.ceil(wanted / last) * last).astype(np.float32)


def snapped(scales: Float, unit: Float) -> Float:
    """The nearest of ±s1 · 1 .. 16 to each scale; `unit` is s1, broadcast against `scales`."""
    steps = np.clip(np.rint(np.abs(scales) / unit), 1, STEP_MAX)
    return np.asarray(np.copysign(steps, scales) * unit, np.float32)


def code_reach(scales: Float, unit: Float) -> NDArray[np.uint8]:
    """How far a code may lie from its zero point, for scales that are multiples of `unit`.

    Rounding to nearest goes no further. Codes that make up for errors of others can, where the
    distance to the last code times s2 is above 127: s2 = 16, or s2 > 8 and few codes on one side.
    """
    return (127 // np.rint(np.abs(scales) / unit)).astype(np.uint8)
