"""Rank-1 compensation: never worse where it was fitted, better on data not seen where errors add
up, and on the same scales."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.formats import WeightFormat
from qcompiler.numerics.compensation import compensated
from qcompiler.numerics.gptq import gptq, moments, output_errors
from qcompiler.numerics.progressive import code_reach, units
from qcompiler.numerics.rounding import quantize_weight

FORMATS = [
    "int2 g16 asym",
    "int2 g32 gaussian",
    "int3 g256 balanced",
    "int3 g64 sym",
    "int4 g256 asym",
    "int4 g128 sym",
    "int5 g32 asym",
    "int8 sym",
]


def drawn(seed: int, rows: int, columns: int, tokens: int, mean: float):
    """Activations with outlier channels and a mean, and heavy-tailed weights."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, rows)) + mean * rng.standard_normal(rows)
    x *= np.exp(rng.standard_normal(rows))
    return x.astype(np.float32), rng.standard_t(4, (rows, columns)).astype(np.float32)


def costs(weight, rounded, hessian):
    error = rounded.dequantize().astype(np.float64) - weight
    return np.sum(error * (hessian @ error), axis=0)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**31),
    st.tuples(st.integers(1, 70), st.integers(1, 40), st.integers(1, 60)),
    st.sampled_from([0.0, 0.5, 3.0]),
    st.sampled_from(FORMATS),
    st.sampled_from(["none", "mse", "output"]),
)
def test_no_column_gets_worse_and_codes_stay_in_reach(seed, sizes, mean, text, search):
    rows, columns, tokens = sizes
    x, w = drawn(seed, rows, columns, tokens, mean)
    found, form = moments([x]), WeightFormat.parse(text)
    start = quantize_weight(w, form, search=search, importance=found.mean_square)
    made = compensated(w, start, found)
    before, after = (costs(w, each, found.hessian) for each in (start, made))
    assert np.all(after <= before)
    np.testing.assert_array_equal(made.scales, start.scales)
    assert made.form == form
    if made.zero_points is not None:
        np.testing.assert_array_equal(made.zero_points, start.zero_points)
    assert np.isin(made.codes, np.asarray(form.levels)).all()
    # (code - zero point) · multiple is still an int8 value.
    unit = units(w, form) if form.narrow else start.scales
    reach = made.spread(code_reach(start.scales, unit)).astype(int)
    zero = form.middle if made.zero_points is None else made.spread(made.zero_points).astype(int)
    assert np.all(np.abs(made.codes.astype(int) - zero) <= reach)


@pytest.mark.parametrize("text", ["int2 g256 asym", "int3 g256 asym", "int4 g128 asym"])
def test_errors_that_add_up_along_a_mean_are_taken_back_on_data_not_seen(text):
    x, w = drawn(1, 256, 64, 4096, 0.5)
    fitted, fresh = moments([x[:2048]]), moments([x[2048:]])
    start = quantize_weight(
        w, WeightFormat.parse(text), search="output", importance=fitted.mean_square
    )
    before, after = output_errors(w, [start, compensated(w, start, fitted)], fresh)
    print(f"{text}: {before:.4f} -> {after:.4f}")
    assert after < 0.95 * before


def test_independent_channels_leave_nothing_to_take_back():
    """By the weighted squares of a diagonal H each code next to its weight is the best."""
    x, w = drawn(2, 64, 20, 4, 0.0)
    found = moments([x])
    diagonal = type(found)(np.diag(np.diagonal(found.hessian)), None, None, found.tokens)
    start = quantize_weight(w, WeightFormat.parse("int3 g32 asym"))
    np.testing.assert_array_equal(compensated(w, start, diagonal).codes, start.codes)


def test_the_same_data_give_the_same_codes_however_columns_are_parted(monkeypatch):
    x, w = drawn(3, 48, 40, 200, 1.0)
    found = moments([x])
    start = quantize_weight(w, WeightFormat.parse("int4 g16 asym"))
    whole = compensated(w, start, found)
    assert np.any(whole.codes != start.codes)
    sevens = [slice(start, start + 7) for start in range(0, 40, 7)]
    monkeypatch.setattr("qcompiler.numerics.compensation.column_parts", lambda *shape: sevens)
    np.testing.assert_array_equal(compensated(w, start, found).codes, whole.codes)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (40, 3)])
@pytest.mark.parametrize("text", ["int3 g16 asym", "int2 g16 gaussian", "int4 g16 sym"])
def test_nothing_to_compensate(shape, text):
    x, w = drawn(4, *shape, 30, 1.0)
    form, found = WeightFormat.parse(text), moments([x])
    zeros = quantize_weight(np.zeros_like(w), form)
    made = compensated(np.zeros_like(w), zeros, found)
    assert costs(0 * w, made, found.hessian).sum() <= costs(0 * w, zeros, found.hessian).sum()
    silent, start = moments([np.zeros_like(x)]), quantize_weight(w, form)
    np.testing.assert_array_equal(compensated(w, start, silent).codes, start.codes)


def test_what_does_not_fit_is_refused():
    x, w = drawn(5, 32, 6, 80, 1.0)
    found, form = moments([x]), WeightFormat.parse("int4 g16 asym")
    start = quantize_weight(w, form)
    with pytest.raises(ValueError, match="has no codes of shape"):
        compensated(w[:, :4], start, found)
    with pytest.raises(ValueError, match=r"moments of shape \(31, 31\)"):
        compensated(w, start, moments([x[:, :31]]))
    with pytest.raises(ValueError, match="NaN or infinity"):
        compensated(np.where(w > 1, np.inf, w), start, found)
    with pytest.raises(ValueError, match="chosen from data already"):
        compensated(w, gptq(w, start, found), found)
