"""Progressive groups: exact in float32, int8 whatever chose the codes, and close to free scales."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.formats import GRIDS, GROUP_SIZES, WIDTHS, WeightFormat
from qcompiler.numerics.descent import descend
from qcompiler.numerics.gptq import gptq, moments
from qcompiler.numerics.integer_form import planes_of
from qcompiler.numerics.progressive import LEAST, protected, units
from qcompiler.numerics.rounding import QuantizedWeight, decibel, quantize_weight

NARROW = [bits for bits in WIDTHS if bits < 8]
SEARCHES = ("none", "mse", "output")

shapes = st.tuples(st.integers(1, 300), st.integers(1, 40))
even = st.builds(
    WeightFormat,
    bits=st.sampled_from(NARROW),
    group_size=st.sampled_from(GROUP_SIZES),
    symmetric=st.booleans(),
)
GRID_FORMS = [
    WeightFormat(bits=bits, group_size=size, symmetric=False, grid=grid)
    for (_, bits), grid in GRIDS.items()
    for size in (16, 64)
]
forms = even | st.sampled_from(GRID_FORMS)


def weights(shape: tuple[int, int], seed: int, spread: float = 1.0) -> np.ndarray:
    """Channels and columns of very different sizes, some columns zero."""
    rng = np.random.default_rng(seed)
    w = rng.standard_t(4, shape) * np.exp(spread * rng.standard_normal((shape[0], 1)))
    w *= np.exp2(rng.integers(-40, 40, shape[1]))
    w[:, rng.random(shape[1]) < 0.1] = 0.0
    return w.astype(np.float32)


def int8_values(q: QuantizedWeight, unit: np.ndarray) -> np.ndarray:
    """What a kernel would multiply, where the scales are whole multiples of `unit`."""
    steps = q.scales / unit.astype(np.float64)
    np.testing.assert_array_equal(steps, np.rint(steps))
    assert np.all((np.abs(steps) >= 1) & (np.abs(steps) <= q.form.most_multiple))
    assert q.codes.max(initial=0) * np.abs(steps).max(initial=1) <= 255 or q.form.grid is None
    assert set(np.unique(q.codes)) <= set(q.form.levels)
    zero = q.form.middle if q.zero_points is None else q.spread(q.zero_points.astype(np.int64))
    return (q.codes.astype(np.int64) - zero) * q.spread(steps)


def check(q: QuantizedWeight, w: np.ndarray) -> None:
    unit = units(w, q.form)
    integers = int8_values(q, unit)
    assert np.abs(integers).max(initial=0) <= 127
    # float64 has no error here: neither has float32.
    np.testing.assert_array_equal(integers * unit.astype(np.float64), q.dequantize())


@settings(deadline=None, max_examples=120)
@given(shapes, forms, st.sampled_from(SEARCHES), st.integers(0, 2**31))
def test_weights_are_int8_times_one_float_a_column(shape, form, search, seed) -> None:
    w = weights(shape, seed)
    importance = np.random.default_rng(seed).gamma(0.5, 1.0, shape[0])
    q = quantize_weight(w, form, search=search, importance=importance)
    check(q, w)
    least, greatest = q.limits()  # rounding to nearest never meets them
    for g in range(len(q.scales)):
        part = q.codes[g * form.group_size : (g + 1) * form.group_size]
        assert np.all((part >= least[g]) & (part <= greatest[g]))


@settings(deadline=None, max_examples=80)
@given(shapes, even, st.integers(0, 2**31))
def test_steps_are_as_long_as_the_range_wants(shape, form, seed) -> None:
    """At most s1 longer, and so long that the ends of the range are met to half a step.

    A zero point, a whole number of steps itself, moves the range by up to half a step, and by one
    where the range lies on one side of zero.
    """
    w = weights(shape, seed)
    q = quantize_weight(w, form)
    step = np.abs(q.scales)
    starts = np.arange(0, shape[0], form.group_size)
    high = np.maximum(np.maximum.reduceat(w, starts), 0.0)
    low = np.minimum(np.minimum.reduceat(w, starts), 0.0)
    if form.symmetric:
        wanted = np.maximum(high, -low) / (form.middle - 1)
    else:
        wanted = (high - low) / form.top
    assert np.all(step <= np.maximum(wanted + units(w, form), 0.0) * (1 + 1e-6))
    error = np.abs(q.dequantize() - w)
    assert np.all(error <= q.spread(step) * (0.5 if form.symmetric else 1.5) * (1 + 1e-5))


@pytest.mark.parametrize(
    ("bits", "lost"), [(2, 0.1), (3, 0.2), (4, 1.2), (5, 2.6), (6, 4.2)], ids=str
)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("search", SEARCHES)
def test_error_is_close_to_that_of_free_scales(
    bits: int, lost: float, symmetric: bool, search, monkeypatch
) -> None:
    """`lost`: decibels at most in groups of 16, half of it in groups of 128.

    The more bits, the fewer multiples, and the further from the range that a group wants.
    """
    rng = np.random.default_rng(0)
    importance = rng.gamma(0.5, 1.0, 1024)
    error_weight = importance[:, None] if search == "output" else 1.0
    for size, most in ((16, lost), (128, lost / 2)):
        form = WeightFormat(bits=bits, group_size=size, symmetric=symmetric)
        for w in (rng.standard_normal((1024, 64)), rng.standard_t(5, (1024, 64))):

            def error(form: WeightFormat = form, w: np.ndarray = w) -> float:
                q = quantize_weight(w, form, search=search, importance=importance)
                return float(np.sum(np.square(q.dequantize() - w) * error_weight))

            ours = error()
            with monkeypatch.context() as free:
                free.setattr(
                    "qcompiler.numerics.rounding.snapped",
                    lambda scale, *_: np.maximum(scale, LEAST),
                )
                free.setattr("qcompiler.numerics.rounding.code_reach", lambda *_: 0)
                assert decibel(ours, error()) <= most


@settings(deadline=None, max_examples=50)
@given(
    st.integers(2, 200),
    st.integers(1, 16),
    forms,
    st.sampled_from([0.0, 0.25]),
    st.integers(0, 2**31),
)
def test_int8_whatever_moves_the_codes(rows, columns, form, alpha, seed) -> None:
    rng = np.random.default_rng(seed)
    # Every group spans the protected range, and nearly equal channels take up each other's errors:
    # codes are driven to their limits.
    w = rng.uniform(-1.0, 1.0, (rows, columns)).astype(np.float32)
    x = rng.standard_normal((4 * rows, 1)) + 0.1 * rng.standard_normal((4 * rows, rows))
    found = moments([x], [x + 0.1 * rng.standard_normal(x.shape)])
    start = quantize_weight(w, form)
    chosen = gptq(w, start, found, alpha=alpha)
    better = descend(w, chosen, found, alpha=alpha, sweeps=3)
    assert chosen.reach is start.reach
    check(chosen, w)
    planes = planes_of(better)  # the units are others now
    assert planes is not None and planes.bits <= form.bits
    np.testing.assert_array_equal(planes.dequantized(), better.dequantize())
    least, greatest = (better.spread(each) for each in better.limits())
    assert np.all((better.codes >= least) & (better.codes <= greatest))


def test_limits_bind_and_are_needed() -> None:
    """A group that reaches to both ends of the column: s2 = 16, and 8 · 16 is no int8 value."""
    form = WeightFormat(bits=4, group_size=32, symmetric=False)
    end = protected(form)
    assert end == 119
    w = np.array([[end, 50.0], [-end, 40.0], [4.0, 0.0]], np.float32)
    q = quantize_weight(w, form)
    assert q.zero_points is not None and q.reach is not None
    np.testing.assert_array_equal(q.reach, [[7, 15]])
    least, greatest = q.limits()
    np.testing.assert_array_equal(least, [[0, 0]])
    np.testing.assert_array_equal(greatest, [[14, 15]])
    np.testing.assert_array_equal(q.zero_points, [[7, 0]])
    x = np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 1.01]], np.float32)
    far = np.array([[end, 50.0], [end, 40.0], [end, 0.0]], np.float32)
    chosen = gptq(far, q, moments([x]))
    assert chosen.codes[:, 0].max() == 14
    check(chosen, w)


@pytest.mark.parametrize("bits", NARROW)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("size", [2.0**-90, 2.0**-15, 1.0, 2.0**17, 2.0**100])
def test_tiny_and_large_columns_are_exact(size: float, symmetric: bool, bits: int) -> None:
    w = weights((200, 6), 1, spread=0.3)
    w /= np.where(w.any(axis=0), np.abs(w).max(axis=0), 1.0)
    w[:, 0] = 16 / 17
    w *= np.float32(size)
    form = WeightFormat(bits=bits, group_size=64, symmetric=symmetric)
    q = quantize_weight(w, form, search="mse")
    check(q, w)
    # Sizes are powers of two: nothing depends on them.
    usual = quantize_weight(w / np.float32(size), form)
    np.testing.assert_array_equal(quantize_weight(w, form).codes, usual.codes)


@pytest.mark.parametrize("bits", NARROW)
def test_a_column_of_zeros_has_scales_of_one(bits: int) -> None:
    w = weights((40, 3), 7)
    w[:, 1] = 0.0
    for symmetric in (True, False):
        q = quantize_weight(w, WeightFormat(bits=bits, group_size=16, symmetric=symmetric))
        np.testing.assert_array_equal(q.scales[:, 1], 1.0)
        assert not q.dequantize()[:, 1].any()


def test_weights_below_any_scale_are_zero() -> None:
    w = np.full((32, 2), 2.0**-120, np.float32)
    q = quantize_weight(w, WeightFormat(bits=4, group_size=32))
    assert not q.dequantize().any()
    check(q, w)


@pytest.mark.parametrize(
    "form",
    [*(WeightFormat(bits=bits, group_size=16, symmetric=False) for bits in NARROW), *GRID_FORMS],
    ids=str,
)
def test_units_have_17_bits_and_leave_room(form: WeightFormat) -> None:
    w = weights((130, 9), 3)
    unit = units(w, form)
    some = np.abs(w).max(axis=0) > 0.0
    ratio = np.abs(w).max(axis=0)[some] / unit[some].astype(np.float64)
    assert np.all(ratio <= protected(form))
    assert np.all(ratio > protected(form) * (1 - 2.0**-16))
    fraction = np.frexp(unit)[0] * 2.0**17
    np.testing.assert_array_equal(fraction, np.rint(fraction))
    # The nearest multiple of any step is an int8 value.
    assert protected(form) + protected(form) * form.gap <= 127
    if form.grid is None:
        assert protected(form) + form.most_multiple / 2 == 127


@pytest.mark.parametrize("search", ["none", "mse"])
def test_codes_of_eight_bits_are_whole_columns_within_127(search) -> None:
    """-128 is no weight of the integer form, not even where it would be the nearest."""
    w = weights((130, 9), 3, 0.1)
    w[5] = -np.abs(w).max() * 2
    found = quantize_weight(w, WeightFormat(bits=8), search=search)
    assert found.scales.shape == (1, 9)
    assert found.codes.min() == 1
    for limit, code in zip(found.limits(), (1, 255), strict=True):
        np.testing.assert_array_equal(limit, np.full((1, 9), code))


@pytest.mark.parametrize("bits", [2, 4, 6])
def test_result_does_not_depend_on_chunks(bits: int, monkeypatch) -> None:
    w, form = weights((96, 50), 5), WeightFormat(bits=bits, group_size=32, symmetric=False)
    whole = quantize_weight(w, form)
    monkeypatch.setattr("qcompiler.numerics.rounding._CHUNK", 96 * 7)
    parts = quantize_weight(w, form)
    for name in ("codes", "scales", "zero_points", "reach"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))
