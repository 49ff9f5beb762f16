"""Which quantized weights have the integer form of `planes`, and their exact translation.

    (code - zero) · scale = ((code' - z) · m) · unit

The scales of a column are ± whole multiples m of one number. The largest such number is their
greatest common divisor. A negative scale mirrors its codes: code' = top - code, z = top - zero.
Weights of less than 8 bits that we round always fit, others where a column has one group, or by
chance. A graph says nothing of a width that ONNX has no type for: codes get the narrowest width
that holds them and their multiples. Where few of them are in use, a narrower one may hold them as
numbers of the levels of a grid.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.numerics.planes import (
    GROUP_SIZES,
    MOST_LEVEL,
    MOST_ROWS,
    TABLE_WIDTHS,
    WIDTHS,
    Grid,
    PlaneMatrix,
    U8Array,
    ceil_div,
    farthest,
    highest,
    most_multiple,
    translated,
)
from qcompiler.numerics.rounding import QuantizedWeight

_SIGNIFICANT = 24  # bits of a float32
_CHUNK = 1 << 18  # codes that are looked at together


@dataclass(frozen=True)
class _Integers:
    """A weight whose scales are multiples of one number a column."""

    codes: U8Array
    """Themselves, with a grid too."""
    zero_points: U8Array
    multiples: U8Array
    units: NDArray[np.float32]
    bits: int
    grid: Grid | None


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
    codes, zeros, grid = found.codes, found.zero_points, found.grid
    if grid is not None:
        numbers = [bisect_left(grid.levels, level) for level in range(MOST_LEVEL + 1)]
        codes, zeros = translated(codes, numbers), zeros - np.uint8(grid.zero)
    multiples, size = found.multiples, weight.form.group_size
    if size is None:  # any groups will do
        size = GROUP_SIZES[-1]
        count = ceil_div(len(found.codes), size)
        zeros, multiples = (np.repeat(each, count, axis=0) for each in (zeros, multiples))
    return PlaneMatrix.pack(
        codes, zeros, multiples, found.units, bits=found.bits, group_size=size, grid=grid
    )


def planes_form(weight: QuantizedWeight) -> tuple[int, bool] | None:
    """Bits that a weight has in the integer form and whether it has a grid; None: no such form."""
    found = _integers(weight)
    return None if found is None else (found.bits, found.grid is not None)


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
    codes, zeros = codes - least, zeros - least
    most, multiple = max(codes.max(), zeros.max()), multiples.max()
    fit = (b for b in WIDTHS if most < 1 << b and multiple <= most_multiple(b))
    bits = next((b for b in fit if grouped or b == 8), None)
    table = _table(codes, zeros, multiples, weight.block, bits or WIDTHS[-1]) if grouped else None
    if table is not None:
        return _Integers(codes, zeros, multiples, units, *table)
    return None if bits is None else _Integers(codes, zeros, multiples, units, bits, None)


def _table(
    codes: U8Array, zeros: U8Array, multiples: U8Array, block: int, limit: int
) -> tuple[int, Grid] | None:
    """Fewest bits that number the codes in use, and the grid of these; None for `limit` or more."""
    zero = int(zeros.min())
    span, multiple = int(zeros.max()) - zero, multiples.max()
    widths = [
        bits
        for bits in TABLE_WIDTHS
        if bits < limit and span < 1 << bits and multiple <= most_multiple(bits)
    ]
    if not widths or max(int(codes.max()), zero) > MOST_LEVEL:
        return None
    levels = _used(codes, 1 << widths[-1])
    if levels is None or (highest(codes, block) * multiples).max() > 255:
        return None
    return next(bits for bits in widths if len(levels) <= 1 << bits), Grid(levels, zero)


def _used(codes: U8Array, most: int) -> tuple[int, ...] | None:
    """The codes in use, None for more than `most`."""
    used = np.zeros(256, np.bool_)
    step = max(1, _CHUNK // codes.shape[1])
    for start in range(0, len(codes), step):
        used |= np.bincount(codes[start : start + step].ravel(), minlength=256) > 0
        if used.sum() > most:
            return None
    return tuple(np.flatnonzero(used).tolist())


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


__all__ = ["planes_form", "planes_of"]
