"""The packed layout: golden bytes, identity, and padding that decodes to 0."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_models import BITS

from qcompiler.formats import GROUP_SIZES, WeightFormat
from qcompiler.numerics import packing
from qcompiler.numerics.packing import PackedMatrix

FOUR, EIGHT = (WeightFormat(bits=bits, group_size=32) for bits in (4, 8))


@st.composite
def matrices(draw, bits):
    k, n = draw(st.integers(1, 140)), draw(st.integers(1, 40))
    form = WeightFormat(
        bits=bits, group_size=draw(st.sampled_from(GROUP_SIZES)), symmetric=draw(st.booleans())
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    codes = rng.integers(0, 1 << bits, (k, n), dtype=np.uint8)
    zero_points = None
    if not form.symmetric:
        zero_points = rng.integers(0, 1 << bits, (form.groups(k), n), dtype=np.uint8)
    return codes, zero_points, form


@pytest.mark.parametrize("bits", BITS)
def test_identity_and_padding(bits):
    @settings(max_examples=60, deadline=None)
    @given(matrices(bits))
    def check(case):
        codes, zero_points, form = case
        k, n = codes.shape
        packed = packing.pack_codes(codes, zero_points, form)
        assert packed.shape == packing.packed_shape(form, k, n)
        np.testing.assert_array_equal(packing.unpack_codes(packed, k, n, form), codes)
        # Everything, padding included, as a matrix of whole blocks and panels.
        rows, columns = packed.shape[1] * form.depth, packed.shape[0] * 16
        whole = packing.unpack_codes(packed, rows, columns, form)
        zero = form.middle
        assert (whole[:, n:] == zero).all()
        last = np.full(n, zero) if zero_points is None else zero_points[-1]
        assert (whole[k:, :n] == last).all()

    check()


def test_groups_identity():
    a = np.arange(3 * 37, dtype=np.float16).reshape(3, 37)
    packed = packing.pack_groups(a, 0)
    assert packed.shape == (3, 3, 16)
    assert packed[1, 2, 4] == a[2, 20]
    assert not packed[2, :, 5:].any()
    np.testing.assert_array_equal(packing.unpack_groups(packed, 37), a)


def test_golden_w4():
    """k counts 0 .. 9 in column 0, column 1 is 15 - k, and K = 10 is padded with 8."""
    codes = np.stack([np.arange(10), 15 - np.arange(10)], axis=1).astype(np.uint8)
    packed = packing.pack_codes(codes, None, FOUR)
    assert packed.shape == (1, 2, 64)
    assert packed[0, 0, :12].tobytes().hex() == "40516273" + "bfae9d8c" + ("88888888")
    assert packed[0, 1, :12].tobytes().hex() == "88898888" + "87868888" + "88888888"


def test_golden_w4_second_panel():
    codes = np.zeros((8, 17), np.uint8)
    codes[:, 16] = range(1, 9)
    packed = packing.pack_codes(codes, None, FOUR)
    assert not packed[0].any()
    assert packed[1, 0, :8].tobytes().hex() == "51627384" + "88888888"


def test_golden_w8():
    codes = np.stack([np.arange(6), 255 - np.arange(6)], axis=1).astype(np.uint8)
    zero_points = np.array([[7, 9]], np.uint8)
    packed = packing.pack_codes(codes, zero_points, EIGHT)
    assert packed.shape == (1, 2, 64)
    assert packed[0, 0, :12].tobytes().hex() == "00010203" + "fffefdfc" + "80808080"
    assert packed[0, 1, :12].tobytes().hex() == "04050707" + "fbfa0909" + "80808080"


def test_dequantized():
    codes = np.array([[8, 15], [0, 7]], np.uint8)
    scales = np.array([[0.5, 2.0]])
    w = PackedMatrix.pack(codes, scales, None, FOUR)
    np.testing.assert_array_equal(w.dequantized(), [[0, 14], [-4, -2]])


@pytest.mark.parametrize(
    ("codes", "zero_points", "message"),
    [
        (np.full((8, 16), 16, np.uint8), None, "0 .. 15"),
        (np.zeros((8, 16), np.int8), None, "uint8"),
        (np.zeros((0, 16), np.uint8), None, "non-empty"),
        (np.zeros(8, np.uint8), None, r"\[K, N\]"),
        (np.zeros((33, 2), np.uint8), np.zeros((1, 2), np.uint8), r"\[2, 2\]"),
    ],
)
def test_refusals(codes, zero_points, message):
    with pytest.raises(ValueError, match=message):
        packing.pack_codes(codes, zero_points, FOUR)


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="K=9 N=1"):
        packing.unpack_codes(np.zeros((1, 1, 64), np.uint8), 9, 1, FOUR)
    codes = np.zeros((33, 2), np.uint8)
    with pytest.raises(ValueError, match=r"\[2, 2\]"):
        PackedMatrix.pack(codes, np.ones((1, 2)), None, FOUR)
    with pytest.raises(ValueError, match="float16"):
        PackedMatrix.pack(codes, np.full((2, 2), 1e6), None, FOUR)
