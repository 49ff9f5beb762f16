"""GPTQ and GPTAQ: each rounding error is made up for by the weights not rounded yet.

Y = X · W, X [T, K] a layer's input over T calibration tokens, W [K, N]. Rounding channel k of W
leaves an error in Y; the channels behind k move so that as much of it as possible cancels. All that
is needed of X is its second moments, H = Xᵀ X. With H⁻¹ = Uᵀ U, U upper triangular, channel k in
turn is rounded, and with e = (w_k - ŵ_k) / U[k, k]

    W[k:] -= U[k, k:]ᵀ e                           GPTQ, arXiv 2210.17323

Where layers before have been quantized, X is not what the float model feeds the layer, X_f. With
D = (X_f - X)ᵀ X, asymmetric calibration also moves the channels behind k towards the float output:

    W[k:] += a P[k, k:]ᵀ w_k,  P = triu(D Uᵀ, 1) U      GPTAQ, arXiv 2504.02692

Row k of P is the least-squares answer of the channels behind k to X_f[:, k] - X[:, k]; `a` < 1
keeps it from fitting the calibration data. Scales are chosen before ("static groups") and are as
stored, so groups and the order of channels are independent.

Unlike the published method, the diagonal of H is dampened by a share of itself, not of its mean: a
few channels of large activations set the mean, and would drown what is known of the others.

Everything is float64 but the product of two float32 activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.formats import WeightFormat
from qcompiler.numerics.levels import nearest
from qcompiler.numerics.parallel import column_parts, for_each, mapped
from qcompiler.numerics.rounding import QuantizedWeight

Double = NDArray[np.float64]

BLOCK = 32
"""Channels whose updates reach the rest of the weight together, as one matrix product."""

_ROWS = 4096
_TRIANGLE = 128  # rows of a triangular matrix product taken together
_ATTEMPTS = 4  # dampening rises tenfold between them


@dataclass(frozen=True)
class Moments:
    """Second moments of a layer's input X over calibration tokens, against the float X_f."""

    hessian: Double
    """[K, K]: Xᵀ X."""
    drift: Double | None
    """[K, K]: (X_f - X)ᵀ X; None where X_f is not known."""
    spread: Double | None
    """[K, K]: (X_f - X)ᵀ (X_f - X)."""
    tokens: int
    _factors: dict[tuple[float, bool], tuple[NDArray[np.intp], Double]] = field(
        default_factory=dict, repr=False, compare=False
    )
    _pushes: dict[tuple[float, bool], Double] = field(
        default_factory=dict, repr=False, compare=False
    )

    def factor(self, dampening: float, act_order: bool) -> tuple[NDArray[np.intp], Double]:
        """The order of channels and the factor of the inverse in that order, computed once for all
        weights that read the input."""
        key = (dampening, act_order)
        if key not in self._factors:
            order = np.arange(len(self.hessian))
            hessian = self.hessian
            if act_order:
                order = np.argsort(-np.diagonal(hessian), kind="stable")
                hessian = hessian[np.ix_(order, order)]
            self._factors[key] = order, inverse_factor(hessian, dampening)
        return self._factors[key]

    def push(self, dampening: float, act_order: bool) -> Double:
        """P = triu(D Uᵀ, 1) U of GPTAQ in the order of `factor`, computed once too.

        ValueError where X_f is not known.
        """
        if self.drift is None:
            raise ValueError("asymmetric calibration needs the float model's inputs")
        key = (dampening, act_order)
        if key not in self._pushes:
            order, factor = self.factor(*key)
            drift = self.drift[np.ix_(order, order)]
            pushed = np.zeros_like(drift)

            def fill(start: int) -> None:
                rows = slice(start, start + _TRIANGLE)
                missed = np.triu(drift[rows, start:] @ factor[start:, start:].T, 1)
                pushed[rows, start:] = missed @ factor[start:, start:]

            for_each(fill, range(0, len(order), _TRIANGLE))
            self._pushes[key] = pushed
        return self._pushes[key]

    def uncompensated(self, dampening: float = 0.01) -> Double:
        """[K]: 1 / U[k, k]², what is left of an error in each channel, squared, in the output once
        the channels behind have made up for it, in the order that GPTQ takes them."""
        order, factor = self.factor(dampening, act_order=True)
        left = np.empty(len(order))
        left[order] = 1.0 / np.square(np.diagonal(factor))
        return left

    @property
    def mean_square(self) -> Double:
        """[K]: E[x_k²]."""
        return np.asarray(np.diagonal(self.hessian) / max(self.tokens, 1), np.float64)

    def grounded(self, share: float) -> Moments:
        """As if errors of any channel also cost by themselves: `share` of a mean channel's."""
        size = share * float(np.mean(np.diagonal(self.hessian)))
        hessian = self.hessian + size * np.eye(len(self.hessian))
        return Moments(hessian, self.drift, self.spread, self.tokens)

    def filled(self, tokens: int, whole: Moments | None) -> Moments:
        """The moments as if of so many tokens: those that are lacking are like the tokens of
        `whole`, or where it is None, like these with channels that have nothing to do with one
        another. The same where none are lacking, or there are fewer than channels all the same.
        """
        lacking = tokens - self.tokens
        known = self.tokens if whole is None else whole.tokens
        if lacking <= 0 or known < len(self.hessian):
            return self
        if whole is None:
            share = lacking / max(self.tokens, 1)
            hessian = self.hessian + share * np.diag(np.diagonal(self.hessian))
        else:
            hessian = self.hessian + lacking / max(whole.tokens, 1) * whole.hessian
        return Moments(hessian, None, None, tokens)


