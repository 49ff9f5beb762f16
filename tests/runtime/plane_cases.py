"""Matrices in the integer form, and what they give."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.numerics import reference
from qcompiler.numerics.planes import (
    MOST_LEVEL,
    TABLE_WIDTHS,
    WIDTHS,
    Grid,
    PlaneMatrix,
    ceil_div,
    most_multiple,
    unpack_planes,
)

GRIDS = {
    2: Grid((0, 3, 6, 9), 3),
    3: Grid((1, 4, 7, 10, 12, 15, 20, 32), 9),
    4: Grid((0, *range(2, 16), 17), 1),
}
"""By bits; what the ops get has to be whole."""

# As ops are named: bits and grid.
FORMS = {f"W{bits}": (bits, None) for bits in WIDTHS} | {
    f"T{bits}": (bits, GRIDS[bits]) for bits in TABLE_WIDTHS
}
EVERY_FORM = pytest.mark.parametrize(("bits", "grid"), FORMS.values(), ids=FORMS)


def random_grid(rng: np.random.Generator, bits: int) -> Grid:
    """Any levels, the same ones among them."""
    levels = np.sort(rng.integers(0, MOST_LEVEL + 1, 1 << bits))
    return Grid(tuple(levels.tolist()), int(rng.integers(MOST_LEVEL + 1)))


def numbers_of(bits: int, grid: Grid | None) -> tuple[np.ndarray, int]:
    """What codes stand for, and a zero point of 0."""
    if grid is None:
        return np.arange(1 << bits), 0
    return np.array(grid.levels), grid.zero


def most_multiples(zero_points: np.ndarray, bits: int, grid: Grid | None) -> np.ndarray:
    """The largest with which every code is a weight, 1 or more."""
    numbers, first = numbers_of(bits, grid)
    zeros = zero_points.astype(int) + first
    reach = np.maximum(zeros - numbers[0], numbers[-1] - zeros)
    most = np.minimum(127 // np.maximum(reach, 1), 255 // max(int(numbers[-1]), 1))
    return np.minimum(most, most_multiple(bits))


def make_planes(
    K: int, N: int, group_size: int, *, bits: int, grid: Grid | None = None, seed: int = 0
) -> PlaneMatrix:
    """A random matrix; every group reaches from one end of int8 to the other where its bits can."""
    rng = np.random.default_rng(seed)
    scales = rng.uniform(0.5, 2.0, N).astype(np.float32) / 64
    if bits == 8:
        return PlaneMatrix.of_int8(rng.integers(-127, 128, (K, N), dtype=np.int8), scales)
    groups, top = ceil_div(K, group_size), (1 << bits) - 1
    zero = rng.integers(0, top + 1, (groups, N))
    multiples = rng.integers(1, most_multiples(zero, bits, grid) + 1)
    return PlaneMatrix.pack(
        rng.integers(0, top + 1, (K, N), dtype=np.uint8),
        zero.astype(np.uint8),
        multiples.astype(np.uint8),
        scales,
        bits=bits,
        group_size=group_size,
        grid=grid,
    )


def at_their_ends(
    high: np.ndarray, K: int, group_size: int, *, bits: int, grid: Grid | None
) -> PlaneMatrix:
    """Weights as far from 0 as their bits allow: above it in groups that are `high`, bool [G, N].

    In place of a grid it is the one that reaches farthest to both sides.
    """
    top, ones = (1 << bits) - 1, np.ones(high.shape[1], np.float32)
    if bits == 8:
        values = np.where(high, np.int8(127), np.int8(-127))
        return PlaneMatrix.of_int8(np.repeat(values, group_size, axis=0)[:K], ones)
    zero, multiple = np.where(high, 0, top), min(127 // top, most_multiple(bits))
    if grid is not None:
        grid = Grid((0, MOST_LEVEL), MOST_LEVEL // 2)
        zero, multiple = np.zeros_like(zero), 255 // MOST_LEVEL
    return PlaneMatrix.pack(
        np.repeat(np.where(high, top, 0), group_size, axis=0)[:K].astype(np.uint8),
        zero.astype(np.uint8),
        np.full(high.shape, multiple, np.uint8),
        ones,
        bits=bits,
        group_size=group_size,
        grid=grid,
    )


def expected(codes: np.ndarray, x_scales: np.ndarray, w: PlaneMatrix, bias=None) -> np.ndarray:
    """The product, every float32 operation rounded by itself."""
    sums = reference.integer_product(codes, w)
    y = sums.astype(np.float32) * w.scales * x_scales[:, None]
    return y + (np.float32(0) if bias is None else bias)


def beyond_int8(w: PlaneMatrix) -> np.ndarray:
    """bool [N]: columns with a weight that leaves -127 .. 127, or a level that leaves a byte times
    its multiple, which `pack` would refuse."""
    codes = unpack_planes(w.W, w.K, w.N, w.bits)
    if w.groups is None:
        return (codes == 128).any(axis=0)
    count = w.groups.shape[1]
    byte = w.groups.transpose(1, 0, 2).reshape(count, -1)[:, : w.N].astype(np.int32)
    byte = np.repeat(byte, w.group_size, axis=0)[: w.K]
    zero, multiple = byte & ((1 << w.bits) - 1), (byte >> w.bits) + 1
    numbers, first = numbers_of(w.bits, w.grid)
    number = numbers[codes]
    beyond = (np.abs((number - zero - first) * multiple) > 127) | (number * multiple > 255)
    return beyond.any(axis=0)
