"""The layout of ONNX Runtime's MatMulNBits: codes of a column in blocks along K."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.numerics.rounding import QuantizedWeight

_BLOCKS = (128, 64, 32)


def in_blocks(weight: QuantizedWeight) -> QuantizedWeight:
    """A weight whose columns have one scale in blocks of that scale, as the op has no other.

    The longest blocks that divide K, if any do.
    """
    if weight.form.group_size is not None:
        return weight
    rows = len(weight.codes)
    size = next((each for each in _BLOCKS if rows % each == 0), _BLOCKS[-1])
    groups = -(-rows // size)
    zeros = weight.zero_points
    return QuantizedWeight(
        weight.codes,
        np.repeat(weight.scales, groups, axis=0),
        None if zeros is None else np.repeat(zeros, groups, axis=0),
        replace(weight.form, group_size=size),
    )


def pack(weight: QuantizedWeight) -> list[NDArray[Any]]:
    """B [N, G, group·bits/8], scales float32 [N, G] and, where asymmetric, zero points
    [N, ceil(G·bits/8)], of a weight of 2, 4 or 8 bits.

    Codes lie along K, the first of a byte in its low bits; rows past K hold the zero point, so
    that they decode to 0.
    """
    form = weight.form
    rows, columns = weight.codes.shape
    groups, block = form.groups(rows), weight.block
    codes = np.full((groups * block, columns), form.middle, np.uint8)
    codes[:rows] = weight.codes
    if weight.zero_points is not None and groups * block != rows:
        codes[rows:] = weight.zero_points[-1]
    by_column = np.ascontiguousarray(codes.T).reshape(columns, groups, block)
    scales = np.ascontiguousarray(weight.scales.T.astype(np.float32))
    arrays = [_together(by_column, form.bits), scales]
    if weight.zero_points is not None:
        zeros = np.ascontiguousarray(weight.zero_points.T)
        lacking = -groups % (8 // form.bits)
        if lacking:
            zeros = np.pad(zeros, ((0, 0), (0, lacking)), constant_values=form.middle)
        arrays.append(_together(zeros, form.bits))
    return arrays


def narrowed(weight: QuantizedWeight, bits: int) -> QuantizedWeight | None:
    """The same values in codes of fewer bits, None where these don't hold them."""
    form = replace(weight.form, bits=bits)
    codes, zeros = weight.codes, weight.zero_points
    held = codes if zeros is None else np.concatenate([codes, zeros])
    if held.size == 0:
        return None
    least = int(held.min()) if zeros is not None else weight.form.middle - form.middle
    if held.min() < least or held.max() > least + form.top:
        return None
    return QuantizedWeight(
        codes - np.uint8(least),
        weight.scales,
        None if zeros is None else zeros - np.uint8(least),
        form,
    )


def _together(codes: NDArray[Any], bits: int) -> NDArray[Any]:
    """As many codes in a byte as fit, the first in its low bits."""
    share = 8 // bits
    packed = codes[..., 0::share]
    for part in range(1, share):
        packed = packed | (codes[..., part::share] << np.uint8(part * bits))
    return np.ascontiguousarray(packed)
