"""Group-wise weight quantization by rounding to nearest, with an optional search of the range.

A weight is a K × N matrix (input channels × output channels). Groups of `group_size`
consecutive input channels of one column share a scale, and a zero point where the scheme is
asymmetric: w ≈ (code - zero_point) · scale. The last group may be short. Scales are any float16, or
in progressive groups small multiples of one number a column (`progressive`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qcompiler.numerics.progressive import code_reach, snapped, units

Float = NDArray[np.float32]
Search = Literal["none", "mse", "output"]

_CHUNK = 4 << 20  # elements of a weight worked on at a time: bounds the temporaries
_COARSE = 2.0**-20  # below, a float16 has fewer than five significant bits
_SCALE_MIN = np.float32(2.0**-24)  # least positive float16


@dataclass(frozen=True)
class QuantizedWeight:
    """Codes and scales of a K × N matrix in G = ceil(K / group_size) groups."""

    codes: NDArray[np.uint8]
    """[K, N], unsigned: 0 .. 2^bits - 1."""
    scales: NDArray[np.float16]
    """[G, N]; negative where a symmetric group spends its extra code on its positive extreme."""
    zero_points: NDArray[np.uint8] | None
    """[G, N]; None for a symmetric scheme, whose zero point is 2^(bits - 1)."""
    bits: int
    group_size: int
    reach: NDArray[np.uint8] | None = None
    """[G, N]: how far a code may lie from its zero point; None: as far as its bits go."""

    def dequantize(self) -> Float:
        """The K × N matrix the codes stand for, float32."""
        rows = self.codes.shape[0]
        scales = np.repeat(self.scales.astype(np.float32), self.group_size, axis=0)[:rows]
        if self.zero_points is None:
            zero: Any = np.float32(1 << (self.bits - 1))
        else:
            zero = np.repeat(self.zero_points.astype(np.float32), self.group_size, axis=0)[:rows]
        return (self.codes.astype(np.float32) - zero) * scales

    def columns(self, part: slice) -> QuantizedWeight:
        """Some columns of the weight, not copied."""
        zeros = None if self.zero_points is None else self.zero_points[:, part]
        reach = None if self.reach is None else self.reach[:, part]
        return replace(
            self,
            codes=self.codes[:, part],
            scales=self.scales[:, part],
            zero_points=zeros,
            reach=reach,
        )

    def limits(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The least and the greatest code of each group, [G, N] each: whole numbers."""
        top = (1 << self.bits) - 1
        if self.reach is None:
            shape = self.scales.shape
            return np.broadcast_to(0.0, shape), np.broadcast_to(float(top), shape)
        reach = self.reach.astype(np.float64)
        zero: Any = float(1 << (self.bits - 1))
        if self.zero_points is not None:
            zero = self.zero_points.astype(np.float64)
        return np.maximum(zero - reach, 0.0), np.minimum(zero + reach, float(top))

    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points as packed (bits of padding not counted)."""
        total = self.codes.size * self.bits // 8 + self.scales.nbytes
        return total + (0 if self.zero_points is None else self.zero_points.nbytes)


def sqnr_db(reference: NDArray[Any], approximation: NDArray[Any]) -> float:
    """Signal-to-quantization-noise ratio 10·log10(Σ r² / Σ (r - a)²) in dB; inf if equal."""
    signal = float(np.sum(np.square(reference, dtype=np.float64)))
    noise = float(np.sum(np.square(np.subtract(reference, approximation, dtype=np.float64))))
    if noise == 0.0:
        return float("inf")
    return 10.0 * float(np.log10(signal / noise)) if signal else float("-inf")


def quantize_weight(
    weight: NDArray[Any],
    *,
    bits: int = 4,
    group_size: int = 128,
    symmetric: bool = True,
    search: Search = "none",
    importance: NDArray[Any] | None = None,
    progressive: bool = False,
) -> QuantizedWeight:
    """Quantize a K × N weight in groups along K.

    `search` "none" takes each group's range as it is (symmetric: max|w| / (2^(bits-1) - 1));
    "mse" tries shrunken ranges, and for symmetric groups the full-range variants
    ±max|w| / 2^(bits-1), and keeps the least squared error; "output" weights the error of
    channel k by `importance[k]` (E[x_k²], length K), which is the diagonal of the layer's
    output error. Scales are rounded to float16 before the codes are chosen, so the stored
    weight is exactly the one that was judged. Deterministic.

    `progressive` rounds the scales of 4-bit weights to 1 .. 16 times one number a column instead,
    so that (code - zero_point) · multiple is an int8 value, and sets `reach` to keep it one. 8-bit
    weights are what they are without it.

    ValueError for a weight that is not two-dimensional or finite, for bits other than 4 and 8, or
    for scales that float16 can't hold.
    """
    if weight.ndim != 2:
        raise ValueError(f"a weight has two dimensions, not {weight.ndim}")
    if bits not in (4, 8):
        raise ValueError(f"weights have 4 or 8 bits, not {bits}")
    rows, columns = weight.shape
    groups = -(-rows // group_size)
    codes = np.empty((rows, columns), np.uint8)
    scales = np.empty((groups, columns), np.float16)
    zeros = None if symmetric else np.empty((groups, columns), np.uint8)
    reach = np.empty((groups, columns), np.uint8) if progressive and bits == 4 else None
    error_weight = np.zeros((groups * group_size, 1), np.float32)
    error_weight[:rows] = 1.0
    if importance is not None and search == "output":
        # Normalised so that squared errors of tiny activations don't vanish in float32.
        error_weight[:rows, 0] = importance / max(float(np.mean(importance)), 1e-30)
    error_weight = error_weight.reshape(groups, group_size, 1)
    peak = 0.0
    step = max(1, _CHUNK // max(1, groups * group_size))
    for start in range(0, columns, step):
        block = np.zeros((groups * group_size, min(step, columns - start)), np.float32)
        block[:rows] = weight[:, start : start + step]
        if not np.isfinite(block).all():
            raise ValueError("the weight holds NaN or infinity")
        peak = max(peak, float(np.abs(block).max()))
        grouped = block.reshape(groups, group_size, -1)
        chosen = slice(start, start + block.shape[1])
        unit = units(block) if reach is not None else None
        with np.errstate(over="ignore", invalid="ignore"):  # such scales are refused below
            if symmetric:
                q, scale = _symmetric(grouped, bits, search, error_weight, _storable(unit))
            else:
                q, scale, zero = _asymmetric(grouped, bits, search, error_weight, _storable(unit))
                assert zeros is not None  # set above for every asymmetric scheme
                zeros[:, chosen] = zero[:, 0]
            if reach is not None and unit is not None:
                reach[:, chosen] = code_reach(scale[:, 0], unit)
        codes[:, chosen] = q.reshape(groups * group_size, -1)[:rows]
        scales[:, chosen] = scale[:, 0]
    if not np.isfinite(scales).all():
        raise ValueError("a group's scale is beyond float16 (weights larger than 4e5)")
    if 0.0 < peak < _COARSE * ((1 << bits) - 1):
        raise ValueError(f"no weight is above {peak:.0e}: too small for float16 scales")
    return QuantizedWeight(codes, scales, zeros, bits, group_size, reach)


def _storable(unit: Float | None) -> Callable[[Float], Float]:
    """What turns scales into those stored: float16, and multiples of `unit` [n] where given."""
    if unit is None:
        return _half
    return lambda scale: _half(snapped(scale, unit))


def _half(scale: Float) -> Float:
    """Scales as float16 can hold them; never zero, so that division is safe."""
    with np.errstate(over="ignore"):
        half = scale.astype(np.float16).astype(np.float32)
    return np.where(np.abs(half) < _SCALE_MIN, _SCALE_MIN, half)


def _symmetric(
    grouped: Float,
    bits: int,
    search: Search,
    error_weight: Float,
    storable: Callable[[Float], Float],
) -> tuple[NDArray[np.uint8], Float]:
    """Codes and storable scales of [G, group, n] weights around the middle code."""
    middle = 1 << (bits - 1)
    peak = np.abs(grouped).max(axis=1, keepdims=True)
    candidates = [peak / (middle - 1)]
    if search != "none":
        signed = np.where(grouped.max(axis=1, keepdims=True) >= peak, -1.0, 1.0)
        full = (signed * peak / middle).astype(np.float32)
        shrinks = np.arange(1.0, 0.69, -0.04) if bits == 4 else np.array([1.0, 0.95])
        candidates += [candidates[0] * np.float32(s) for s in shrinks[1:]]
        candidates += [full * np.float32(s) for s in shrinks]
    best_error: Float | None = None
    best_scale = storable(candidates[0])
    for candidate in candidates if len(candidates) > 1 else []:
        scale = storable(candidate)
        q = np.clip(np.rint(grouped / scale), -middle, middle - 1)
        error = np.sum(np.square(q * scale - grouped) * error_weight, axis=1, keepdims=True)
        if best_error is None:
            best_error = error
        else:
            better = error < best_error
            best_scale = np.where(better, scale, best_scale)
            best_error = np.where(better, error, best_error)
    q = np.clip(np.rint(grouped / best_scale), -middle, middle - 1)
    return (q + middle).astype(np.uint8), best_scale


def _asymmetric(
    grouped: Float,
    bits: int,
    search: Search,
    error_weight: Float,
    storable: Callable[[Float], Float],
) -> tuple[NDArray[np.uint8], Float, Float]:
    """Codes, storable scales and integer zero points of [G, group, n] weights."""
    top = (1 << bits) - 1
    low = np.minimum(grouped.min(axis=1, keepdims=True), 0.0)
    high = np.maximum(grouped.max(axis=1, keepdims=True), 0.0)
    candidates = [(low, high)]
    if search != "none":
        shrinks = np.arange(1.0, 0.75, -0.04) if bits == 4 else np.array([1.0, 0.95])
        candidates += [(low * np.float32(s), high * np.float32(s)) for s in shrinks[1:]]
        # One end only: an outlier sits on one side of its group.
        candidates += [(low * np.float32(s), high) for s in shrinks[1:]]
        candidates += [(low, high * np.float32(s)) for s in shrinks[1:]]
    best: tuple[Float, Float] | None = None
    best_error: Float | None = None
    for lower, upper in candidates:
        scale = storable((upper - lower) / top)
        zero = np.clip(np.rint(-lower / scale), 0, top)
        if len(candidates) == 1:
            best = (scale, zero)
            break
        q = np.clip(np.rint(grouped / scale) + zero, 0, top)
        error = np.sum(
            np.square((q - zero) * scale - grouped) * error_weight, axis=1, keepdims=True
        )
        if best is None or best_error is None:
            best, best_error = (scale, zero), error
        else:
            better = error < best_error
            best = (np.where(better, scale, best[0]), np.where(better, zero, best[1]))
            best_error = np.where(better, error, best_error)
    assert best is not None  # there is always at least one candidate
    scale, zero = best
    q = np.clip(np.rint(grouped / scale) + zero, 0, top)
    return q.astype(np.uint8), scale, zero
