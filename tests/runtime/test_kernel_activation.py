"""The activation kernels of every ISA against the numpy reference."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.numerics import reference


@pytest.mark.parametrize("count", [1, 5, 16, 33, 1536])
def test_swiglu(kernels, isa, count):
    rng = np.random.default_rng(count)
    gate, up = (rng.normal(0, 8, count).astype(np.float32) for _ in range(2))
    y = kernels.swiglu(isa, gate, up)
    np.testing.assert_allclose(y, reference.swiglu(gate, up), rtol=2e-6, atol=1e-30)
    gate[-1] = np.nan
    clean, y = y, kernels.swiglu(isa, gate, up)
    assert np.isnan(y[-1])
    np.testing.assert_array_equal(y[:-1], clean[:-1])


@pytest.mark.parametrize("size", [80.0, 100.0, 1e30])
def test_gates_wide_open_or_shut(kernels, isa, size):
    up = np.ones(4, np.float32)
    gate = np.array([size, size, -size, -size], np.float32)
    y = kernels.swiglu(isa, gate, up)
    np.testing.assert_array_equal(y[:2], gate[:2])
    np.testing.assert_allclose(y[2:], 0, atol=1e-7)


@pytest.mark.parametrize("by_tanh", [False, True], ids=["exact", "tanh"])
@pytest.mark.parametrize("count", [1, 15, 16, 40, 4096])
def test_gelu(kernels, isa, count, by_tanh):
    x = np.linspace(-9, 9, count).astype(np.float32)
    expected = reference.gelu(x, by_tanh=by_tanh)
    y = kernels.gelu(isa, x, by_tanh=by_tanh)
    # The exponential of -x^2 / 2 is as exact as float32 holds the square.
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-30)
    np.testing.assert_allclose(y[x > -2], expected[x > -2], rtol=1e-6)
    x[-1] = np.nan
    clean, y = y, kernels.gelu(isa, x, by_tanh=by_tanh)
    assert np.isnan(y[-1])
    np.testing.assert_array_equal(y[:-1], clean[:-1])


@pytest.mark.parametrize("by_tanh", [False, True], ids=["exact", "tanh"])
def test_gelu_far_out(kernels, isa, by_tanh):
    x = np.array([0.0, 30.0, 3e38, np.inf, -30.0, -3e38, -np.inf], np.float32)
    y = kernels.gelu(isa, x, by_tanh=by_tanh)
    np.testing.assert_array_equal(y[:4], x[:4])
    np.testing.assert_allclose(y[4:], 0, atol=1e-30)
