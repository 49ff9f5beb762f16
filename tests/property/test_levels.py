"""Rounding to the levels of a grid: the nearest there is, within limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.formats import GRIDS, WeightFormat
from qcompiler.numerics.levels import inward, nearest
from qcompiler.numerics.rounding import quantize_weight, sqnr_db

FORMS = [
    WeightFormat(bits=bits, group_size=16, symmetric=False, grid=grid)
    for (_, bits), grid in GRIDS.items()
]


@settings(deadline=None)
@given(st.sampled_from(FORMS), st.integers(0, 2**31), st.sampled_from([np.float32, np.float64]))
def test_no_level_within_the_limits_is_nearer(form, seed, dtype) -> None:
    rng = np.random.default_rng(seed)
    levels = np.array(form.levels)
    ends = np.sort(rng.choice(levels, (2, 40)), axis=0)
    values = rng.uniform(-10, form.top + 10, 40).astype(dtype)
    values[:10] = rng.integers(-20, 2 * form.top + 20, 10) / 2  # borders and levels themselves
    found = nearest(values.copy(), *ends.astype(np.float64), form)
    assert found.dtype == dtype
    for value, code, low, high in zip(values, found, *ends, strict=True):
        allowed = levels[(levels >= low) & (levels <= high)]
        assert code in allowed
        assert abs(float(code) - float(value)) == np.abs(allowed - float(value)).min()


@settings(deadline=None)
@given(st.sampled_from(FORMS), st.integers(-3, 30), st.integers(0, 40))
def test_limits_move_inward_to_levels(form, low, span) -> None:
    (least,), (greatest,) = inward(np.array([low]), np.array([max(low + span, 0)]), form)
    inside = [level for level in form.levels if low <= level <= max(low + span, 0)]
    if inside:
        assert (least, greatest) == (inside[0], inside[-1])
    else:
        assert least == greatest and greatest in form.levels
        assert greatest <= max(low + span, 0)


@pytest.mark.parametrize(("bits", "gain"), [(2, 0.8), (3, 0.6), (4, 0.2)])
@pytest.mark.parametrize("size", [16, 32])
def test_the_gaussian_grid_is_better_on_gaussian_weights(bits, size, gain) -> None:
    w = np.random.default_rng(0).standard_normal((1024, 64)).astype(np.float32)

    def db(grid: str) -> float:
        form = WeightFormat.planned(bits, size, symmetric=False, grid=grid)
        return sqnr_db(w, quantize_weight(w, form, search="mse").dequantize())

    assert db("gaussian") > db("even") + gain


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("search", ["none", "mse"])
def test_weights_on_a_grid_come_back(form, search) -> None:
    """Whatever their sizes, to the steps of a column."""
    rng = np.random.default_rng(1)
    levels = np.array(form.levels)
    # Without a search, only zero points that are levels themselves.
    zeros = [zero for zero in form.zeros if search != "none" or zero in form.levels]
    zero = (zeros or list(form.zeros))[len(zeros) // 2]
    codes = rng.choice(levels, (4, 16, 50))
    codes[:, 0], codes[:, 1] = 0, form.top
    w = ((codes - zero) * rng.uniform(0.5, 1, (4, 1, 50))).reshape(64, 50).astype(np.float32)
    error = quantize_weight(w, form, search=search).dequantize() - w
    assert sqnr_db(w, w + error) > 20
