"""Tweaked norms: the closed form is the least squares it says, and the errors are those of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.formats import WeightFormat
from qcompiler.numerics.norm_tweak import scaled, tweak
from qcompiler.numerics.rounding import quantize_weight

K = 24


def problem(seed: int, samples: int, drift: float, bias: bool, readers: int = 2):
    """A norm's outputs by sample, the float model's, its bias, and its readers' weights."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((K, K)) / np.sqrt(K) + np.eye(K)
    shift = rng.standard_normal(K).astype(np.float32) if bias else None
    xs, others = [], []
    for _ in range(samples):
        x = rng.standard_normal((1, int(rng.integers(4, 9)), K)) @ mix
        x = x if shift is None else x + shift
        xs.append(x.astype(np.float32))
        others.append((x + drift * np.roll(x, 1, axis=-1)).astype(np.float32))
    weights = [rng.standard_normal((K, n)).astype(np.float32) for n in (5, 17)[:readers]]
    return (
        xs,
        others,
        shift,
        [(w, quantize_weight(w, WeightFormat(bits=4, group_size=32))) for w in weights],
    )


def rows(parts) -> np.ndarray:
    return np.concatenate([x.reshape(-1, K) for x in parts]).astype(np.float64)


def equations(xs, targets, shift, layers):
    """Least squares in the factors, written out: (A [T·N, K], what A a should be)."""
    b = np.zeros(K) if shift is None else shift.astype(np.float64)
    a, y = [], []
    for weight, quantized in layers:
        rounded = quantized.dequantize().astype(np.float64)
        columns = (rows(xs) - b)[:, None, :] * rounded.T[None]
        a.append(columns.reshape(-1, K))
        y.append((rows(targets) @ weight - b @ rounded).reshape(-1))
    return np.concatenate(a), np.concatenate(y)


def error(xs, targets, shift, layers, factors):
    """‖X̂ diag(a) Ŵ - Y‖ / ‖Y‖ from the outputs."""
    moved = [scaled(x, factors, shift) for x in xs]
    noise = signal = 0.0
    for weight, quantized in layers:
        y = rows(targets) @ weight
        noise += np.sum(np.square(rows(moved) @ quantized.dequantize() - y))
        signal += np.sum(np.square(y))
    return np.sqrt(noise / signal)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**31), st.integers(2, 9), st.booleans(), st.booleans(), st.floats(1e-3, 1))
def test_the_factors_solve_the_least_squares_and_the_errors_are_theirs(
    seed, samples, aims, bias, ridge
):
    xs, others, shift, layers = problem(seed, samples, 0.1, bias)
    targets = others if aims else xs
    found = tweak(xs, others if aims else None, layers, bias=shift, ridge=ridge)
    start = samples - max(1, samples // 4)
    a, y = equations(xs[:start], targets[:start], shift, layers)
    damped = a.T @ a
    damped += ridge * np.mean(np.diagonal(damped)) * np.eye(K)
    exact = 1.0 + np.linalg.solve(damped, a.T @ (y - a.sum(axis=1)))
    np.testing.assert_allclose(found.factors, exact, rtol=0, atol=1e-3)
    held = xs[start:], targets[start:], shift, layers
    assert found.before == pytest.approx(error(*held, np.ones(K, np.float32)), rel=1e-3)
    assert found.after == pytest.approx(error(*held, found.factors), rel=1e-3)
    assert found.helps == (found.after < found.before)


def test_a_strong_ridge_holds_the_factors_at_one():
    xs, others, shift, layers = problem(0, 8, 0.1, True)
    free, held = (tweak(xs, others, layers, bias=shift, ridge=r) for r in (1e-3, 1e6))
    assert np.abs(free.factors - 1.0).max() > 0.01
    np.testing.assert_allclose(held.factors, 1.0, atol=1e-4)


def test_a_norm_that_lost_its_scale_gets_it_back():
    xs, _, _, layers = problem(1, 8, 0.0, False)
    lost = np.linspace(0.5, 2.0, K).astype(np.float32)
    found = tweak([x / lost for x in xs], xs, layers, ridge=1e-6)
    np.testing.assert_allclose(found.factors, lost, rtol=0.2)
    assert found.helps and found.after < 0.3 * found.before


def test_silence_stays_and_odd_data_is_refused():
    xs, _, _, layers = problem(2, 4, 0.0, False)
    quiet = tweak([0 * x for x in xs], None, layers, ridge=0.01)
    assert (quiet.factors == 1.0).all() and not quiet.helps
    with pytest.raises(ValueError, match="none to judge by"):
        tweak(xs[:1], None, layers, ridge=0.01)
    with pytest.raises(ValueError, match="not finite"):
        tweak([x * np.nan for x in xs], None, layers, ridge=0.01)
