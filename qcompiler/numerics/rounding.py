"""Group-wise weight quantization by rounding to nearest, with an optional search of the range.

A weight is a K × N matrix (input channels × output channels). Groups of `group_size`
consecutive input channels of one column share a scale, and a zero point where the format is
asymmetric: w ≈ (code - zero_point) · scale. The last group may be short. Scales are small multiples
of one number a column (`progressive`), or for 8 bits that number itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qcompiler.formats import WeightFormat
from qcompiler.numerics.levels import inward, nearest
from qcompiler.numerics.parallel import for_each
from qcompiler.numerics.progressive import LEAST, code_reach, snapped, units

Float = NDArray[np.float32]
Search = Literal["none", "mse", "output"]

_CHUNK = 1 << 18  # elements of a weight worked on at a time: several arrays of them fit a cache
_WIDE_SHRINKS = np.array([1.0, 0.95])
# One end may be clipped more than the other, since an outlier sits on one side of its group.
_ASIDE = (0.0, -0.06, 0.06, -0.12, 0.12)


@dataclass(frozen=True)
class QuantizedWeight:
    """Codes and scales of a K × N matrix in G = ceil(K / group_size) groups."""

    codes: NDArray[np.uint8]
    """[K, N], unsigned: 0 .. form.top, or the levels of a grid."""
    scales: Float
    """[G, N]; negative where a symmetric group spends its extra code on its positive extreme."""
    zero_points: NDArray[np.uint8] | None
    """[G, N]; None for a symmetric format, whose zero point is form.middle."""
    form: WeightFormat
    reach: NDArray[np.uint8] | None = None
    """[G, N]: how far a code may lie from its zero point; None: as far as its bits go."""

    @property
    def block(self) -> int:
        """Input channels of a group."""
        return self.form.block(len(self.codes))

    def spread(self, groups: NDArray[Any]) -> NDArray[Any]:
        """What is said of each group [G, n] for each of its channels [K, n]."""
        return np.repeat(groups, self.block, axis=0)[: len(self.codes)]

    def dequantize(self) -> Float:
        """The K × N matrix the codes stand for, float32."""
        zero: Any = np.float32(self.form.middle)
        if self.zero_points is not None:
            zero = self.spread(self.zero_points.astype(np.float32))
        return (self.codes.astype(np.float32) - zero) * self.spread(self.scales.astype(np.float32))

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
        top = float(self.form.top)
        if self.reach is None:
            shape = self.scales.shape
            return np.broadcast_to(0.0, shape), np.broadcast_to(top, shape)
        reach = self.reach.astype(np.float64)
        zero: Any = float(self.form.middle)
        if self.zero_points is not None:
            zero = self.zero_points.astype(np.float64)
        return inward(np.maximum(zero - reach, 0.0), np.minimum(zero + reach, top), self.form)

    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points as packed (bits of padding not counted)."""
        return self.form.nbytes(*self.codes.shape)


def joined(parts: Sequence[QuantizedWeight]) -> QuantizedWeight:
    """Weights [K, N_i] of one format side by side: [K, N_0 + N_1 + ..]."""
    zeros = [part.zero_points for part in parts if part.zero_points is not None]
    reach = [part.reach for part in parts if part.reach is not None]
    return QuantizedWeight(
        np.concatenate([part.codes for part in parts], axis=1),
        np.concatenate([part.scales for part in parts], axis=1),
        np.concatenate(zeros, axis=1) if zeros else None,
        parts[0].form,
        np.concatenate(reach, axis=1) if len(reach) == len(parts) else None,
    )


def sqnr_db(reference: NDArray[Any], approximation: NDArray[Any]) -> float:
    """Signal-to-quantization-noise ratio 10·log10(Σ r² / Σ (r - a)²) in dB; inf if equal."""
    signal = float(np.sum(np.square(reference, dtype=np.float64)))
    noise = float(np.sum(np.square(np.subtract(reference, approximation, dtype=np.float64))))
    return decibel(signal, noise)


def decibel(signal: float, noise: float) -> float:
    """The ratio of two energies in dB: inf without noise, else -inf without signal."""
    if noise == 0.0:
        return float("inf")
    ratio = signal / noise
    return 10.0 * float(np.log10(ratio)) if ratio else float("-inf")


