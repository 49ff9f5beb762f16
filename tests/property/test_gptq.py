"""GPTQ and GPTAQ against a plain column-by-column version, their error, and odd moments."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.formats import WeightFormat
from qcompiler.numerics.descent import descend
from qcompiler.numerics.gptq import (
    BLOCK,
    Moments,
    gptq,
    inverse_factor,
    moments,
    output_errors,
)
from qcompiler.numerics.integer_form import planes_of
from qcompiler.numerics.rounding import QuantizedWeight, quantize_weight, sqnr_db

DAMPENING = 0.01


def problem(seed: int, rows: int, columns: int, tokens: int = 0, drift: float = 0.1):
    """Correlated inputs of a layer, what the float model would feed it, and a weight."""
    rng = np.random.default_rng(seed)
    tokens = tokens or 4 * rows
    mix = rng.standard_normal((rows, rows)) / np.sqrt(rows) + np.eye(rows)
    x = (rng.standard_normal((tokens, rows)) @ mix).astype(np.float32)
    noise = rng.standard_normal(x.shape) + np.roll(x, 1, axis=1)
    true = (x + drift * noise).astype(np.float32)
    return x, true, rng.standard_normal((rows, columns)).astype(np.float32)


def naive(weight, start: QuantizedWeight, found: Moments, alpha: float) -> np.ndarray:
    """The update from its definition: invert what is left of H before every channel."""
    w = weight.astype(np.float64)
    original = w.copy()
    rows = len(w)
    damped = found.hessian + DAMPENING * np.diag(np.diagonal(found.hessian))
    codes = np.empty(w.shape, np.uint8)
    middle = float(1 << (start.form.bits - 1))
    least, greatest = start.limits()
    for k in range(rows):
        g = k // start.form.group_size
        s = start.scales[g].astype(np.float64)
        z = middle if start.zero_points is None else start.zero_points[g].astype(np.float64)
        codes[k] = np.clip(np.rint(w[k] / s) + z, least[g], greatest[g])
        left = np.linalg.inv(damped[k:, k:])
        error = (w[k] - (codes[k] - z) * s) / left[0, 0]
        w[k + 1 :] -= np.outer(left[0, 1:], error)
        if alpha:
            rest = np.linalg.solve(damped[k + 1 :, k + 1 :], found.drift[k, k + 1 :])
            w[k + 1 :] += alpha * np.outer(rest, original[k])
    return codes


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 0.25])
@pytest.mark.parametrize("rows", [40, BLOCK + 30])
def test_equals_a_naive_version(rows: int, alpha: float, symmetric: bool) -> None:
    x, true, weight = problem(3, rows, 5)
    found = moments([x], [true])
    start = quantize_weight(weight, WeightFormat(bits=4, group_size=32, symmetric=symmetric))
    fast = gptq(weight, start, found, dampening=DAMPENING, act_order=False, alpha=alpha)
    np.testing.assert_array_equal(fast.codes, naive(weight, start, found, alpha))
    assert fast.scales is start.scales and fast.zero_points is start.zero_points


def test_two_channels_by_hand() -> None:
    """Two equal channels: the second takes up the whole error of the first, but for dampening."""
    weight = np.array([[0.4], [0.4]], np.float32)
    ones = np.ones((1, 1), np.float16)
    start = QuantizedWeight(
        np.full((2, 1), 8, np.uint8), ones, None, WeightFormat(bits=4, group_size=32)
    )
    found = Moments(np.ones((2, 2)), None, None, 1)
    # 0.4 rounds to 0; the second becomes 0.4 + 0.4 / 1.01 and rounds to 1.
    codes = gptq(weight, start, found, dampening=0.01, act_order=False).codes
    np.testing.assert_array_equal(codes, [[8], [9]])


@settings(deadline=None, max_examples=25)
@given(
    st.integers(16, 200),
    st.integers(32, 48),
    st.sampled_from([32, 64, 128]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_error_is_less_than_to_nearest(rows, columns, size, symmetric, act_order, seed) -> None:
    x, _, weight = problem(seed, rows, columns)
    found = moments([x])
    start = quantize_weight(weight, WeightFormat(bits=4, group_size=size, symmetric=symmetric))
    chosen = gptq(weight, start, found, act_order=act_order)
    nearest, after = output_errors(weight, [start, chosen], found)
    # Greedy: no worse on the whole, but on problems of a few channels it can be.
    assert after <= nearest
    assert chosen.codes.max() < 16


@pytest.mark.parametrize("alpha", [0.25, 1.0])
@pytest.mark.parametrize("act_order", [True, False])
def test_asymmetric_calibration_gets_closer_to_the_float_output(act_order, alpha) -> None:
    x, true, weight = problem(5, 192, 48)
    found = moments([x[:300], x[300:]], [true[:300], true[300:]])
    start = quantize_weight(weight, WeightFormat(bits=4, group_size=64))
    plain = gptq(weight, start, found, act_order=act_order)
    pulled = gptq(weight, start, found, act_order=act_order, alpha=alpha)
    goal = true.astype(np.float64) @ weight
    measured = [
        np.linalg.norm(goal - x @ each.dequantize().astype(np.float64)) / np.linalg.norm(goal)
        for each in (start, plain, pulled)
    ]
    assert measured[2] < 0.97 * measured[1] < measured[0]
    # float32 products within a sample leave about six digits.
    np.testing.assert_allclose(
        output_errors(weight, [start, plain, pulled], found), measured, rtol=1e-4
    )


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_on_the_grid_come_back_exactly(symmetric: bool, act_order: bool) -> None:
    x, _, weight = problem(7, 160, 20)
    start = quantize_weight(weight, WeightFormat(bits=4, group_size=32, symmetric=symmetric))
    on_grid = start.dequantize()
    chosen = gptq(on_grid, start, moments([x]), act_order=act_order)
    np.testing.assert_array_equal(chosen.dequantize(), on_grid)
    assert output_errors(on_grid, [chosen], moments([x])) == [0.0]


def test_dead_channels_are_rounded_to_nearest_and_leave_the_others_alone() -> None:
    x, true, weight = problem(11, 96, 8)
    dead = np.array([0, 17, 95])
    x[:, dead] = 0.0
    start = quantize_weight(weight, WeightFormat(bits=4, group_size=32))
    chosen = gptq(weight, start, moments([x], [true]), alpha=0.25)
    np.testing.assert_array_equal(chosen.codes[dead], start.codes[dead])
    changed = weight.copy()
    changed[dead] *= 0.5
    other = gptq(changed, start, moments([x]))
    alive = np.delete(np.arange(96), dead)
    np.testing.assert_array_equal(
        other.codes[alive], gptq(weight, start, moments([x])).codes[alive]
    )
    nothing = moments([np.zeros((200, 96), np.float32)])
    np.testing.assert_array_equal(gptq(weight, start, nothing).codes, start.codes)
    assert output_errors(weight, [start], nothing) == [0.0]


def test_singular_moments_are_dampened() -> None:
    x, _, weight = problem(13, 96, 8, tokens=20)
    start = quantize_weight(weight, WeightFormat(bits=4, group_size=32))
    chosen = gptq(weight, start, moments([x]))
    before, after = output_errors(weight, [start, chosen], moments([x]))
    assert after < before


def test_dampening_rises_until_the_matrix_is_positive_definite() -> None:
    indefinite = np.array([[1.0, 1.2], [1.2, 1.0]])
    factor = inverse_factor(indefinite, 0.05)  # 0.05 is too little, 0.5 is enough
    np.testing.assert_allclose(
        factor.T @ factor, np.linalg.inv(indefinite + 0.5 * np.eye(2)), rtol=1e-12
    )
    spread = np.diag([1e-6, 1e6])
    scaled = inverse_factor(spread @ indefinite @ spread, 0.05)  # units don't matter
    np.testing.assert_allclose(scaled, factor @ np.linalg.inv(spread), rtol=1e-9)
    with pytest.raises(ValueError, match="singular, even with a dampening of 1;"):
        inverse_factor(np.array([[1.0, 9.0], [9.0, 1.0]]), 0.001)


@pytest.mark.parametrize("rows", [1, 2, BLOCK, 3 * BLOCK + 5])
def test_the_factor_is_upper_triangular_and_of_the_inverse(rows: int) -> None:
    x, _, _ = problem(17, rows, 1)
    hessian = moments([x]).hessian
    factor = inverse_factor(hessian, DAMPENING)
    damped = hessian + DAMPENING * np.diag(np.diagonal(hessian))
    np.testing.assert_array_equal(factor, np.triu(factor))
    np.testing.assert_allclose(factor.T @ factor @ damped, np.eye(rows), atol=1e-9)


def test_bad_data_is_refused() -> None:
    x, _, weight = problem(19, 32, 4)
    start = quantize_weight(weight, WeightFormat(bits=4, group_size=32))
    found = moments([x])
    broken = x.copy()
    broken[3, 5] = np.nan
    with pytest.raises(ValueError, match="input is not finite"):
        moments([broken])
    with pytest.raises(ValueError, match="input is not finite"):
        moments([x], [broken])
    with pytest.raises(ValueError, match="no calibration data"):
        moments([])
    with pytest.raises(ValueError, match="weight holds NaN"):
        gptq(np.full_like(weight, np.nan), start, found)
    with pytest.raises(ValueError, match="float model's inputs"):
        gptq(weight, start, found, alpha=0.25)
    with pytest.raises(ValueError, match=r"shape \(31, 4\)"):
        gptq(weight[:31], start, found)
    with pytest.raises(ValueError, match="input is not finite"):
        inverse_factor(np.full((2, 2), np.inf), 0.01)


_DIGEST = """
import hashlib, numpy as np
from qcompiler.formats import WeightFormat
from qcompiler.numerics.gptq import gptq, moments
from qcompiler.numerics.rounding import quantize_weight
rng = np.random.default_rng(0)
x = [rng.standard_normal((256, 320)).astype(np.float32) for _ in range(3)]
weight = rng.standard_normal((320, 200)).astype(np.float32)
start = quantize_weight(weight, WeightFormat(bits=4, group_size=64))
found = moments(x, [each + np.float32(0.1) * np.roll(each, 1, 1) for each in x])
codes = gptq(weight, start, found, alpha=0.25).codes
print(hashlib.sha256(codes.tobytes()).hexdigest(), codes.astype(np.int64).sum())
"""


def run_digest(threads: int) -> str:
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, str(threads))}
    done = subprocess.run(
        [sys.executable, "-c", _DIGEST], capture_output=True, text=True, check=True, env=environment
    )
    return done.stdout


def test_the_same_bytes_every_time() -> None:
    assert run_digest(1) == run_digest(1)
    assert run_digest(2) == run_digest(2)


@pytest.mark.parametrize("drift", [0.0, 4.0])
@pytest.mark.parametrize("bits", [4, 6])
def test_what_is_left_uncompensated_is_what_gptq_leaves(bits: int, drift: float) -> None:
    """Of inputs that are alike (a large common part) GPTQ takes away a lot, of others little."""
    x, _, w = problem(3, 96, 200, tokens=2000)
    x = x + np.float32(drift) * x[:, :1]
    found = moments([x])
    start = quantize_weight(w, WeightFormat(bits=bits, group_size=32, symmetric=False))
    squares = np.square(start.dequantize() - w, dtype=np.float64)
    chosen = gptq(w, start, found).dequantize() - w
    left = np.sum((found.hessian @ chosen) * chosen)
    expected = np.sum(squares * found.uncompensated()[:, None])
    # Of inputs that are alike, dampening is a large part of what is left.
    assert expected == pytest.approx(left, rel=0.3 if drift else 0.1)
    plain = np.sum(squares * np.diagonal(found.hessian)[:, None])
    assert plain > (10.0 if drift else 1.2) * left


@given(st.integers(0, 1000), st.booleans(), st.sampled_from([0.0, 0.25, 1.0]))
@settings(max_examples=20, deadline=None)
def test_descent_never_loses(seed, symmetric, alpha) -> None:
    """By the measure it descends, which is computed here from its definition."""
    rows = 150
    x, true, w = problem(seed, rows, 5)
    x[:, 7] = true[:, 7] = 0.0
    found = moments([x], [true])
    near = quantize_weight(w, WeightFormat(bits=4, group_size=64, symmetric=symmetric))
    start = gptq(w, near, found, dampening=DAMPENING, alpha=alpha)
    target = x @ w + alpha * (true - x) @ w
    extra = DAMPENING * np.square(x, dtype=np.float64).sum(axis=0)
    extra[7] = extra.mean()

    def loss(q: QuantizedWeight) -> float:
        other = q.dequantize().astype(np.float64)
        damped = float((extra[:, None] * np.square(w - other)).sum())
        return float(np.square(target - x @ other).sum()) + damped

    losses = [loss(start)]
    for sweeps in (1, 2, 6):
        better = descend(w, start, found, dampening=DAMPENING, alpha=alpha, sweeps=sweeps)
        losses.append(loss(better))
    assert losses[1] < losses[0]
    assert all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise(losses))
    assert np.any(better.scales != start.scales)


def test_descent_reaches_a_point_where_no_code_wants_to_move() -> None:
    x, _, w = problem(3, 40, 3)
    found = moments([x])
    start = quantize_weight(w, WeightFormat(bits=4, group_size=32))
    still = descend(w, start, found, sweeps=50)
    again = descend(w, still, found, sweeps=1)
    np.testing.assert_array_equal(again.codes, still.codes)
    error = output_errors(w, [start, still], found)
    assert error[1] < 0.9 * error[0]


@pytest.mark.parametrize(("text", "left"), [("int4 g16 asym", 0.98), ("int2 g16 gaussian", 0.93)])
def test_descent_finds_better_ranges(text, left) -> None:
    """Moving codes alone takes a hundredth off the error that GPTQ leaves."""
    x, _, w = problem(4, 96, 24)
    found, form = moments([x]), WeightFormat.parse(text)
    near = quantize_weight(w, form, search="output", importance=found.mean_square)
    start = gptq(w, near, found)
    better = descend(w, start, found)
    before, after = output_errors(w, [start, better], found)
    assert after < left * before
    assert np.any(better.zero_points != start.zero_points)
    planes = planes_of(better)
    assert planes is not None and planes.bits == form.bits


def test_grounded_moments_keep_the_weight_itself_close() -> None:
    x, _, w = problem(6, 64, 32)
    x[:, 8:] *= 0.05  # few channels matter for the output, and the others take their errors
    found, form = moments([x]), WeightFormat.parse("int4 g16 asym")
    near = quantize_weight(w, form)
    plain, grounded = (gptq(w, near, each) for each in (found, found.grounded(0.05)))
    assert sqnr_db(w, grounded.dequantize()) > sqnr_db(w, plain.dequantize()) + 3.0
    best, between, worst = output_errors(w, [plain, grounded, near], found)
    assert best < between < worst


def test_moments_are_filled_up_with_those_of_others() -> None:
    few, many = problem(0, 24, 8, tokens=30)[0], problem(1, 24, 8, tokens=400)[0]
    found, whole = moments([few]), moments([many])
    filled = found.filled(48, whole)
    assert filled.tokens == 48
    np.testing.assert_allclose(
        filled.mean_square, (30 * found.mean_square + 18 * whole.mean_square) / 48
    )
    alone = found.filled(48, None)
    np.testing.assert_allclose(alone.mean_square, found.mean_square)
    np.testing.assert_allclose(np.triu(alone.hessian, 1), np.triu(found.hessian, 1))
    assert whole.filled(48, found) is whole
    fewer = moments([few[:10]])
    assert fewer.filled(48, None) is fewer
    assert fewer.filled(48, moments([many[:20]])) is fewer
    nothing = moments([few[:0]]).filled(48, whole)
    np.testing.assert_allclose(nothing.mean_square, whole.mean_square)


def test_few_tokens_round_better_with_those_of_others() -> None:
    """On tokens that neither has seen."""
    x, _, weight = problem(3, 48, 32, tokens=1000)
    few, others, unseen = x[:24], x[24:600], moments([x[600:]])
    start = quantize_weight(weight, WeightFormat(bits=4, group_size=16))
    alone = gptq(weight, start, moments([few]))
    helped = gptq(weight, start, moments([few]).filled(96, moments([others])))
    before, after = output_errors(weight, [alone, helped], unseen)
    assert after < 0.9 * before