def moments(
    inputs: Iterable[NDArray[Any]], references: Iterable[NDArray[Any]] | None = None
) -> Moments:
    """Sum the second moments of `inputs` ([..., K] each), in order; `references` are X_f.

    Products are float32 over a few thousand rows, their sum float64. ValueError if anything is not
    finite or there is no input.
    """
    hessian: Double | None = None
    drift: Double | None = None
    spread: Double | None = None
    tokens = 0
    products = mapped(_products, _chunks(inputs, references), ahead=0)
    for count, square, drifted, spread_out in products:
        tokens += count
        hessian = _added(hessian, square)
        if drifted is not None and spread_out is not None:
            drift = _added(drift, drifted)
            spread = _added(spread, spread_out)
    if hessian is None:
        raise ValueError("there is no calibration data for its input")
    for total in (hessian, drift, spread):
        if total is not None and not np.isfinite(total).all():
            raise ValueError("its input is not finite on the calibration data")
    return Moments(hessian, drift, spread, tokens)


def _products(
    rows: tuple[NDArray[np.float32], NDArray[np.float32] | None],
) -> tuple[int, NDArray[Any], NDArray[Any] | None, NDArray[Any] | None]:
    """Number of rows, XᵀX, (X_f - X)ᵀX and (X_f - X)ᵀ(X_f - X) of some rows."""
    x, other = rows
    if other is None:
        return len(x), x.T @ x, None, None
    delta = np.subtract(other, x, out=other)  # both were put together for this
    return len(x), x.T @ x, delta.T @ x, delta.T @ delta


def _chunks(
    inputs: Iterable[NDArray[Any]], references: Iterable[NDArray[Any]] | None
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32] | None]]:
    """Rows of several arrays together: few large products are faster than many small ones."""
    others = iter(references) if references is not None else None
    held: list[NDArray[np.float32]] = []
    beside: list[NDArray[np.float32]] = []
    for each in inputs:
        held.append(np.asarray(each, np.float32).reshape(-1, each.shape[-1]))
        if others is not None:
            beside.append(np.asarray(next(others), np.float32).reshape(held[-1].shape))
        if sum(map(len, held)) >= _ROWS:
            yield np.concatenate(held), np.concatenate(beside) if beside else None
            held.clear()
            beside.clear()
    if held:
        yield np.concatenate(held), np.concatenate(beside) if beside else None


