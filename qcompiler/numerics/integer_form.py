"""Which quantized weights have the integer form of `planes`, and their exact translation.

    (code - zero) · scale = ((code' - z) · m) · unit

The scales of a column are ± whole multiples m of one number. The largest such number is their
greatest common divisor: a float16 is a whole multiple of 2^-24, and the divisor has no more
significant bits than they have. A negative scale mirrors its codes: code' = top - code,
z = top - zero. Progressive weights always fit, others where a column has one group, or by chance.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qcompiler.numerics.planes import (
    GROUP_SIZES,
    MOST_ROWS,
    WIDTHS,
    PlaneMatrix,
    farthest,
    most_multiple,
)
from qcompiler.numerics.rounding import QuantizedWeight

_LEAST = 2.0**-24  # of which every finite float16 is a whole multiple


def planes_of(weight: QuantizedWeight) -> PlaneMatrix | None:
    """A weight in the integer form, which dequantizes to the same floats; None where it has none.

    It has none where the scales of a column are no small multiples of one number, where a weight
    leaves -127 .. 127, and in sizes that the layout doesn't hold.
    """
    form = weight.form
    held = form.bits in WIDTHS and (form.group_size in GROUP_SIZES or form.bits == 8)
    if not held or weight.codes.size == 0 or weight.codes.shape[0] > MOST_ROWS:
        return None
    found = _multiples(weight.scales, most_multiple(form.bits))
    if found is None:
        return None
    multiples, units = found
    mirror = np.where(weight.scales < 0, np.uint8(form.top), np.uint8(0))
    middle = np.uint8(form.middle)
    zeros = mirror ^ (middle if weight.zero_points is None else weight.zero_points)
    codes = weight.codes ^ weight.spread(mirror)  # top is all ones: top - code
    if (farthest(codes, zeros, form.group_size) * multiples).max() > 127:
        return None
    if form.bits == 8:
        return PlaneMatrix.of_int8((codes - weight.spread(zeros)).view(np.int8), units)
    return PlaneMatrix.pack(
        codes, zeros, multiples, units, bits=form.bits, group_size=form.group_size
    )


def _multiples(
    scales: NDArray[np.float16], most: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]] | None:
    """Scales [G, N] as multiples [G, N], 1 .. `most`, of a number a column, [N]."""
    sizes = np.abs(scales.astype(np.float64)) / _LEAST
    if not np.isfinite(sizes).all() or not sizes.all():
        return None
    whole = sizes.astype(np.int64)
    divisors = np.gcd.reduce(whole, axis=0)
    multiples = whole // divisors
    if multiples.max() > most:
        return None
    return multiples.astype(np.uint8), (divisors * _LEAST).astype(np.float32)


__all__ = ["planes_of"]
