"""Bit allocation against an exhaustive search, its limits, and the names of formats."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.formats import WeightFormat
from qcompiler.numerics.allocation import allocate


def tables(seed: int, units: int, formats: int):
    rng = np.random.default_rng(seed)
    return rng.exponential(size=(units, formats)), rng.integers(1, 1000, (units, formats)) * 10.0


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 4), st.floats(0.0, 1.0))
def test_no_other_choice_is_better(seed, units, formats, share) -> None:
    costs, sizes = tables(seed, units, formats)
    least, most = sizes.min(axis=1).sum(), sizes.max(axis=1).sum()
    budget = least + share * (most - least)
    every = list(itertools.product(range(formats), repeat=units))
    index = np.arange(units)
    chosen = allocate(costs, sizes, budget=budget, most=None)
    assert sizes[index, chosen].sum() <= budget + 1e-6
    fitting = [c for c in every if sizes[index, list(c)].sum() <= budget * (1 - 2e-4)]
    if fitting:
        best = min(costs[index, list(c)].sum() for c in fitting)
        assert costs[index, chosen].sum() <= best + 1e-9
    limit = float(np.quantile([costs[index, list(c)].sum() for c in every], 0.5))
    chosen = allocate(costs, sizes, budget=None, most=limit)
    assert costs[index, chosen].sum() <= limit + 1e-12
    smallest = min(
        sizes[index, list(c)].sum() for c in every if costs[index, list(c)].sum() <= limit
    )
    assert sizes[index, chosen].sum() <= smallest + (most - least) * 1e-3


def test_what_can_not_be_met_is_refused() -> None:
    costs, sizes = tables(0, 3, 2)
    with pytest.raises(ValueError, match="the smallest formats take"):
        allocate(costs, sizes, budget=1.0, most=None)
    with pytest.raises(ValueError, match="the best formats still cost"):
        allocate(costs, sizes, budget=None, most=0.0)
    # With both, the divergence is a wish.
    assert len(allocate(costs, sizes, budget=float(sizes.max()) * 3, most=0.0)) == 3
    with pytest.raises(ValueError, match="no two tables alike"):
        allocate(costs, sizes[:2], budget=None, most=None)


@pytest.mark.parametrize("text", ["int4 g64 asym", "int3 g64 sym", "int8 sym"])
def test_formats_have_names(text) -> None:
    form = WeightFormat.parse(text)
    assert str(form) == text
    codes = 150 * 7 * form.bits // 8
    assert form.nbytes(150, 7) == codes + 4 * 7 + (0 if form.bits == 8 else 3 * 7)


@pytest.mark.parametrize("text", ["int7 g64 sym", "int4 g48 sym", "int4 g64", "4 g64 sym", ""])
def test_other_names_are_refused(text) -> None:
    with pytest.raises(ValueError):
        WeightFormat.parse(text)
