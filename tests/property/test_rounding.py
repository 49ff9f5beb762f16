"""Rounding: error bounds, exactness on the grid, and that a search never makes things worse."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.formats import GROUP_SIZES, WIDTHS, WeightFormat
from qcompiler.numerics.progressive import protected, units
from qcompiler.numerics.rounding import decibel, quantize_weight, sqnr_db

shapes = st.tuples(st.integers(1, 300), st.integers(1, 40))
groups = st.sampled_from(GROUP_SIZES)


def weights(shape, seed, spread=1.0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * spread).astype(np.float32)


@settings(deadline=None, max_examples=60)
@given(shapes, st.integers(0, 2**31))
def test_error_of_eight_bits_is_at_most_half_a_step(shape, seed):
    w = weights(shape, seed)
    q = quantize_weight(w, WeightFormat(bits=8))
    assert np.all(np.abs(q.dequantize() - w) <= q.scales * (0.5 + 1e-5))
    assert q.scales.shape == (1, shape[1])


@settings(deadline=None, max_examples=40)
@given(shapes, st.sampled_from(["none", "mse"]), st.integers(0, 2**31))
def test_eight_bits_on_the_grid_come_back_exactly(shape, search, seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(-127, 128, shape)
    codes[0] = 127  # the range found is the range meant
    # 127 · 2^k is divided by 127 in float32: exact powers of two come back.
    w = (codes * 2.0 ** rng.integers(-6, 3, shape[1])).astype(np.float32)
    q = quantize_weight(w, WeightFormat(bits=8), search=search)
    np.testing.assert_array_equal(q.dequantize(), w)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 6),
    st.integers(1, 20),
    groups,
    st.sampled_from(WIDTHS[:-1]),
    st.booleans(),
    st.sampled_from(["none", "mse"]),
    st.integers(0, 2**31),
)
def test_narrow_weights_on_the_grid_come_back_exactly(
    count, columns, group_size, bits, symmetric, search, seed
):
    rng = np.random.default_rng(seed)
    form = WeightFormat(bits=bits, group_size=group_size, symmetric=symmetric)
    # Every group holds both ends of the range, so the range found is the range meant.
    low = 1 - form.middle if symmetric else -form.middle
    codes = rng.integers(low, form.middle, (count, group_size, columns))
    codes[:, 0], codes[:, 1] = form.middle - 1, low
    most = min(form.most_multiple, protected(form) // -low)
    steps = rng.integers(1, most + 1, (count, 1, columns))
    # One more group with the largest weight of the column, which makes `unit` its s1.
    largest = np.full((1, group_size, columns), protected(form))
    unit = rng.integers(64, 128, columns) * 2.0 ** rng.integers(-90, 80, columns)
    w = (np.concatenate([codes * steps, largest]) * unit).astype(np.float32)
    q = quantize_weight(w.reshape(-1, columns), form, search=search)
    np.testing.assert_array_equal(q.scales[:count], (steps * unit)[:, 0])
    np.testing.assert_array_equal(q.dequantize().reshape(w.shape)[:count], w[:count])


@settings(deadline=None, max_examples=30)
@given(shapes, groups, st.sampled_from(WIDTHS), st.booleans(), st.integers(0, 2**31))
def test_search_never_loses_what_it_minimizes(shape, group_size, bits, symmetric, seed):
    w = weights(shape, seed)
    rng = np.random.default_rng(seed + 1)
    importance = rng.gamma(0.5, 1.0, shape[0]).astype(np.float32) + 1e-6

    def loss(search, weight):
        q = quantize_weight(
            w,
            WeightFormat(bits=bits, group_size=group_size, symmetric=symmetric),
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
        for bits in WIDTHS
        for size in (32, 64, 128, 256)
    }
    for bits in WIDTHS:
        assert snr[bits, 32] > snr[bits, 64] > snr[bits, 128] > snr[bits, 256]
    for less, more in itertools.pairwise(WIDTHS):
        assert snr[more, 128] > snr[less, 128] + 3
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
@pytest.mark.parametrize("bits", WIDTHS)
def test_constant_and_zero_weights(bits, symmetric):
    form = WeightFormat(bits=bits, group_size=32, symmetric=symmetric)
    assert not quantize_weight(np.zeros((40, 3), np.float32), form).dequantize().any()
    same = quantize_weight(np.full((40, 3), 0.75, np.float32), form, search="mse").dequantize()
    if bits == 8:
        np.testing.assert_allclose(same, 0.75, rtol=1e-3)
    else:
        # Half of s1 in every step between zero and the value.
        np.testing.assert_allclose(same, 0.75, atol=form.top * 0.75 / protected(form) / 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(bad):
    w = np.ones((32, 2), np.float32)
    w[3, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize_weight(w, WeightFormat(bits=4, group_size=128))


@pytest.mark.parametrize("power", [100, 20, -20, -80])
@pytest.mark.parametrize("bits", WIDTHS)
def test_weights_may_be_of_any_size(power, bits):
    w, form = weights((96, 8), 11), WeightFormat.planned(bits, 32, symmetric=True)
    usual, found = (quantize_weight(each, form) for each in (w, np.ldexp(w, power)))
    np.testing.assert_array_equal(found.codes, usual.codes)
    np.testing.assert_array_equal(found.scales, np.ldexp(usual.scales, power))


def test_result_does_not_depend_on_chunks(monkeypatch):
    w = weights((96, 50), 5)
    whole = quantize_weight(w, WeightFormat(bits=4, group_size=32), search="mse")
    monkeypatch.setattr("qcompiler.numerics.rounding._CHUNK", 96 * 7)
    parts = quantize_weight(w, WeightFormat(bits=4, group_size=32), search="mse")
    np.testing.assert_array_equal(whole.codes, parts.codes)
    np.testing.assert_array_equal(whole.scales, parts.scales)


@pytest.mark.parametrize(("bits", "lost"), [(2, 0.25), (3, 0.1), (4, 0.2)])
def test_the_search_is_close_to_trying_everything(bits, lost):
    """Every multiple with every zero point, in groups of Gaussian weights."""
    w = weights((16 * 12, 40), 0)
    form = WeightFormat(bits=bits, group_size=16, symmetric=False)
    grouped, unit = w.reshape(12, 16, 40), units(w, form)
    best = np.full((12, 1, 40), np.inf)
    for multiple, zero in itertools.product(range(1, form.most_multiple + 1), form.zeros):
        scale, reach = multiple * unit, 127 // multiple
        codes = np.clip(np.rint(grouped / scale) + zero, max(zero - reach, 0), zero + reach)
        rounded = (np.minimum(codes, form.top) - zero) * scale
        best = np.minimum(best, np.square(rounded - grouped).sum(axis=1, keepdims=True))
    found = quantize_weight(w, form, search="mse").dequantize() - w
    assert decibel(float(np.square(found).sum()), float(best.sum())) < lost


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
def test_codes_have_room_on_both_sides(bits):
    """Codes and zero points move together: what they stand for is the same."""
    weight = np.random.default_rng(bits).standard_t(4, (96, 64)).astype(np.float32)
    weight[:16] += np.abs(weight[:16]).max()  # a group on one side of zero: its zero point can't go
    form = WeightFormat(bits=bits, group_size=16, symmetric=False)
    found = quantize_weight(weight, form, search="output", importance=np.ones(96))
    codes = found.codes.reshape(6, 16, 64).astype(int)
    below, above = codes.min(axis=1), form.top - codes.max(axis=1)
    assert found.zero_points is not None
    bound = (found.zero_points == 0) | (found.zero_points == form.top)
    assert np.all((np.abs(below - above) <= 1) | bound)
    assert np.any((below > 0) & (above > 0))
