"""How far a model's next-token predictions lie from its reference's.

KL(reference || model), averaged over positions, and how often both rank the same token first:
unlike perplexity, these see every change, for better or worse.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qcompiler.feeds import Array
from qcompiler.numerics.divergence import row_divergence


@dataclass(frozen=True)
class DivergenceResult:
    """Mean KL divergence in nats, its standard error, and the share of equal top tokens."""

    kl: float
    kl_error: float
    top1: float
    tokens: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def token_divergence(reference: Array, logits: Array) -> tuple[Array, Array]:
    """KL per position (nats, float64 [T]) and whether top tokens agree (bool [T]).

    Both inputs are logits [T, V]; rows are handled in blocks so scratch memory stays bounded.
    """
    agree = reference.argmax(axis=1) == logits.argmax(axis=1)
    return np.maximum(row_divergence(reference, logits), 0.0), agree


def summarize(kl: list[Array], agree: list[Array]) -> DivergenceResult:
    """Averages over all positions."""
    every, same = np.concatenate(kl), np.concatenate(agree)
    spread = float(every.std(ddof=1)) if len(every) > 1 else 0.0
    return DivergenceResult(
        float(every.mean()), spread / math.sqrt(len(every)), float(same.mean()), len(every)
    )