def quantize_weight(
    weight: NDArray[Any],
    form: WeightFormat,
    *,
    search: Search = "none",
    importance: NDArray[Any] | None = None,
) -> QuantizedWeight:
    """Quantize a K × N weight in groups along K.

    `search` "none" takes each group's range as it is (symmetric: max|w| / (2^(bits-1) - 1));
    "mse" tries shrunken ranges, and for symmetric groups the full-range variants
    ±max|w| / 2^(bits-1), and keeps the least squared error; "output" weights the error of
    channel k by `importance[k]` (E[x_k²], length K), which is the diagonal of the layer's
    output error. Scales are rounded before the codes are chosen, so the stored weight is exactly
    the one that was judged: to small multiples of one number a column, so that
    (code - zero_point) · multiple is an int8 value in -127 .. 127, which `reach` keeps so.
    Deterministic.

    ValueError for a weight that is not two-dimensional or finite.
    """
    if weight.ndim != 2:
        raise ValueError(f"a weight has two dimensions, not {weight.ndim}")
    rows, columns = weight.shape
    groups, size = form.groups(rows), form.block(rows)
    made = _empty(rows, columns, form)
    error_weight = _error_weight(rows, form, importance if search == "output" else None)
    step = max(1, _CHUNK // max(1, groups * size))

    def fill(start: int) -> None:
        block = np.zeros((groups * size, min(step, columns - start)), np.float32)
        block[:rows] = weight[:, start : start + step]
        if not np.isfinite(block).all():
            raise ValueError("the weight holds NaN or infinity")
        part = made.columns(slice(start, start + block.shape[1]))
        _fill(part, block, search, error_weight)

    for_each(fill, range(0, columns, step))
    return made


def _empty(rows: int, columns: int, form: WeightFormat) -> QuantizedWeight:
    """A weight whose arrays are to be filled."""
    shape = (form.groups(rows), columns)
    return QuantizedWeight(
        np.empty((rows, columns), np.uint8),
        np.empty(shape, np.float32),
        None if form.symmetric else np.empty(shape, np.uint8),
        form,
        np.empty(shape, np.uint8),
    )


def _error_weight(rows: int, form: WeightFormat, importance: NDArray[Any] | None) -> Float:
    """How much the squared error of each channel counts, [G, group, 1]; nothing beyond `rows`."""
    groups, size = form.groups(rows), form.block(rows)
    counts = np.zeros((groups * size, 1), np.float32)
    counts[:rows] = 1.0
    if importance is not None:
        # Normalised so that squared errors of tiny activations don't vanish in float32.
        counts[:rows, 0] = importance / max(float(np.mean(importance)), 1e-30)
    return counts.reshape(groups, size, 1)


def _fill(part: QuantizedWeight, block: Float, search: Search, error_weight: Float) -> None:
    """Quantize `block`, some columns of a weight with the last group padded by zeros."""
    form, rows = part.form, part.codes.shape[0]
    grouped = block.reshape(part.scales.shape[0], form.block(rows), -1)
    unit = units(block, form) if form.narrow else None
    storable = _storable(unit, form)
    with np.errstate(over="ignore", invalid="ignore"):  # squares of huge weights
        if part.zero_points is None:
            q, scale = _symmetric(grouped, form, search, error_weight, storable)
        else:
            q, scale, zero = _asymmetric(grouped, form, search, error_weight, storable)
            part.zero_points[:] = zero[:, 0]
    if part.reach is not None:
        part.reach[:] = code_reach(scale[:, 0], scale[:, 0] if unit is None else unit)
    part.codes[:] = q.reshape(len(block), -1)[:rows]
    part.scales[:] = scale[:, 0]


def _storable(unit: Float | None, form: WeightFormat) -> Callable[[Float], Float]:
    """What turns scales into those stored: multiples of `unit` [n] where given, else any normal
    float32, and 1 for zeros."""
    if unit is not None:
        return lambda scale: snapped(scale, unit, form)
    return lambda scale: np.where(scale > 0.0, np.maximum(scale, LEAST), np.float32(1.0))


def _symmetric(
    grouped: Float,
    form: WeightFormat,
    search: Search,
    error_weight: Float,
    storable: Callable[[Float], Float],
) -> tuple[NDArray[np.uint8], Float]:
    """Codes and storable scales of [G, group, n] weights around the middle code."""
    middle = form.middle
    least = -middle if form.narrow else 1 - middle  # -128 is no weight of the integer form
    peak = np.abs(grouped).max(axis=1, keepdims=True)
    candidates = [peak / (middle - 1)]
    if search != "none" and not form.narrow:
        candidates += [candidates[0] * np.float32(s) for s in _WIDE_SHRINKS[1:]]
    elif search != "none":
        signed = np.where(grouped.max(axis=1, keepdims=True) >= peak, -1.0, 1.0)
        full = (signed * peak / middle).astype(np.float32)
        shrinks = np.arange(1.0, 0.69, -0.04)
        candidates += [candidates[0] * np.float32(s) for s in shrinks[1:]]
        candidates += [full * np.float32(s) for s in shrinks]
    best_error: Float | None = None
    best_scale = storable(candidates[0])
    for candidate in candidates if len(candidates) > 1 else []:
        scale = storable(candidate)
        q = np.clip(np.rint(grouped / scale), least, middle - 1)
        error = _error(q, scale, grouped, error_weight)
        if best_error is None:
            best_error = error
        else:
            better = error < best_error
            best_scale = np.where(better, scale, best_scale)
            best_error = np.where(better, error, best_error)
    q = np.clip(np.rint(grouped / best_scale), least, middle - 1)
    return (q + middle).astype(np.uint8), best_scale


def _asymmetric(
    grouped: Float,
    form: WeightFormat,
    search: Search,
    error_weight: Float,
    storable: Callable[[Float], Float],
) -> tuple[NDArray[np.uint8], Float, Float]:
    """Codes, storable scales and integer zero points of [G, group, n] weights."""
    low = np.minimum(grouped.min(axis=1, keepdims=True), 0.0)
    high = np.maximum(grouped.max(axis=1, keepdims=True), 0.0)
    best: tuple[Float, Float] | None = None
    best_error: Float | None = None
    candidates = list(_ranges(low, high, form, search, storable))
    for scale, zero in candidates if len(candidates) > 1 else []:
        q = _codes(grouped, scale, zero, form)
        q -= zero
        error = _error(q, scale, grouped, error_weight)
        if best is None or best_error is None:
            best, best_error = (scale, zero), error
        else:
            better = error < best_error
            best = (np.where(better, scale, best[0]), np.where(better, zero, best[1]))
            best_error = np.where(better, error, best_error)
    scale, zero = best or candidates[0]
    codes = _codes(grouped, scale, zero, form)
    if form.grid is None:
        shift = _to_the_middle(codes, zero, form)
        codes += shift
        zero = zero + shift
    return codes.astype(np.uint8), scale, zero


def _to_the_middle(codes: Float, zero: Float, form: WeightFormat) -> Float:
    """How far codes and zero points [G, 1, n] can go together, the weights being the same, to leave
    as much room above as below: codes that make up for errors of others need it."""
    room = form.top - codes.max(axis=1, keepdims=True) - codes.min(axis=1, keepdims=True)
    return np.clip(np.trunc(room / 2), -zero, form.top - zero)


def _codes(grouped: Float, scale: Float, zero: Float, form: WeightFormat) -> Float:
    values = grouped / scale
    values += zero
    return nearest(values, 0, form.top, form)


def _error(steps: Float, scale: Float, grouped: Float, error_weight: Float) -> Float:
    """The weighted squared error of each group [G, 1, n] of `steps` times `scale`; `steps` are used
    up."""
    steps *= scale
    steps -= grouped
    steps *= steps
    steps *= error_weight
    return np.asarray(np.sum(steps, axis=1, keepdims=True), np.float32)


def _ranges(
    low: Float,
    high: Float,
    form: WeightFormat,
    search: Search,
    storable: Callable[[Float], Float],
) -> Iterator[tuple[Float, Float]]:
    """Storable scales and zero points [G, 1, n] to try, for ranges from `low` to `high`.

    First the range as it is. With a search, also about every zero point that may do, each with the
    scale that just holds the range, and with smaller ones.
    """
    top, zeros = form.top, form.zeros
    whole = -low / np.maximum(high - low, np.finfo(np.float32).tiny)
    if form.grid is None:
        scale = storable(np.asarray((high - low) / top, np.float32))
        yield scale, np.clip(np.rint(-low / scale), 0, top)
    else:  # what is zero stays so, where a grid has a zero
        exact = [zero for zero in zeros if zero in form.levels] or list(zeros)
        options = np.asarray(exact, np.float32)
        zero = options[np.abs(whole[..., None] * top - options).argmin(axis=-1)]
        yield storable(_holding(low, high, zero, top)), zero
    if search == "none":
        return
    if form.bits < 4:
        tried: Iterable[Any] = (np.full_like(low, zero) for zero in zeros)
    else:
        aside = np.rint(np.multiply(_ASIDE if form.narrow else (0.0,), top))
        tried = (np.clip(np.rint(whole * top) + each, zeros[0], zeros[-1]) for each in aside)
    for zero in tried:
        scale = _holding(low, high, zero, top)
        for shrink in _shrinks(form):
            yield storable(scale * np.float32(shrink)), zero


def _holding(low: Float, high: Float, zero: Float, top: int) -> Float:
    """The scale that holds a range from `low` to `high`, or the one end that the zero point is not
    at."""
    below = -low / np.where(zero > 0, zero, np.inf)
    above = high / np.where(zero < top, top - zero, np.inf)
    return np.asarray(np.maximum(below, above), np.float32)


def _shrinks(form: WeightFormat) -> NDArray[Any]:
    """Shares of a range to try. Few codes are better off with much less than all of it."""
    if not form.narrow:
        return np.array([1.0, 0.95])
    return np.arange(1.0, 0.59 if form.bits < 4 else 0.74, -0.05)