def _added(total: Double | None, part: NDArray[Any]) -> Double:
    return part.astype(np.float64) if total is None else np.add(total, part, out=total)


def gptq(
    weight: NDArray[Any],
    start: QuantizedWeight,
    statistics: Moments,
    *,
    dampening: float = 0.01,
    act_order: bool = True,
    alpha: float = 0.0,
) -> QuantizedWeight:
    """Choose the codes of `start`, whose scales and zero points stay, for the least output error.

    `weight` is the K × N original. The diagonal of H grows by the share `dampening`, or by more
    where H is singular all the same. `act_order` takes channels with the largest
    mean square first. `alpha` > 0 is GPTAQ and needs `statistics.drift`. Channels that are zero
    throughout the calibration data are rounded to nearest.

    ValueError for shapes that don't fit, weights that are not finite, or an H that no dampening
    makes positive definite.
    """
    rows, columns = start.codes.shape
    if weight.shape != (rows, columns) or statistics.hessian.shape != (rows, rows):
        raise ValueError(
            f"a weight of shape {weight.shape} has no codes of shape {start.codes.shape} and "
            f"moments of shape {statistics.hessian.shape}"
        )
    order, factor = statistics.factor(dampening, act_order)
    push = statistics.push(dampening, act_order) if alpha else None
    group = order // start.block
    codes = np.empty_like(start.codes)

    def choose(part: slice) -> None:
        values = weight[order, part].astype(np.float64)
        if not np.isfinite(values).all():
            raise ValueError("the weight holds NaN or infinity")
        if push is not None:  # by the weights as they were, so all at once
            values += alpha * (push.T @ values)
        codes[order, part] = _sweep(values, _Grid.of(start.columns(part), group), factor)

    for_each(choose, column_parts(rows, columns))
    return replace(start, codes=codes)


@dataclass(frozen=True)
class _Grid:
    """What codes stand for and how far they go, [G, n] each, and the group of each channel."""

    form: WeightFormat
    group: NDArray[np.intp]
    scales: Double
    zeros: Double
    least: Double
    greatest: Double

    @classmethod
    def of(cls, start: QuantizedWeight, group: NDArray[np.intp]) -> _Grid:
        scales = start.scales.astype(np.float64)
        if start.zero_points is None:
            zeros = np.broadcast_to(float(start.form.middle), scales.shape)
        else:
            zeros = start.zero_points.astype(np.float64)
        return cls(start.form, group, scales, zeros, *start.limits())

    def round(self, k: int, values: Double) -> tuple[Double, Double]:
        """Codes [n] for the values [n] of channel `k`, and what they stand for."""
        group = self.group[k]
        scales, zeros = self.scales[group], self.zeros[group]
        codes = values / scales + zeros
        codes = nearest(codes, self.least[group], self.greatest[group], self.form)
        return codes, (codes - zeros) * scales


def _sweep(values: Double, grid: _Grid, factor: Double) -> NDArray[np.uint8]:
    """Codes [K, n] of `values` [K, n], which are used up, channel by channel."""
    rows = len(values)
    codes = np.empty(values.shape, np.uint8)
    for start in range(0, rows, BLOCK):
        stop = min(start + BLOCK, rows)
        errors = np.empty((stop - start, values.shape[1]))
        for k in range(start, stop):
            codes[k], rounded = grid.round(k, values[k])
            error = (values[k] - rounded) / factor[k, k]
            errors[k - start] = error
            values[k + 1 : stop] -= np.multiply.outer(factor[k, k + 1 : stop], error)
        values[stop:] -= factor[start:stop, stop:].T @ errors
    return codes


