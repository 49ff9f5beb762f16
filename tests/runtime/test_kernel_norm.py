"""The norm kernel of every ISA against the numpy reference."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.numerics import reference


@pytest.mark.parametrize("keep_sum", [True, False], ids=["sum", "no_sum"])
@pytest.mark.parametrize("centers", [True, False], ids=["layer", "rms"])
@pytest.mark.parametrize("n", [1, 7, 16, 63, 64, 130, 576])
def test_add_norm(kernels, isa, n, centers, keep_sum):
    rng = np.random.default_rng(n)
    x, skip, weight, bias = (rng.normal(1, 2, n).astype(np.float32) for _ in range(4))
    bias = bias if centers else None
    found = kernels.add_norm(isa, x, skip, weight, bias, 1e-5, keep_sum=keep_sum)
    y, total = reference.add_norm(x, skip, weight, bias, 1e-5)
    np.testing.assert_allclose(found[0], y, rtol=2e-5, atol=1e-5)
    if keep_sum:
        np.testing.assert_array_equal(found[1], total)
