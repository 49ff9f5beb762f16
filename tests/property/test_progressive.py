"""Progressive groups: exact in float16, int8 whatever chose the codes, and close to free scales."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.formats import WeightFormat
from qcompiler.numerics.descent import descend
from qcompiler.numerics.gptq import gptq, moments
from qcompiler.numerics.progressive import PROTECTED, STEP_MAX, units
from qcompiler.numerics.rounding import QuantizedWeight, quantize_weight

SEARCHES = ("none", "mse", "output")

shapes = st.tuples(st.integers(1, 300), st.integers(1, 40))
group_sizes = st.sampled_from([32, 64, 128, 256])


def weights(shape: tuple[int, int], seed: int, spread: float = 1.0) -> np.ndarray:
    """Channels and columns of very different sizes, some columns zero, one weight of usual size."""
    rng = np.random.default_rng(seed)
    w = rng.standard_t(4, shape) * np.exp(spread * rng.standard_normal((shape[0], 1)))
    w *= np.exp2(rng.integers(-12, 8, shape[1]))
    w[:, rng.random(shape[1]) < 0.1] = 0.0
    w[0, 0] = 0.01  # smaller than all of float16 is refused
    return w.astype(np.float32)


def levels(scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """s1 [N] and s2 [G, N] from the scales [G, N] of a progressive weight; s1 · s2 are the scales.

    s1 is the largest number of which all scales of a column are multiples. Where the s2 chosen had
    a common factor, it has gone into s1: the int8 values are smaller, the weight is the same.
    s2 is negative where a scale is. ValueError if an s2 is beyond 16, so the scales are others.
    """
    # Every float16 is a multiple of 2^-24, and at most 2^40 of them.
    multiples = (scales.astype(np.float64) * 2.0**24).astype(np.int64)
    common = np.gcd.reduce(multiples, axis=0)
    steps = multiples // np.maximum(common, 1)
    if np.abs(steps).max(initial=0) > STEP_MAX:
        raise ValueError("the scales are not small multiples of one a column: not progressive")
    return common * 2.0**-24, steps


def int8_values(q: QuantizedWeight) -> tuple[np.ndarray, np.ndarray]:
    """What a kernel would multiply, and the scale of each column, from what a file holds."""
    rows = len(q.codes)
    unit, steps = levels(q.scales)
    zero = 8 if q.zero_points is None else q.zero_points.astype(np.int64)
    zero = np.broadcast_to(zero, q.scales.shape)

    def spread(values: np.ndarray) -> np.ndarray:
        return np.repeat(values, q.form.group_size, axis=0)[:rows]

    return (q.codes - spread(zero)) * spread(steps), unit


def check(q: QuantizedWeight, w: np.ndarray) -> None:
    integers, unit = int8_values(q)
    np.testing.assert_array_equal((integers * unit).astype(np.float32), q.dequantize())
    # The scale read back is that of the column, or a multiple where all steps had a factor.
    ratio = unit / units(w)
    np.testing.assert_array_equal(ratio, np.rint(ratio))
    assert np.all((ratio >= 1) & (ratio <= STEP_MAX))
    assert np.abs(integers * ratio).max(initial=0) <= 127


@settings(deadline=None, max_examples=60)
@given(shapes, group_sizes, st.booleans(), st.sampled_from(SEARCHES), st.integers(0, 2**31))
def test_int8_values_come_back_from_the_file(shape, group_size, symmetric, search, seed) -> None:
    w = weights(shape, seed)
    importance = np.random.default_rng(seed).gamma(0.5, 1.0, shape[0])
    q = quantize_weight(
        w,
        WeightFormat(bits=4, group_size=group_size, symmetric=symmetric, progressive=True),
        search=search,
        importance=importance,
    )
    check(q, w)
    least, greatest = q.limits()  # rounding to nearest never meets them
    for g in range(len(q.scales)):
        part = q.codes[g * group_size : (g + 1) * group_size]
        assert np.all((part >= least[g]) & (part <= greatest[g]))


@settings(deadline=None, max_examples=40)
@given(shapes, group_sizes, st.booleans(), st.integers(0, 2**31))
def test_error_is_at_most_a_step_and_a_bit(shape, group_size, symmetric, seed) -> None:
    w = weights(shape, seed)
    q = quantize_weight(
        w, WeightFormat(bits=4, group_size=group_size, symmetric=symmetric, progressive=True)
    )
    step = np.repeat(np.abs(q.scales.astype(np.float32)), group_size, axis=0)[: shape[0]]
    # Half a step by rounding, half by the zero point. The range found is met to half of s1 in a
    # step, so that 15 of them miss it by 7.5 · s1; over all of the protected range 16 steps do,
    # where a symmetric group wants 17.
    missed = units(w) * np.float32(7.5)
    assert np.all(np.abs(q.dequantize() - w) <= step + missed)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("search", SEARCHES)
def test_error_is_close_to_that_of_free_scales(symmetric: bool, search: str) -> None:
    """Squared errors within a tenth: with 16 steps a group's range is met to a few percent."""
    rng = np.random.default_rng(0)
    importance = rng.gamma(0.5, 1.0, 1024)
    error_weight = importance[:, None] if search == "output" else 1.0
    for w in (rng.standard_normal((1024, 64)), rng.standard_t(3, (1024, 64))):
        error = [
            np.sum(np.square(quantized.dequantize() - w) * error_weight)
            for progressive in (False, True)
            for quantized in [
                quantize_weight(
                    w,
                    WeightFormat(
                        bits=4, group_size=128, symmetric=symmetric, progressive=progressive
                    ),
                    search=search,
                    importance=importance,
                )
            ]
        ]
        assert error[1] <= 1.1 * error[0]


