"""Grids fitted to weights: better where weights are not Gaussian, never odd."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.formats import WeightFormat
from qcompiler.numerics.grid_search import fitted
from qcompiler.numerics.rounding import quantize_weight, sqnr_db


def snr(w: np.ndarray, form: WeightFormat) -> float:
    return sqnr_db(w, quantize_weight(w, form, search="mse").dequantize())


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("size", [16, 64])
def test_levels_are_what_the_ops_hold(bits: int, size: int) -> None:
    rng = np.random.default_rng(bits)
    w = (rng.standard_t(2, (200, 40)) + 0.5).astype(np.float32)
    form = WeightFormat.planned(bits, size, symmetric=False, grid="learned")
    found = fitted(w, form, rng.gamma(0.5, 1.0, 200))
    assert found.grid is not None and form.grid is not None
    levels, zeros = found.grid.levels, found.grid.zeros
    assert levels[0] == 0 and list(levels) == sorted(set(levels)) and levels[-1] <= 32
    assert len(levels) == 1 << bits and len(zeros) == len(form.grid.zeros) and zeros[0] >= 0
    assert str(found) == str(form) and str(levels[-1]) in found.in_words()


@pytest.mark.parametrize(("bits", "gain"), [(2, 0.2), (3, 0.3)])
def test_it_gains_on_heavy_tails(bits: int, gain: float) -> None:
    w = np.random.default_rng(0).standard_t(3, (512, 64)).astype(np.float32)
    form = WeightFormat.planned(bits, 64, symmetric=False, grid="learned")
    assert snr(w, fitted(w, form)) > snr(w, form) + gain


def test_gaussian_weights_leave_the_gaussian_grid_alone() -> None:
    """It was found for them."""
    w = np.random.default_rng(0).standard_normal((512, 64)).astype(np.float32)
    for bits in (2, 3):
        form = WeightFormat.planned(bits, 16, symmetric=False, grid="learned")
        assert fitted(w, form) == form


def test_small_weights_and_zeros() -> None:
    form = WeightFormat.planned(3, 16, symmetric=False, grid="learned")
    for shape in ((1, 1), (3, 2), (100, 1)):
        assert fitted(np.zeros(shape, np.float32), form) == form
    with pytest.raises(ValueError, match="NaN or infinity"):
        fitted(np.full((32, 4), np.nan, np.float32), form)
