"""The packed layout: golden bytes, identity, padding, and what it refuses."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plane_cases import FORMS, make_planes

from qcompiler.numerics import planes
from qcompiler.numerics.planes import GROUP_SIZES, WIDTHS, Grid, PlaneMatrix, ceil_div

EVERY_WIDTH = pytest.mark.parametrize("bits", WIDTHS)

# Of k = 4i + j, for i = 0 .. 7 and j = 0 .. 3, the code is this times i + j, modulo 2^bits.
STEPS = {2: 1, 3: 1, 4: 1, 5: 3, 6: 6, 8: 25}

# The column's dword in every block of a strip, its byte j first: the low plane and the high one.
GOLDEN = {
    2: (["e4394e93", "e4394e93"], []),
    3: (["e4394e93", "e4394e93"], ["f0783c1e"]),
    4: (["10213243", "32435465", "54657687", "768798a9"], []),
    5: (["306396c9", "96c9fc2f", "fc2f5285", "5285b8eb"], ["c0e0f0f8"]),
    6: (["60c62c82", "2c82e84e", "e84ea40a", "a40a60c6"], ["40505495", "a5e9fafe"]),
    8: ([bytes(25 * (i + j) for j in range(4)).hex() for i in range(8)], []),
}

# Of codes 7k + 13n + kn modulo 2^bits, K = 77 and N = 35.
DIGESTS = {
    2: "d0ed8db250c3a79d",
    3: "bca07134dd4b8eb1",
    4: "a17d7401073736f4",
    5: "2de2aa6bc6903718",
    6: "b77f6c918b5825a6",
    8: "d635772263f78f8c",
}


@EVERY_WIDTH
def test_golden_bytes(bits):
    """The second column of the second panel; all others are 0."""
    codes = np.zeros((32, 18), np.uint8)
    codes[:, 17] = [STEPS[bits] * (k // 4 + k % 4) % (1 << bits) for k in range(32)]
    packed = planes.pack_planes(codes, bits)
    assert packed.shape == (2, 1, 64 * bits)
    assert not packed[0].any()
    dwords = packed.reshape(2, bits, 16, 4)[1]
    low, high = GOLDEN[bits]
    assert [dword.tobytes().hex() for dword in dwords[:, 1]] == low + high
    assert not np.delete(dwords, 1, axis=1).any()


@EVERY_WIDTH
def test_golden_digest(bits):
    k, n = np.ogrid[:77, :35]
    packed = planes.pack_planes(((7 * k + 13 * n + k * n) % (1 << bits)).astype(np.uint8), bits)
    assert packed.shape == (3, 3, 64 * bits)
    assert hashlib.sha256(packed.tobytes()).hexdigest()[:16] == DIGESTS[bits]


def test_golden_groups():
    """Two groups of a column of three bits: z = 5 and m = 1, z = 2 and m = 25."""
    codes = np.array([[7]] * 16 + [[0]], np.uint8)
    zero_points, multiples = np.array([[5], [2]], np.uint8), np.array([[1], [25]], np.uint8)
    scales = np.full(1, 0.5, np.float32)
    w = PlaneMatrix.pack(codes, zero_points, multiples, scales, bits=3, group_size=16)
    assert w.groups is not None
    assert w.groups.shape == (1, 2, 16)
    assert w.groups[0, :, 0].tolist() == [5, 2 + (24 << 3)]
    assert not w.groups[0, :, 1:].any()
    assert w.weights()[:, 0].tolist() == [2] * 16 + [-50]
    assert w.dequantized()[:, 0].tolist() == [1.0] * 16 + [-25.0]


def test_golden_levels():
    """Codes and groups as ever; what they stand for is the table's."""
    codes = np.array([[3]] * 16 + [[0]], np.uint8)
    zero_points, multiples = np.array([[1], [3]], np.uint8), np.array([[1], [20]], np.uint8)
    scales, grid = np.full(1, 0.5, np.float32), Grid((0, 3, 9), 3)
    w = PlaneMatrix.pack(codes, zero_points, multiples, scales, bits=2, group_size=16, grid=grid)
    assert w.grid == Grid((0, 3, 9, 9), 3)
    assert w.groups is not None
    assert w.groups[0, :, 0].tolist() == [1, 3 + (19 << 2)]
    np.testing.assert_array_equal(w.W, planes.pack_planes(codes, 2))
    assert w.weights()[:, 0].tolist() == [9 - 4] * 16 + [-6 * 20]
    assert w.dequantized()[:, 0].tolist() == [2.5] * 16 + [-60.0]


@EVERY_WIDTH
def test_identity_and_padding(bits):
    @settings(max_examples=40, deadline=None)
    @given(st.integers(1, 140), st.integers(1, 40), st.integers(0, 2**32))
    def check(k, n, seed):
        codes = np.random.default_rng(seed).integers(0, 1 << bits, (k, n), dtype=np.uint8)
        packed = planes.pack_planes(codes, bits)
        assert packed.shape == (ceil_div(n, 16), ceil_div(k, 32), 64 * bits)
        np.testing.assert_array_equal(planes.unpack_planes(packed, k, n, bits), codes)
        # Everything, padding included, as a matrix of whole strips and panels.
        whole = planes.unpack_planes(packed, packed.shape[1] * 32, packed.shape[0] * 16, bits)
        assert not whole[k:].any()
        assert not whole[:, n:].any()

    check()


