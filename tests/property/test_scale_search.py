"""The search for scales: what is tried, and that its errors are those of the rounded layers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.formats import Granularity, WeightFormat
from qcompiler.numerics import scale_search
from qcompiler.numerics.rounding import quantize_weight
from qcompiler.numerics.scale_search import (
    Rounding,
    activation_aware_scales,
    best,
    joint_scales,
    outlier_suppressing_scales,
    output_errors,
    rounded_activations,
    sampled,
)

WEIGHTS_ONLY = Rounding(weights=WeightFormat(bits=4, group_size=128))
PLANNED = [Granularity.NONE, Granularity.PER_TENSOR, Granularity.PER_TOKEN]


def problem(seed: int, channels: int = 48, tokens: int = 200):
    """Activations with two outlier channels, and weights of two layers that read them."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, channels)).astype(np.float32)
    x[:, rng.choice(channels, 2, replace=False)] *= 40.0
    weights = [rng.normal(0, 0.1, (channels, n)).astype(np.float32) for n in (24, 40)]
    return x, weights


def every_candidate(x, weights):
    peak = np.abs(x).max(axis=0)
    reach = np.max([np.abs(w).max(axis=1) for w in weights], axis=0)
    return {
        "awq": list(activation_aware_scales(np.abs(x).mean(axis=0))),
        "os+": list(outlier_suppressing_scales(peak)),
        "aqas": list(joint_scales(peak, reach)),
    }


@pytest.mark.parametrize("granularity", PLANNED)
@pytest.mark.parametrize("search", ["none", "output"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_errors_are_those_of_the_rounded_layers(granularity, search, symmetric):
    x, weights = problem(0)
    scale = np.linspace(0.5, 3.0, x.shape[1]).astype(np.float32)
    form = WeightFormat(bits=4, group_size=32, symmetric=symmetric)
    rounding = Rounding(weights=form, search=search, activations=granularity)
    found = output_errors(x, weights, [np.ones_like(scale), scale], rounding)
    for s, error in zip((np.ones_like(scale), scale), found, strict=True):
        relative = []
        for w in weights:
            importance = np.square(x / s).mean(axis=0)
            q = quantize_weight(w * s[:, None], form, search=search, importance=importance)
            y = rounded_activations(x / s, granularity) @ q.dequantize()
            relative.append(np.sum((y - x @ w) ** 2) / np.sum((x @ w) ** 2))
        assert error == pytest.approx(np.sqrt(np.mean(relative)), rel=1e-4)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**31), st.sampled_from(["awq", "os+", "aqas"]))
def test_one_is_tried_first_and_the_choice_is_no_worse(seed, method):
    x, weights = problem(seed)
    candidates = every_candidate(x, weights)[method]
    np.testing.assert_array_equal(candidates[0].scale, np.ones(x.shape[1]))
    assert all(np.isfinite(c.scale).all() and (c.scale > 0).all() for c in candidates)
    assert len({c.label for c in candidates}) == len(candidates)
    rounding = replace(
        WEIGHTS_ONLY,
        activations=Granularity.NONE if method == "awq" else Granularity.PER_TOKEN,
    )
    errors = output_errors(x, weights, [c.scale for c in candidates], rounding)
    # Outliers forty times the rest: every family has something better than doing nothing.
    assert errors[best(candidates, errors)] < 0.9 * errors[0]


def test_candidates_follow_the_formulas():
    m = np.array([1.0, 4.0, 16.0])
    assert [c.label for c in activation_aware_scales(m)][:3] == ["1", "a=0.05", "a=0.1"]
    thresholds = list(outlier_suppressing_scales(m))
    assert len(thresholds) == 25
    np.testing.assert_allclose(thresholds[-1].scale, m, rtol=1e-6)
    assert [c.label for c in joint_scales(m, m)] == [
        "1",
        "lae",
        *(f"alpha={a / 10:g}" for a in range(1, 10)),
    ]
    assert [c.label for c in outlier_suppressing_scales(np.zeros(3))] == ["1"]


def test_silent_layers_and_impossible_weights():
    x, weights = problem(1)
    one = np.ones(x.shape[1], np.float32)
    assert output_errors(np.zeros_like(x), weights, [one], WEIGHTS_ONLY) == [0.0]
    endless = one * np.float32(np.inf)
    assert output_errors(x, weights, [one, endless], WEIGHTS_ONLY)[1] == np.inf


def test_wide_weights_are_judged_by_some_columns(monkeypatch):
    x, weights = problem(2)
    one = [np.ones(x.shape[1], np.float32)]
    monkeypatch.setattr(scale_search, "COLUMNS", 10)
    few = output_errors(x, weights, one, WEIGHTS_ONLY)
    # 24 columns: every third; 40: every fourth.
    assert few == output_errors(x, [weights[0][:, ::3], weights[1][:, ::4]], one, WEIGHTS_ONLY)


@settings(deadline=None)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=5), st.integers(1, 12), st.integers(0, 9))
def test_samples_are_rows_in_order(lengths, tokens, seed):
    total = sum(lengths)
    rows = np.arange(3 * total, dtype=np.float16).reshape(total, 3)
    parts = np.split(rows, np.cumsum(lengths)[:-1])
    drawn = sampled([part.reshape(1, -1, 3) for part in parts], tokens, seed)
    assert drawn.shape == (min(total, tokens), 3) and drawn.dtype == np.float32
    assert np.isin(drawn[:, 0], rows[:, 0]).all()
    assert (np.diff(drawn[:, 0]) > 0).all()
    np.testing.assert_array_equal(
        drawn, sampled([part.reshape(1, -1, 3) for part in parts], tokens, seed)
    )
