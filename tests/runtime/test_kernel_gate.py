"""The gate kernel of every ISA against the numpy reference."""

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