@pytest.mark.parametrize(
    ("bits", "grid"), [(bits, grid) for bits, grid in FORMS.values() if bits < 8], ids=str
)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_weights_of_groups(bits, grid, group_size):
    """Of any bytes, each weight by itself in plain integers, modulo 256."""
    k, n = 2 * group_size + 5, 19
    w = make_planes(k, n, group_size, bits=bits, grid=grid)
    assert w.groups is not None
    w.groups[:] = np.random.default_rng(1).integers(0, 256, w.groups.shape)
    codes, found = planes.unpack_planes(w.W, k, n, bits), w.weights()
    assert found.dtype == np.int8
    for row in (0, 1, group_size - 1, group_size, 2 * group_size + 4):
        for column in range(n):
            byte = int(w.groups[column // 16, row // group_size, column % 16])
            zero_point, multiple = byte % (1 << bits), byte // (1 << bits) + 1
            number = int(codes[row, column])
            if grid is not None:
                number, zero_point = grid.levels[number], zero_point + grid.zero
            value = (number - zero_point) * multiple
            assert int(found[row, column]) % 256 == value % 256


def test_weights_of_8_bits():
    values = np.arange(-127, 128, dtype=np.int8).reshape(15, 17)
    scales = np.linspace(-1, 1, 17, dtype=np.float32)
    w = PlaneMatrix.of_int8(values, scales)
    assert (w.groups, w.group_size) == (None, 15)
    np.testing.assert_array_equal(w.weights(), values)
    np.testing.assert_array_equal(w.dequantized(), values * scales)


def pack(
    bits=4, group_size=16, *, code=0, zero_point=0, multiple=1, groups=2, scale=1.0, grid=None
):
    """A matrix 17 x 3 of one code."""
    return PlaneMatrix.pack(
        np.full((17, 3), code, np.uint8),
        np.full((groups, 3), zero_point, np.uint8),
        np.full((2, 3), multiple, np.uint8),
        np.full(3, scale, np.float32),
        bits=bits,
        group_size=group_size,
        grid=grid,
    )


SIXTEEN = Grid(tuple(range(16, 32)), 20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 7}, "7 bits"),
        ({"bits": 8}, "8 bits"),
        ({"group_size": 48}, "groups of 48"),
        ({"group_size": 512}, "groups of 512"),
        ({"groups": 1}, r"zero_points must have shape \(2, 3\)"),
        ({"group_size": 32}, r"zero_points must have shape \(1, 3\)"),
        ({"zero_point": 16}, r"zero_points must lie in 0 .. 15"),
        ({"multiple": 0}, r"multiples must lie in 1 .. 16"),
        ({"multiple": 17}, r"multiples must lie in 1 .. 16"),
        ({"code": 16}, r"4-bit codes must lie in 0 .. 15"),
        ({"code": 8, "multiple": 16}, "beyond 127"),
        ({"zero_point": 8, "multiple": 16}, "beyond 127"),
        ({"grid": SIXTEEN, "bits": 3}, "no codes of 3 bits for 16 levels"),
        ({"grid": SIXTEEN, "bits": 5}, "no codes of 5 bits for 16 levels"),
        ({"grid": SIXTEEN, "code": 16}, r"4-bit codes must lie in 0 .. 15"),
        ({"grid": SIXTEEN, "zero_point": 16}, r"zero_points must lie in 0 .. 15"),
        ({"grid": SIXTEEN, "code": 15, "multiple": 12}, "beyond 127"),
        ({"grid": SIXTEEN, "zero_point": 6, "code": 7, "bits": 4, "multiple": 12}, "beyond 255"),
        ({"scale": np.nan}, "3 finite float32"),
        ({"scale": np.inf}, "3 finite float32"),
    ],
    ids=str,
)
def test_refusals(changes, message):
    assert pack().weights().shape == (17, 3)
    with pytest.raises(ValueError, match=message):
        pack(**changes)


def test_the_highest_levels_that_have_a_place():
    """A level times its multiple is 255 at most, where it is in use."""
    assert pack(grid=SIXTEEN, code=5, zero_point=1, multiple=12).weights()[0, 0] == 0
    assert pack(grid=SIXTEEN, code=4, zero_point=10, multiple=12).weights()[0, 0] == -120


@pytest.mark.parametrize(
    ("levels", "zero", "message"),
    [
        ((), 0, "levels must ascend"),
        ((0, 3, 2), 0, r"levels must ascend within 0 .. 32, unlike \[0, 3, 2\]"),
        ((-1, 3), 0, "levels must ascend"),
        ((0, 33), 0, "levels must ascend"),
        ((0, 32), -1, "zero must lie in 0 .. 32, unlike -1"),
        ((0, 32), 33, "zero must lie in 0 .. 32, unlike 33"),
    ],
    ids=str,
)
def test_grids_that_are_none(levels, zero, message):
    assert Grid((0, 0, 32), 32).levels == (0, 0, 32)
    with pytest.raises(ValueError, match=message):
        Grid(levels, zero)


def test_what_int8_refuses():
    ones = np.ones(2, np.float32)
    with pytest.raises(ValueError, match="beyond -127"):
        PlaneMatrix.of_int8(np.full((4, 2), -128, np.int8), ones)
    for scales in (ones[:1], ones.astype(np.float64)):
        with pytest.raises(ValueError, match="2 finite float32"):
            PlaneMatrix.of_int8(np.zeros((4, 2), np.int8), scales)


def test_arrays_that_hold_no_codes():
    for codes in (np.zeros((4, 2), np.int8), np.zeros(4, np.uint8), np.zeros((0, 2), np.uint8)):
        with pytest.raises(ValueError, match="no 4-bit codes"):
            planes.pack_planes(codes, 4)
    packed = planes.pack_planes(np.zeros((32, 16), np.uint8), 4)
    for k, n, bits in ((33, 16, 4), (32, 17, 4), (32, 16, 5)):
        with pytest.raises(ValueError, match=f"no {k} x {n} {bits}-bit codes"):
            planes.unpack_planes(packed, k, n, bits)
