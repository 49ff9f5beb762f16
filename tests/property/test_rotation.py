"""Rotations: orthogonal, the same for a seed, of the sizes models have; both sides cancel."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.numerics.rotation import (
    conjugated,
    hadamard,
    has_hadamard,
    random_orthogonal,
    randomized_hadamard,
    resolve,
    rotation,
    turned,
)

HIDDEN_SIZES = [64, 128, 384, 512, 576, 768, 896, 960, 1024, 1536, 2048]
ORTHOGONAL = 1e-12
"""Of float64 sums of at most 2048 products of entries below 1."""


def assert_orthogonal(matrix):
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(len(matrix)), rtol=0, atol=ORTHOGONAL)


@pytest.mark.parametrize("n", [1, 2, 4, 8, 12, 16, 20, 24, 28, 36, 44, 60, 68, 76, *HIDDEN_SIZES])
def test_hadamard_matrices(n):
    matrix = hadamard(n)
    np.testing.assert_allclose(np.abs(matrix), n**-0.5, rtol=1e-15)
    assert_orthogonal(matrix)


@pytest.mark.parametrize("n", [0, -4, 3, 6, 10, 18, 50, 92])
def test_sizes_without_a_hadamard_matrix(n):
    assert not has_hadamard(n)
    with pytest.raises(ValueError, match=f"of size {n}"):
        hadamard(n)


def test_auto_falls_back_on_a_random_matrix():
    assert resolve(576, "auto") == "hadamard"
    assert resolve(50, "auto") == "random"
    assert resolve(576, "random") == "random"
    np.testing.assert_array_equal(rotation(50, "auto", 3), random_orthogonal(50, 3))
    np.testing.assert_array_equal(rotation(12, "auto", 3), randomized_hadamard(12, 3))
    with pytest.raises(ValueError, match="of size 50"):
        rotation(50, "hadamard", 3)


@settings(deadline=None)
@given(st.integers(1, 80), st.sampled_from(["auto", "random"]), st.integers(0, 2**31))
def test_rotations_are_orthogonal_and_repeatable(n, kind, seed):
    matrix = rotation(n, kind, seed)
    assert matrix.dtype == np.float64
    assert_orthogonal(matrix)
    np.testing.assert_array_equal(matrix, rotation(n, kind, seed))


@pytest.mark.parametrize("kind", ["hadamard", "random"])
def test_seeds_give_different_matrices(kind):
    first = rotation(16, kind, 0)
    assert np.abs(first - rotation(16, kind, 1)).max() > 0.1
    assert np.abs(first - rotation(16, kind, (0, 1))).max() > 0.1


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**31))
def test_turning_both_sides_cancels(n, columns, seed):
    rng = np.random.default_rng(seed)
    x, w, bias = rng.standard_normal((5, n)), rng.standard_normal((n, columns)), rng.random(n)
    matrix = rotation(n, "auto", seed)
    close = {"rtol": 0, "atol": 1e-10}
    np.testing.assert_allclose(turned(x, matrix, 1) @ turned(w, matrix, 0), x @ w, **close)
    np.testing.assert_allclose(turned(w, matrix, 0), matrix.T @ w, **close)
    np.testing.assert_allclose(turned(bias, matrix, 0), bias @ matrix, **close)
    scaled = turned(x, matrix, 1) @ conjugated(bias, matrix) @ turned(w, matrix, 0)
    np.testing.assert_allclose(scaled, (x * bias) @ w, **close)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_values_keep_their_type(dtype):
    values = np.random.default_rng(0).standard_normal((8, 5000)).astype(dtype)
    matrix = rotation(8, "auto", 0)
    for axis, stored in ((0, values), (1, values.T)):
        made = turned(stored, matrix, axis)
        exact = np.moveaxis(np.moveaxis(stored.astype(np.float64), axis, -1) @ matrix, -1, axis)
        assert made.dtype == dtype
        assert made.flags.c_contiguous
        np.testing.assert_array_equal(made, exact.astype(dtype))


def test_an_outlier_channel_is_spread_evenly():
    x = np.zeros(576)
    x[7] = 100.0
    assert np.abs(x @ rotation(576, "auto", 0)).max() == pytest.approx(100.0 / 24.0)