@settings(deadline=None, max_examples=25)
@given(
    st.integers(2, 200),
    st.integers(1, 16),
    st.sampled_from([32, 64]),
    st.booleans(),
    st.sampled_from([0.0, 0.25]),
    st.integers(0, 2**31),
)
def test_int8_whatever_moves_the_codes(rows, columns, size, symmetric, alpha, seed) -> None:
    rng = np.random.default_rng(seed)
    # Every group spans the protected range, and nearly equal channels take up each other's errors:
    # codes are driven to their limits.
    w = rng.uniform(-1.0, 1.0, (rows, columns)).astype(np.float32)
    x = rng.standard_normal((4 * rows, 1)) + 0.1 * rng.standard_normal((4 * rows, rows))
    found = moments([x], [x + 0.1 * rng.standard_normal(x.shape)])
    start = quantize_weight(
        w, WeightFormat(bits=4, group_size=size, symmetric=symmetric, progressive=True)
    )
    chosen = gptq(w, start, found, alpha=alpha)
    better = descend(w, chosen, found, alpha=alpha, sweeps=3)
    for q in (chosen, better):
        check(q, w)
        assert q.reach is start.reach


def test_limits_bind_and_are_needed() -> None:
    """A group that reaches to both ends of the column: s2 = 16, and 8 · 16 is no int8 value."""
    w = np.array([[PROTECTED, 50.0], [-PROTECTED, 40.0], [4.0, 0.0]], np.float32)
    q = quantize_weight(w, WeightFormat(bits=4, group_size=32, symmetric=False, progressive=True))
    assert q.zero_points is not None and q.reach is not None
    np.testing.assert_array_equal(q.reach, [[7, 15]])
    least, greatest = q.limits()
    np.testing.assert_array_equal(least, [[0, 0]])
    np.testing.assert_array_equal(greatest, [[14, 15]])
    np.testing.assert_array_equal(q.zero_points, [[7, 0]])
    x = np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 1.01]], np.float32)
    far = np.array([[PROTECTED, 50.0], [PROTECTED, 40.0], [PROTECTED, 0.0]], np.float32)
    for chosen in (gptq(far, q, moments([x])), descend(far, q, moments([x]))):
        assert chosen.codes[:, 0].max() == 14
        check(chosen, w)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("size", [2.0**-19, 2.0**-15, 1.0, 2.0**17])
def test_tiny_and_large_columns_are_exact(size: float, symmetric: bool) -> None:
    """Scales of tiny columns are subnormal; whatever is below them is as good as zero."""
    w = weights((200, 6), 1, spread=0.3)
    w *= np.float32(size) / np.maximum(np.abs(w).max(axis=0), np.float32(1e-30))
    w[:, 0] = np.float32(16 * size / 17)
    w[:, 1] *= np.float32(2.0**-8) if size < 1.0 else np.float32(1.0)
    w[0, 2] = max(float(w[0, 2]), 2e-5)  # float16 can't hold a whole weight below that
    q = quantize_weight(
        w, WeightFormat(bits=4, group_size=64, symmetric=symmetric, progressive=True)
    )
    check(q, w)


def test_wide_codes_have_no_progressive_groups() -> None:
    with pytest.raises(ValueError, match="codes of 8 bits have no progressive groups"):
        WeightFormat(bits=8, group_size=32, progressive=True)


@pytest.mark.parametrize("bits", [4, 8])
def test_units_and_other_scales(bits: int) -> None:
    w = weights((130, 9), 3)
    unit = units(w)
    ratio = np.abs(w).max(axis=0)[unit > 2.0**-24] / unit[unit > 2.0**-24]
    assert np.all(ratio <= PROTECTED)
    assert np.all(ratio > PROTECTED * (1 - 2.0**-6))
    # Scales are not progressive by chance.
    plain = quantize_weight(w, WeightFormat(bits=bits, group_size=32))
    with pytest.raises(ValueError, match="not progressive"):
        levels(plain.scales)
    assert np.array_equal(plain.limits()[1], np.full(plain.scales.shape, (1 << bits) - 1))


def test_scales_beyond_float16_are_refused() -> None:
    with pytest.raises(ValueError, match="float16"):
        quantize_weight(
            np.full((32, 2), 1e7, np.float32),
            WeightFormat(bits=4, group_size=128, progressive=True),
        )


def test_result_does_not_depend_on_chunks(monkeypatch) -> None:
    w = weights((96, 50), 5)
    whole = quantize_weight(
        w, WeightFormat(bits=4, group_size=32, symmetric=False, progressive=True)
    )
    monkeypatch.setattr("qcompiler.numerics.rounding._CHUNK", 96 * 7)
    parts = quantize_weight(
        w, WeightFormat(bits=4, group_size=32, symmetric=False, progressive=True)
    )
    for name in ("codes", "scales", "zero_points", "reach"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))
