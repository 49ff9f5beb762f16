"""Equalization scales found by trying them: which of several makes a layer's output worst and best.

X [T, K] is the input of layers W_i [K, N_i] over a sample of calibration tokens. With scales s [K]
they compute Q(X / s) · Q(diag(s) · W_i), Q being what becomes of activations and weights. The error
of s is the relative error of these outputs, each layer counting alike:

    error(s)² = mean over i of ‖Q(X / s) · Q(diag(s) · W_i) - X · W_i‖² / ‖X · W_i‖²

Methods differ in the scales they try, and in whether Q rounds activations. Each tries 1 as well, so
that a layer nothing helps is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.formats import Granularity, WeightFormat
from qcompiler.numerics.equalization import (
    activation_aware,
    logarithmic,
    outlier_suppressing,
    smoothquant,
)
from qcompiler.numerics.rounding import Search, quantize_weight

Float = NDArray[np.float32]

TOKENS = 2048
"""Rows of X that judge a scale."""
COLUMNS = 512
"""Columns of a weight that judge a scale, evenly spaced: the mean over so many is close."""

EXPONENTS = tuple(step / 20 for step in range(20))
ALPHAS = tuple(step / 20 for step in range(21))
_JOINT_ALPHAS = tuple(step / 10 for step in range(1, 10))
_THRESHOLDS = 25
_SPAN = 1e-3  # least threshold, as a share of the largest


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """How weights, and the activations of the layers, become integers."""

    weights: WeightFormat | None
    """None: they stay in float."""
    search: Search = "none"
    """How the ranges of their groups are found."""
    activations: Granularity = Granularity.NONE


@dataclass(frozen=True)
class Candidate:
    """A scale [K] to try, and what it follows from."""

    label: str
    """Such as "a=0.35"."""
    scale: Float


def unscaled(channels: int) -> Candidate:
    """The scale that changes nothing."""
    return Candidate("1", np.ones(channels, np.float32))


def activation_aware_scales(mean_magnitude: NDArray[Any]) -> Iterator[Candidate]:
    """AWQ's twenty, a = 0 .. 0.95; a = 0 is 1."""
    yield unscaled(len(mean_magnitude))
    for exponent in EXPONENTS[1:]:
        yield Candidate(f"a={exponent:g}", activation_aware(mean_magnitude, exponent))


def outlier_suppressing_scales(absmax: NDArray[Any]) -> Iterator[Candidate]:
    """Those of Outlier Suppression+, t from the largest m_k, which gives 1, to the least.

    The steps are geometric, where the paper takes a hundred equal ones: any outlier is met.
    """
    top = float(np.max(absmax))
    yield unscaled(len(absmax))
    if top <= 0.0:
        return
    bottom = max(float(np.min(absmax)), _SPAN * top)
    for threshold in np.geomspace(top, bottom, _THRESHOLDS)[1:]:
        yield Candidate(f"t={threshold:.4g}", outlier_suppressing(absmax, float(threshold)))


def joint_scales(absmax: NDArray[Any], weight_absmax: NDArray[Any]) -> Iterator[Candidate]:
    """Of every family that needs no more than maxima: 1, FPTQ's, SmoothQuant's for nine alphas."""
    yield unscaled(len(absmax))
    yield Candidate("lae", logarithmic(absmax))
    for alpha in _JOINT_ALPHAS:
        yield Candidate(f"alpha={alpha:g}", smoothquant(absmax, weight_absmax, alpha))


def sampled(inputs: Sequence[NDArray[Any]], tokens: int = TOKENS, seed: int = 0) -> Float:
    """At most `tokens` rows [T, K] of activations [..., K], drawn without replacement, in order."""
    rows = [np.asarray(each).reshape(-1, each.shape[-1]) for each in inputs]
    total = sum(map(len, rows))
    if total <= tokens:
        return np.concatenate(rows).astype(np.float32)
    chosen = np.sort(np.random.default_rng(seed).choice(total, tokens, replace=False))
    starts = np.cumsum([0, *map(len, rows)])
    parts = [
        part[chosen[(chosen >= start) & (chosen < start + len(part))] - start]
        for start, part in zip(starts, rows, strict=False)
    ]
    return np.concatenate(parts).astype(np.float32)


def judged_columns(weight: NDArray[Any], most: int | None = None) -> Float:
    """At most `most` columns (COLUMNS by itself) of a weight [K, N], evenly spaced, as float32."""
    return np.asarray(weight[:, :: -(-weight.shape[1] // (most or COLUMNS))], np.float32)


def rounded_activations(x: Float, granularity: Granularity) -> Float:
    """X [T, K] rounded to int8, with the scales `insert-qdq` would give it.

    One scale a tensor (from the sample), or a row.
    """
    if granularity is Granularity.NONE:
        return x
    axis = None if granularity is Granularity.PER_TENSOR else 1
    peak = np.abs(x).max(axis=axis, keepdims=True)
    scale = np.where(peak > 0.0, peak / np.float32(127.0), np.float32(1.0))
    return np.rint(x / scale) * scale


def rounded_weight(
    weight: Float,
    form: WeightFormat | None,
    search: Search = "none",
    importance: NDArray[Any] | None = None,
) -> Float:
    """A weight [K, N] as its codes stand for it; `search` and `importance` as of
    `quantize_weight`."""
    if form is None:
        return weight
    return quantize_weight(weight, form, search=search, importance=importance).dequantize()


def output_errors(
    x: Float, weights: Sequence[NDArray[Any]], scales: Sequence[Float], rounding: Rounding
) -> list[float]:
    """error(s) for each s of `scales`, as defined above; 0 where the outputs are zero.

    `x` [T, K], `weights` [K, N_i] each. A scale whose weights can't be quantized has error inf.
    """
    errors = np.zeros(len(scales))
    square = np.square(x, dtype=np.float64).mean(axis=0)
    counted = 0
    for weight in weights:
        w = judged_columns(weight)
        true = x @ w
        signal = _energy(true)
        if signal == 0.0:
            continue
        counted += 1
        for index, scale in enumerate(scales):
            try:
                quantized = rounded_weight(
                    w * scale[:, None], rounding.weights, rounding.search, square / scale**2
                )
            except ValueError:
                errors[index] = np.inf
                continue
            given = rounded_activations(x / scale, rounding.activations)
            errors[index] += _energy(given @ quantized - true) / signal
    return [float(np.sqrt(error / max(counted, 1))) for error in errors]


def _energy(values: NDArray[Any]) -> float:
    return float(np.sum(np.square(values), dtype=np.float64))


def best(candidates: Sequence[Candidate], errors: Sequence[float]) -> int:
    """Index of the least error; the first of equals."""
    return min(range(len(candidates)), key=lambda index: errors[index])
