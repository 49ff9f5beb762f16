"""Which quantized weights have the integer form of `planes`, and their exact translation.

    (code - zero) · scale = ((code' - z) · m) · unit

The scales of a column are ± whole multiples m of one number. The largest such number is their
greatest common divisor. A negative scale mirrors its codes: code' = top - code, z = top - zero.
Weights of less than 8 bits that we round always fit, others where a column has one group, or by
chance. A graph says nothing of a width that ONNX has no type for: codes get the narrowest width
that holds them and their multiples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.numerics.planes import (
    GROUP_SIZES,
    MOST_ROWS,
    WIDTHS,
    PlaneMatrix,
    ceil_div,
    farthest,
    most_multiple,
)
from qcompiler.numerics.rounding import QuantizedWeight

_SIGNIFICANT = 24  # bits of a float32


@dataclass(frozen=True)
class _Integers:
    """A weight whose scales are multiples of one number a column."""

    codes: NDArray[np.uint8]
    zero_points: NDArray[np.uint8]
    multiples: NDArray[np.uint8]
    units: NDArray[np.float32]
    bits: int


def planes_of(weight: QuantizedWeight) -> PlaneMatrix | None:
    """A weight in the integer form, which dequantizes to the same floats; None where it has none.

    It has none where the scales of a column are no small multiples of one number, where a weight
    leaves -127 .. 127, and in sizes that the layout doesn't hold.
    """
    found = _integers(weight)
    if found is None:
        return None
    if found.bits == 8:
        values = found.codes - weight.spread(found.zero_points)
        return PlaneMatrix.of_int8(values.view(np.int8), found.units)
    zeros, multiples, size = found.zero_points, found.multiples, weight.form.group_size
    if size is None:  # any groups will do
        size = GROUP_SIZES[-1]
        count = ceil_div(len(found.codes), size)
        zeros, multiples = (np.repeat(each, count, axis=0) for each in (zeros, multiples))
    return PlaneMatrix.pack(
        found.codes, zeros, multiples, found.units, bits=found.bits, group_size=size
    )


def planes_width(weight: QuantizedWeight) -> int | None:
    """Bits that a weight has in the integer form, None where it has none."""
    found = _integers(weight)
    return None if found is None else found.bits


def _integers(weight: QuantizedWeight) -> _Integers | None:
    form = weight.form
    grouped = form.group_size is None or form.group_size in GROUP_SIZES
    held = form.bits == 8 or (grouped and form.bits in WIDTHS)
    if not held or weight.codes.size == 0 or weight.codes.shape[0] > MOST_ROWS:
        return None
    found = _multiples(weight.scales, most_multiple(WIDTHS[0]))
    if found is None:
        return None
    multiples, units = found
    mirror = np.where(weight.scales < 0, np.uint8(form.top), np.uint8(0))
    middle = np.uint8(form.middle)
    zeros = mirror ^ (middle if weight.zero_points is None else weight.zero_points)
    codes = weight.codes ^ weight.spread(mirror)  # top is all ones: top - code
    if (farthest(codes, zeros, weight.block) * multiples).max() > 127:
        return None
    least = min(codes.min(), zeros.min())
    most, multiple = max(codes.max(), zeros.max()) - least, multiples.max()
    fit = (b for b in WIDTHS if most < 1 << b and multiple <= most_multiple(b))
    bits = next((b for b in fit if grouped or b == 8), None)
    if bits is None:
        return None
    return _Integers(codes - least, zeros - least, multiples, units, bits)


def _multiples(
    scales: NDArray[Any], most: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]] | None:
    """Scales [G, N] as multiples [G, N], 1 .. `most`, of a number a column, [N]."""
    sizes = np.abs(scales.astype(np.float64))
    least = sizes.min(axis=0)
    if not np.isfinite(sizes).all() or not least.all() or (sizes.max(axis=0) > most * least).any():
        return None
    # The last bit of a column's least scale, and so of all of them.
    last = np.exp2(np.frexp(least)[1] - _SIGNIFICANT)
    whole = (sizes / last).astype(np.int64)
    divisors = np.gcd.reduce(whole, axis=0)
    multiples = whole // divisors
    if multiples.max() > most:
        return None
    return multiples.astype(np.uint8), (divisors * last).astype(np.float32)


__all__ = ["planes_of", "planes_width"]
