"""Every matrix kernel on every ISA: the bits of the numpy reference, no others."""

from __future__ import annotations

import numpy as np
import pytest
from plane_cases import EVERY_FORM, expected, make_planes, most_multiples

from qcompiler.numerics.planes import MOST_LEVEL, Grid, PlaneMatrix

# K, N, group size: below, at and above quads, strips, panels and groups.
SHAPES = [
    (1, 1, 16),
    (7, 5, 32),
    (40, 16, 16),
    (33, 17, 32),
    (64, 48, 64),
    (100, 35, 16),
    (129, 64, 128),
    (300, 70, 256),
    (520, 150, 32),
    (4200, 100, 64),
]
ROWS = (1, 2, 3, 4, 5, 6, 7, 9, 13)
# Whole tiles of 16, tiles that share rows, and more than a kernel takes at a time.
MANY_ROWS = (16, 17, 31, 40, 150, 300)


def problem(m: int, k: int, seed: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    q = rng.integers(-127, 128, (m, k), dtype=np.int8)
    return q, rng.uniform(0.01, 3.0, m).astype(np.float32)


def same_bits(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


@EVERY_FORM
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_same_bits_as_the_reference(kernels, isa, shape, bits, grid):
    w = make_planes(*shape, bits=bits, grid=grid)
    bias = np.random.default_rng(1).normal(size=w.N).astype(np.float32) if bits % 2 else None
    for m in (*ROWS, *(MANY_ROWS if w.K <= 520 else (16, 40))):
        q, scales = problem(m, w.K)
        scales[0] = np.nan if m > 2 else scales[0]
        with np.errstate(invalid="ignore"):
            want = expected(q, scales, w, bias)
        got = kernels.linear(isa, q, scales, w, bias)
        assert np.isnan(got).sum() == np.isnan(want).sum()
        same_bits(np.nan_to_num(got), np.nan_to_num(want))


@EVERY_FORM
@pytest.mark.parametrize("ends", ["lowest", "highest", "mixed"])
def test_nothing_saturates(kernels, isa, bits, grid, ends):
    k, n, group = 2048, 48, 32
    rng = np.random.default_rng(0)
    if bits == 8:
        values = {"lowest": [-127], "highest": [127], "mixed": [-127, 127]}[ends]
        w = PlaneMatrix.of_int8(
            rng.choice(np.array(values, np.int8), (k, n)), np.ones(n, np.float32)
        )
    else:
        top, groups = (1 << bits) - 1, k // group
        if grid is not None:
            grid = Grid((0,) * top + (MOST_LEVEL,), 0)
        zero = np.full((groups, n), {"lowest": top, "highest": 0, "mixed": top // 2}[ends])
        codes = {"lowest": [0], "highest": [top], "mixed": [0, top]}[ends]
        w = PlaneMatrix.pack(
            rng.choice(np.array(codes, np.uint8), (k, n)),
            zero.astype(np.uint8),
            most_multiples(zero, bits, grid).astype(np.uint8),
            np.ones(n, np.float32),
            bits=bits,
            group_size=group,
            grid=grid,
        )
    q = np.concatenate(
        [np.full((2, k), 127), np.full((2, k), -127), rng.choice([-127, 127], (5, k))]
    )
    q = np.concatenate([q, q]).astype(np.int8)
    for m in (1, 4, 18):
        same_bits(
            kernels.linear(isa, q[-m:], np.ones(m, np.float32), w),
            expected(q[-m:], np.ones(m, np.float32), w),
        )


@EVERY_FORM
def test_any_byte_is_read_without_a_trap(kernels, isa, bits, grid):
    """Groups that leave int8, and codes beyond N and K of any kind: other columns are right."""
    w = make_planes(200, 35, 16, bits=bits, grid=grid)
    rng = np.random.default_rng(3)
    W = w.W.copy()
    hostile = PlaneMatrix(
        *(w.bits, w.group_size, w.K, w.N),
        rng.integers(0, 256, W.shape, dtype=np.uint8),
        None if w.groups is None else rng.integers(0, 256, w.groups.shape, dtype=np.uint8),
        w.scales,
        w.grid,
    )
    for m in (1, 3, 20):
        q, scales = problem(m, w.K)
        assert kernels.linear(isa, q, scales, hostile).shape == (m, 35)


@EVERY_FORM
def test_bits_do_not_depend_on_the_tile(kernels, isa, bits, grid):
    w = make_planes(1100, 100, 64, bits=bits, grid=grid)
    q, scales = problem(45, 1100)
    whole = kernels.linear(isa, q, scales, w)
    for rows in ((0, 1), (1, 3), (3, 6), (6, 10), (8, 13), (8, 24), (0, 17), (5, 44)):
        for panels in ((0, 1), (1, 3), (3, 7), (6, 7)):
            part = kernels.linear(isa, q, scales, w, rows=rows, panels=panels)
            same_bits(
                part, np.ascontiguousarray(whole[slice(*rows), panels[0] * 16 : panels[1] * 16])
            )


def test_tiles_of_others_stay_configured(kernels):
    """Libraries that configure AMX once a thread must find it so after a product of ours."""
    theirs = np.zeros(64, np.uint8)
    theirs[0], theirs[16], theirs[48] = 1, 28, 7  # palette, and one tile of 7 rows of 28 bytes
    if kernels.tiles(theirs) is None:
        pytest.skip("this machine has no AMX")
    w = make_planes(200, 40, 64, bits=4)
    q, scales = problem(32, 200)
    try:
        kernels.linear("amxint8", q, scales, w)
        np.testing.assert_array_equal(kernels.tiles(), theirs)
    finally:
        kernels.tiles(np.zeros(64, np.uint8))
    kernels.linear("amxint8", q, scales, w)
    assert not kernels.tiles().any()
