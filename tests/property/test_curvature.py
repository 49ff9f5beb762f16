"""What errors cost at the output: estimates beside the divergence itself, and rounding by them."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.autodiff import divergence_probe
from qcompiler.formats import WeightFormat
from qcompiler.numerics.curvature import Curvature, curvature, weighed
from qcompiler.numerics.divergence import divergence
from qcompiler.numerics.gptq import gptq, moments
from qcompiler.numerics.rounding import quantize_weight
from qcompiler.numerics.two_sided import by_columns, shrunk


def cost(found: Curvature, x: list[np.ndarray], e: np.ndarray) -> float:
    """scale / (2 T) · Σ_t s_t tr(H_O Eᵀ x_t x_tᵀ E)."""
    rows = np.concatenate([weighed(*pair) for pair in zip(x, found.tokens, strict=True)]) @ e
    return found.scale / (2 * len(rows)) * float(np.sum((rows @ found.outputs) * rows))


@pytest.mark.parametrize(("outputs", "alike"), [(1500, True), (1500, False), (40, True)])
def test_the_estimate_is_the_divergence_of_small_errors(outputs, alike):
    """Logits, and other outputs; tokens that count alike, and some that are sure of the next."""
    draws = np.random.default_rng(0)
    x = [draws.standard_normal((200, 16)).astype(np.float32) for _ in range(3)]
    w = draws.standard_normal((16, outputs)).astype(np.float32) * 0.3
    if not alike:
        for each in x:
            each[::2] *= 12.0
    probe = divergence_probe(0)
    y = [each @ w for each in x]
    found = curvature(probe(index, each) for index, each in enumerate(y))
    e = draws.standard_normal(w.shape) * 0.01
    true = np.mean(
        [divergence([each], [rows @ (w + e)]) for each, rows in zip(y, x, strict=True)]
    )
    # Which outputs matter differs from token to token: factors say it in the mean.
    assert cost(found, x, e) == pytest.approx(true, rel=0.1 if alike else 0.5)
    assert np.concatenate(found.tokens).mean() == pytest.approx(1.0, rel=1e-5)
    assert np.diagonal(found.outputs).mean() == pytest.approx(1.0)
    tokens = np.concatenate(found.tokens)
    assert alike or tokens[1::2].mean() > 3 * tokens[::2].mean()


def test_without_gradients_there_is_no_curvature():
    with pytest.raises(ValueError, match="no gradient reaches its output"):
        curvature([np.zeros((4, 3), np.float32)])


def two_sided_loss(e: np.ndarray, hessian: np.ndarray, outputs: np.ndarray) -> float:
    return float(np.sum((hessian @ e @ outputs) * e))


def test_rounding_on_both_sides_costs_less_at_the_output():
    draws = np.random.default_rng(1)
    k, n = 96, 160
    x = draws.standard_normal((600, k)) @ np.linalg.qr(draws.standard_normal((k, k)))[0]
    x = (x * np.geomspace(0.1, 3.0, k)).astype(np.float32)
    g = draws.standard_normal((600, 24)) @ draws.standard_normal((24, n))
    w = draws.standard_normal((k, n)).astype(np.float32)
    found, known = moments([x]), curvature([g.astype(np.float32)])
    start = quantize_weight(w, WeightFormat.parse("int3 g32 asym"))
    outputs = shrunk(known.outputs, 0.1)

    def choose(target, some):
        return gptq(target, some, found)

    one, both = choose(w, start), by_columns(w, start, outputs, choose)
    before, after = (
        two_sided_loss(w - each.dequantize(), found.hessian, known.outputs) for each in (one, both)
    )
    assert after < 0.7 * before
    np.testing.assert_array_equal(both.scales, start.scales)
    # Where outputs have nothing to do with one another there is one side.
    alone = by_columns(w, start, np.eye(n), choose)
    np.testing.assert_array_equal(alone.codes, one.codes)
