"""Bias correction: the means, the shift, and that the guard tells when the error falls."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.formats import WeightFormat
from qcompiler.numerics.bias import correction, means
from qcompiler.numerics.rounding import quantize_weight


def layer(seed: int, samples: int, offset: float):
    """Activations by sample, a weight, and the weight rounded."""
    rng = np.random.default_rng(seed)
    middle = offset * rng.standard_normal(32)
    xs = [
        (rng.standard_normal((1, rng.integers(1, 9), 32)) + middle).astype(np.float32)
        for _ in range(samples)
    ]
    w = rng.standard_normal((32, 12)).astype(np.float32)
    return xs, w, quantize_weight(w, WeightFormat(bits=4, group_size=32)).dequantize()


def total(xs, w, rounded, shift):
    rows = np.concatenate([x.reshape(-1, 32) for x in xs]).astype(np.float64)
    return np.sum(np.square(rows @ w - rows @ rounded - shift))


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 12), st.sampled_from([0.0, 0.3, 3.0]))
def test_the_guard_tells_when_the_held_out_error_falls(seed, samples, offset):
    xs, w, rounded = layer(seed, samples, offset)
    mean = means(xs)
    found = correction(mean.through(w), mean.through(rounded))
    held = xs[samples - max(1, samples // 4) :]
    before, after = (total(held, w, rounded, s) for s in (0.0, found.shift.astype(np.float64)))
    if abs(before - after) > 1e-4 * before:
        assert found.helps == (after < before)


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 12))
def test_the_mean_error_of_the_fitted_part_vanishes(seed, samples):
    xs, w, rounded = layer(seed, samples, 1.0)
    mean = means(xs)
    shift = correction(mean.through(w), mean.through(rounded)).shift
    fitted = xs[: samples - max(1, samples // 4)]
    rows = np.concatenate([x.reshape(-1, 32) for x in fitted])
    np.testing.assert_allclose((rows @ w - rows @ rounded - shift).mean(axis=0), 0, atol=1e-4)


def test_an_offset_that_is_there_everywhere_is_corrected():
    xs, w, rounded = layer(0, 16, 3.0)
    mean = means(xs)
    found = correction(mean.through(w), mean.through(rounded))
    assert found.helps
    assert found.after < 0.2 * found.before


def test_wide_weights_give_the_same():
    xs, _, _ = layer(1, 4, 1.0)
    w = np.random.default_rng(0).standard_normal((32, 300_000)).astype(np.float32)
    wide = means(xs).through(w)
    np.testing.assert_allclose(wide.fitted[::997], means(xs).through(w[:, ::997]).fitted)
    assert wide.held_out.shape == (300_000,)


def test_what_has_no_mean_is_refused():
    x = np.ones((1, 3, 4), np.float32)
    with pytest.raises(ValueError, match="none to judge by"):
        means([x])
    with pytest.raises(ValueError, match="no calibration data"):
        means([x, x[:, :0]])
    with pytest.raises(ValueError, match="not finite"):
        means([x, x * np.inf])
