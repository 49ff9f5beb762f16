"""Norm tweaking in closed form: the weight of a norm makes up for the rounding behind it.

X̂ [T, K] is a norm's output in the rounded model, Ŵ [K, N] the rounded weight of a layer that reads
it, W the float one, and Y [T, N] what the layer should give: X̂ W, or the float model's X W. The
channels of the norm are scaled by a [K], those that come nearest to Y over all readers:

    min  Σ ‖X̂ diag(a) Ŵ - Y‖² + λ ‖a - 1‖²

With X̂ diag(a) Ŵ = Σ a_k x̂_k ŵ_k (column k of X̂ times row k of Ŵ) this is least squares in a. Let
E = W - Ŵ, D = X - X̂ and R = Y - X̂ Ŵ = X̂ E + D W; then d = a - 1 solves

    (G + λ I) d = c,  G = X̂ᵀX̂ ∘ Σ Ŵ Ŵᵀ,  c = Σ diag(X̂ᵀ R Ŵᵀ)

where diag(X̂ᵀ R Ŵᵀ)_k = Σ_l (X̂ᵀX̂)_kl (E Ŵᵀ)_lk + (X̂ᵀD)_kl (W Ŵᵀ)_lk. Three K × K sums over tokens
and three over columns are enough, also for the error Σ ‖R - X̂ diag(d) Ŵ‖² that judges a on other
tokens. The weight w of the norm becomes w ∘ a.

A norm with a bias, X̂ = S + 1 bᵀ, has its scaled part S tweaked alone: X̂ Ŵ = [S 1] [Ŵ; bᵀŴ], the
channel of ones is one more with a = 1.

Source: that norms take part of the rounding error back is Norm Tweaking, arXiv 2309.02784, which
trains them to match the mean and variance of each channel. The least squares are ours. Rounding of
the activations between norm and layers is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.numerics.gptq import Double, Moments, moments
from qcompiler.numerics.holdout import split
from qcompiler.numerics.parallel import column_parts
from qcompiler.numerics.rounding import QuantizedWeight

Float = NDArray[np.float32]
Layers = Sequence[tuple[NDArray[Any], QuantizedWeight]]
"""W and Ŵ of each reader."""


@dataclass(frozen=True)
class Tweak:
    """What to multiply a norm's weight [K] by, and the readers' error on the held-out samples."""

    factors: Float
    before: float
    after: float
    """Both ‖X̂ diag(a) Ŵ - Y‖ / ‖Y‖ over all readers."""

    @property
    def helps(self) -> bool:
        """Whether the error falls where the factors were not fitted."""
        return self.after < self.before


def tweak(
    inputs: Sequence[NDArray[Any]],
    references: Sequence[NDArray[Any]] | None,
    layers: Layers,
    *,
    bias: NDArray[Any] | None = None,
    ridge: float,
) -> Tweak:
    """Factors for a norm that gives `inputs`, one array [..., K] a sample, to `layers`.

    `references` are the float model's; without them the target is X̂ W. `bias` [K] is the part of
    the inputs that is not scaled. λ is `ridge` times the mean of diag(G). Fitted on all but the
    last quarter of the samples, judged on that quarter.

    ValueError if there are not two samples, or one part has no tokens or is not finite.
    """
    products = _products(layers, bias)
    parts = zip(split(inputs), split(references) if references else (None, None), strict=True)
    fitted, held_out = (_problem(_moments(x, other, bias), products) for x, other in parts)
    factors = (1.0 + fitted.solution(ridge)).astype(np.float32)
    change = factors.astype(np.float64) - 1.0  # as it is stored
    return Tweak(factors, held_out.error(np.zeros_like(change)), held_out.error(change))


def scaled(x: NDArray[Any], factors: Float, bias: NDArray[Any] | None) -> NDArray[Any]:
    """Outputs [..., K] of a norm whose weight is multiplied by `factors` [K]."""
    if bias is None:
        return np.asarray(x * factors)
    return np.asarray((x - bias) * factors + bias)


@dataclass(frozen=True)
class _Products:
    """Sums over the columns of all readers, [K, K] or with a channel of ones [K + 1, K + 1]."""

    rounded: Double
    """Ŵ Ŵᵀ."""
    mixed: Double
    """E Ŵᵀ."""
    lost: Double
    """E Eᵀ."""
    channels: int
    """K, those that may be scaled."""


@dataclass(frozen=True)
class _Problem:
    """The squared error as a function of d: rest - 2 cᵀd + dᵀGd."""

    gram: Double
    slope: Double
    rest: float
    signal: float
    """‖Y‖²."""

    def solution(self, ridge: float) -> Double:
        """The d with the least error and ridge."""
        size = float(np.mean(np.diagonal(self.gram))) or 1.0  # nothing to scale: d = 0
        damped = self.gram + ridge * size * np.eye(len(self.gram))
        return np.asarray(np.linalg.solve(damped, self.slope), np.float64)

    def error(self, change: Double) -> float:
        """‖error‖ / ‖Y‖ for a d, 0 where Y is zero."""
        noise = self.rest + float(change @ (self.gram @ change - 2.0 * self.slope))
        return float(np.sqrt(max(noise, 0.0) / self.signal)) if self.signal > 0.0 else 0.0


def _products(layers: Layers, bias: NDArray[Any] | None) -> _Products:
    channels = len(layers[0][0])
    size = channels + (bias is not None)
    rounded, mixed, lost = (np.zeros((size, size)) for _ in range(3))
    for weight, quantized in layers:
        for part in column_parts(*weight.shape):
            near = _with_bias(quantized.columns(part).dequantize(), bias)
            error = _with_bias(np.asarray(weight[:, part], np.float32), bias) - near
            rounded += near @ near.T
            mixed += error @ near.T
            lost += error @ error.T
    return _Products(rounded, mixed, lost, channels)


def _with_bias(weight: Float, bias: NDArray[Any] | None) -> Float:
    """W, with the row b·W that the channel of ones has."""
    if bias is None:
        return weight
    return np.concatenate([weight, (bias.astype(np.float32) @ weight)[None]])


def _moments(
    inputs: Sequence[NDArray[Any]],
    references: Sequence[NDArray[Any]] | None,
    bias: NDArray[Any] | None,
) -> Moments:
    others = None if references is None else _scaled_parts(references, bias)
    return moments(_scaled_parts(inputs, bias), others)


def _scaled_parts(
    arrays: Iterable[NDArray[Any]], bias: NDArray[Any] | None
) -> Iterator[NDArray[Any]]:
    """What the weight of the norm scales, with the channel of ones where the rest is a bias."""
    for each in arrays:
        if bias is None:
            yield each
        else:
            part = np.asarray(each, np.float32) - bias.astype(np.float32)
            yield np.concatenate([part, np.ones((*part.shape[:-1], 1), np.float32)], axis=-1)


def _problem(found: Moments, products: _Products) -> _Problem:
    rounded, mixed, lost = products.rounded, products.mixed, products.lost
    inner = found.hessian
    # W = Ŵ + E: all products of W follow from those of Ŵ and E.
    true = rounded + mixed + mixed.T + lost
    slope = np.sum(inner * mixed.T, axis=1)
    rest, signal = float(np.sum(inner * lost)), float(np.sum(inner * true))
    if found.drift is not None and found.spread is not None:
        slope += np.sum(found.drift * (rounded + mixed), axis=0)
        across = 2.0 * float(np.sum(found.drift.T * (mixed + lost)))
        spread = float(np.sum(found.spread * true))
        rest += across + spread
        signal += 2.0 * float(np.sum(found.drift * true)) + spread
    part = slice(products.channels)
    return _Problem((inner * rounded)[part, part], slope[part], rest, signal)
