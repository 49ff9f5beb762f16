"""What errors cost at the output: estimates beside the divergence itself."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.autodiff import divergence_probe
from qcompiler.numerics.curvature import Curvature, curvature, weighed
from qcompiler.numerics.divergence import divergence


def cost(found: Curvature, x: list[np.ndarray], e: np.ndarray) -> float:
    """scale / (2 T) · Σ_tkn s_t o_n x_tk² E_kn²."""
    rows = np.concatenate([weighed(*pair) for pair in zip(x, found.tokens, strict=True)])
    squares = np.sum(np.square(rows), axis=0) @ np.square(e) @ found.outputs
    return found.scale / (2 * len(rows)) * float(squares)


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
    true = np.mean([divergence([each], [rows @ (w + e)]) for each, rows in zip(y, x, strict=True)])
    # Which outputs matter differs from token to token: factors say it in the mean.
    assert cost(found, x, e) == pytest.approx(true, rel=0.1 if alike else 0.5)
    assert np.concatenate(found.tokens).mean() == pytest.approx(1.0, rel=1e-5)
    assert found.outputs.mean() == pytest.approx(1.0)
    tokens = np.concatenate(found.tokens)
    assert alike or tokens[1::2].mean() > 3 * tokens[::2].mean()


def test_what_the_output_does_not_depend_on_costs_nothing():
    found = curvature([np.zeros((4, 3), np.float32), np.zeros((2, 3), np.float32)])
    assert found.scale == 0.0
    assert [each.tolist() for each in found.tokens] == [[1.0] * 4, [1.0] * 2]
    assert found.outputs.tolist() == [1.0] * 3
