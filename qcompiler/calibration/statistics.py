"""Statistics of activations over calibration data; only these ever leave the runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TensorStatistics:
    """One activation [..., K], reduced over all its tokens."""

    minimum: NDArray[np.float32]
    """[K]: min x_k."""
    maximum: NDArray[np.float32]
    """[K]: max x_k."""
    mean_square: NDArray[np.float32]
    """[K]: E[x_k²]."""
    tokens: int

    @property
    def absmax(self) -> NDArray[np.float32]:
        """[K]: max |x_k|."""
        return np.maximum(np.abs(self.minimum), np.abs(self.maximum))

    @property
    def still(self) -> bool:
        """Whether it never changed: it is zero, or the same for all of several tokens."""
        same = self.tokens > 1 and bool((self.minimum == self.maximum).all())
        return same or not self.absmax.any()

    def scaled(self, scale: NDArray[Any]) -> TensorStatistics:
        """The statistics of X / scale, scale [K] > 0."""
        return replace(
            self,
            minimum=(self.minimum / scale).astype(np.float32),
            maximum=(self.maximum / scale).astype(np.float32),
            mean_square=(self.mean_square / np.square(scale)).astype(np.float32),
        )

    def filled(self, other: TensorStatistics, tokens: int) -> TensorStatistics:
        """As if of so many tokens, of which those that are lacking are like those of another."""
        lacking = tokens - self.tokens
        total = self.mean_square * self.tokens + other.mean_square * lacking
        return TensorStatistics(
            np.minimum(self.minimum, other.minimum),
            np.maximum(self.maximum, other.maximum),
            np.asarray(total / tokens, np.float32),
            self.tokens,
        )


@dataclass(frozen=True)
class Statistics:
    """Statistics of activations by tensor name."""

    tensors: Mapping[str, TensorStatistics] = field(default_factory=dict)
    source: str = ""

    def scaled(self, name: str, scale: NDArray[Any]) -> Statistics:
        """These statistics after one activation was divided by `scale`."""
        return replace(self, tensors={**self.tensors, name: self.tensors[name].scaled(scale)})