def improved(
    weight: NDArray[Any],
    nearest: QuantizedWeight,
    statistics: Moments,
    choose: Callable[[], QuantizedWeight],
) -> tuple[QuantizedWeight, float, float]:
    """What `choose` gives, and the relative output errors of `nearest` and of that.

    ValueError with the reason where it can't be chosen from so little data, or is no better.
    """
    if statistics.tokens < len(weight):
        raise ValueError(
            f"{statistics.tokens} calibration tokens for {len(weight)} channels are too few"
        )
    chosen = choose()
    before, after = output_errors(weight, [nearest, chosen], statistics)
    if not after < before:
        raise ValueError("other codes give no smaller output error")
    return chosen, before, after


def inverse_factor(hessian: Double, dampening: float) -> Double:
    """U upper triangular with Uᵀ U = (H + dampening · diag(H))⁻¹, [K, K].

    A channel whose diagonal is zero is given a unit of its own. Dampening rises tenfold, three
    times at most, until the matrix is positive definite; then ValueError.
    """
    if not np.isfinite(hessian).all():
        raise ValueError("its input is not finite on the calibration data")
    diagonal = np.diagonal(hessian)
    alive = diagonal > 0.0
    # With unit diagonal: channels may be as far apart as float32 allows.
    size = np.sqrt(np.where(alive, diagonal, 1.0))
    normal = hessian / size / size[:, None]
    added = dampening
    for attempt in range(_ATTEMPTS):
        added = dampening * 10.0**attempt
        damped = normal.copy()
        damped[np.diag_indices_from(damped)] += np.where(alive, added, 1.0)
        try:
            # H = R Rᵀ with R upper triangular is Cholesky's with rows and columns reversed.
            lower = np.asarray(np.linalg.cholesky(damped[::-1, ::-1]), np.float64)
        except np.linalg.LinAlgError:
            continue
        return np.asarray(_upper_inverse(np.ascontiguousarray(lower[::-1, ::-1])) / size)
    raise ValueError(
        f"the second moments of its input are singular, even with a dampening of {added:g}; "
        "give more calibration data"
    )


def _upper_inverse(upper: Double) -> Double:
    """The inverse of an upper triangular matrix by halves, so that BLAS does the work."""
    size = len(upper)
    if size <= _TRIANGLE:
        return np.asarray(np.triu(np.linalg.inv(upper)), np.float64)
    half = size // 2
    result = np.zeros_like(upper)
    result[:half, :half] = _upper_inverse(upper[:half, :half])
    result[half:, half:] = _upper_inverse(upper[half:, half:])
    result[:half, half:] = -(result[:half, :half] @ upper[:half, half:]) @ result[half:, half:]
    return result


def output_errors(
    weight: NDArray[Any], candidates: Sequence[QuantizedWeight], statistics: Moments
) -> list[float]:
    """Relative errors of a layer's output over the calibration data, ‖X_f W - X Ŵ‖ / ‖X_f W‖.

    One for each Ŵ of `candidates`. Where X_f is not known, X takes its place. 0 where the output is
    zero.
    """
    hessian, drift, spread = statistics.hessian, statistics.drift, statistics.spread
    true = hessian
    if drift is not None and spread is not None:
        true = hessian + drift + drift.T + spread

    def energies(part: slice) -> list[float]:
        """Of the output, and of the error of each candidate."""
        w = np.asarray(weight[:, part], np.float64)
        found = [_inner(w, true @ w)]
        fixed, cross = 0.0, None
        if drift is not None and spread is not None:
            # X_f W - X Ŵ = (X_f - X) W + X (W - Ŵ): small terms only, so nothing cancels.
            fixed, cross = _inner(w, spread @ w), 2.0 * (drift.T @ w)
        for candidate in candidates:
            e = w - candidate.columns(part).dequantize()
            moved = hessian @ e
            if cross is not None:
                moved += cross
            found.append(fixed + _inner(e, moved))
        return found

    parts = mapped(energies, column_parts(*weight.shape))
    signal, *noise = np.sum(list(parts), axis=0)
    return [float(np.sqrt(max(each, 0.0) / signal)) if signal > 0.0 else 0.0 for each in noise]


def _inner(a: Double, b: Double) -> float:
    """Σ a·b; `b` is used up."""
    return float(np.sum(np.multiply(a, b, out=b)))
