"""Bit allocation: which layers get which format, for the least loss within a size.

Every unit (layers that share an input) takes one of several formats, each with a cost (an estimate
of the loss) and a size. Losses are taken to add up. That is a multiple-choice knapsack, solved by
dynamic programming over sizes in fine steps; the loss found is the least for sizes rounded up to
a step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

STEPS = 1 << 15
"""Steps the largest size is cut into: rounding up costs under half a percent of 300 units."""


def allocate(
    costs: NDArray[Any], sizes: NDArray[Any], *, budget: float | None = None, most: float | None
) -> list[int]:
    """The format of each unit: indices into the columns of `costs` and `sizes` [units, formats].

    With a `budget`, the least total cost of those whose total size is not above it; with `most`,
    the least total size of those whose total cost is not above it; with both, `most` only where
    the budget allows it. ValueError where nothing fits, with the least that would.
    """
    if costs.shape != sizes.shape or costs.ndim != 2 or not costs.size:
        raise ValueError(f"costs {costs.shape} and sizes {sizes.shape} are no two tables alike")
    least, largest = float(sizes.min(axis=1).sum()), float(sizes.max(axis=1).sum())
    limit = largest if budget is None else min(budget, largest)
    if limit < least:
        raise ValueError(f"the smallest formats take {least:.0f}, more than {budget:.0f}")
    # Only what is above each unit's smallest format counts: the steps are finer for it.
    base = sizes.min(axis=1, keepdims=True)
    step = max((limit - least) / STEPS, 1e-9)
    steps = np.ceil((sizes - base) / step - 1e-9).astype(np.int64)
    room = int((limit - least) / step + 1e-6) + 1
    best = np.zeros(room)
    chosen = np.zeros((len(costs), room), np.uint8)
    for unit in range(len(costs)):
        options = np.full((costs.shape[1], room), np.inf)
        for form, taken in enumerate(steps[unit]):
            if taken < room:
                options[form, taken:] = best[: room - taken] + costs[unit, form]
        chosen[unit] = options.argmin(axis=0)
        best = options.min(axis=0)
    at = room - 1
    if most is not None:
        good = np.flatnonzero(best <= most)
        if budget is None and not good.size:
            raise ValueError(f"the best formats still cost {best[-1]:.4g}, more than {most:.4g}")
        at = int(good[0]) if good.size else at
    picked: list[int] = []
    for unit in reversed(range(len(costs))):
        form = int(chosen[unit, at])
        picked.append(form)
        at -= int(steps[unit, form])
    return picked[::-1]
