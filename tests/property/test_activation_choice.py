"""The choice of a granularity: errors are those of the rounded layers, on data not seen before."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.formats import Granularity
from qcompiler.numerics import activation_choice, scale_search
from qcompiler.numerics.activation_choice import (
    activation_errors,
    activation_loss,
    cheapest,
)
from qcompiler.numerics.scale_search import rounded_activations


def problem(seed: int, samples: int = 4, tokens: int = 20, channels: int = 70):
    """Samples of activations, and the weights of two layers that read them."""
    rng = np.random.default_rng(seed)
    inputs = [rng.standard_normal((1, tokens, channels)).astype(np.float32) for _ in range(samples)]
    return inputs, [rng.standard_normal((channels, n)).astype(np.float32) for n in (5, 9)]


def relative(x, rounded, weights):
    parts = [((x - rounded) @ w, x @ w) for w in weights]
    ratios = [np.sum(lost**2, axis=0) / (len(y) * y.var(axis=0)) for lost, y in parts]
    return max(np.sqrt(ratio.mean()) for ratio in ratios)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.integers(2, 9))
def test_errors_are_those_of_the_rounded_layers_on_the_last_quarter(seed, samples):
    inputs, weights = problem(seed, samples)
    found = activation_errors(inputs, weights)
    assert tuple(found) == (Granularity.PER_TENSOR, Granularity.PER_TOKEN)
    judged = max(1, samples // 4)
    x = np.concatenate([each[0] for each in inputs[-judged:]])
    scale = max(np.abs(each).max() for each in inputs[:-judged]) / np.float32(127)
    static = np.clip(np.rint(x / scale), -127, 127) * scale
    assert found[Granularity.PER_TENSOR] == pytest.approx(relative(x, static, weights), rel=1e-3)
    rounded = rounded_activations(x, Granularity.PER_TOKEN)
    by_token = found[Granularity.PER_TOKEN]
    assert by_token == pytest.approx(relative(x, rounded, weights), rel=1e-3)
    # Steps of an error evenly spread: max / 127 / sqrt(12), here against a spread of 1.
    assert 0.0 < by_token < 0.02


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31))
def test_the_loss_is_the_energy_that_rounding_adds(seed):
    inputs, weights = problem(seed)
    x = np.concatenate([each[0] for each in inputs])
    lost = x - rounded_activations(x, Granularity.PER_TOKEN)
    energy = sum(np.sum((lost @ w) ** 2) for w in weights) / len(x)
    assert activation_loss(x, weights) == pytest.approx(energy, rel=1e-3)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**31), st.floats(4.0, 50.0))
def test_a_range_too_tight_for_unseen_samples_is_seen(seed, factor):
    inputs, weights = problem(seed)
    inputs[-1] *= np.float32(factor)
    found = activation_errors(inputs, weights)
    known = activation_errors([*inputs, inputs[-1]], weights)
    assert found[Granularity.PER_TENSOR] > 0.1
    assert known[Granularity.PER_TENSOR] < 0.02
    assert found[Granularity.PER_TOKEN] == pytest.approx(known[Granularity.PER_TOKEN], rel=1e-5)


def test_a_lone_sample_judges_its_own_range():
    inputs, weights = problem(3, samples=1)
    assert activation_errors(inputs, weights)[Granularity.PER_TENSOR] < 0.02


def test_the_layer_that_suffers_most_decides():
    inputs, weights = problem(4)
    alone = [activation_errors(inputs, [w]) for w in weights]
    together = activation_errors(inputs, weights)
    assert together == {name: max(each[name] for each in alone) for name in together}


@pytest.mark.parametrize(
    "inputs",
    [[np.zeros((0, 70), np.float32)], [np.zeros((4, 70), np.float32)] * 3],
    ids=["no tokens", "zeros"],
)
def test_nothing_to_judge(inputs):
    assert activation_errors(inputs, problem(6)[1]) is None


def test_loud_channels_and_common_means_hide_nothing():
    inputs, weights = problem(10)
    quiet = activation_errors(inputs, weights[:1])
    loud = weights[0].copy()
    loud[:, 0] *= 1000
    assert activation_errors(inputs, [loud]) == pytest.approx(quiet, rel=1e-4)
    # A channel of X that every token has alike: it moves the mean of the output, and the range.
    shifted = [each.copy() for each in inputs]
    for each in shifted:
        each[..., 0] = 100.0
    found = activation_errors(shifted, weights[:1])
    assert found[Granularity.PER_TOKEN] > 20 * quiet[Granularity.PER_TOKEN]


def test_constant_outputs_do_not_count():
    inputs, (weight, _) = problem(11)
    inputs = [np.concatenate([each, np.ones_like(each[..., :1])], axis=-1) for each in inputs]
    both = np.zeros((71, 6), np.float32)
    both[:70, :5], both[70, 5] = weight, 3.0
    only = activation_errors(inputs, [both[:, :5]])
    assert activation_errors(inputs, [both]) == pytest.approx(only)
    assert activation_errors(inputs, [both[:, 5:]]) is None


def test_a_range_of_zero_is_no_range():
    inputs, weights = problem(7)
    quiet = [np.zeros_like(each) for each in inputs[:3]] + inputs[3:]
    found = activation_errors(quiet, weights)
    assert found[Granularity.PER_TENSOR] == np.inf
    assert cheapest(found, 1.0) == Granularity.PER_TOKEN


@pytest.mark.parametrize("sample", [0, 3])
def test_activations_that_are_not_finite_are_refused(sample):
    inputs, weights = problem(8)
    inputs[sample][0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        activation_errors(inputs, weights)


def test_few_tokens_and_columns_judge(monkeypatch):
    inputs, weights = problem(9, tokens=200)
    monkeypatch.setattr(activation_choice, "TOKENS", 50)
    monkeypatch.setattr(scale_search, "COLUMNS", 4)
    half = [*inputs[:3], scale_search.sampled(inputs[3:], 50)]
    assert activation_errors(inputs, weights) == activation_errors(
        half, [weights[0][:, ::2], weights[1][:, ::3]]
    )


ERRORS = st.fixed_dictionaries(
    {name: st.floats(0.0, 1.0) for name in (Granularity.PER_TENSOR, Granularity.PER_TOKEN)}
)


@given(ERRORS, st.floats(0.0, 1.0))
def test_a_static_scale_is_taken_within_the_tolerance_only(errors, tolerance):
    static = errors[Granularity.PER_TENSOR] <= tolerance
    wanted = Granularity.PER_TENSOR if static else Granularity.PER_TOKEN
    assert cheapest(errors, tolerance) is wanted
