"""The attention kernel of every ISA against the numpy reference."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.numerics import reference

# Rows, keys, channels: below, at and above rows of a tile, panels of keys and registers.
SHAPES = [
    (1, 1, 16),
    (1, 3, 64),
    (1, 130, 64),
    (2, 64, 80),
    (3, 3, 32),
    (3, 67, 48),
    (6, 65, 96),
    (13, 64, 128),
    (50, 200, 64),
]


def problem(rows, keys, d, scale=1.0):
    rng = np.random.default_rng(rows * 1000 + keys + d)
    q = rng.normal(0, scale / np.sqrt(d), (rows, d)).astype(np.float32)
    k, v = (rng.normal(size=(keys, d)).astype(np.float32) for _ in range(2))
    return q, k, v


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attends_to_what_came_before(kernels, isa, shape):
    q, k, v = problem(*shape)
    expected = reference.causal_attention(q, k, v)
    np.testing.assert_allclose(kernels.attend(isa, q, k, v), expected, atol=2e-6)
    if len(q) > 7:  # from the middle of the rows on
        part = kernels.attend(isa, q, k, v, rows=(5, len(q) - 1))
        np.testing.assert_allclose(part, expected[5:-1], atol=2e-6)


# Of one key, below, at and above a register, a panel and all there are.
WINDOWS = [1, 2, 7, 16, 33, 63, 64, 65, 130, 200, 2**62]


@pytest.mark.parametrize("shape", [*SHAPES, (1, 200, 16), (200, 200, 16)], ids=str)
def test_a_window_ends_what_rows_see(kernels, isa, shape):
    """To the same bits as without what it hides; nothing before its first panel is read."""
    q, k, v = problem(*shape)
    rows, keys, _ = shape
    for window in WINDOWS:
        expected = reference.causal_attention(q, k, v, window=window)
        hidden = max(0, keys - rows + 1 - window) // 64 * 64
        unread = [np.array(k), np.array(v)]
        for each in unread:
            each[:hidden] = np.nan
        y = kernels.attend(isa, q, *unread, window=window)
        np.testing.assert_allclose(y, expected, atol=2e-6)
        cut = kernels.attend(isa, q, k[hidden:], v[hidden:], window=window)
        np.testing.assert_array_equal(y, cut)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_softcap_and_sinks(kernels, isa, shape):
    q, k, v = problem(*shape, scale=3.0)
    for options in (
        {"softcap": 2.0},
        {"softcap": 50.0, "window": 30},
        {"sink": 0.0},
        {"sink": -3.0, "window": 5},
        {"sink": 90.0},
        {"sink": -np.inf},
        {"sink": 1.5, "softcap": 4.0, "window": 64},
    ):
        expected = reference.causal_attention(q, k, v, **options)
        y = kernels.attend(isa, q, k, v, **options)
        np.testing.assert_allclose(y, expected, atol=5e-6, err_msg=str(options))


def test_softcap_is_a_hyperbolic_tangent(kernels, isa):
    """A row that sees two keys tells the difference of their scores, one of which is zero."""
    scores = np.concatenate([np.linspace(-12, 12, 3001), np.geomspace(1e-7, 1, 500)])
    q, k = np.zeros((1, 16), np.float32), np.zeros((2, 16), np.float32)
    v = np.zeros((2, 16), np.float32)
    v[0], k[0, 0] = 1, 1
    for score in scores.astype(np.float32):
        q[0, 0] = score
        weight = float(kernels.attend(isa, q, k, v, softcap=1.0)[0, 0])
        assert abs(weight - 1 / (1 + np.exp(-np.tanh(np.float64(score))))) < 2e-7


@pytest.mark.parametrize("scale", [0.0, 30.0, 1e4])
def test_scores_of_any_size(kernels, isa, scale):
    """From all alike to one that takes all: the exponential neither overflows nor vanishes."""
    q, k, v = problem(7, 90, 32, scale)
    y = kernels.attend(isa, q, k, v)
    # Scores are sums in float32: what they are off by multiplies the weights.
    tolerance = 3e-6 * max(1.0, scale)
    if scale == 1e4:
        scores = q.astype(np.float64) @ k.T
        best = [row[: 84 + r].argmax() for r, row in enumerate(scores)]
        np.testing.assert_allclose(y, v[best], atol=1e-3)
    else:
        np.testing.assert_allclose(y, reference.causal_attention(q, k, v), atol=tolerance)


@pytest.mark.parametrize("rows", [1, 8])
def test_a_row_that_is_not_finite_is_nan(kernels, isa, rows):
    q, k, v = problem(rows, 20, 32)
    clean = kernels.attend(isa, q, k, v)
    q[-1, 3] = np.nan
    y = kernels.attend(isa, q, k, v)
    assert np.isnan(y[-1]).all()
    np.testing.assert_array_equal(y[:-1], clean[:-1])


def full_attention(q, k, v, mask=None, **options):
    none = np.zeros(1, np.float32)
    added = none if mask is None else mask
    heads = {"num_heads": 1, "scale": 1.0} | options
    return reference.multi_head_attention(q[None], k[None], v[None], added, **heads)[0]


@pytest.mark.parametrize("shape", [*SHAPES, (40, 7, 16), (9, 300, 32)], ids=str)
def test_attends_to_all(kernels, isa, shape):
    q, k, v = problem(*shape)
    y = kernels.attend(isa, q, k, v, causal=False)
    np.testing.assert_allclose(y, full_attention(q, k, v), atol=2e-6)
    rng = np.random.default_rng(1)
    for rows in (len(q), 1):
        mask = rng.normal(0, 3, (rows, len(k))).astype(np.float32)
        mask[rng.random(mask.shape) < 0.3] = np.finfo(np.float32).min
        mask[:, len(k) // 2] = 0.0
        y = kernels.attend(isa, q, k, v, causal=False, mask=mask)
        np.testing.assert_allclose(y, full_attention(q, k, v, mask), atol=3e-6)


@pytest.mark.parametrize("rows", [1, 8])
def test_a_row_without_keys(kernels, isa, rows):
    """All masked by infinity: NaN, or zeros where asked for; by a finite number: all alike."""
    q, k, v = problem(rows, 20, 32)
    mask = np.zeros((rows, 20), np.float32)
    mask[-1] = -np.inf
    for zero in (False, True):
        y = kernels.attend(isa, q, k, v, causal=False, mask=mask, nan_is_zero=zero)
        np.testing.assert_allclose(
            y, full_attention(q, k, v, mask, nan_is_zero=zero), atol=3e-6, equal_nan=True
        )
    mask[-1] = np.finfo(np.float32).min
    y = kernels.attend(isa, q, k, v, causal=False, mask=mask)
    np.testing.assert_allclose(y[-1], v.mean(axis=0), atol=3e-6)


@pytest.mark.parametrize("shape", [(1, 16), (64, 32), (70, 48)], ids=str)
def test_keys_are_packed_side_by_side(kernels, shape):
    keys, d = shape
    k = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    padded = np.zeros((-(-keys // 64) * 64, d), np.float32)
    padded[:keys] = k
    expected = padded.reshape(-1, 64, d).transpose(0, 2, 1)
    np.testing.assert_array_equal(kernels.pack_keys(k), expected)
    wide = np.hstack([k, np.full((keys, 16), np.nan, np.float32)])
    np.testing.assert_array_equal(kernels.pack_keys(wide, d), expected)
