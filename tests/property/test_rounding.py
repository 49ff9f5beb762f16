"""Rounding: error bounds, exactness on the grid, and that a search never makes things worse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.formats import WeightFormat
from qcompiler.numerics.rounding import quantize_weight, sqnr_db

shapes = st.tuples(st.integers(1, 300), st.integers(1, 40))
groups = st.sampled_from([32, 64, 128, 256])


def weights(shape, seed, spread=1.0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * spread).astype(np.float32)


@settings(deadline=None, max_examples=60)
@given(shapes, groups, st.sampled_from([4, 8]), st.booleans(), st.integers(0, 2**31))
def test_error_is_at_most_half_a_step(shape, group_size, bits, symmetric, seed):
    w = weights(shape, seed)
    q = quantize_weight(w, WeightFormat(bits=bits, group_size=group_size, symmetric=symmetric))
    step = np.repeat(np.abs(q.scales.astype(np.float32)), group_size, axis=0)[: shape[0]]
    # float16 scales round down by at most 2^-11, which clips the extreme code by top · 2^-11;
    # an asymmetric zero point is itself rounded, which moves the range by up to half a step.
    slack = (1 << bits) * 2.0**-11 + (0.0 if symmetric else 0.5)
    assert np.all(np.abs(q.dequantize() - w) <= step * (0.5 + slack) + 1e-7)
    assert q.codes.max(initial=0) < 1 << bits
    assert q.scales.shape == (-(-shape[0] // group_size), shape[1])


@settings(deadline=None, max_examples=40)
@given(shapes, groups, st.booleans(), st.integers(0, 2**31))
def test_weights_on_the_grid_come_back_exactly(shape, group_size, symmetric, seed):
    rng = np.random.default_rng(seed)
    rows, columns = shape
    count = -(-rows // group_size)
    scale = 2.0 ** rng.integers(-6, 3, (count, columns))
    codes = rng.integers(-7, 8, shape).astype(np.float64)
    # Every group holds both ends of the range, so the range found is the range meant.
    low, high = (-7, 7) if symmetric else (-7, 8)
    codes[::group_size] = high
    last = np.minimum(np.arange(count) * group_size + 1, rows - 1)
    codes[last] = np.where(last % group_size == 0, high, low)[:, None]
    full = [g for g in range(count) if min(rows, (g + 1) * group_size) - g * group_size > 1]
    w = (codes * np.repeat(scale, group_size, axis=0)[:rows]).astype(np.float32)
    q = quantize_weight(
        w, WeightFormat(bits=4, group_size=group_size, symmetric=symmetric)
    ).dequantize()
    for g in full:
        part = slice(g * group_size, (g + 1) * group_size)
        # 7 · 2^k and 15 · 2^k are divided by 7 and 15 in float32: exact powers of two come back.
        np.testing.assert_array_equal(q[part], w[part])


@settings(deadline=None, max_examples=30)
@given(shapes, groups, st.booleans(), st.integers(0, 2**31))
def test_search_never_loses_what_it_minimizes(shape, group_size, symmetric, seed):
    w = weights(shape, seed)
    rng = np.random.default_rng(seed + 1)
    importance = rng.gamma(0.5, 1.0, shape[0]).astype(np.float32) + 1e-6

    def loss(search, weight):
        q = quantize_weight(
            w,
            WeightFormat(bits=4, group_size=group_size, symmetric=symmetric),
            search=search,
            importance=importance,
        )
        return float(np.sum(weight[:, None] * np.square(q.dequantize() - w, dtype=np.float64)))

    ones = np.ones(shape[0], np.float32)
    assert loss("mse", ones) <= loss("none", ones) * (1 + 1e-5)
    assert loss("output", importance) <= loss("none", importance) * (1 + 1e-5)


def test_finer_groups_and_more_bits_are_closer():
    w = weights((512, 64), 0) * np.exp(weights((512, 1), 1))
    snr = {
        (bits, size): sqnr_db(
            w, quantize_weight(w, WeightFormat(bits=bits, group_size=size)).dequantize()
        )
        for bits in (4, 8)
        for size in (32, 64, 128, 256)
    }
    for bits in (4, 8):
        assert snr[bits, 32] > snr[bits, 64] > snr[bits, 128] > snr[bits, 256]
    assert snr[8, 256] > snr[4, 32] + 10


def test_search_gains_on_heavy_tails():
    rng = np.random.default_rng(3)
    w = rng.standard_t(3, (512, 64)).astype(np.float32)
    plain = sqnr_db(w, quantize_weight(w, WeightFormat(bits=4, group_size=128)).dequantize())
    found = sqnr_db(
        w, quantize_weight(w, WeightFormat(bits=4, group_size=128), search="mse").dequantize()
    )
    assert found > plain + 1.0


@pytest.mark.parametrize("symmetric", [True, False])
def test_constant_and_zero_weights(symmetric):
    zero = quantize_weight(
        np.zeros((40, 3), np.float32), WeightFormat(bits=4, group_size=32, symmetric=symmetric)
    )
    assert not zero.dequantize().any()
    same = quantize_weight(
        np.full((40, 3), 0.75, np.float32), WeightFormat(bits=4, group_size=32, symmetric=symmetric)
    )
    np.testing.assert_allclose(same.dequantize(), 0.75, rtol=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(bad):
    w = np.ones((32, 2), np.float32)
    w[3, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize_weight(w, WeightFormat(bits=4, group_size=128))


def test_scales_beyond_float16_are_refused():
    with pytest.raises(ValueError, match="float16"):
        quantize_weight(np.full((32, 2), 1e6, np.float32), WeightFormat(bits=4, group_size=128))


def test_result_does_not_depend_on_chunks(monkeypatch):
    w = weights((96, 50), 5)
    whole = quantize_weight(w, WeightFormat(bits=4, group_size=32), search="mse")
    monkeypatch.setattr("qcompiler.numerics.rounding._CHUNK", 96 * 7)
    parts = quantize_weight(w, WeightFormat(bits=4, group_size=32), search="mse")
    np.testing.assert_array_equal(whole.codes, parts.codes)
    np.testing.assert_array_equal(whole.scales, parts.scales)
