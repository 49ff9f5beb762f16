"""Frequencies found from tables of rotary embeddings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.numerics.rotary import angles, frequencies


def of_base(base: float, half: int) -> np.ndarray:
    return (1.0 / base ** (np.arange(half) / half)).astype(np.float32)


@given(st.sampled_from([1e4, 1e5, 5e5, 1e6]), st.sampled_from([8, 32, 64]), st.integers(2, 9000))
def test_tables_are_found_again(base, half, positions) -> None:
    wanted = of_base(base, half)
    turns = angles(wanted, positions)
    found = frequencies(np.cos(turns), np.sin(turns))
    assert found is not None
    np.testing.assert_allclose(np.cos(angles(found, positions)), np.cos(turns), atol=1e-6)
    np.testing.assert_allclose(np.sin(angles(found, positions)), np.sin(turns), atol=1e-6)


def test_a_long_table_and_one_with_stretched_frequencies() -> None:
    stretched = of_base(5e5, 64)
    stretched[40:] /= 8  # as models of long contexts do
    turns = angles(stretched, 131_072)
    found = frequencies(np.cos(turns), np.sin(turns))
    np.testing.assert_array_equal(found, stretched)


@pytest.mark.parametrize("change", ["noise", "scaled", "double", "nan", "shape", "short"])
def test_other_tables_are_left(change) -> None:
    turns = angles(of_base(1e4, 8), 4096)
    cosines, sines = np.cos(turns), np.sin(turns)
    if change == "noise":
        cosines = cosines + np.random.default_rng(0).normal(0, 1e-5, cosines.shape)
    elif change == "scaled":
        cosines, sines = cosines * 1.2, sines * 1.2
    elif change == "double":  # the product in double precision: another table far out
        turns = np.arange(4096)[:, None] * of_base(1e4, 8).astype(np.float64) * (1 + 1e-9)
        cosines, sines = np.cos(turns + 3e-5), np.sin(turns + 3e-5)
    elif change == "nan":
        sines[7, 3] = np.nan
    elif change == "shape":
        sines = sines[:, :4]
    else:
        cosines, sines = cosines[:1], sines[:1]
    assert frequencies(cosines.astype(np.float32), sines.astype(np.float32)) is None
