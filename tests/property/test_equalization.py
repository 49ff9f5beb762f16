"""Equalization scales: the formulas, and that folding leaves a product as it was."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.numerics.equalization import (
    activation_aware,
    logarithmic,
    normalized,
    outlier_suppressing,
    ranges,
    smoothquant,
)


def test_logarithmic_is_fptqs_formula():
    m = np.array([0.0, 1e-7, 1.0, 14.0, 150.0], np.float32)
    clamped = np.maximum(m, 1e-5)
    np.testing.assert_allclose(logarithmic(m), clamped / np.log2(2 + clamped), rtol=1e-6)
    assert logarithmic(np.array([2.0]))[0] == np.float32(1.0)  # 2 / log2(4)


def test_smoothquant_at_its_ends():
    m, w = np.array([4.0, 9.0]), np.array([0.25, 0.5])
    np.testing.assert_allclose(smoothquant(m, w, 1.0), m)
    np.testing.assert_allclose(smoothquant(m, w, 0.0), 1.0 / w)
    np.testing.assert_allclose(smoothquant(m, w, 0.5), np.sqrt(m / w), rtol=1e-6)


@settings(deadline=None)
@given(st.integers(1, 64), st.integers(0, 2**31))
def test_scaling_rows_and_columns_cancels(channels, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((8, channels)) * np.exp(3 * rng.standard_normal(channels))
    w = rng.standard_normal((channels, 5))
    for s in (
        logarithmic(np.abs(x).max(axis=0)),
        smoothquant(np.abs(x).max(axis=0), np.abs(w).max(axis=1)),
        normalized(logarithmic(np.abs(x).max(axis=0))),
        ranges(np.ptp(x, axis=0), np.ptp(w, axis=1)),
        activation_aware(np.abs(x).mean(axis=0), 0.7),
        outlier_suppressing(np.abs(x).max(axis=0), 0.5),
    ):
        assert np.all(s > 0)
        assert np.isfinite(s).all()
        np.testing.assert_allclose((x / s) @ (w * s[:, None]), x @ w, rtol=1e-9, atol=1e-9)


def test_equalized_channels_are_closer_together():
    m = np.array([0.1, 1.0, 10.0, 100.0], np.float32)
    spread = m / logarithmic(m)
    assert spread.max() / spread.min() < 10 < m.max() / m.min()


def test_ranges_are_equal_afterwards():
    x, w = np.array([8.0, 2.0, 0.5]), np.array([2.0, 2.0, 8.0])
    s = ranges(x, w)
    np.testing.assert_allclose(x / s, w * s, rtol=1e-6)
    np.testing.assert_allclose(s, [2.0, 1.0, 0.25], rtol=1e-6)
    assert np.isfinite(ranges(np.zeros(2), np.array([0.0, 1.0]))).all()


def test_activation_aware_scales_are_powers_around_one():
    m = np.array([1.0, 4.0, 16.0])
    np.testing.assert_allclose(activation_aware(m, 0.5), [0.5, 1.0, 2.0], rtol=1e-6)
    np.testing.assert_array_equal(activation_aware(m, 0.0), np.ones(3))


def test_only_outliers_are_suppressed():
    m = np.array([0.0, 1.0, 4.0, 64.0])
    np.testing.assert_array_equal(outlier_suppressing(m, 4.0), [1.0, 1.0, 1.0, 16.0])
